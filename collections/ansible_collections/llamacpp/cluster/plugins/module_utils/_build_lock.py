# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One build of a release at a time, and a word to those who wait for it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from types import TracebackType
from typing import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

POLL_SECONDS = 1.0
KILL_SECONDS = 10.0
# In the environment of every process of a build; its value is the build's directory.
MARK = "LLAMACPP_BUILD_DIRECTORY"


class BuildLock:
    """Holds ``flock`` on a file while a build runs; the kernel lets go when the process ends, however it ends.

    The file's text is who holds it (JSON: ``holder``, ``pid``, ``since`` in seconds since 1970). It stays when the
    lock is free and means nothing then.
    """

    def __init__(self, path: str, what: str, holder: str, patience: float, say: Callable[[str], None]) -> None:
        """``what``: name of the build. ``holder``: who asks. ``patience``: seconds. ``say``: gets what we wait for."""
        self._path = path
        self._what = what
        self._holder = holder
        self._patience = patience
        self._say = say
        self._file = -1

    def __enter__(self) -> BuildLock:
        """Wait for the lock. Raises :class:`ReleaseError` when it takes too long."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + self._patience
        while not self._try():
            waiting = "waiting for the build of %s by %s" % (self._what, self._who())
            if time.monotonic() >= deadline:
                os.close(self._file)
                raise ReleaseError(
                    "gave up after %d s of %s; wait for it, or stop it on the builder" % (self._patience, waiting)
                )
            self._say(waiting)
            time.sleep(POLL_SECONDS)
        note = json.dumps({"holder": self._holder, "pid": os.getpid(), "since": int(time.time())})
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, note.encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go."""
        os.close(self._file)

    def _try(self) -> bool:
        """Take the lock if it is free."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _who(self) -> str:
        """Return who holds the lock, as ``root@control (pid 4711) since 16:05``."""
        try:
            note = json.loads(os.pread(self._file, 4096, 0))
            since = time.strftime("%H:%M", time.localtime(note["since"]))
            return "%s (pid %d) since %s" % (note["holder"] or "another run", note["pid"], since)
        except (ValueError, KeyError, TypeError):
            # Taken this very moment: the note is not written yet.
            return "another run"


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
