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

# Often enough that nobody waits for the end of quick work. A shell on the node looks: an answer over SSH, or a module,
# for each look would take from a node that has its hands full what the work needs.
POLL_SECONDS = 0.2
# Often enough to see that it lives, seldom enough to read the rest of the run.
SHOW_SECONDS = 5.0
# Longer than any build or download that somebody would wait for in one run.
LIMIT_SECONDS = 6 * 3600
PROGRESS_DIRECTORY = "/tmp"
# ansible.modules.async_wrapper writes a dictionary first, with truth as 1 and 0 or as true and false.
_LOOK = """
looks=%(looks)d
while :; do
  case "$(head -c 64 %(results)s 2>/dev/null)" in
    '{"started": '*', "finished": '[f0]*) state=running ;;
    *) state=ended; break ;;
  esac
  looks=$((looks - 1))
  [ $looks -gt 0 ] || break
  sleep %(pause)s
done
echo $state
cat %(progress)s 2>/dev/null || true
"""


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
        while True:
            running, line = self._look(results, progress, max(0.0, shown_at + SHOW_SECONDS - time.monotonic()))
            if not running:
                status = self._execute_module(
                    module_name="ansible.legacy.async_status",
                    module_args={"jid": job, "mode": "status", "_async_dir": self._async_dir()},
                    task_vars=task_vars,
                )
                if status.get("finished"):
                    break
                time.sleep(POLL_SECONDS)
            if time.monotonic() - shown_at >= SHOW_SECONDS:
                shown_at = time.monotonic()
                if line and line != shown:
                    shown = line
                    display.display("    %s: %s (%d s)" % (delegated, line, time.monotonic() - started))
        self._low_level_execute_command("rm -f %s %s" % (_quoted(results), progress))
        result = {
            key: value
            for key, value in status.items()
            if key not in ("ansible_job_id", "started", "finished", "results_file")
        }
        return result

    def _look(self, results: str, progress: str, patience: float) -> tuple[bool, str]:
        """Wait for the module, ``patience`` seconds at most; return whether it still runs, and how far it is.

        Until it ends, its file of results holds what Ansible's async wrapper writes first. Whatever else is there is
        for async_status to understand.
        """
        script = _LOOK % {
            "results": _quoted(results),
            "progress": progress,
            "looks": int(patience / POLL_SECONDS) + 1,
            "pause": POLL_SECONDS,
        }
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
