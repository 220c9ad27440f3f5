# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One build of a release at a time, and nothing that works for a dead one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import NOBODY_KNOWN, BusyError, locked
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

KILL_SECONDS = 10.0
# In the environment of every process of a build; its value is the build's directory.
MARK = "LLAMACPP_BUILD_DIRECTORY"


@contextlib.contextmanager
def build_lock(path: str, what: str, holder: str, patience: float, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a build. ``what``: its name. ``holder``: who asks. ``patience``: seconds.

    ``say`` gets whom we wait for. Raises :class:`ReleaseError` when it takes too long.
    """

    def waiting(other: str) -> str:
        return "waiting for the build of %s by %s" % (what, other)

    try:
        with locked(path, holder or NOBODY_KNOWN, patience, lambda other: say(waiting(other))):
            yield
    except BusyError as error:
        raise ReleaseError(
            "gave up after %d s of %s; wait for it, or stop it on the builder" % (patience, waiting(error.holder))
        ) from error


def stop_leftovers(directory: str) -> int:
    """Kill the compilers that a build in ``directory`` left behind when it was killed; return how many there were.

    They would go on writing where the next build works. To be called by who holds the build's lock: whatever carries
    the mark of that directory then belongs to nobody. Raises :class:`ReleaseError` when they do not go.
    """
    found = _marked(directory)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + KILL_SECONDS
    while found and _marked(directory):
        if time.monotonic() > deadline:
            raise ReleaseError("processes of a dead build still work in %s: %s" % (directory, _marked(directory)))
        time.sleep(0.1)
    return len(found)


def _marked(directory: str) -> list[int]:
    """Return the living processes that carry the mark of a directory."""
    mark = ("%s=%s" % (MARK, directory)).encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/environ" % name, "rb") as stream:
                # Empty for a process that has ended and is not yet waited for.
                if mark in stream.read().split(b"\0"):
                    found.append(int(name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # It ended meanwhile, or it is another user's.
            continue
    return found
