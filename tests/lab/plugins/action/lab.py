"""The task ``lab``: runs tests/lab/labctl.py and shows its progress while it works.

A module could not do that: Ansible shows a module's output when it has ended. Its documentation
is beside it in ../modules/lab.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

LABCTL = Path(__file__).resolve().parents[2] / "labctl.py"

display = Display()


def command(arguments: dict[str, Any], *, check: bool) -> list[str]:
    """labctl's command line for validated task arguments."""
    argv = [sys.executable, str(LABCTL), "--name", arguments["name"], arguments["state"], "--json"]
    if check:
        argv.append("--check")
    if arguments["state"] == "up":
        argv += ["--nodes", str(arguments["nodes"])]
        for node, suite in sorted(arguments["suites"].items()):
            argv += ["--suite", f"{node}={suite}"]
        if arguments["owner_pid"] is not None:
            argv += ["--owner-pid", str(arguments["owner_pid"])]
    return argv


class ActionModule(ActionBase):
    """See ../modules/lab.py."""

    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run labctl on the control node and return its JSON."""
        super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(
            argument_spec={
                "name": {"type": "str", "default": "lab"},
                "state": {"type": "str", "choices": ["up", "down"], "default": "up"},
                "nodes": {"type": "int", "default": 3},
                "suites": {"type": "dict", "default": {}},
                "owner_pid": {"type": "int"},
            }
        )
        argv = command(arguments, check=self._task.check_mode)
        errors: list[str] = []
        with subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None  # PIPE above
            assert process.stderr is not None
            progress = threading.Thread(target=self._pass_on, args=(process.stderr, errors))
            progress.start()
            output = process.stdout.read()
            progress.join()
        if process.returncode != 0:
            raise AnsibleActionFail("\n".join(errors) or f"labctl ended with {process.returncode}")
        result: dict[str, Any] = json.loads(output)
        return result

    @staticmethod
    def _pass_on(stream: Any, errors: list[str]) -> None:
        """Show labctl's progress as it comes and keep its error messages."""
        for line in stream:
            if line.startswith("lab: "):
                display.display(line.rstrip())
            else:
                errors.append(line.rstrip().removeprefix("labctl: "))
