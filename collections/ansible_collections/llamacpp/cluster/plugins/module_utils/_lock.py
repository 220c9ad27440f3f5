# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One process at a time in a directory, and a word to those who wait for it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Callable

POLL_SECONDS = 0.5
NOBODY_KNOWN = "another run"


class BusyError(OSError):
    """Another process holds the lock, and patience is over. ``holder`` says who."""

    def __init__(self, holder: str, patience: float) -> None:
        super().__init__("waited %d s for %s" % (patience, holder))
        self.holder = holder


@contextlib.contextmanager
def locked(path: str, holder: str, patience: float, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold ``flock`` on a file; the kernel lets go when the process ends, however it ends.

    The file's text is who holds it: ``holder``, process and time. It stays when the lock is free and means nothing
    then. Whoever holds it meanwhile is told to ``waiting``, again and again. Raises :class:`BusyError` after
    ``patience`` seconds (``math.inf`` for somebody who never gives up), and :class:`OSError`.
    """
    deadline = time.monotonic() + patience
    descriptor = _opened(path)
    try:
        while True:
            if _taken(descriptor):
                if _is_at(descriptor, path):
                    break
                # Somebody tidied it away between: who comes now locks a new file.
                gone, descriptor = descriptor, _opened(path)
                os.close(gone)
                continue
            # Taken this very moment, it may have no text yet.
            other = os.pread(descriptor, 4096, 0).decode("utf-8", "replace").strip() or NOBODY_KNOWN
            if time.monotonic() >= deadline:
                raise BusyError(other, patience)
            waiting(other)
            time.sleep(POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, ("%s (pid %d) since %s\n" % (holder, os.getpid(), time.strftime("%H:%M"))).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _opened(path: str) -> int:
    # A file to be written, because a lock on one that is only read does not work over NFS.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _is_at(descriptor: int, path: str) -> bool:
    """Whether an open file is still the one that has this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _taken(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
