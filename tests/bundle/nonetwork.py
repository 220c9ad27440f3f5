"""A control node without a network: a network namespace that reaches the lab's nodes and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from driver import ROOT, Run
from fixtures import LiveLab

NAMESPACE = "lclab-bundle-control"
PORT = "ctl"
# Beyond the nodes' addresses, which end at .210.
HOST_NUMBER = 250
# What a process needs of the environment; nothing that would tell it of proxies or package indexes.
KEPT = ("LANG", "TERM", "USER")


def as_root(argv: list[str]) -> list[str]:
    """``argv``, through sudo where that is needed."""
    return argv if os.geteuid() == 0 else ["sudo", *argv]


def make_namespace(lab: LiveLab) -> None:
    """Connect a namespace to the lab's management network; one that is left over is replaced."""
    remove_namespace()
    address = f"{lab.lab.prefix('management')}.{HOST_NUMBER}/24"
    switch = ["ip", "-n", lab.lab.switch_namespace]
    for argv in (
        ["ip", "netns", "add", NAMESPACE],
        [*switch, "link", "add", PORT, "type", "veth", "peer", "name", "mgmt0", "netns", NAMESPACE],
        [*switch, "link", "set", PORT, "master", "mgmt", "up"],
        ["ip", "-n", NAMESPACE, "addr", "add", address, "dev", "mgmt0"],
        ["ip", "-n", NAMESPACE, "link", "set", "mgmt0", "up"],
        ["ip", "-n", NAMESPACE, "link", "set", "lo", "up"],
    ):
        subprocess.run(as_root(argv), check=True)


def remove_namespace() -> None:
    """Remove the namespace, and with it its cable."""
    if Path("/run/netns", NAMESPACE).exists():
        subprocess.run(as_root(["ip", "netns", "delete", NAMESPACE]), check=True)


class Control:
    """The machine that runs playbooks, with a home and a Python of its own."""

    def __init__(self, home: Path, lab: LiveLab) -> None:
        self.home = home
        self.lab = lab
        self.venv = home / "venv"

    def command(self, argv: list[str]) -> list[str]:
        """The command line that runs ``argv`` there: no route out, and nothing of our environment."""
        environment = {
            **{name: os.environ[name] for name in KEPT if name in os.environ},
            "HOME": str(self.home),
            "PATH": f"{self.venv}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PIP_CONFIG_FILE": os.devnull,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            # Connections that outlived the run would keep the namespace alive.
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o PreferredAuthentications=publickey",
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        return as_root(["ip", "netns", "exec", NAMESPACE, "env", "-i", *words, *argv])

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        return subprocess.run(
            self.command(argv), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def playbook(self, name: str, variables: Path, *arguments: str) -> Run:
        """Run a playbook there."""
        done = self.run(["ansible-playbook", *playbook_words(self.lab, name, variables), *arguments])
        return Run(done.returncode, done.stdout + done.stderr)


class Site:
    """One declared cluster, with what two control nodes know of it."""

    def __init__(self, work: Path, lab: LiveLab, control: Control) -> None:
        self.work = work
        self.lab = lab
        self.control = control
        self.model = work / "models" / "small.gguf"
        self.bundle = work / "site.bundle.tar"

    def variables(self, cache: str, **changes: Any) -> Path:
        """A file with the variables of a run; ``cache``: name of the control node's cache."""
        instance = {
            "name": "demo",
            "model": {"path": str(self.model)},
            "nodes": ["node1"],
            "context": 512,
            "parallel": 1,
        }
        variables = {
            "llamacpp_release": "b11434",
            "llamacpp_source": {"kind": "pypi"},
            "llamacpp_backend": "cpu",
            "llamacpp_web_ui": False,
            "llamacpp_builders_group": "llamacpp_nodes",
            "llamacpp_instances": [instance],
            "llamacpp_plan_path": str(self.work / "plan.json"),
            "llamacpp_cache": str(self.work / cache),
            "llamacpp_bundle": str(self.bundle),
            **changes,
        }
        path = self.work / "variables.json"
        path.write_text(json.dumps(variables), encoding="utf-8")
        return path

    def offline(self, playbook: str = "site", *arguments: str, **changes: Any) -> Run:
        """Run a playbook on the control node without a network."""
        return self.control.playbook(playbook, self.variables("offline", **changes), *arguments)

    def fresh_node(self) -> None:
        """A node that nobody has touched, without a package source and without a way to one."""
        self.lab.down()
        self.lab.up(1, f"--owner-pid={os.getpid()}")
        remove = "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d/90lab"
        self.lab.root("node1", ["sh", "-c", f"{remove}; mkdir /etc/apt/sources.list.d; ip route delete 10.212.0.1/32"])


def playbook_words(lab: LiveLab, name: str, variables: Path) -> list[str]:
    """What follows ansible-playbook on the command line."""
    return [f"--inventory={lab.inventory}", f"--extra-vars=@{variables}", str(ROOT / "playbooks" / f"{name}.yml")]


def online_playbook(lab: LiveLab, name: str, variables: Path, **environment: Any) -> Run:
    """Run a playbook on this machine as it is."""
    done = subprocess.run(
        [str(ROOT / ".venv" / "bin" / "ansible-playbook"), *playbook_words(lab, name, variables)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", **environment},
    )
    return Run(done.returncode, done.stdout + done.stderr)


def make_venv(control: Control, wheels: Path, requirements: list[str]) -> subprocess.CompletedProcess[str]:
    """Make the control node's Python from wheels alone, there."""
    subprocess.run([sys.executable, "-m", "venv", str(control.venv)], check=True)
    pip = [str(control.venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    return control.run([*pip, "--no-index", f"--find-links={wheels}", *requirements])
