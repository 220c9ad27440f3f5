# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A directory of the control node's cache: one writer at a time, and a file is there whole or not at all.

Files are made in a scratch directory inside, verified there and renamed. Who only reads needs no lock.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator

from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import locked
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress

LOCK = ".lock"
_SCRATCH = ".work-"


@contextlib.contextmanager
def scratch(directory: str, progress: Progress) -> Iterator[str]:
    """Hold the lock of a cache directory, and give a scratch directory inside that is gone afterwards.

    Who has to wait says so, and for whom. What a killed run left is removed. Raises :class:`OSError`.
    """
    os.makedirs(directory, mode=0o755, exist_ok=True)

    def waiting(other: str) -> None:
        progress.say("waiting for %s, which writes to %s" % (other, directory), now=True)

    with locked(os.path.join(directory, LOCK), "a run on %s" % socket.gethostname(), math.inf, waiting):
        for name in os.listdir(directory):
            if name.startswith(_SCRATCH):
                shutil.rmtree(os.path.join(directory, name))
        work = tempfile.mkdtemp(prefix=_SCRATCH, dir=directory)
        try:
            yield work
        finally:
            shutil.rmtree(work)


def keep(path: str, name: str) -> None:
    """Give a finished file its name in the cache, readable by everybody. Raises :class:`OSError`."""
    os.chmod(path, 0o644)
    os.rename(path, name)
