# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models in several files: complete, incomplete and mixed up, as llama.cpp b11434 judges them."""

from __future__ import annotations

import io

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, Header, parse_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._split import (
    check_set,
    shard_count,
    shard_names,
    sibling_names,
)
from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import build, pair, split, tensor


def header(raw: bytes) -> Header:
    return parse_header(io.BytesIO(raw).read, len(raw))


def check(*files: bytes) -> None:
    check_set([header(raw) for raw in files], ["file %d" % number for number in range(1, len(files) + 1)])


def test_names_of_a_split_model():
    assert shard_names("m.gguf") == ["m.gguf"]
    assert shard_names("m-00001-of-00003.gguf") == [
        "m-00001-of-00003.gguf",
        "m-00002-of-00003.gguf",
        "m-00003-of-00003.gguf",
    ]


def test_only_the_first_shard_names_a_model():
    with pytest.raises(GgufError, match=r"shard 2 of 3: name the first, m-00001-of-00003\.gguf"):
        shard_names("m-00002-of-00003.gguf")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_file_names_the_others(number):
    assert sibling_names("m-%05d-of-00003.gguf" % number, 3) == ["m-%05d-of-00003.gguf" % item for item in (1, 2, 3)]


def test_a_whole_model_may_be_named_like_a_part():
    assert sibling_names("m-00002-of-00003.gguf", 1) == ["m-00002-of-00003.gguf"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("m.gguf", "it is one of 3 files; name it"), ("m-00001-of-00002.gguf", "3 files by its header, 2 by its name")],
)
def test_a_name_that_does_not_lead_to_the_others(name, words):
    with pytest.raises(GgufError, match=words):
        sibling_names(name, 3)


@pytest.mark.parametrize(
    ("pairs", "count"), [([], 1), ([pair("split.count", "u16", 0)], 1), ([pair("split.count", "u16", 7)], 7)]
)
def test_how_many_files(pairs, count):
    assert shard_count(header(build(pairs))) == count


@pytest.mark.parametrize("kind", ["u32", "i16", "str"])
def test_a_count_of_the_wrong_type(kind):
    with pytest.raises(GgufError, match="must be of type u16, not %s" % kind):
        shard_count(header(build([pair("split.count", kind, "3" if kind == "str" else 3)])))


def test_a_complete_set():
    check(*split(3))


def part(number: int, count: int = 2, total: int = 2, name: str = "blk.1.w", extra: tuple[bytes, ...] = ()) -> bytes:
    pairs = [
        pair("split.no", "u16", number),
        pair("split.count", "u16", count),
        pair("split.tensors.count", "i32", total),
        *extra,
    ]
    return build(pairs, [tensor(name)], data=128)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (part(0), "file 2: it is part 1 of the model, not part 2"),
        (part(1, count=3), "file 2: it is of a model with 3 files"),
        (part(1, name="blk.0.w"), "the tensor 'blk.0.w' is there twice, in file 1 and file 2"),
        (part(1, extra=(pair("general.name", "str", "other"),)), "file 2: it is of another model: 'other', not 'toy'"),
        (build([], [tensor("blk.1.w")], data=128), "file 2: the key is missing"),
        (build([pair("split.no", "u32", 1)]), "file 2: it must be of type u16, not u32"),
        (build([pair("split.no", "u16", 1)]), "the model has 2 tensors, its files have 1"),
    ],
)
def test_a_set_that_is_mixed_up(second, words):
    with pytest.raises(GgufError, match=words):
        check(split(2)[0], second)


def test_files_in_the_wrong_order():
    with pytest.raises(GgufError, match="file 1: it is part 2 of the model, not part 1"):
        check(*reversed(split(2)))


def test_a_file_is_missing():
    with pytest.raises(GgufError, match="the model has 3 files, 2 were found"):
        check(*split(3)[:2])


@pytest.mark.parametrize("without", ["split.no", "split.tensors.count"])
def test_keys_that_the_first_file_needs(without):
    pairs = {
        "split.no": pair("split.no", "u16", 0),
        "split.count": pair("split.count", "u16", 2),
        "split.tensors.count": pair("split.tensors.count", "i32", 1),
    }
    del pairs[without]
    first = build(list(pairs.values()), [tensor()], data=128)
    with pytest.raises(GgufError, match="the key is missing") as caught:
        check(first, build([pair("split.no", "u16", 1)]))
    assert caught.value.field == without


@pytest.mark.parametrize(
    ("one", "other", "shown"), [(b"a\0b", b"a\0c", "'a'"), (b"", b"\0", "''"), (b"\xff", b"\xff\0", "udcff")]
)
def test_tensors_that_ggml_takes_for_the_same(one, other, shown):
    # ggml's names end at a zero.
    with pytest.raises(GgufError, match="there twice") as caught:
        check(build([], [tensor(one), tensor(other, offset=128)], data=256))
    assert caught.value.field == "tensor name"
    assert shown in str(caught.value)
    str(caught.value).encode()
