# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Switch releases at once, and show the progress of an installation."""

from __future__ import annotations

from typing import Any

from ansible_collections.llamacpp.cluster.plugins.plugin_utils.watch import WatchedAction


class ActionModule(WatchedAction):
    """Asks the module to do what takes no time, and runs it in the background when there is more to do."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        probed = self._execute_module(module_args=dict(arguments, probe=True), task_vars=task_vars)
        if probed.get("failed") or not probed.get("pending") or self._task.check_mode:
            return dict(result, **probed)
        return dict(result, **self.run_watched(arguments, task_vars))
