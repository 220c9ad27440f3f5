# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Torrent files of version 2 (BEP 52) for blobs of the store: made and read with the standard library.

Always the same bytes for the same blobs, so a torrent that was made once serves for every later run. Its files have the
sha256 of their blob as name; the hashes inside are trees of SHA-256 over blocks of 16 KiB, so wrong bytes are known as
soon as their piece is whole, and so is who sent them.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NamedTuple, Union

BLOCK = 16 << 10  # BEP 52: what a leaf of the tree stands for
LEAST_PIECE = 256 << 10
MOST_PIECE = 16 << 20
# A piece can be given on once it is whole, so there have to be many; each costs 32 bytes of the torrent file.
PIECES = 2048
NAME = "llamacpp-model"
HASH_BYTES = 32
THREADS = min(4, os.cpu_count() or 1)
_ZERO = b"\0" * HASH_BYTES

Bencoded = Union[int, bytes, "list[Any]", "dict[bytes, Any]"]


class TorrentError(ValueError):
    """These bytes are no torrent file of this module."""


class Content(NamedTuple):
    """What a torrent says of one file: its size, the root of its tree, and the hash of each piece (in order)."""

    size: int
    root: bytes
    pieces: tuple[bytes, ...]


def piece_bytes(total: int) -> int:
    """Return the size of a piece for so many bytes altogether: a power of two, 256 KiB to 16 MiB."""
    size = LEAST_PIECE
    while size < MOST_PIECE and total > size * PIECES:
        size *= 2
    return size


def torrent_id(files: Mapping[str, int]) -> str:
    """Return a name for the torrent of these blobs (sha256 -> bytes): 16 hexadecimal digits."""
    text = "".join("%s %d\n" % item for item in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bencode(value: Any) -> bytes:
    """Return a value of int, bytes, str, list and dict as BEP 3 writes it."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(bencode(item) for item in value) + b"e"
    pairs = sorted((key.encode() if isinstance(key, str) else key, item) for key, item in value.items())
    return b"d" + b"".join(bencode(key) + bencode(item) for key, item in pairs) + b"e"


def bdecode(data: bytes) -> Any:
    """Return what :func:`bencode` wrote, texts as bytes. Raises :class:`TorrentError`."""
    try:
        value, end = _value(data, 0, 0)
    except (IndexError, ValueError) as error:
        raise TorrentError("no bencoded data: %s" % error) from error
    if end != len(data):
        raise TorrentError("%d bytes behind the end" % (len(data) - end))
    return value


def _value(data: bytes, at: int, depth: int) -> tuple[Bencoded, int]:
    kind = data[at : at + 1]
    if depth > 8:
        raise ValueError("nested too deeply")
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in (b"l", b"d"):
        at += 1
        items: list[Any] = []
        while data[at : at + 1] != b"e":
            item, at = _value(data, at, depth + 1)
            items.append(item)
        if kind == b"l":
            return items, at + 1
        if len(items) % 2 or not all(isinstance(key, bytes) for key in items[::2]):
            raise ValueError("a dictionary without a key or value")
        return dict(zip(items[::2], items[1::2])), at + 1
    colon = data.index(b":", at)
    length, start = int(data[at:colon]), colon + 1
    if length < 0 or start + length > len(data):
        raise ValueError("a text behind the end")
    return data[start : start + length], start + length


def tree_root(hashes: list[bytes], padding: bytes, width: int = 1) -> bytes:
    """Return the root over hashes of one level, filled with ``padding`` to a power of two, at least ``width``."""
    while width < len(hashes):
        width *= 2
    while width > 1:
        if len(hashes) % 2:
            hashes = [*hashes, padding]
        hashes = [hashlib.sha256(hashes[i] + hashes[i + 1]).digest() for i in range(0, len(hashes), 2)]
        padding = hashlib.sha256(padding + padding).digest()
        width //= 2
    return hashes[0]


def small_root(data: bytes) -> bytes:
    """Return the root of a file that is no larger than a piece."""
    view = memoryview(data)
    return tree_root([hashlib.sha256(view[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)], _ZERO)


def piece_hash(data: bytes, piece: int) -> bytes:
    """Return the hash of one piece of a file of several pieces (the last one may be shorter)."""
    view = memoryview(data)
    leaves = [hashlib.sha256(view[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
    return tree_root(leaves, _ZERO, piece // BLOCK)


def content_of(path: str, piece: int, progress: Callable[[int], None] = lambda done: None) -> tuple[Content, str]:
    """Read a file; return what a torrent says of it, and its sha256. ``progress`` is told the bytes that were read."""
    size = os.path.getsize(path)
    digest, hashes = hashlib.sha256(), []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:

        def one(at: int) -> tuple[bytes, bytes]:
            data = os.pread(descriptor, piece, at)
            return data, piece_hash(data, piece) if size > piece else small_root(data)

        # hashlib lets other threads run while it hashes. Only so many pieces are in memory as are hashed at a time.
        with ThreadPoolExecutor(max_workers=THREADS) as pool:
            offsets = iter(range(0, size, piece))
            window = collections.deque(pool.submit(one, at) for at in itertools.islice(offsets, 2 * THREADS))
            while window:
                data, found = window.popleft().result()
                window.extend(pool.submit(one, at) for at in itertools.islice(offsets, 1))
                digest.update(data)
                hashes.append(found)
                progress(min(size, len(hashes) * piece))
    finally:
        os.close(descriptor)
    root = file_root(hashes, piece) if size > piece else hashes[0]
    return Content(size, root, tuple(hashes)), digest.hexdigest()


def file_root(hashes: list[bytes], piece: int) -> bytes:
    """Return the root of a file of several pieces from their hashes."""
    return tree_root(hashes, tree_root([_ZERO], _ZERO, piece // BLOCK))


def make_torrent(contents: Mapping[str, Content], piece: int) -> bytes:
    """Return the torrent file for blobs: sha256 -> what :func:`content_of` says. None of them is empty."""
    tree = {sha256: {"": {"length": one.size, "pieces root": one.root}} for sha256, one in contents.items()}
    layers = {one.root: b"".join(one.pieces) for one in contents.values() if one.size > piece}
    info = {"file tree": tree, "meta version": 2, "name": NAME, "piece length": piece, "private": 1}
    return bencode({"info": info, "piece layers": layers})


def read_torrent(data: bytes) -> tuple[dict[str, Content], int]:
    """Return what :func:`make_torrent` was given. Raises :class:`TorrentError` for anything else."""
    torrent = bdecode(data)
    try:
        info, layers = torrent[b"info"], torrent[b"piece layers"]
        piece = info[b"piece length"]
        contents = {
            sha256.decode("ascii"): _content(entry[b""], layers, piece) for sha256, entry in info[b"file tree"].items()
        }
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise TorrentError("not a torrent of this collection: %r" % error) from error
    if make_torrent(contents, piece) != data:
        raise TorrentError("not a torrent of this collection")
    return contents, piece


def _content(entry: Mapping[bytes, Any], layers: Mapping[bytes, bytes], piece: int) -> Content:
    size, root = entry[b"length"], entry[b"pieces root"]
    if not isinstance(piece, int) or piece < BLOCK or piece & (piece - 1) or not isinstance(size, int) or size < 1:
        raise TorrentError("sizes %r and %r" % (size, piece))
    if size <= piece:
        return Content(size, root, (root,))
    layer = layers[root]
    pieces = [layer[at : at + HASH_BYTES] for at in range(0, len(layer), HASH_BYTES)]
    if len(layer) != HASH_BYTES * -(-size // piece) or file_root(pieces, piece) != root:
        raise TorrentError("its hashes do not fit together")
    return Content(size, root, tuple(pieces))


def covers(torrent: Mapping[str, Content], files: Iterable[tuple[str, int]]) -> bool:
    """Whether a torrent is of exactly these blobs (sha256 and bytes; empty ones need no torrent)."""
    return {sha256: one.size for sha256, one in torrent.items()} == {name: size for name, size in files if size}
