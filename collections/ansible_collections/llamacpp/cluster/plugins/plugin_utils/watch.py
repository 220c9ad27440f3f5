# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run a module in the background and show its progress while it works.

Ansible says nothing while a task runs, and a build takes minutes. The module is
started through Ansible's own async wrapper, so it also survives a lost SSH
connection; meanwhile the line that it writes to its progress file is shown.
"""

from __future__ import annotations

import json
import shlex
import time
import uuid
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# The first look, and the longest time from one to the next. Each costs a shell on the node: a module that looks would
# start Python there every time, and on a node that has its hands full take from the work that it looks at.
FIRST_SECONDS = 0.25
POLL_SECONDS = 1.0
# Often enough to see that it lives, seldom enough to read the rest of the run.
SHOW_SECONDS = 5.0
# Longer than any build or download that somebody would wait for in one run.
LIMIT_SECONDS = 6 * 3600
PROGRESS_DIRECTORY = "/tmp"
# For grep: ansible.modules.async_wrapper writes a dictionary, with truth as 1 and 0 or as true and false.
_RUNNING = '^{"started": [a-z0-9]*, "finished": [f0]'


class WatchedAction(ActionBase):
    """Base for actions whose module takes ``progress_file`` and may run for minutes."""

    def run_watched(self, arguments: dict[str, Any], task_vars: dict[str, Any], quiet: float = 3.0) -> dict[str, Any]:
        """Run this action's module with ``arguments`` and show its progress.

        ``quiet``: seconds before the first line is shown, so that quick work stays silent.
        """
        progress = "%s/.llamacpp-progress-%s" % (PROGRESS_DIRECTORY, uuid.uuid4().hex)
        arguments = dict(arguments, progress_file=progress)
        if self._task.check_mode:
            return dict(self._execute_module(module_args=arguments, task_vars=task_vars))
        host = task_vars["inventory_hostname"]
        delegated = self._task.delegate_to or host
        job = self._start(arguments, task_vars)
        results = "%s/%s" % (self._async_dir(), job)
        started = time.monotonic()
        shown, shown_at = "", started + quiet - SHOW_SECONDS
        pause = FIRST_SECONDS
        while True:
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)
            running, line = self._look(results, progress)
            if not running:
                status = self._execute_module(
                    module_name="ansible.legacy.async_status",
                    module_args={"jid": job, "mode": "status", "_async_dir": self._async_dir()},
                    task_vars=task_vars,
                )
                if status.get("finished"):
                    break
            if line and line != shown and time.monotonic() - shown_at >= SHOW_SECONDS:
                shown, shown_at = line, time.monotonic()
                display.display("    %s: %s (%d s)" % (delegated, line, time.monotonic() - started))
        self._low_level_execute_command("rm -f %s %s" % (_quoted(results), progress))
        result = {
            key: value
            for key, value in status.items()
            if key not in ("ansible_job_id", "started", "finished", "results_file")
        }
        return result

    def _look(self, results: str, progress: str) -> tuple[bool, str]:
        """Return whether the module runs, and how far it is.

        Until it ends, its file of results holds what Ansible's async wrapper writes first. Whatever else is there is
        for async_status to understand.
        """
        begins = shlex.quote(_RUNNING)
        running = "head -c 64 %s 2>/dev/null | grep -q %s" % (_quoted(results), begins)
        script = "if %s; then echo running; else echo ended; fi; cat %s 2>/dev/null || true" % (running, progress)
        state, _newline, line = str(self._low_level_execute_command(script).get("stdout", "")).partition("\n")
        return state.strip() == "running", line.strip()

    def _start(self, arguments: dict[str, Any], task_vars: dict[str, Any]) -> str:
        """Start the module in the background; return its job id."""
        before = self._task.async_val
        self._task.async_val = LIMIT_SECONDS
        environment = list(self._task.environment or [])
        try:
            started = self._execute_module(module_args=arguments, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = before
            self._task.environment = environment
        if "ansible_job_id" not in started:
            raise AnsibleActionFail("the module did not start: %s" % json.dumps(started, default=str)[:500])
        return str(started["ansible_job_id"])

    def _async_dir(self) -> str:
        """Return where the async wrapper keeps its results on the target."""
        return str(self.get_shell_option("async_dir", default="~/.ansible_async"))


def _quoted(path: str) -> str:
    """Quote a path for the shell, which knows whose home `~` is."""
    return "~/" + shlex.quote(path[2:]) if path.startswith("~/") else shlex.quote(path)
