# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""GGUF files byte by byte, good and bad, with exactly the types that are asked for."""

from __future__ import annotations

import struct
from typing import Any

TYPES = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "str": (8, ""),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}


def string(text: str | bytes) -> bytes:
    """Return a string of the format."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def bare(kind: str, value: Any) -> bytes:
    """Return a value without its type."""
    return string(value) if kind == "str" else struct.pack("<" + TYPES[kind][1], value)


def pair(key: str | bytes, kind: str, value: Any) -> bytes:
    """Return a key-value; ``kind`` is ``u32``, or ``[u32]`` for a list."""
    if kind.startswith("["):
        inner = kind[1:-1]
        head = struct.pack("<iiQ", 9, TYPES[inner][0], len(value))
        return string(key) + head + b"".join(bare(inner, item) for item in value)
    return string(key) + struct.pack("<i", TYPES[kind][0]) + bare(kind, value)


def tensor(name: str | bytes = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    """Return a tensor info; the type 0 is F32."""
    return string(name) + struct.pack("<I%dqiQ" % len(shape), len(shape), *shape, kind, offset)


def head(n_tensors: int, n_keys: int, version: int = 3) -> bytes:
    """Return what a file begins with."""
    return b"GGUF" + struct.pack("<Iqq", version, n_tensors, n_keys)


def build(
    pairs: list[bytes],
    tensors: list[bytes] | None = None,
    data: int = 0,
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """Return a file with ``data`` zeros behind its padded header."""
    tensors = tensors or []
    raw = head(len(tensors), len(pairs), version) + b"".join(pairs) + b"".join(tensors)
    if tensors:
        raw += bytes(-len(raw) % alignment)
    return raw + bytes(data)


def split(count: int, name: str = "toy", tensors: int = 1) -> list[bytes]:
    """Return the files of a llama model in ``count`` parts, each with ``tensors`` tensors of its own."""
    files = []
    for number in range(count):
        pairs = [
            pair("split.no", "u16", number),
            pair("split.count", "u16", count),
            pair("split.tensors.count", "i32", count * tensors),
        ]
        if number == 0:
            pairs += [
                pair("general.architecture", "str", "llama"),
                pair("general.name", "str", name),
                pair("llama.block_count", "u32", count * tensors),
            ]
        infos = [tensor("blk.%d.w" % (number * tensors + index), offset=index * 128) for index in range(tensors)]
        files.append(build(pairs, infos, data=128 * tensors))
    return files
