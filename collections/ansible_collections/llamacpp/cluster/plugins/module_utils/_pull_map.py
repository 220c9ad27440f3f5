# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which parts of a file have arrived: kept beside it, so that a transfer goes on after whatever ended it.

A part on its way in has its final size from the beginning, and holes. ``<part>.map`` tells what is no hole: a line of
JSON (``bytes`` of the file, ``chunk`` bytes that a mark stands for), then a ``1`` or ``0`` for each chunk. Marks are
set in place, after the bytes that they speak of have reached the disk. The last word is the file's sha256 in any case.
"""

from __future__ import annotations

import json
import os
from typing import Any

LEAST_CHUNK = 1 << 20
MOST_CHUNK = 16 << 20
# So many chunks at least, where they are not too small for it: several sources get to do something.
CHUNKS = 64
_HEADER_BYTES = 64


def chunk_bytes(size: int) -> int:
    """Return the size of a chunk of a file of so many bytes: a power of two, 1 to 16 MiB."""
    chunk = LEAST_CHUNK
    while chunk < MOST_CHUNK and chunk * CHUNKS < size:
        chunk *= 2
    return chunk


class PartMap:
    """The marks of one part, and its open file; ends with :meth:`close`."""

    def __init__(self, part: str, size: int) -> None:
        self.part = part
        self.path = part + ".map"
        self.size = size
        self.chunk = chunk_bytes(size)
        self.done = self._found()
        self._unsynced: list[int] = []
        self.file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if os.geteuid() == 0:
            # A swarm that was killed has left it to its engine's user.
            os.fchown(self.file, 0, 0)
        os.ftruncate(self.file, size)
        self._marks = self._start()

    def span(self, index: int) -> tuple[int, int]:
        """Return where a chunk begins, and its length."""
        start = index * self.chunk
        return start, min(self.chunk, self.size - start)

    def here(self) -> int:
        """Return how many bytes of whole chunks are there."""
        return sum(self.span(index)[1] for index, done in enumerate(self.done) if done)

    def finish(self, index: int) -> None:
        """Note that a chunk has been written; its mark waits for :meth:`sync`."""
        self.done[index] = True
        self._unsynced.append(index)

    def sync(self) -> None:
        """Bring bytes, and then their marks, to the disk; others may go on writing. Raises :class:`OSError`."""
        # The list stays the same one, as others may be about to append to it.
        finished = self._unsynced[:]
        if finished:
            os.fdatasync(self.file)
            for index in finished:
                os.pwrite(self._marks, b"1", _HEADER_BYTES + index)
            del self._unsynced[: len(finished)]

    def close(self) -> None:
        """Close both files; what was not synced is fetched again."""
        os.close(self.file)
        os.close(self._marks)

    def _found(self) -> list[bool]:
        """Return what an earlier run has left."""
        count = -(-self.size // self.chunk)
        nothing = [False] * count
        try:
            present = os.stat(self.part, follow_symlinks=False).st_size
        except FileNotFoundError:
            return nothing
        try:
            with open(self.path, "rb") as stream:
                header, marks = stream.read(_HEADER_BYTES), stream.read()
        except FileNotFoundError:
            # Who writes from the beginning on, as rsync does, leaves the beginning. A whole file says nothing.
            return [present < self.size and (index + 1) * self.chunk <= present for index in range(count)]
        known = _header(header)
        fine = known.get("bytes") == self.size and known.get("chunk") == self.chunk and present == self.size
        return [mark == ord("1") for mark in marks] if fine and len(marks) == count else nothing

    def _start(self) -> int:
        """Write the marks as they are, durably, and return their open file."""
        header = json.dumps({"bytes": self.size, "chunk": self.chunk}).ljust(_HEADER_BYTES - 1) + "\n"
        marks = "".join("1" if done else "0" for done in self.done)
        temporary = self.path + ".new"
        with open(temporary, "w", encoding="ascii") as stream:
            stream.write(header + marks)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, self.path)
        return os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def forget_marks(part: str) -> None:
    """Remove the marks of a part that is gone: admitted, or thrown away."""
    if os.path.lexists(part + ".map"):
        os.unlink(part + ".map")


def _header(data: bytes) -> dict[str, Any]:
    try:
        known = json.loads(data)
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}
