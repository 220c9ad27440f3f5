# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A model's files as llama.cpp wants to see them when it is asked for memory only: header and size, no weights.

llama.cpp reads nothing but the header then, yet checks that every tensor lies within the file. A copy of the
header that is stretched to the length of the model satisfies it, and takes no room on a disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import TENSOR_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import Array, Header, LongString, Scalar, Value

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
# enum gguf_type (ggml/include/gguf.h) under the names of `Header.types`, and how a value is packed.
_NUMBERS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
_STRING, _ARRAY = 8, 9
_TENSOR_TYPES = {kind.name: number for number, kind in TENSOR_TYPES.items()}


class Incomplete(ValueError):
    """The header was read without its long values, so it cannot be written again."""


def header_bytes(header: Header) -> bytes:
    """Write a header that was read with ``whole=True``, up to where its data begins; raises :class:`Incomplete`."""
    parts = [b"GGUF", _U32.pack(header.version), _U64.pack(len(header.tensors)), _U64.pack(len(header.values))]
    for key, value in header.values.items():
        parts += [_text(key), _value(key, value, header.types[key])]
    for tensor in header.tensors:
        parts += [_text(tensor.name), _U32.pack(len(tensor.shape))]
        parts += [_U64.pack(size) for size in tensor.shape]
        parts += [_U32.pack(_TENSOR_TYPES[tensor.type_name]), _U64.pack(tensor.offset)]
    written = b"".join(parts)
    return written.ljust(header.data_offset, b"\0")


def sparse_copy(directory: str, headers: Sequence[Header], names: Sequence[str]) -> str:
    """Write the files of a model without their weights into ``directory``; return the path of the first.

    ``headers``, ``names``: as ``_read_model.read_headers`` returns them with ``whole=True``. Raises
    :class:`Incomplete`, and :class:`OSError` where the file system has no such large files.
    """
    for header, name in zip(headers, names):
        with open(os.path.join(directory, os.path.basename(name)), "wb") as copy:
            copy.write(header_bytes(header))
            copy.truncate(header.file_bytes)
    return os.path.join(directory, os.path.basename(names[0]))


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return _U64.pack(len(raw)) + raw


def _value(key: str, value: Value, kind: str) -> bytes:
    if isinstance(value, LongString) or (isinstance(value, Array) and value.items is None):
        raise Incomplete("%s is too long to be copied" % key)
    if isinstance(value, Array):
        items = value.items or ()
        number = _STRING if value.type_name == "str" else _NUMBERS[value.type_name][0]
        return _U32.pack(_ARRAY) + _U32.pack(number) + _U64.pack(len(items)) + _items(items, value.type_name)
    if kind == "str":
        return _U32.pack(_STRING) + _text(str(value))
    return _U32.pack(_NUMBERS[kind][0]) + _items((value,), kind)


def _items(items: Sequence[Scalar], kind: str) -> bytes:
    if kind == "str":
        return b"".join(_text(str(item)) for item in items)
    return struct.pack("<%d%s" % (len(items), _NUMBERS[kind][1]), *items)
