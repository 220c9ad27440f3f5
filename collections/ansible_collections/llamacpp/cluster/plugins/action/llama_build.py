# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show the progress of a build while the module works, and give it the source of what is compiled beside llama.cpp."""

from __future__ import annotations

import os
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.plugin_utils.watch import WatchedAction

RPC_CACHE_SOURCE = "../../roles/llama_cpp/files/rpc_cache.c"


class ActionModule(WatchedAction):
    """Runs the module of the same name in the background."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        with open(os.path.join(os.path.dirname(__file__), RPC_CACHE_SOURCE), encoding="utf-8") as stream:
            arguments = {"rpc_cache_source": stream.read(), **self._task.args}
        result.update(self.run_watched(arguments, task_vars or {}))
        return result
