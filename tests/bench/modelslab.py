"""The lab ``bench`` for models: links as narrow as they shall be, and runs on the first so many nodes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchlab import LABCTL, NAME, BenchLab
from llamalab.names import Lab, rate_bits
from runs import BIN, ROOT, Run, Span

POSIX = ROOT / ".cache" / "bench" / "synchronize"  # where the package `ansible` goes, which has ansible.posix


class ModelsLab(BenchLab):
    """The lab, with groups `first1`, `first2`, ... of its nodes, and links that can be shaped."""

    def play(self, playbook: Path, variables: dict[str, Any]) -> Run:
        """Run a playbook with these variables and those of the release. Raises RunFailed."""
        file, groups = self.work / "variables.json", self.work / "groups.json"
        names = [f"node{number}" for number in range(1, self.nodes + 1)]
        found: dict[str, Any] = {
            f"first{count}": {"hosts": dict.fromkeys(names[:count])} for count in range(1, self.nodes + 1)
        }
        # Where ansible.posix.synchronize runs; it looks here for its Python.
        here = {"ansible_connection": "local", "ansible_python_interpreter": str(BIN / "python")}
        found["control"] = {"hosts": {"localhost": here}}
        groups.write_text(json.dumps(found), "utf-8")
        whole = {**self.release, "llamacpp_plan_path": str(self.work / "plan.json"), **variables}
        file.write_text(json.dumps(whole), "utf-8")
        return self._ansible("ansible-playbook", f"--inventory={groups}", f"--extra-vars=@{file}", str(playbook))

    def task(self, group: str, name: str, module: str, arguments: dict[str, Any]) -> Span:
        """Run a play of one task; return what went into it. Raises RunFailed."""
        # Not a file of this repository: what checks those does not know every collection.
        task = {"name": name, module: arguments}
        play = {"name": "A task", "hosts": group, "gather_facts": False, "become": True, "tasks": [task]}
        file = self.work / "task.yml"
        file.write_text(json.dumps([play]), "utf-8")
        return self.play(file, {}).spans[name]

    def on(self, nodes: str, module: str, arguments: dict[str, Any]) -> None:
        """Run a module as root on nodes by pattern. Raises RunFailed."""
        words = [f"--module-name={module}", f"--args={json.dumps(arguments)}", "--become"]
        self._ansible("ansible", nodes, *words)

    def shell(self, node: str, script: str) -> str:
        """Run a shell script as root in a node; return what it prints. Raises RunFailed."""
        return self._checked([sys.executable, str(LABCTL), "--name", NAME, "exec", node, "--", "sh", "-ec", script])

    def shape(self, rate: str, *networks: str) -> None:
        """Limit the nodes' links, and with `management` that of the control machine."""
        for network in networks:
            self._labctl("shape", "--rate", rate, "--network", network)
        if "management" not in networks:
            return
        change = ["tc", "qdisc", "replace", "dev", Lab(NAME).host_link("management"), "root", "tbf"]
        # As the lab shapes the links of nodes.
        change += ["rate", rate, "burst", str(max(16 * 1024, rate_bits(rate) // 8 // 200)), "latency", "50ms"]
        self._checked(change if os.geteuid() == 0 else ["sudo", *change])

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), "ANSIBLE_COLLECTIONS_PATH": f"{ROOT / 'collections'}:{POSIX}"}
