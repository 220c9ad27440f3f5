# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Send the files of a model from the control node, piece by piece, and show how far it is."""

from __future__ import annotations

import os
import shlex
import time
from typing import Any

from ansible.errors import AnsibleError
from ansible.utils.display import Display

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import amount
from ansible_collections.llamacpp.cluster.plugins.plugin_utils.watch import WatchedAction

display = Display()

# A piece takes an SSH command of its own, some hundredths of a second, and is held in memory.
PIECE_BYTES = 32 << 20
SHOW_SECONDS = 5.0
# A piece that another run has sent meanwhile is no failure; a node that refuses so many times is.
ATTEMPTS = 5
# What is gone was whole, and another run has taken it: the module looks at it.
_GONE = ' || {{ [ -x "$(dirname {path})" ] && [ ! -e {path} ] && echo {total}; }}'
# Says how many bytes the file has.
SIZE = "stat -c %s {path}" + _GONE
# Appends its input when the file has as many bytes as the sender thinks, and says how many it has then. The file is
# opened first, as flock(1) would make one that is not there.
APPEND = (
    '{{ flock -w 600 9 && [ "$(stat -c %s {path})" = {offset} ] && cat >> {path}; stat -c %s {path}; }} 9< {path}'
    + _GONE
)


class ActionModule(WatchedAction):
    """Asks the module what is lacking, sends it, and lets the module verify it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Entry point of the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        arguments = dict(self._task.args)
        if self._task.check_mode:
            return dict(result, **self._execute_module(module_args=arguments, task_vars=task_vars))
        prepared = self.run_watched(dict(arguments, login=self._login_user()), task_vars)
        if prepared.get("failed"):
            return dict(result, **prepared)
        directory = os.path.expanduser(str(arguments["source"]))
        names = os.path.join(directory, "names", str(arguments["manifest"]["name"]))
        try:
            for item in prepared["lacking"]:
                self._send(os.path.join(names, item["name"]), item, task_vars["inventory_hostname"])
        except (AnsibleError, OSError) as error:
            return dict(result, failed=True, msg="sending %s: %s" % (arguments["manifest"]["name"], error))
        finished = self.run_watched(arguments, task_vars)
        finished["changed"] = bool(finished.get("changed") or prepared["changed"])
        return dict(result, **{**finished, "lacking": prepared["lacking"], "evicted": prepared["evicted"]})

    def _send(self, source: str, item: dict[str, Any], host: str) -> None:
        """Send a file from where the node has it up to, until it has all of it."""
        total, refused = int(item["bytes"]), 0
        path = shlex.quote(item["path"])
        # What an earlier run has sent stays.
        at = self._say(SIZE.format(path=path, total=total), None)
        base, started = at, time.monotonic()
        shown = started
        with open(source, "rb") as stream:
            while at < total:
                stream.seek(at)
                piece = stream.read(min(PIECE_BYTES, total - at))
                if not piece:
                    raise AnsibleError("%s is shorter than its manifest says; run again" % source)
                now = self._say(APPEND.format(path=path, offset=at, total=total), piece)
                refused = refused + 1 if now == at else 0
                if refused == ATTEMPTS:
                    raise AnsibleError("the node takes nothing more of %s; look at its disk" % item["name"])
                at = now
                if time.monotonic() - shown > SHOW_SECONDS:
                    shown = time.monotonic()
                    done = amount(at - base, total - base, started, shown)
                    display.display("    %s: sending %s: %s" % (host, item["name"], done))

    def _say(self, command: str, piece: bytes | None) -> int:
        """Return the number that a command on the node says as the login user."""
        answer = self._low_level_execute_command(command, sudoable=False, in_data=piece)
        words = str(answer.get("stdout", "")).split()
        if not words or not words[-1].isdigit():
            raise AnsibleError(str(answer.get("stderr", "")).strip() or "the node says nothing")
        return int(words[-1])

    def _login_user(self) -> str:
        """Return who the connection logs in as."""
        answer = self._low_level_execute_command("id -un", sudoable=False)
        return str(answer.get("stdout", "")).strip() or "root"
