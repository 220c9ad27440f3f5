# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show how far a model has come while the module works."""

from __future__ import annotations

from typing import Any

from ansible_collections.llamacpp.cluster.plugins.plugin_utils.watch import WatchedAction


class ActionModule(WatchedAction):
    """Runs the module of the same name in the background."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.args.get("state") == "stopped":
            # Takes no time that would be worth a look.
            result.update(self._execute_module(task_vars=task_vars))
        else:
            result.update(self.run_watched(dict(self._task.args), task_vars or {}))
        return result
