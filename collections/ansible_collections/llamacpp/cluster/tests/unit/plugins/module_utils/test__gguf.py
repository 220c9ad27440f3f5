# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Headers of GGUF files: good ones, and every way in which a file can be none."""

from __future__ import annotations

import io
import os
import struct

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gguf, _gguf_cursor
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import Array, GgufError, LongString
from ansible_collections.llamacpp.cluster.tests.unit import gguf_bytes
from ansible_collections.llamacpp.cluster.tests.unit.builders import gguf, llama, string, value


def parse(raw: bytes, size: int | None = None) -> _gguf.Header:
    return _gguf.parse_header(io.BytesIO(raw).read, len(raw) if size is None else size)


def one_value(raw_value: bytes) -> bytes:
    return b"GGUF" + struct.pack("<Iqq", 3, 0, 1) + string("key") + raw_value


@pytest.mark.parametrize("version", [2, 3])
def test_values_and_tensors(version):
    header = parse(gguf({"a": 7, "b": "text", "c": True, "d": 0.5, "e": [1, 2, 3]}, version=version))
    assert header.version == version
    assert header.values == {"a": 7, "b": "text", "c": True, "d": 0.5, "e": Array("u32", 3, (1, 2, 3))}
    assert header.values["c"] is True
    (tensor,) = header.tensors
    assert (tensor.name, tensor.shape, tensor.type_name) == ("blk.0.attn_q.weight", (32, 2), "F16")
    assert (tensor.offset, tensor.nbytes) == (0, 128)
    assert header.data_offset + 128 == header.file_bytes


@pytest.mark.parametrize(
    ("kind", "code", "number"),
    [(0, "B", 200), (1, "b", -5), (2, "H", 60000), (3, "h", -300), (5, "i", -70000), (10, "Q", 1 << 40), (11, "q", -9)],
)
def test_all_sizes_of_integers(kind, code, number):
    assert parse(one_value(struct.pack("<i" + code, kind, number))).values == {"key": number}


def test_doubles():
    assert parse(one_value(struct.pack("<id", 12, 0.1))).values == {"key": 0.1}


def test_vocabularies_are_counted_and_not_built():
    # More than a block of the reader, with strings that cross its boundaries.
    words = ["w" * (index % 97) for index in range(20000)]
    header = parse(gguf({"tokens": words, "after": 5}))
    assert header.values["tokens"] == Array("str", 20000, None)
    assert header.values["after"] == 5


def test_strings_longer_than_a_block():
    header = parse(gguf({"words": ["x" * (_gguf_cursor.BLOCK * 2), "y"], "after": 1}))
    assert header.values == {"words": Array("str", 2, None), "after": 1}


def test_long_values_are_passed_over():
    header = parse(gguf({"template": "x" * (_gguf.KEPT_STRING + 1), "scores": [0.5] * 5000, "after": 1}))
    assert header.values["template"] == LongString(_gguf.KEPT_STRING + 1)
    assert header.values["scores"] == Array("f32", 5000, None)
    assert header.values["after"] == 1


def test_a_source_may_return_a_few_bytes_at_a_time():
    raw = llama()
    stream = io.BytesIO(raw)
    header = _gguf.parse_header(lambda size: stream.read(min(size, 7)), len(raw))
    assert len(header.tensors) == 11


def test_no_more_than_the_header_is_read(tmp_path):
    read = []
    raw = gguf(tensors=[("blk.0.w", (1024, 1024, 8), "F32")])
    stream = io.BytesIO(raw)
    _gguf.parse_header(lambda size: read.append(size) or stream.read(size), len(raw))
    assert sum(read) <= _gguf_cursor.BLOCK < len(raw)


def test_own_alignment():
    header = parse(gguf({"general.alignment": 128}, [("a", (3,), "F32"), ("b", (3,), "F32")], alignment=128))
    assert [tensor.offset for tensor in header.tensors] == [0, 128]


@pytest.mark.parametrize(
    ("raw", "field", "words"),
    [
        (b"", "magic", "not a GGUF file"),
        (b"PK\x03\x04 a zip", "magic", "not a GGUF file"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 16, "version", "big-endian"),
        (b"GGUF" + struct.pack("<Iqq", 1, 0, 0), "version", "version 1: only 2 and 3"),
        (b"GGUF" + struct.pack("<Iqq", 4, 0, 0), "version", "version 4: only 2 and 3"),
        (b"GGUF" + struct.pack("<Iqq", 3, -1, 0), "tensor count", "-1 is not believable"),
        (b"GGUF" + struct.pack("<Iqq", 3, 1 << 40, 0), "tensor count", "not believable"),
        (b"GGUF" + struct.pack("<Iqq", 3, 0, 1 << 40), "key count", "not believable"),
        (b"GGUF" + struct.pack("<Iqq", 3, 0, 1), "key 0", "truncated: its 24 bytes"),
        (b"GGUF" + struct.pack("<Iqq", 3, 0, 1) + string(""), "key 0", "is empty"),
        (b"GGUF" + struct.pack("<IqqQ", 3, 0, 1, 99) + b"short", "key 0", "of 99 bytes cannot be in a file"),
        (one_value(struct.pack("<i", 13)), "key", "value type 13 is unknown"),
        (one_value(struct.pack("<iiQ", 9, 9, 0)), "key", "array of value type 9 is not allowed"),
        (one_value(struct.pack("<iiQ", 9, 4, 1 << 29)), "key", "an array of 536870912 cannot be"),
        (one_value(struct.pack("<iQ", 8, 1 << 31)), "key", "a string of 2147483648 bytes cannot be"),
        (gguf({"general.alignment": 48}), "general.alignment", "48 is not a power of two"),
        (gguf({"general.alignment": "32"}), "general.alignment", "must be of type u32, not str"),
    ],
)
def test_what_is_no_model(raw, field, words):
    with pytest.raises(GgufError, match=words) as caught:
        parse(raw)
    assert caught.value.field == field


def test_a_key_that_is_there_twice():
    raw = b"GGUF" + struct.pack("<Iqq", 3, 0, 2) + (string("twin") + value(1)) * 2
    with pytest.raises(GgufError, match="'twin' is there twice"):
        parse(raw)


def tensor_info(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack("<I%dqiQ" % len(shape), len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("infos", "words"),
    [
        ([tensor_info(name="n" * 64)], "name of 64 bytes: it has 63 at most"),
        ([tensor_info(shape=(1, 1, 1, 1, 1))], "5 dimensions: a tensor has at most 4"),
        ([tensor_info(shape=(-1,))], "none can be negative"),
        ([tensor_info(shape=(1 << 40, 1 << 40))], "more elements than 63 bits"),
        ([tensor_info(shape=((1 << 62) - 1, 2), kind=24)], "more elements than 63 bits"),
        ([tensor_info(shape=(1 << 60, 4), kind=27)], "it is truncated: its tensors need %d bytes" % ((1 << 65) + 96)),
        ([tensor_info(kind=4)], "type 4 is unknown"),
        ([tensor_info(kind=99)], "type 99 is unknown"),
        ([tensor_info(shape=(31,), kind=8)], "does not divide into the blocks of 32 of Q8_0"),
        ([tensor_info(offset=32)], "begins at 32 of the data instead of 0"),
        ([tensor_info(), tensor_info()], "is there twice"),
        ([tensor_info(), tensor_info(name="u", offset=64)], "begins at 64 of the data instead of 128"),
    ],
)
def test_broken_tensors(infos, words):
    with pytest.raises(GgufError, match=words):
        parse(b"GGUF" + struct.pack("<Iqq", 3, len(infos), 0) + b"".join(infos) + b"\0" * 4096)


def test_truncated_data_says_both_sizes():
    raw = llama()
    with pytest.raises(GgufError, match=r"tensors need %d bytes, the file has %d" % (len(raw), len(raw) - 1)):
        parse(raw[:-1])


@pytest.mark.parametrize("cut", [30, 200, 900])
def test_a_header_that_ends_in_the_middle(cut):
    with pytest.raises(GgufError, match=r"truncated|cannot be in a file"):
        parse(llama()[:cut])


def test_a_stream_that_breaks_off():
    raw = llama()
    with pytest.raises(GgufError, match="stopped in the middle"):
        parse(raw[:500], size=len(raw))


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(GgufError, match=r"^there is no such file; correct the path, or put the file there$"):
        _gguf.read_header(str(tmp_path / "none.gguf"))


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(GgufError, match="is not a file; name a model file"):
        _gguf.read_header(str(tmp_path))


def test_the_gguf_package_writes_what_we_read(tmp_path):
    package = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    writer = package.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", numpy.zeros((2, 64), dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = _gguf.read_header(str(tmp_path / "m.gguf"))
    assert header.values["llama.block_count"] == 2
    assert header.values["tokenizer.ggml.tokens"] == Array("str", 2, None)
    assert [(tensor.name, tensor.shape, tensor.nbytes) for tensor in header.tensors] == [
        ("token_embd.weight", (64, 2), 256)
    ]


def strings(*lengths: int) -> bytes:
    """Return the beginning of an array of strings, each with its length and that many bytes, if they are few."""
    head = gguf_bytes.head(0, 1) + string("words") + struct.pack("<iiQ", 9, 8, len(lengths))
    return head + b"".join(struct.pack("<Q", length) + b"x" * min(length, 1 << 20) for length in lengths)


@pytest.mark.parametrize("before", [0, 1, 1000, 30_000])
@pytest.mark.parametrize("length", [1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1])
def test_a_string_that_is_too_long_is_found_in_any_block(before, length):
    good = strings(*[index % 90 for index in range(before)], 0)[24:]
    raw = gguf_bytes.head(0, 1) + good[:21] + struct.pack("<Q", before + 1) + good[29:-8] + struct.pack("<Q", length)
    with pytest.raises(GgufError, match="a string of %d bytes cannot be in a file" % length) as caught:
        parse(raw + bytes(200_000))
    assert (caught.value.field, caught.value.offset) == ("words", len(raw) - 8)


@pytest.mark.parametrize(("kind", "good"), [(0, 1 << 30), (8, 1)])
def test_arrays_of_more_than_2_30(tmp_path, kind, good):
    # As many as llama.cpp takes, and one more; the rest of the file is a hole.
    for count in (good, (1 << 30) + 1):
        head = gguf_bytes.head(0, 1) + string("a") + struct.pack("<iiQ", 9, kind, count)
        (tmp_path / "m.gguf").write_bytes(head)
        with open(tmp_path / "m.gguf", "r+b") as stream:
            stream.truncate(10 << 30)
        if count == good:
            assert _gguf.read_header(str(tmp_path / "m.gguf")).values["a"].length == good
    with pytest.raises(GgufError, match="an array of 1073741825 cannot be") as caught:
        _gguf.read_header(str(tmp_path / "m.gguf"))
    assert caught.value.offset == 41


def test_strings_that_end_with_the_file(tmp_path):
    raw = strings(70_000, 3, 0, 200_000)
    assert parse(raw).values == {"words": Array("str", 4, None)}
    with pytest.raises(GgufError, match="a string of 200000 bytes cannot be"):
        parse(raw[:-1])
    with pytest.raises(GgufError, match="it is truncated"):
        parse(raw[:-200_001])


def test_strings_of_more_than_a_gibibyte(tmp_path):
    # A hole in the file takes no space; llama.cpp has the same limit.
    (tmp_path / "m.gguf").write_bytes(strings(_gguf_cursor.MAX_STRING + 1)[:61])
    with open(tmp_path / "m.gguf", "r+b") as stream:
        stream.truncate(3 << 30)
    with pytest.raises(GgufError, match="a string of 1073741825 bytes") as caught:
        _gguf.read_header(str(tmp_path / "m.gguf"))
    assert caught.value.offset == 53


@pytest.mark.parametrize("cap", ["MAX_ARRAY_STRINGS", "MAX_ARRAY_BYTES"])
def test_arrays_beyond_belief(monkeypatch, cap):
    monkeypatch.setattr(_gguf_cursor, cap, 100)
    with pytest.raises(GgufError, match="more than 100"):
        parse(strings(*[10] * 101))
    # All arrays together.
    pairs = [gguf_bytes.pair("a%d" % number, "[str]", ["x" * 8] * 60) for number in range(2)]
    with pytest.raises(GgufError, match="more than 100"):
        parse(gguf_bytes.build(pairs))


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GgufError, match="is not a file"):
        _gguf.read_header(str(tmp_path / "pipe"))


def test_a_path_with_a_zero():
    with pytest.raises(GgufError, match="is not a path"):
        _gguf.read_header("m\0.gguf")


def test_every_value_has_its_type():
    pairs = [gguf_bytes.pair("x", "i16", -3), gguf_bytes.pair("y", "[f64]", [0.5]), gguf_bytes.pair("z", "str", "")]
    assert parse(gguf_bytes.build(pairs)).types == {"x": "i16", "y": "arr[f64]", "z": "str"}


@pytest.mark.parametrize("kind", [kind for kind in gguf_bytes.TYPES if kind != "str"])
def test_whole_keeps_long_arrays_of_numbers(kind):
    raw = gguf_bytes.build([gguf_bytes.pair("a", "[%s]" % kind, [1] * 5000)])
    assert parse(raw).values["a"].items is None
    kept = _gguf.parse_header(io.BytesIO(raw).read, len(raw), whole=True).values["a"]
    assert kept.items == (1,) * 5000
    assert all(isinstance(item, bool) for item in kept.items) is (kind == "bool")


def test_whole_keeps_strings(monkeypatch):
    raw = gguf({"long": "x" * 100_000, "words": ["one", "two"], "after": 1})
    values = _gguf.parse_header(io.BytesIO(raw).read, len(raw), whole=True).values
    assert values == {"long": "x" * 100_000, "words": Array("str", 2, ("one", "two")), "after": 1}
    # As far as memory is allowed.
    monkeypatch.setattr(_gguf, "KEPT_BYTES_WHOLE", 150)
    values = _gguf.parse_header(io.BytesIO(raw).read, len(raw), whole=True).values
    assert values == {"long": LongString(100_000), "words": Array("str", 2, ("one", "two")), "after": 1}
    monkeypatch.setattr(_gguf, "KEPT_BYTES_WHOLE", 130)
    values = _gguf.parse_header(io.BytesIO(raw).read, len(raw), whole=True).values
    assert values == {"long": LongString(100_000), "words": Array("str", 2, None), "after": 1}


def test_values_are_kept_as_far_as_memory_is_allowed(monkeypatch):
    monkeypatch.setattr(_gguf, "KEPT_BYTES", 2000)
    raw = gguf({"a": [1] * 40, "b": [1] * 40, "c": "x" * 100, "d": "x" * 1000, "e": 7})
    assert parse(raw).values == {
        "a": Array("u32", 40, (1,) * 40),
        "b": Array("u32", 40, None),
        "c": "x" * 100,
        "d": LongString(1000),
        "e": 7,
    }


def test_keys_beyond_belief(monkeypatch):
    monkeypatch.setattr(_gguf, "KEY_BYTES", 1 << 20)
    with pytest.raises(GgufError, match="keys that take more than 1 MiB"):
        parse(gguf_bytes.build([gguf_bytes.pair("%d" % number * 1000, "u8", 1) for number in range(10, 600)]))
