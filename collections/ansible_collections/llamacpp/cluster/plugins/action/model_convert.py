# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring llama.cpp's converter to the node, and show how far the conversion is."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from ansible.errors import AnsibleError

from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_source import ConvertError
from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_tools import pack_tools
from ansible_collections.llamacpp.cluster.plugins.plugin_utils.watch import WatchedAction

PACKED = "llamacpp-converter.tar.gz"


class ActionModule(WatchedAction):
    """Takes the converter out of the source on the control node, and runs the module of the same name."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        archive = arguments.get("llama_source")
        if archive:
            try:
                arguments["converter"] = self._bring(os.path.expanduser(str(archive)))
            except (ConvertError, OSError, AnsibleError) as error:
                return dict(result, failed=True, msg="llama_source = %s: %s" % (archive, error))
        return dict(result, **self.run_watched(arguments, task_vars or {}))

    def _bring(self, archive: str) -> str:
        """Copy the converter to the node's directory for this task, which is removed behind it; return its path."""
        with tempfile.TemporaryDirectory(prefix="llamacpp-convert-") as work:
            packed = os.path.join(work, PACKED)
            pack_tools(archive, packed)
            remote = self._connection._shell.join_path(self._remote_directory(), PACKED)
            self._transfer_file(packed, remote)
        self._fixup_perms2((self._remote_directory(), remote))
        return str(remote)

    def _remote_directory(self) -> str:
        if self._connection._shell.tmpdir is None:
            self._make_tmp_path()
        return str(self._connection._shell.tmpdir)
