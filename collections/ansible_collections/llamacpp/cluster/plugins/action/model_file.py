# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Upload a model from the control node, and show how far a long copy or download is."""

from __future__ import annotations

import os
import shlex
import threading
import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.utils.display import Display

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import amount
from ansible_collections.llamacpp.cluster.plugins.plugin_utils.watch import WatchedAction

display = Display()

SHOW_AFTER_SECONDS = 3.0


class ActionModule(WatchedAction):
    """Asks the module whether there is anything to do, uploads if need be, and lets the module finish."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        source = arguments.get("src")
        if source:
            if not os.path.isfile(source):
                return dict(result, failed=True, msg="src = %s: no such file on the control node" % source)
            info = os.stat(source)
            arguments["stamp"] = "%d bytes at %d ns" % (info.st_size, info.st_mtime_ns)
        probed = self._execute_module(module_args=dict(arguments, probe=True), task_vars=task_vars)
        if probed.get("failed") or probed.get("present") or self._task.check_mode:
            return dict(result, **probed)
        if source:
            try:
                arguments["incoming"] = self._upload(str(source), str(arguments["dest"]), task_vars)
            except AnsibleError as error:
                return dict(result, failed=True, msg="uploading %s: %s" % (source, error))
        return dict(result, **self.run_watched(arguments, task_vars))

    def _upload(self, source: str, dest: str, task_vars: dict[str, Any]) -> str:
        """Copy ``source`` beside ``dest`` as the login user; return the path on the node.

        The directory is on the same file system as the store, so that the module can rename.
        """
        directory = os.path.join(os.path.dirname(dest), ".incoming")
        self._execute_module(
            module_name="ansible.legacy.file",
            module_args={"path": os.path.dirname(dest), "state": "directory", "mode": "0755"},
            task_vars=task_vars,
        )
        made = self._execute_module(
            module_name="ansible.legacy.file",
            module_args={"path": directory, "state": "directory", "mode": "0700", "owner": self._login_user()},
            task_vars=task_vars,
        )
        if made.get("failed"):
            raise AnsibleError("%s: %s" % (directory, made.get("msg")))
        incoming = os.path.join(directory, os.path.basename(dest))
        failure: list[BaseException] = []

        def put() -> None:
            try:
                self._connection.put_file(source, incoming)
            except AnsibleError as error:
                failure.append(error)

        worker = threading.Thread(target=put, daemon=True)
        worker.start()
        started, total = time.monotonic(), os.stat(source).st_size
        while worker.is_alive():
            worker.join(1.0)
            if worker.is_alive() and time.monotonic() - started > SHOW_AFTER_SECONDS:
                answer = self._low_level_execute_command("stat -c %%s %s || true" % shlex.quote(incoming))
                words = str(answer.get("stdout", "")).split()
                done = int(words[0]) if words and words[0].isdigit() else 0
                display.display(
                    "    %s: copying %s: %s"
                    % (
                        task_vars["inventory_hostname"],
                        os.path.basename(dest),
                        amount(done, total, started, time.monotonic()),
                    )
                )
        if failure:
            raise AnsibleError(str(failure[0]))
        return incoming

    def _login_user(self) -> str:
        """Return who the connection logs in as."""
        answer = self._low_level_execute_command("id -un", sudoable=False)
        return str(answer.get("stdout", "")).strip() or "root"
