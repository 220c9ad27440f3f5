# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A copy of a header is the header, and takes the room of the header."""

from __future__ import annotations

import io
import os
import struct

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import LongString, parse_header, read_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle import copied
from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle_files import (
    Incomplete,
    header_bytes,
    sparse_copy,
)
from ansible_collections.llamacpp.cluster.tests.unit.builders import llama

KEY = struct.Struct("<Q1sI")
# Every type of value that there is: number of the type, bytes.
VALUES = {
    "a": (0, b"\xff"),
    "b": (1, b"\xff"),
    "c": (2, b"\xff\xff"),
    "d": (3, b"\xff\xff"),
    "e": (4, b"\xff" * 4),
    "f": (5, b"\xff" * 4),
    "g": (6, struct.pack("<f", 0.1)),
    "h": (7, b"\x01"),
    "i": (8, struct.pack("<Q", 3) + b"x\xff\xc3"),  # no UTF-8
    "j": (10, b"\xff" * 8),
    "k": (11, b"\xff" * 8),
    "l": (12, struct.pack("<d", 0.1)),
    "m": (9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1) + b"y" + struct.pack("<Q", 0)),
    "n": (9, struct.pack("<IQ", 6, 2) + struct.pack("<ff", 0.5, -1.5)),
    "o": (9, struct.pack("<IQ", 7, 2) + b"\x01\x00"),
    "p": (9, struct.pack("<IQ", 5, 0)),
    "q": (9, struct.pack("<IQ", 4, 5000) + struct.pack("<5000I", *range(5000))),
}


def of_every_type():
    body = b"".join(KEY.pack(1, key.encode(), kind) + raw for key, (kind, raw) in VALUES.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(VALUES)) + body


@pytest.mark.parametrize("raw", [of_every_type(), llama(), llama(tied=True)], ids=["types", "model", "tied"])
def test_a_header_is_written_as_it_was_read(raw):
    header = parse_header(io.BytesIO(raw).read, len(raw), whole=True)
    assert header_bytes(header) == raw[: header.data_offset]


def test_what_was_left_out_while_reading_cannot_be_written():
    raw = of_every_type()
    header = parse_header(io.BytesIO(raw).read, len(raw))
    with pytest.raises(Incomplete, match="m is too long"):
        header_bytes(header)
    cut = header._replace(values={"a": LongString(70000)}, types={"a": "str"})
    with pytest.raises(Incomplete, match="a is too long"):
        header_bytes(cut)


def test_a_copy_has_the_length_of_the_model_but_takes_no_room(tmp_path):
    raw = llama()
    header = parse_header(io.BytesIO(raw).read, 1 << 40, whole=True)
    path = sparse_copy(str(tmp_path), [header], ["deep/er/toy.gguf"])
    assert path == str(tmp_path / "toy.gguf")
    assert os.path.getsize(path) == 1 << 40
    assert os.stat(path).st_blocks * 512 < 1 << 20
    assert read_header(path, whole=True) == header


def test_a_copy_is_there_while_it_is_needed(tmp_path):
    model = tmp_path / "toy.gguf"
    model.write_bytes(llama())
    with copied(str(model)) as path:
        assert path != str(model)
        assert read_header(path) == read_header(str(model))
        directory = os.path.dirname(path)
    assert not os.path.exists(directory)
