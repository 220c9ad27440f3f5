"""The lab ``bench`` and the cluster that the benchmark declares on it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from llamalab.supervise import hierarchies
from runs import BIN, ROOT, Run, RunFailed, output, run

LABCTL = ROOT / "tests" / "lab" / "labctl.py"
NAME = "bench"
MODEL = ROOT / ".cache" / "bench" / "model.gguf"
MODEL_SIZE = ("--megabytes=20", "--layers=12")  # little to load: what is measured is Ansible and the collection
# The release of the demo, so that whichever of the two comes first builds it for both.
DEMO_VARIABLES = (ROOT / "group_vars" / "all.yml", ROOT / "inventories" / "lab" / "group_vars" / "all" / "20_lab.yml")
NODES_AN_INSTANCE = 3
ROLE_VARIABLES = ROOT / "collections/ansible_collections/llamacpp/cluster/roles/llama_cpp/vars/main.yml"


class BenchLab:
    """A lab for the length of a ``with`` block; ``keep`` uses the one that is there and leaves it there.

    Whatever happens to this process, the lab's watchdog takes a lab down that is not kept.
    """

    def __init__(self, *, keep: bool, say: Callable[[str], None]) -> None:
        self.keep = keep
        self.say = say
        self.nodes = 0
        self._inventory = ""
        self._directory = tempfile.TemporaryDirectory(prefix="bench-")
        self.work = Path(self._directory.name)
        self._key = secrets.token_urlsafe(24)
        self.release: dict[str, Any] = {}  # llamacpp_release and llamacpp_source, as the demo has them

    def __enter__(self) -> BenchLab:
        declared: dict[str, Any] = {}
        for path in DEMO_VARIABLES:
            declared.update(yaml.safe_load(path.read_text("utf-8")))
        self.release = {name: declared[name] for name in ("llamacpp_release", "llamacpp_source")}
        if not self.keep:
            self._labctl("down")
        self._checked([str(BIN / "python"), "demo/make_model.py", str(MODEL), *MODEL_SIZE])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_connections()
        self._directory.cleanup()
        if self.keep:
            self.say(f"the lab stays; remove it with: tests/lab/labctl.py --name {NAME} down")
        else:
            self._labctl("down")

    def up(self, nodes: int) -> None:
        """Bring the lab to that many nodes. Raises RunFailed."""
        owner = [] if self.keep else [f"--owner-pid={os.getpid()}"]
        self._inventory = self._labctl("up", f"--nodes={nodes}", *owner)["inventory"]
        self.nodes = nodes

    def fresh(self, nodes: int) -> None:
        """Bring up that many nodes that have nothing yet. Raises RunFailed."""
        self._close_connections()
        self._labctl("down")
        self.up(nodes)

    def site(self, *more: str) -> Run:
        """Run site.yml: one instance for every three nodes, and instances of the names ``more`` on the first three."""
        groups = [self._node_names(first) for first in range(1, self.nodes + 1, NODES_AN_INSTANCE)]
        instances = [self._instance(f"bench{number}", nodes) for number, nodes in enumerate(groups, start=1)]
        instances += [self._instance(name, groups[0]) for name in more]
        return self._playbook("site", {"llamacpp_instances": instances})

    def playbook(self, name: str, variables: dict[str, Any]) -> Run:
        """Run a playbook with these variables and one instance, on the first node."""
        return self._playbook(name, {"llamacpp_instances": [self._instance("bench", ["node1"])], **variables})

    def module(self, node: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run a module on a node, as root, or on ``localhost``; return its result. Raises RunFailed."""
        words = [node, f"--module-name={name}", *([f"--args={json.dumps(arguments)}"] if arguments else [])]
        if node == "localhost":
            words.append(f"--extra-vars=ansible_python_interpreter={BIN / 'python'}")
        else:
            words.append("--become")
        environment = {**self._environment(), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        text = output(["ansible", f"--inventory={self._inventory}", *words], environment)
        # "node1 | CHANGED => {...}"
        result: dict[str, Any] = json.loads(text.partition("=>")[2])
        return result

    def build_packages(self) -> list[str]:
        """Names of the packages that a Debian node needs to compile: the role's, and the distribution's compiler."""
        declared = yaml.safe_load(ROLE_VARIABLES.read_text("utf-8"))
        return [*declared["__llama_cpp_packages"]["debian"]["build"], "g++"]

    def _playbook(self, name: str, variables: dict[str, Any]) -> Run:
        file = self.work / "variables.json"
        file.touch(mode=0o600)  # there is an API key in it
        whole = {**self.release, "llamacpp_plan_path": str(self.work / "plan.json"), **variables}
        file.write_text(json.dumps(whole), "utf-8")
        return self._ansible("ansible-playbook", f"--extra-vars=@{file}", f"playbooks/{name}.yml")

    def setup(self) -> Run:
        """Gather all facts of all nodes: the yardstick."""
        return self._ansible("ansible", "all", "--module-name=ansible.builtin.setup")

    def setting(self, name: str) -> Any:
        """The value of one of Ansible's settings, as a run here would have it."""
        command = [str(BIN / "ansible-config"), "dump", "--format=json"]
        answer = subprocess.run(command, cwd=ROOT, env=self._environment(), stdout=subprocess.PIPE, check=True)
        return next(entry["value"] for entry in json.loads(answer.stdout) if entry.get("name") == name)

    def _instance(self, name: str, nodes: Sequence[str]) -> dict[str, Any]:
        return {
            "name": name,
            "model": {"path": str(MODEL)},
            "nodes": list(nodes),
            "context": 512,
            "parallel": 1,
            "api_keys": [self._key],
        }

    def _node_names(self, first: int) -> list[str]:
        return [f"node{number}" for number in range(first, min(first + NODES_AN_INSTANCE, self.nodes + 1))]

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
            # Connections of our own, which end with us.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.work / "cp"),
        }

    def _ansible(self, command: str, *arguments: str) -> Run:
        before = self._nodes_cpu()
        done = run([command, f"--inventory={self._inventory}", *arguments], self._environment(), self.say)
        return replace(done, nodes_cpu=self._nodes_cpu() - before)

    def _nodes_cpu(self) -> float:
        """Processor seconds that all nodes together have used since they booted. Raises RunFailed."""
        root = hierarchies()[0]
        # Where the lab puts its nodes: without systemd as PID 1, and with it.
        found = [*root.glob(f"lclab/lclab-{NAME}-*/cpu.stat"), *root.glob(f"*.slice/lclab-{NAME}-*.service/cpu.stat")]
        if len(found) < self.nodes:
            raise RunFailed(f"{len(found)} control groups below {root} for {self.nodes} nodes")
        return sum(int(path.read_text("ascii").split()[1]) for path in found) / 1e6

    def _close_connections(self) -> None:
        for socket in (self.work / "cp").glob("*"):
            command = ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "bench"]
            # One that has just ended by itself is as good.
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def _labctl(self, *words: str) -> dict[str, Any]:
        answer = self._checked([sys.executable, str(LABCTL), "--name", NAME, *words, "--json"])
        result: dict[str, Any] = json.loads(answer)
        return result

    def _checked(self, command: Sequence[str]) -> str:
        """Run a command that says on stderr how far it is; return its stdout. Raises RunFailed."""
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise RunFailed(f"{' '.join(command)} ended with {done.returncode}; the message is above")
        return done.stdout
