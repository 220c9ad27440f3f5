"""Running one role or a few tasks on a lab's nodes, as a playbook would."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from driver import ROOT, Run
from fixtures import LiveLab


def run_role(live: LiveLab, work: Path, role: str, *arguments: str, tasks_from: str = "main", **variables: Any) -> Run:
    """Run a role on all nodes of a lab, with ``variables`` and further ``arguments`` of ansible-playbook."""
    task = {"ansible.builtin.import_role": {"name": f"llamacpp.cluster.{role}", "tasks_from": tasks_from}}
    return run_tasks(live, work, [task], *arguments, **variables)


def run_tasks(live: LiveLab, work: Path, tasks: list[dict[str, Any]], *arguments: str, **variables: Any) -> Run:
    """Run tasks as root on all nodes of a lab."""
    play = {"name": "Run tasks", "hosts": "all", "gather_facts": False, "become": True, "tasks": tasks}
    playbook = work / "tasks.yml"
    playbook.write_text(json.dumps([play]), encoding="utf-8")  # JSON is YAML
    command = [
        str(ROOT / ".venv" / "bin" / "ansible-playbook"),
        f"--inventory={live.inventory}",
        f"--extra-vars={json.dumps({'llamacpp_cache': str(work / 'cache'), **variables})}",
        str(playbook),
        *arguments,
    ]
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return Run(done.returncode, done.stdout + done.stderr)
