# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pieces of files, as publishers name them."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._join import (
    Piece,
    TooLongError,
    Window,
    missing_pieces,
    piece,
    whole_files,
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("OR1-Behemoth.Q8_0.gguf.part1of3", Piece("OR1-Behemoth.Q8_0.gguf", 1, 3)),
        ("a/b.i1-Q6_K.gguf.PART02of12", Piece("a/b.i1-Q6_K.gguf", 2, 12)),
        ("goliath.Q8_0.gguf-split-a", Piece("goliath.Q8_0.gguf", 1, 0)),
        ("m.gguf.split-c", Piece("m.gguf", 3, 0)),
        ("m.gguf.part-aa", Piece("m.gguf", 1, 0)),
        ("m.gguf.partba", Piece("m.gguf", 27, 0)),
        ("m-00001-of-00003.gguf", None),
        ("m.gguf", None),
        ("party.gguf", None),
        ("m.part-aa", None),
    ],
)
def test_what_a_name_says(name, found):
    assert piece(name) == found


def test_sets_are_in_the_order_of_their_numbers():
    names = ["m.gguf.part%dof11" % number for number in range(1, 12)]
    assert whole_files([*reversed(names), "other.gguf"]) == {"m.gguf": names, "other.gguf": ["other.gguf"]}
    assert missing_pieces(names) == {}


def test_missing_pieces_are_named():
    names = ["m.gguf.part1of4", "m.gguf.part3of4", "n.gguf-split-c", "n.gguf-split-a"]
    assert whole_files(names) == {}
    assert missing_pieces(names) == {"m.gguf": [2, 4], "n.gguf": [2]}


def test_a_window_is_a_file_of_its_own(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"first")
    heard = []
    with open(path, "r+b", buffering=0) as stream:
        window = Window(stream, 5, 15, heard.append)
        assert (window.tell(), window.have()) == (0, 0)
        window.write(b"second and more")
        assert (window.tell(), window.have()) == (15, 15)
        with pytest.raises(TooLongError):
            window.write(b"x")
        window.seek(7)
        assert window.inner(7, 3).read(100) == b"and"
        window.seek(6)
        window.truncate()
        assert window.have() == 6
        assert Window(stream, 0, 5).have() == 5
    assert path.read_bytes() == b"firstsecond"
    assert heard == [15]
