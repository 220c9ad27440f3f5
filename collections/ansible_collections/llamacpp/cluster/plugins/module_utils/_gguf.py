# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read the header of a GGUF file: key-values and tensor infos, never the weights.

The header of a real model is 1 to 16 MiB, nearly all of it vocabulary. Arrays of strings
are walked over, not built, so a header takes a fraction of a second and a few MiB.
Format: docs/gguf.md of ggml. What is good and what is not: llama.cpp b11434, gguf_init_from_reader
in ggml/src/gguf.cpp, and llama_model_loader in src/llama-model-loader.{h,cpp} for tensors that are not
whole. Versions 2 and 3, little endian, as llama.cpp reads them on every machine that it runs on here.

Stricter than llama.cpp in what only a broken or hostile file has: the caps below, and sizes of
tensors that overflow 64 bits, which llama.cpp lets wrap round.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Callable, NamedTuple, Union

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import TENSOR_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf_cursor import (
    I32,
    I64,
    MAX_ITEMS,
    U32,
    U64,
    Cursor,
    FileSource,
    GgufError,
    Source,
)

__all__ = [
    "MAX_TENSORS",
    "Array",
    "GgufError",
    "Header",
    "LongString",
    "Source",
    "Tensor",
    "parse",
    "parse_header",
    "read_header",
]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT in ggml/include/gguf.h

# llama.cpp caps neither count. Its limit of 512 layers leaves room for 64 tensors a layer; models have 10 to 50
# in up to 126 layers, adapters and importance matrices twice as many.
MAX_TENSORS = 1 << 15
MAX_KEYS = 1 << 14  # models have 20 to 60
MAX_NAME = 64  # GGML_MAX_NAME, with the zero at the end
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
# By number of dimensions: the dimensions, the type, the offset.
_TENSOR_FIELDS = [struct.Struct("<%dqiQ" % count) for count in range(MAX_DIMENSIONS + 1)]
_INT64_MAX = (1 << 63) - 1

# Longer values are walked over: hyper-parameters are one number a layer at most.
KEPT_STRING = 1 << 16
KEPT_ITEMS = 4096
# Memory that all values together may take, roughly; what comes after is walked over. Models need less than a
# tenth of it, and zeros are six times as long in JSON. The second one is for callers who want every array;
# the largest vocabularies take 75 MiB. Keys are all kept.
KEY_BYTES = 32 << 20
KEPT_BYTES = 4 << 20
KEPT_BYTES_WHOLE = 96 << 20
_STRING_COST, _NUMBER_COST, _KEY_COST = 64, 40, 200

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value types of the format -> (name as llama.cpp writes it, how to unpack one).
_SCALARS = {
    0: ("u8", struct.Struct("<B")),
    1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")),
    3: ("i16", struct.Struct("<h")),
    4: ("u32", U32),
    5: ("i32", I32),
    6: ("f32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<b")),
    10: ("u64", U64),
    11: ("i64", I64),
    12: ("f64", struct.Struct("<d")),
}

Scalar = Union[int, float, bool, str]


class Array(NamedTuple):
    """An array value: ``length`` elements of ``type_name``; ``items`` where they are few or were asked for."""

    type_name: str
    length: int
    items: tuple[Scalar, ...] | None


class LongString(NamedTuple):
    """A string too long to keep; ``length`` in bytes."""

    length: int


Value = Union[Scalar, Array, LongString]


class Tensor(NamedTuple):
    """A tensor info. ``offset`` counts from the data section, ``nbytes`` without padding."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int


class Header(NamedTuple):
    """The header of one file.

    ``values``: strings as in the file, bytes that are no UTF-8 as lone surrogates (surrogateescape).
    ``types``: of each value, as llama.cpp calls them: ``u32``, ``str``, of an array ``arr[str]``.
    ``data_offset`` and ``file_bytes`` in bytes.
    """

    version: int
    values: dict[str, Value]
    types: dict[str, str]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int
    file_bytes: int


def read_header(path: str, whole: bool = False) -> Header:
    """Read the header of the file at ``path``; ``whole`` keeps long arrays and strings.

    Raises :class:`GgufError` for a file that is missing, not GGUF, broken or truncated.
    """
    try:
        # Opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise GgufError("path", 0, "it is not a file; name a model file")
        with open(path, "rb", buffering=0) as stream:
            return parse(FileSource(stream, os.fstat(stream.fileno()).st_size), whole)
    except FileNotFoundError as error:
        raise GgufError("path", 0, "there is no such file; correct the path, or put the file there") from error
    except OSError as error:
        raise GgufError("path", 0, "it cannot be read: %s" % error.strerror) from error
    except ValueError as error:
        if isinstance(error, GgufError):
            raise
        raise GgufError("path", 0, "it is not a path: %s" % error) from error


def parse_header(read: Callable[[int], bytes], file_bytes: int, whole: bool = False) -> Header:
    """Read a header through ``read(size) -> bytes`` of a file of ``file_bytes`` bytes; see :func:`parse`."""
    return parse(Source(read, file_bytes), whole)


def parse(source: Source, whole: bool = False) -> Header:
    """Read a header; ``whole`` keeps long arrays and strings.

    Raises :class:`GgufError`; among others when the tensors do not fit into the file.
    """
    cursor = Cursor(source)
    if source.size < len(MAGIC) or cursor.take(len(MAGIC)) != MAGIC:
        raise GgufError(
            "magic", 0, "it is not a GGUF file, which begins with the letters GGUF; name a model in this format"
        )
    cursor.field = "version"
    start = cursor.offset
    version = cursor.number(U32)
    if version & 0xFFFF == 0:
        raise cursor.fail(
            "version 0x%08x: a big-endian GGUF file; get a little-endian one, or convert it" % version, start
        )
    if version not in VERSIONS:
        raise cursor.fail("GGUF version %d: only 2 and 3 are read; convert the model again" % version, start)
    cursor.field = "tensor count"
    n_tensors = _count(cursor, MAX_TENSORS)
    cursor.field = "key count"
    n_keys = _count(cursor, MAX_KEYS)
    values, types, alignment = _Values(cursor, whole).read(n_keys)
    tensors, end = _tensors(cursor, n_tensors, alignment)
    data_offset = padded(cursor.offset, alignment) if tensors else cursor.offset
    if tensors and data_offset + end > source.size:
        raise GgufError(
            "tensor data",
            source.size,
            "it is truncated: its tensors need %d bytes, the file has %d; get it again"
            % (data_offset + end, source.size),
        )
    return Header(version, values, types, tensors, alignment, data_offset, source.size)


def padded(size: int, alignment: int) -> int:
    """Round ``size`` up to a multiple of ``alignment``, a power of two."""
    return (size + alignment - 1) & -alignment


def _count(cursor: Cursor, cap: int) -> int:
    start = cursor.offset
    count = cursor.number(I64)
    if not 0 <= count <= cap:
        raise cursor.fail("a count of %d is not believable (at most %d)" % (count, cap), start)
    return count


class _Values:
    """Reads the key-values, and keeps as much of the values as ``KEPT_BYTES`` allows."""

    def __init__(self, cursor: Cursor, whole: bool) -> None:
        self.cursor = cursor
        self.whole = whole
        self.budget = KEPT_BYTES_WHOLE if whole else KEPT_BYTES
        self.key_budget = KEY_BYTES

    def keep(self, cost: int) -> bool:
        """Whether something that takes about ``cost`` bytes of memory may be kept; then they are spent."""
        if cost > self.budget:
            return False
        self.budget -= cost
        return True

    def read(self, count: int) -> tuple[dict[str, Value], dict[str, str], int]:
        """Return values and types by key, and the alignment."""
        cursor = self.cursor
        values: dict[str, Value] = {}
        types: dict[str, str] = {}
        alignment: Value = DEFAULT_ALIGNMENT
        for number in range(count):
            cursor.field = "key %d" % number
            start = cursor.offset
            length = cursor.length()
            if not length:
                raise cursor.fail("the key is empty", start)
            self.key_budget -= _KEY_COST + length
            if self.key_budget < 0:
                raise cursor.fail("keys that take more than %d MiB are not believable" % (KEY_BYTES >> 20), start)
            key = cursor.take(length).decode("utf-8", "surrogateescape")
            if key in values:
                raise cursor.fail("the key %s is there twice" % ascii(key), start)
            cursor.field = key if key.isprintable() and length <= 128 else cursor.field
            start = cursor.offset
            values[key], types[key] = self.value()
            if key == "general.alignment":
                alignment = values[key]
                if types[key] != "u32":
                    raise cursor.fail("it must be of type u32, not %s" % types[key], start)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            cursor.field = "general.alignment"
            raise cursor.fail("alignment %s is not a power of two" % (alignment,))
        return values, types, alignment

    def value(self) -> tuple[Value, str]:
        """Return the next value, and the name of its type."""
        cursor = self.cursor
        start = cursor.offset
        kind = cursor.number(I32)
        if kind == _STRING:
            return self.string(), "str"
        if kind == _ARRAY:
            array = self.array()
            return array, "arr[%s]" % array.type_name
        if kind not in _SCALARS:
            raise cursor.fail("value type %d is unknown" % kind, start)
        name, code = _SCALARS[kind]
        value: Scalar = code.unpack(cursor.take(code.size))[0]
        return bool(value) if kind == _BOOL else value, name

    def string(self) -> str | LongString:
        """Return the next string, or how long it is."""
        length = self.cursor.length()
        if (length > KEPT_STRING and not self.whole) or not self.keep(_STRING_COST + length):
            self.cursor.skip(length)
            return LongString(length)
        return self.cursor.take(length).decode("utf-8", "surrogateescape")

    def array(self) -> Array:
        """Return the next array, whose type and length stand before its elements."""
        cursor = self.cursor
        start = cursor.offset
        kind = cursor.number(I32)
        if kind != _STRING and kind not in _SCALARS:
            raise cursor.fail("array of value type %d is not allowed" % kind, start)
        start = cursor.offset
        count = cursor.number(U64)
        each = 8 if kind == _STRING else _SCALARS[kind][1].size
        if count > MAX_ITEMS or count * each > cursor.remaining:
            raise cursor.fail("an array of %d cannot be in a file of %d bytes" % (count, cursor.total), start)
        cursor.expect(count * each)
        if kind == _STRING:
            return self.strings(count)
        name, code = _SCALARS[kind]
        if (count > KEPT_ITEMS and not self.whole) or not self.keep(_STRING_COST + count * _NUMBER_COST):
            cursor.skip(count * each)
            return Array(name, count, None)
        items = struct.unpack("<%d%s" % (count, code.format[1:]), cursor.take(count * each))
        return Array(name, count, tuple(item != 0 for item in items) if kind == _BOOL else items)

    def strings(self, count: int) -> Array:
        """Return the next ``count`` strings as an array."""
        cursor = self.cursor
        items: list[str] | None = [] if self.whole and count * _STRING_COST <= self.budget else None
        walked = 0
        while items is not None and walked < count:
            text = self.string()
            walked += 1
            if isinstance(text, str):
                items.append(text)
            else:
                items = None
        cursor.skip_strings(count - walked)
        return Array("str", count, None if items is None else tuple(items))


def _tensors(cursor: Cursor, count: int, alignment: int) -> tuple[tuple[Tensor, ...], int]:
    """Return the tensor infos, and where the last one ends in the data section."""
    tensors: list[Tensor] = []
    names: set[bytes] = set()
    expected = end = 0
    for number in range(count):
        cursor.field = "tensor %d" % number
        # Length of the name, dimensions, type, offset.
        cursor.expect((count - number) * 24)
        start = cursor.offset
        name = _tensor_name(cursor)
        if name in names:
            raise cursor.fail("the tensor %s is there twice" % ascii(name.decode("utf-8", "replace")), start)
        names.add(name)
        tensor = _tensor(cursor, name)
        if tensor.offset != expected:
            raise cursor.fail("it begins at %d of the data instead of %d" % (tensor.offset, expected), start)
        tensors.append(tensor)
        end = expected + tensor.nbytes
        expected = padded(end, alignment)
    return tuple(tensors), end


def _tensor_name(cursor: Cursor) -> bytes:
    start = cursor.offset
    length = cursor.length()
    if length >= MAX_NAME:
        raise cursor.fail("a tensor's name of %d bytes: it has %d at most" % (length, MAX_NAME - 1), start)
    return cursor.take(length)


def _tensor(cursor: Cursor, raw_name: bytes) -> Tensor:
    # To ggml a name ends at the first zero.
    name = raw_name.split(b"\0")[0].decode("utf-8", "surrogateescape")
    if name.isprintable() and name:
        cursor.field = name
    start = cursor.offset
    n_dims = cursor.number(U32)
    if n_dims > MAX_DIMENSIONS:
        raise cursor.fail("%d dimensions: a tensor has at most %d" % (n_dims, MAX_DIMENSIONS), start)
    start = cursor.offset
    fields = _TENSOR_FIELDS[n_dims]
    *sizes, kind, offset = fields.unpack(cursor.take(fields.size))
    shape: tuple[int, ...] = tuple(sizes) or (1,)
    elements = _elements(cursor, shape, start)
    start += 8 * n_dims
    if kind not in TENSOR_TYPES:
        raise cursor.fail("tensor type %d is unknown: no type of llama.cpp, or one newer than b11434" % kind, start)
    tensor_type = TENSOR_TYPES[kind]
    try:
        row = tensor_type.row_bytes(shape[0])
    except ValueError as error:
        raise cursor.fail(str(error), start) from error
    nbytes = row * (elements // shape[0]) if elements else 0
    return Tensor(name, shape, tensor_type.name, offset, nbytes)


def _elements(cursor: Cursor, shape: tuple[int, ...], start: int) -> int:
    """Return how many elements there are; ggml_new_tensor_impl aborts where their count overflows."""
    if min(shape) < 0:
        raise cursor.fail("dimensions %r: none can be negative" % (shape,), start)
    elements = shape[0]
    for size in shape[1:]:
        if size > 1:
            if elements >= _INT64_MAX // size:
                raise cursor.fail("dimensions %r have more elements than 63 bits can count" % (shape,), start)
            elements *= size
    return elements if 0 not in shape else 0
