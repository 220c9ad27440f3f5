# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Torrent files: what libtorrent makes, and nothing else is taken for one."""

from __future__ import annotations

import hashlib
import os
import random

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_torrent import (
    BLOCK,
    LEAST_PIECE,
    MOST_PIECE,
    NAME,
    TorrentError,
    bdecode,
    bencode,
    content_of,
    covers,
    make_torrent,
    piece_bytes,
    read_torrent,
    torrent_id,
)

SIZES = (1, BLOCK, BLOCK + 1, 3 * BLOCK, LEAST_PIECE - 1, LEAST_PIECE, LEAST_PIECE + 1, 5 * LEAST_PIECE + 77)


@pytest.fixture
def contents(tmp_path):
    """What a torrent says of files of all kinds of sizes, by sha256; the files are below ``tmp_path/NAME``."""
    found = {}
    (tmp_path / NAME).mkdir()
    for size in SIZES:
        data = random.Random(size).randbytes(size)
        path = tmp_path / NAME / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        found[path.name], sha256 = content_of(str(path), LEAST_PIECE)
        assert sha256 == path.name
    return found


def test_libtorrent_makes_the_same(contents, tmp_path):
    libtorrent = pytest.importorskip("libtorrent")
    entries = [libtorrent.create_file_entry("%s/%s" % (NAME, name), contents[name].size) for name in sorted(contents)]
    maker = libtorrent.create_torrent(entries, LEAST_PIECE, libtorrent.create_torrent.v2_only)
    maker.set_priv(True)
    libtorrent.set_piece_hashes(maker, str(tmp_path))
    made = maker.generate()
    ours = bdecode(make_torrent(contents, LEAST_PIECE))
    for key in (b"info", b"piece layers"):
        assert ours[key] == bdecode(libtorrent.bencode(made[key]))


def test_read_torrent(contents):
    data = make_torrent(contents, LEAST_PIECE)
    assert read_torrent(data) == (contents, LEAST_PIECE)
    assert make_torrent(dict(reversed(list(contents.items()))), LEAST_PIECE) == data
    assert covers(contents, [(name, one.size) for name, one in contents.items()] + [("empty", 0)])
    assert not covers(contents, [])


def test_a_torrent_that_was_tampered_with(contents):
    data = make_torrent(contents, LEAST_PIECE)
    for position in range(0, len(data), 7):
        wrong = bytearray(data)
        wrong[position] ^= 1
        try:
            found = read_torrent(bytes(wrong))
        except TorrentError:
            continue
        # Names and hashes of small files stand for themselves: such a torrent is of other files.
        assert found != (contents, LEAST_PIECE)
    for end in range(0, len(data), 11):
        with pytest.raises(TorrentError):
            read_torrent(data[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"i1",
        b"l" * 50,
        b"de",
        b"i1ei2e",
        b"d1:ae",
        b"di1ei2ee",
        b"-1:",
        b"5:abc",
        b"li1e",
        bencode({"info": [], "piece layers": {}}),
        bencode({"info": {"file tree": {"a": {"": {"length": -1, "pieces root": ""}}}, "piece length": 1 << 18}}),
        bencode({"info": {"file tree": {}, "piece length": "x"}, "piece layers": {}}),
    ],
)
def test_what_is_no_torrent(data):
    with pytest.raises(TorrentError):
        read_torrent(data)


def test_bencode():
    assert bencode({"b": [1, -2], b"a": {"": b"\0"}}) == b"d1:ad0:1:\0e1:bli1ei-2eee"
    assert bdecode(bencode({"b": [1, -2]})) == {b"b": [1, -2]}


@pytest.mark.parametrize(
    ("total", "piece"), [(0, 256), (500_000_000, 256), (1 << 30, 512), (40 << 30, 16384), (1 << 50, 16384)]
)
def test_piece_bytes(total, piece):
    assert piece_bytes(total) == piece << 10
    assert piece_bytes(1 << 60) == MOST_PIECE


def test_progress(tmp_path):
    path = tmp_path / "x"
    path.touch()
    os.truncate(path, 30 * LEAST_PIECE + 1)
    said = []
    content_of(str(path), LEAST_PIECE, said.append)
    assert said == [*range(LEAST_PIECE, 30 * LEAST_PIECE + 1, LEAST_PIECE), 30 * LEAST_PIECE + 1]


def test_torrent_id():
    assert torrent_id({"a": 1, "b": 2}) == torrent_id({"b": 2, "a": 1})
    assert torrent_id({"a": 1}) != torrent_id({"a": 2})
