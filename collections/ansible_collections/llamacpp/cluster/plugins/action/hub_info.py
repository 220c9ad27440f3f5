# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keep on the control node what a hub said, and say it again when the hub cannot be reached."""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.llamacpp.cluster.plugins.module_utils._hub_memory import HubMemory

display = Display()


class ActionModule(ActionBase):
    """Runs the module of the same name. What is kept, is kept here, as looking at a node changes nothing on it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(self._execute_module(task_vars=task_vars))
        directory = self._task.args.get("memory")
        if not directory or "endpoint" not in result:
            return result
        memory = HubMemory(os.path.expanduser(str(directory)), result["endpoint"], self._task.args)
        if not result.get("failed"):
            self._keep(memory, result)
            return result
        before = memory.recall() if result["away"] else None
        if before is None:
            return result
        answer, since = before
        display.warning("%s. What the hub said at %s is used." % (result["msg"], since))
        kept = {key: value for key, value in result.items() if key not in ("failed", "msg", "exception")}
        return {**kept, **answer, "changed": False}

    def _keep(self, memory: HubMemory, result: dict[str, Any]) -> None:
        if result["away"] or self._task.check_mode:
            return
        try:
            memory.keep(result)
        except OSError as error:
            display.warning(
                "memory = %s: %s. Runs need the hub until it can be written." % (self._task.args["memory"], error)
            )
