# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show how far hashing and seeding are while the module works."""

from __future__ import annotations

from typing import Any

from ansible_collections.llamacpp.cluster.plugins.plugin_utils.watch import WatchedAction


class ActionModule(WatchedAction):
    """Runs the module of the same name in the background."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("state") != "scrubbed" and not self._task.check_mode:
            # In the background nothing ends within a second, and mostly there is nothing to do.
            peeked = self._execute_module(module_args=dict(arguments, peek=True), task_vars=task_vars)
            if not peeked.get("pending"):
                result.update(peeked)
                return result
        result.update(self.run_watched(arguments, task_vars or {}))
        return result
