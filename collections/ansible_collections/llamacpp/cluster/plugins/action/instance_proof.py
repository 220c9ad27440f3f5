# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show how far an instance is while it loads its model."""

from __future__ import annotations

from typing import Any

from ansible_collections.llamacpp.cluster.plugins.plugin_utils.watch import WatchedAction


class ActionModule(WatchedAction):
    """Asks once, and waits in the background with progress only when the instance is not healthy yet."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        answer = self._execute_module(module_args=dict(arguments, probe=True), task_vars=task_vars or {})
        if not answer.get("failed") and not answer.get("healthy"):
            answer = self.run_watched(arguments, task_vars or {})
        return dict(result, **answer)
