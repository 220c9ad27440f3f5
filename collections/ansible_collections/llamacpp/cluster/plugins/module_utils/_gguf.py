# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read the header of a GGUF file: key-values and tensor infos, never the weights.

The header of a real model is 1 to 10 MiB, nearly all of it vocabulary. Arrays of strings
are walked over, not built, so a header takes a fraction of a second and a few MiB.
Format: docs/gguf.md of ggml, and what llama.cpp b11434 enforces in ggml/src/gguf.cpp.
Versions 2 and 3, little endian. Reads forward only, so a file and an HTTP answer do alike.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Callable, NamedTuple, Union

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import TENSOR_TYPES

MAGIC = b"GGUF"
VERSIONS = (2, 3)

# llama.cpp caps neither count; a file beyond these is broken or hostile. Its limit of
# 512 layers leaves room for 512 tensors a layer.
MAX_TENSORS = 1 << 18
MAX_KEYS = 1 << 16
MAX_LENGTH = 1 << 30
MAX_NAME = 64
MAX_DIMENSIONS = 4
# Longer values are walked over: hyper-parameters are one number a layer at most.
KEPT_STRING_BYTES = 1 << 16
KEPT_ITEMS = 4096

BLOCK = 1 << 18

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value types of the format -> (name, struct code).
_SCALARS = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "B"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}

Scalar = Union[int, float, bool, str]


class GgufError(ValueError):
    """A file that cannot be read as GGUF: which ``field``, at which ``offset`` in bytes, and why."""

    def __init__(self, field: str, offset: int, message: str) -> None:
        where = "" if field == "path" else " (%s, at byte %d)" % (field, offset)
        super().__init__(message + where)
        self.field = field
        self.offset = offset
        self.message = message


class Array(NamedTuple):
    """An array value: ``length`` elements; ``items`` only for short arrays of numbers."""

    type_name: str
    length: int
    items: tuple[int | float | bool, ...] | None


class LongString(NamedTuple):
    """A string too long to keep."""

    length: int


Value = Union[Scalar, Array, LongString]


@dataclass(frozen=True)
class Tensor:
    """A tensor info. ``offset`` counts from the data section, ``nbytes`` without padding."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The header of one file. ``data_offset`` and ``file_bytes`` in bytes."""

    version: int
    values: dict[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int
    file_bytes: int


class _Cursor:
    """Reads forward through ``read`` (like a file's) and knows where it is."""

    def __init__(self, read: Callable[[int], bytes], total: int) -> None:
        self._read = read
        self._total = total
        self._buffer = b""
        self._base = 0
        self._at = 0
        self.field = "magic"

    @property
    def offset(self) -> int:
        """Bytes from the start of the file."""
        return self._base + self._at

    def fail(self, message: str, offset: int | None = None) -> GgufError:
        """Return an error that names the current field."""
        return GgufError(self.field, self.offset if offset is None else offset, message)

    def _fill(self, size: int) -> None:
        """Have ``size`` bytes in the buffer, or raise."""
        left = len(self._buffer) - self._at
        if left >= size:
            return
        if self.offset + size > self._total:
            raise self.fail("it is truncated: its %d bytes end in the middle of the header; get it again" % self._total)
        parts = [self._buffer[self._at :]]
        while left < size:
            part = self._read(max(BLOCK, size - left))
            if not part:
                raise self.fail("the data stopped in the middle of the header")
            parts.append(part)
            left += len(part)
        self._base += self._at
        self._at = 0
        self._buffer = b"".join(parts)

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        self._fill(size)
        data = self._buffer[self._at : self._at + size]
        self._at += size
        return data

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes without holding more than a block of them."""
        while size:
            step = min(size, BLOCK)
            self._fill(step)
            self._at += step
            size -= step

    def number(self, code: str) -> int:
        """Return the next integer of a struct code."""
        value: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def length(self, what: str) -> int:
        """Return the next u64 as a length that the rest of the file can hold."""
        start = self.offset
        value = self.number("Q")
        if value > MAX_LENGTH or value > self._total - self.offset:
            raise self.fail("%s of %d cannot be in a file of %d bytes" % (what, value, self._total), start)
        return value

    def text(self, what: str) -> str:
        """Return the next string."""
        start = self.offset
        length = self.length(what)
        if length > KEPT_STRING_BYTES:
            raise self.fail("%s of %d bytes is not believable" % (what, length), start)
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail("%s is no UTF-8" % what, start) from error

    def skip_strings(self, count: int) -> None:
        """Pass over ``count`` strings; the hot loop of every header."""
        unpack = struct.Struct("<Q").unpack_from
        while count:
            buffer, at, end = self._buffer, self._at, len(self._buffer) - 8
            while count and at <= end:
                following = at + 8 + unpack(buffer, at)[0]
                if following > end + 8:
                    break
                at = following
                count -= 1
            self._at = at
            if count:
                self.skip(self.length("string length"))
                count -= 1


def read_header(path: str) -> Header:
    """Read the header of the file at ``path``.

    Raises :class:`GgufError` for a file that is missing, not GGUF, broken or truncated.
    """
    try:
        with open(path, "rb") as stream:
            return parse_header(stream.read, os.fstat(stream.fileno()).st_size)
    except FileNotFoundError as error:
        raise GgufError("path", 0, "there is no such file; correct the path, or put the file there") from error
    except (PermissionError, IsADirectoryError) as error:
        raise GgufError("path", 0, "it cannot be read: %s" % error.strerror) from error


def parse_header(read: Callable[[int], bytes], file_bytes: int) -> Header:
    """Read a header through ``read(size) -> bytes`` of a file of ``file_bytes`` bytes.

    Raises :class:`GgufError`; among others when the tensors do not fit into the file.
    """
    cursor = _Cursor(read, file_bytes)
    if file_bytes < len(MAGIC) or cursor.take(len(MAGIC)) != MAGIC:
        raise GgufError(
            "magic", 0, "it is not a GGUF file, which begins with the letters GGUF; name a model in this format"
        )
    cursor.field = "version"
    version = cursor.number("I")
    if version & 0xFFFF == 0:
        raise cursor.fail("it is a big-endian GGUF file: convert it on a little-endian machine")
    if version not in VERSIONS:
        raise cursor.fail("GGUF version %d: only 2 and 3 are read; convert the model again" % version)
    cursor.field = "tensor count"
    n_tensors = _count(cursor, MAX_TENSORS)
    cursor.field = "key count"
    n_keys = _count(cursor, MAX_KEYS)

    values: dict[str, Value] = {}
    for number in range(n_keys):
        cursor.field = "key %d" % number
        key = cursor.text("key")
        if not key or key in values:
            raise cursor.fail("the key %r is %s" % (key, "there twice" if key else "empty"))
        cursor.field = key
        values[key] = _value(cursor)

    alignment = values.get("general.alignment", 32)
    cursor.field = "general.alignment"
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail("alignment %r is not a power of two" % (alignment,))

    tensors: list[Tensor] = []
    expected, end = 0, 0
    names = set()
    for number in range(n_tensors):
        cursor.field = "tensor %d" % number
        tensor = _tensor(cursor)
        if tensor.name in names:
            raise cursor.fail("the tensor %s is there twice" % tensor.name)
        if tensor.offset != expected:
            raise cursor.fail("tensor %s begins at %d instead of %d" % (tensor.name, tensor.offset, expected))
        names.add(tensor.name)
        tensors.append(tensor)
        end = tensor.offset + tensor.nbytes
        expected = padded(end, alignment)

    data_offset = padded(cursor.offset, alignment)
    if tensors and data_offset + end > file_bytes:
        raise GgufError(
            "tensor data",
            file_bytes,
            "it is truncated: its tensors need %d bytes, the file has %d; get it again"
            % (data_offset + end, file_bytes),
        )
    return Header(version, values, tuple(tensors), alignment, data_offset, file_bytes)


def padded(size: int, alignment: int) -> int:
    """Round ``size`` up to a multiple of ``alignment``, a power of two."""
    return (size + alignment - 1) & -alignment


def _count(cursor: _Cursor, cap: int) -> int:
    start = cursor.offset
    count = cursor.number("q")
    if not 0 <= count <= cap:
        raise cursor.fail("a count of %d is not believable (at most %d)" % (count, cap), start)
    return count


def _value(cursor: _Cursor) -> Value:
    start = cursor.offset
    kind = cursor.number("i")
    if kind == _STRING:
        length = cursor.length("string length")
        if length > KEPT_STRING_BYTES:
            cursor.skip(length)
            return LongString(length)
        # Real files carry odd bytes in descriptions; they must not keep a model from being read.
        return cursor.take(length).decode("utf-8", "replace")
    if kind == _ARRAY:
        return _array(cursor)
    if kind not in _SCALARS:
        raise cursor.fail("value type %d is unknown" % kind, start)
    code = "<" + _SCALARS[kind][1]
    value: Scalar = struct.unpack(code, cursor.take(struct.calcsize(code)))[0]
    return bool(value) if kind == _BOOL else value


def _array(cursor: _Cursor) -> Array:
    start = cursor.offset
    kind = cursor.number("i")
    count = cursor.length("array length")
    if kind == _STRING:
        cursor.skip_strings(count)
        return Array("string", count, None)
    if kind not in _SCALARS:
        raise cursor.fail("array of value type %d is not allowed" % kind, start)
    name, code = _SCALARS[kind]
    size = count * struct.calcsize("<" + code)
    if count > KEPT_ITEMS:
        cursor.skip(size)
        return Array(name, count, None)
    items = struct.unpack("<%d%s" % (count, code), cursor.take(size))
    return Array(name, count, tuple(bool(item) for item in items) if kind == _BOOL else items)


def _tensor(cursor: _Cursor) -> Tensor:
    name = cursor.text("tensor name")
    cursor.field = name or cursor.field
    if not 0 < len(name.encode()) < MAX_NAME:
        raise cursor.fail("a tensor name has 1 to %d bytes" % (MAX_NAME - 1))
    n_dims = cursor.number("I")
    if n_dims > MAX_DIMENSIONS:
        raise cursor.fail("%d dimensions: a tensor has at most %d" % (n_dims, MAX_DIMENSIONS))
    shape = tuple(cursor.number("q") for _index in range(n_dims)) or (1,)
    kind = cursor.number("i")
    offset = cursor.number("Q")
    if kind not in TENSOR_TYPES:
        raise cursor.fail("tensor type %d is unknown: the model is newer than this collection" % kind)
    elements = 1
    for size in shape:
        if size < 0 or elements * size > 1 << 62:
            raise cursor.fail("dimensions %r are not believable" % (shape,))
        elements *= size
    tensor_type = TENSOR_TYPES[kind]
    try:
        nbytes = tensor_type.row_bytes(shape[0]) * (elements // shape[0]) if elements else 0
    except ValueError as error:
        raise cursor.fail(str(error)) from error
    return Tensor(name, shape, tensor_type.name, offset, nbytes)
