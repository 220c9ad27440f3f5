"""A cluster on the lab's nodes, driven as an operator drives it: through ansible-playbook."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from fixtures import LiveLab

ROOT = Path(__file__).resolve().parents[2]
# Of what a run says, what shows that it gets on: its tasks, and the progress of long ones.
SHOWN = ("TASK [", "    node")
KEY = "a-key-that-no-output-may-show"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


class Run:
    """What one run of a playbook said."""

    def __init__(self, rc: int, output: str) -> None:
        self.rc = rc
        self.output = output
        #: node -> number of changed tasks
        self.changed = {host: int(changed) for host, _ok, changed, _u, _f in RECAP.findall(output)}

    def succeeded(self) -> Run:
        """Assert that the run ended well; the message is the end of its output."""
        assert self.rc == 0, self.output[-6000:]
        return self

    def failed(self) -> Run:
        """Assert that the run was refused."""
        assert self.rc != 0, self.output[-6000:]
        return self


class Cluster:
    """The declared state of one cluster and the means to bring the lab to it."""

    def __init__(self, live: LiveLab, work: Path, model: Path) -> None:
        self.lab = live
        self.work = work
        self.model = model
        self.variables: dict[str, Any] = {
            "llamacpp_release": "b11434",
            "llamacpp_source": {"kind": "pypi"},
            "llamacpp_builders_group": "oldest",
            "llamacpp_plan_path": str(work / "plan.json"),
            "llamacpp_instances": [self.instance("demo", ["node1", "node2", "node3"], api_keys=[KEY])],
        }
        groups = {"oldest": {"hosts": {"node2": None}}}
        (work / "groups.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")

    def instance(self, name: str, nodes: list[str], **settings: Any) -> dict[str, Any]:
        """Declare an instance of the small model."""
        return {
            "name": name,
            "model": {"path": str(self.model)},
            "nodes": nodes,
            "context": 512,
            "parallel": 1,
            **settings,
        }

    def command(self, playbook: str, *arguments: str, **changes: Any) -> list[str]:
        """The command line of a run; ``changes`` replace variables for this run alone."""
        variables = {**copy.deepcopy(self.variables), **changes}
        file = self.work / "variables.json"
        file.write_text(json.dumps(variables), encoding="utf-8")
        return [
            str(ROOT / ".venv" / "bin" / "ansible-playbook"),
            f"--inventory={self.lab.inventory}",
            *(f"--inventory={path}" for path in sorted(self.work.glob("*.yml"))),
            f"--extra-vars=@{file}",
            str(ROOT / "playbooks" / f"{playbook}.yml"),
            *arguments,
        ]

    def run(self, playbook: str, *arguments: str, **changes: Any) -> Run:
        """Run a playbook to its end; its tasks and their progress pass through."""
        lines = []
        with subprocess.Popen(
            self.command(playbook, *arguments, **changes),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_NOCOLOR": "1"},
        ) as process:
            assert process.stdout
            for line in process.stdout:
                lines.append(line)
                if line.startswith(SHOWN):
                    print(line.rstrip()[:120], flush=True)
        return Run(process.returncode, "".join(lines))

    def run_killed_after(self, seconds: float, playbook: str, marker: str, **changes: Any) -> bool:
        """Kill a run with SIGKILL ``seconds`` after it printed ``marker``; tell whether it was still running."""
        with subprocess.Popen(
            self.command(playbook, **changes),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"},
        ) as process:
            assert process.stdout
            for line in process.stdout:
                if marker in line:
                    time.sleep(seconds)
                    break
            alive = process.poll() is None
            if alive:
                os.killpg(process.pid, signal.SIGKILL)
        return alive

    def site(self, *arguments: str, **changes: Any) -> Run:
        """Run site.yml."""
        return self.run("site", *arguments, **changes)

    @property
    def plan(self) -> dict[str, Any]:
        """The plan of the last run."""
        loaded: dict[str, Any] = json.loads((self.work / "plan.json").read_text(encoding="utf-8"))
        return loaded

    def planned(self, name: str) -> dict[str, Any]:
        """An instance of the last plan."""
        return next(instance for instance in self.plan["instances"] if instance["name"] == name)

    def invocations(self) -> dict[str, str]:
        """Node/unit -> systemd's invocation id, for all services of the collection: equal ids mean untouched."""
        found = {}
        for node in ("node1", "node2", "node3", "node4"):
            listed = self.shell(node, "systemctl list-units --all --plain --no-legend 'llamacpp-*.service'")
            for line in listed.splitlines():
                unit = line.split()[0]
                found[f"{node}/{unit}"] = self.shell(
                    node, f"systemctl show --value --property InvocationID {unit}"
                ).strip()
        return found

    def shell(self, node: str, script: str) -> str:
        """Run a shell script as root on a node; return its output, fail when it fails."""
        return str(self.lab.ssh(node, ["sudo", "sh", "-c", shlex.quote(script)]).stdout)

    def ask(self, name: str, path: str, body: Any = None, key: str | None = KEY) -> tuple[int, Any]:
        """Ask an instance over the management network; return status (0: no connection) and answer."""
        planned = self.planned(name)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        url = f"http://{self.lab.address(planned['head'])}:{planned['port']}{path}"
        question = urllib.request.Request(url, data=json.dumps(body).encode() if body else None, headers=headers)
        try:
            with urllib.request.urlopen(question, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None
        except OSError:
            return 0, None

    def chat(self, name: str, key: str | None = KEY) -> str:
        """Ask for eight tokens and return them."""
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        status, answer = self.ask(name, "/v1/chat/completions", body, key)
        assert status == 200, status
        return str(answer["choices"][0]["message"]["content"])

    def until(self, what: str, check: Any, seconds: float = 60.0) -> None:
        """Wait until ``check()`` is true."""
        end = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what}"
            time.sleep(0.5)
