# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Walk forward through the bytes of a GGUF header, wherever they come from.

A :class:`Source` gives bytes, a :class:`Cursor` takes numbers and strings from them and knows
at which byte and in which field it is when something is wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO, Callable

# Limits of llama.cpp b11434, ggml/src/gguf.cpp: GGUF_MAX_STRING_LENGTH, GGUF_MAX_ARRAY_ELEMENTS.
MAX_STRING = 1 << 30
MAX_ITEMS = 1 << 30
# llama.cpp would load more, slowly; the largest vocabularies have 0.8 million tokens and merges, of 16 MiB.
MAX_ARRAY_STRINGS = 1 << 23
MAX_ARRAY_BYTES = 1 << 28

# As much is read at once. Stays in a processor's cache, and below the size from which malloc asks the kernel for
# fresh pages each time; 256 KiB take half as long again.
BLOCK = 1 << 16
# Behind what was passed over, there is often something more to pass over.
FIRST_BLOCK = 1 << 12

U32 = struct.Struct("<I")
I32 = struct.Struct("<i")
U64 = struct.Struct("<Q")
I64 = struct.Struct("<q")


class GgufError(ValueError):
    """A file that cannot be read as GGUF: which ``field``, at which ``offset`` in bytes, and why."""

    def __init__(self, field: str, offset: int, message: str) -> None:
        where = "" if field == "path" else " (%s, at byte %d)" % (field, offset)
        super().__init__(message + where)
        self.field = field
        self.offset = offset
        self.message = message


class Source:
    """The bytes of a file of ``size`` bytes from its beginning on, through ``read`` as a file has it."""

    def __init__(self, read: Callable[[int], bytes], size: int) -> None:
        self.read = read
        self.size = size

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes."""
        while size:
            part = self.read(min(size, BLOCK))
            if not part:
                return
            size -= len(part)

    def expect(self, size: int) -> None:
        """Hear that ``size`` more bytes will be read for sure; one that fetches by pieces may fetch them at once."""


class FileSource(Source):
    """The bytes of an open file, which need not be read to be passed over."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        super().__init__(stream.read, size)
        self._stream = stream

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes."""
        self._stream.seek(size, 1)


class ChainedSource(Source):
    """The bytes of a file that is cut into pieces, each a source of its own, as if it were whole."""

    def __init__(self, pieces: Sequence[Source]) -> None:
        self._pieces = list(pieces)
        self._left = [piece.size for piece in self._pieces]
        self._at = 0
        super().__init__(self._next, sum(self._left))

    def expect(self, size: int) -> None:
        """Hear that ``size`` more bytes will be read for sure."""
        if self._at < len(self._pieces):
            self._pieces[self._at].expect(min(size, self._left[self._at]))

    def _next(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; nothing at the end."""
        while self._at < len(self._pieces):
            part = self._pieces[self._at].read(size)
            if part:
                self._left[self._at] -= len(part)
                return part
            self._at += 1
        return b""

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes, into the pieces behind if need be."""
        while size and self._at < len(self._pieces):
            here = min(size, self._left[self._at])
            self._pieces[self._at].skip(here)
            self._left[self._at] -= here
            size -= here
            if size:
                self._at += 1


class Cursor:
    """Where the reader is. ``field`` is what it reads there, for messages."""

    def __init__(self, source: Source) -> None:
        self.field = "magic"
        self.total = source.size
        self._source = source
        self._buffer = b""
        self._base = 0
        self._at = 0
        self._block = FIRST_BLOCK
        self._strings_left = MAX_ARRAY_STRINGS
        self._array_bytes_left = MAX_ARRAY_BYTES

    @property
    def offset(self) -> int:
        """Bytes from the start of the file."""
        return self._base + self._at

    @property
    def remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self.total - self._base - self._at

    def fail(self, message: str, offset: int | None = None) -> GgufError:
        """Return an error that names the current field."""
        return GgufError(self.field, self.offset if offset is None else offset, message)

    def _fill(self, size: int) -> None:
        """Have ``size`` bytes in the buffer, or raise."""
        left = len(self._buffer) - self._at
        if left >= size:
            return
        if size > self.remaining:
            raise self.fail("it is truncated: its %d bytes end in the middle of the header; get it again" % self.total)
        parts = [self._buffer[self._at :]]
        while left < size:
            part = self._source.read(max(self._block, size - left))
            if not part:
                raise self.fail("the data stopped in the middle of the header; get the file again")
            parts.append(part)
            left += len(part)
        self._block = min(self._block * 2, BLOCK)
        self._base += self._at
        self._at = 0
        self._buffer = b"".join(parts)

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes; the caller has bounded ``size``."""
        self._fill(size)
        at = self._at
        self._at = at + size
        return self._buffer[at : at + size]

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes, which the caller knows to be in the file."""
        buffered = len(self._buffer) - self._at
        if size <= buffered:
            self._at += size
            return
        self._source.skip(size - buffered)
        self._base += self._at + size
        self._at = 0
        self._block = FIRST_BLOCK
        self._buffer = b""

    def expect(self, size: int) -> None:
        """Announce that the next ``size`` bytes at least will be read; more than there are is nobody's promise."""
        size = min(size, self.remaining) - (len(self._buffer) - self._at)
        if size > 0:
            self._source.expect(size)

    def number(self, kind: struct.Struct) -> int:
        """Return the next number of a kind such as :data:`U32`."""
        self._fill(kind.size)
        at = self._at
        self._at = at + kind.size
        value: int = kind.unpack_from(self._buffer, at)[0]
        return value

    def length(self) -> int:
        """Return the next u64 as the length of a string that is in the rest of the file."""
        start = self.offset
        value = self.number(U64)
        if value > MAX_STRING or value > self.remaining:
            raise self.fail("a string of %d bytes cannot be in a file of %d bytes" % (value, self.total), start)
        return value

    def skip_strings(self, count: int) -> None:
        """Pass over ``count`` strings; the hot loop of every header."""
        if count > self._strings_left:
            raise self.fail(
                "with these %d strings, its arrays have more than %d: not believable" % (count, MAX_ARRAY_STRINGS)
            )
        self._strings_left -= count
        unpack = U64.unpack_from
        while count:
            self.expect(count * U64.size)
            self._fill(U64.size)
            buffer, at, walked = self._buffer, self._at, count
            try:
                for walked in range(count):  # noqa: B007 - it counts; a counter by hand takes a third longer
                    at += 8 + unpack(buffer, at)[0]
                walked = count
            except (struct.error, OverflowError):
                pass  # past the end of the buffer, which is usual, or of all reason, which is seen next
            beyond = at - len(buffer)
            if self._base + at > self.total or beyond > MAX_STRING - len(buffer):
                self._check_strings(walked)
            self._array_bytes_left -= at - self._at
            if self._array_bytes_left < 0:
                raise self.fail("the strings of its arrays have more than %d bytes: not believable" % MAX_ARRAY_BYTES)
            self.skip(at - self._at)
            count -= walked

    def _check_strings(self, count: int) -> None:
        """Walk over the next ``count`` strings slowly, and raise at the one that is too long."""
        before = self._buffer, self._base, self._at
        for _index in range(count - 1):
            self._at += 8 + U64.unpack_from(self._buffer, self._at)[0]
        self.length()
        self._buffer, self._base, self._at = before
