# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files that publishers cut in pieces, to be joined as ``cat`` does it: ``model.gguf.part1of2``.

They are no shards: a shard is a GGUF file of its own (``_split.py``), a piece is none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import IO, Callable, NamedTuple

# .part1of2 (mradermacher), .part-aa and .partaa (split(1)), -split-a (TheBloke).
_NUMBERED = re.compile(r"^(?P<whole>.+)\.part(?P<number>[0-9]{1,4})of(?P<count>[0-9]{1,4})$", re.IGNORECASE)
_LETTERED = re.compile(r"^(?P<whole>.+\.gguf)(?:\.part[-_]?(?P<two>[a-z]{2})|[-.]split-(?P<one>[a-z]))$", re.IGNORECASE)


class Piece(NamedTuple):
    """What a name says: of which file, which piece (from 1), of how many; ``pieces`` is 0 where it does not say."""

    whole: str
    number: int
    pieces: int


def piece(name: str) -> Piece | None:
    """Return which piece a name is; None for a name that is none."""
    numbered = _NUMBERED.match(name)
    if numbered:
        return Piece(numbered.group("whole"), int(numbered.group("number")), int(numbered.group("count")))
    lettered = _LETTERED.match(name)
    if not lettered:
        return None
    number = 0
    for letter in (lettered.group("two") or lettered.group("one")).lower():
        number = number * 26 + ord(letter) - ord("a")
    return Piece(lettered.group("whole"), number + 1, 0)


def whole_files(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the files that ``names`` become: ``{file: its pieces in order}``, or just itself.

    A set with a piece missing is left out; :func:`missing_pieces` tells which one.
    """
    return {whole: pieces for whole, pieces in _sets(names).items() if not _gaps(pieces)}


def missing_pieces(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of the pieces that are missing: ``{file: [2]}``.

    Of a set whose names do not say how many there are, those before the last one that is there; whether the last one
    is the end is told by the joined file's checksum or GGUF header alone.
    """
    return {whole: gaps for whole, pieces in _sets(names).items() for gaps in [_gaps(pieces)] if gaps}


def _sets(names: Sequence[str]) -> dict[str, list[str]]:
    sets: dict[str, list[str]] = {}
    for name in names:
        found = piece(name)
        sets.setdefault(found.whole if found else name, []).append(name)
    return {whole: sorted(pieces, key=_number) for whole, pieces in sets.items()}


def _number(name: str) -> int:
    found = piece(name)
    return found.number if found else 0


def _gaps(pieces: Sequence[str]) -> list[int]:
    found = [item for item in map(piece, pieces) if item]
    if not found:
        return []
    last = max(max(item.pieces for item in found), max(item.number for item in found))
    return sorted(set(range(1, last + 1)) - {item.number for item in found})


class TooLongError(Exception):
    """Somebody sends more bytes than the piece has."""


class Window:
    """``size`` bytes of a file from a byte on, as if they were a file: what brings one piece writes them.

    ``stream``: a file open for reading and writing, unbuffered, so that what was written is there when the process
    is killed. ``start``: where the window begins, in bytes. ``wrote`` is told how many bytes each write had.
    """

    def __init__(
        self, stream: IO[bytes], start: int, size: int, wrote: Callable[[int], None] = lambda count: None
    ) -> None:
        self.stream = stream
        self.start = start
        self.size = size
        self.wrote = wrote
        stream.seek(start)

    def inner(self, start: int, size: int) -> Window:
        """Return a part of this window as a window."""
        return Window(self.stream, self.start + start, size, self.wrote)

    def write(self, block: bytes) -> int:
        """Write all of ``block``; return its length. Raises :class:`TooLongError`, and :class:`OSError`."""
        if self.tell() + len(block) > self.size:
            raise TooLongError
        left = memoryview(block)
        while left:
            left = left[self.stream.write(left) :]
        self.wrote(len(block))
        return len(block)

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; nothing at the end."""
        return self.stream.read(min(size, self.size - self.tell()))

    def tell(self) -> int:
        """Return the position in the window."""
        return self.stream.tell() - self.start

    def seek(self, offset: int) -> int:
        """Go to a position in the window."""
        return self.stream.seek(self.start + offset) - self.start

    def truncate(self) -> int:
        """End the file here."""
        return self.stream.truncate() - self.start

    def have(self) -> int:
        """Return how many bytes of the window the file has."""
        return min(self.size, os.fstat(self.stream.fileno()).st_size - self.start)
