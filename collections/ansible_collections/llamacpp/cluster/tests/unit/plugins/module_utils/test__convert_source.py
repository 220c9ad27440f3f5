# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What can be converted, and what is said of the rest before anything is."""

from __future__ import annotations

import json
import struct

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_source import (
    BESIDE_WEIGHTS,
    ConvertError,
    read_header,
    survey,
)
from ansible_collections.llamacpp.cluster.tests.unit.simulated_converter import make_source, safetensors


@pytest.fixture
def source(tmp_path):
    """A directory that can be converted: two tensors, 248 weights."""
    return make_source(tmp_path / "model")


def refused(directory):
    """Return why a directory is refused."""
    with pytest.raises(ConvertError) as caught:
        survey(str(directory), trust_code=False)
    return str(caught.value)


def test_a_whole_directory(source):
    found = survey(str(source), trust_code=False)
    assert list(found.files) == ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]
    assert (found.tensors, found.weights) == (2, 248)
    assert found.architectures == ("BertModel",)
    assert (found.withheld, found.own_code, found.tokenizer) == ((), False, True)


@pytest.mark.parametrize(("outtype", "size"), [("f32", 992), ("f16", 496), ("bf16", 496), ("auto", 496), ("q8_0", 263)])
def test_how_large_it_becomes(source, outtype, size):
    assert survey(str(source), trust_code=False).result_bytes(outtype) - BESIDE_WEIGHTS == size


def test_shards_are_those_of_the_index(source):
    (source / "model.safetensors").unlink()
    (source / "consolidated.safetensors").write_bytes(safetensors({"all": (1000,)}))
    for number, tensors in ((1, {"a": (10,)}), (2, {"b": (20,), "c": (2, 2)})):
        (source / ("model-0000%d-of-00002.safetensors" % number)).write_bytes(safetensors(tensors))
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        }
    }
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    found = survey(str(source), trust_code=False)
    assert (found.tensors, found.weights) == (3, 34)
    (source / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 files of weights are missing: model-00002-of-00002.safetensors" in refused(source)


def test_shards_without_an_index_are_counted(source):
    (source / "model.safetensors").unlink()
    for number in (1, 2, 3):
        shard = source / ("model-0000%d-of-00003.safetensors" % number)
        shard.write_bytes(safetensors({str(number): (number,)}))
    assert survey(str(source), trust_code=False).weights == 6
    (source / "model-00003-of-00003.safetensors").unlink()
    assert "1 of 3 files of weights are missing: model-00003-of-00003.safetensors" in refused(source)


def test_code_is_withheld(source):
    for name in ("modeling_x.py", "pytorch_model.bin", "training_args.PT", "1_Pooling/x.pkl"):
        (source / name).write_bytes(b"")
    found = survey(str(source), trust_code=False)
    assert found.withheld == ("1_Pooling/x.pkl", "modeling_x.py", "pytorch_model.bin", "training_args.PT")
    assert not set(found.withheld) & set(found.files)
    trusted = survey(str(source), trust_code=True)
    assert trusted.withheld == () and "modeling_x.py" in trusted.files


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_a_configuration_names(source, name):
    told = {"architectures": ["X"], "auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}}
    (source / name).write_text(json.dumps(told))
    assert survey(str(source), trust_code=False).own_code


def test_settings_alone_are_no_tokenizer(source):
    (source / "tokenizer.json").rename(source / "tokenizer_config.json")
    assert not survey(str(source), trust_code=False).tokenizer
    (source / "vocab.txt").write_text("")
    assert survey(str(source), trust_code=False).tokenizer


def test_hidden_files_and_what_lies_deeper_are_not_looked_at(source):
    (source / ".cache").mkdir()
    (source / ".cache" / "x.json").write_text("")
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "x.json").write_text("")
    assert not [name for name in survey(str(source), trust_code=False).files if "x.json" in name]


def test_links_are_followed(source, tmp_path):
    """A hub's cache on the disk is a directory of links to blobs."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in source.iterdir():
        (linked / path.name).symlink_to(path)
    assert survey(str(linked), trust_code=False).weights == 248


@pytest.mark.parametrize(
    ("name", "words"),
    [("config.json", "no config.json beside the weights"), ("model.safetensors", "no model*.safetensors there")],
)
def test_what_cannot_be_missing(source, name, words):
    (source / name).unlink()
    assert words in refused(source)


def test_a_directory_that_is_not_there(tmp_path):
    assert "no such directory" in refused(tmp_path / "absent")


@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin", "adapter.safetensors"])
def test_weights_of_another_kind_are_named(source, name):
    (source / "model.safetensors").rename(source / name)
    assert "but %s" % name in refused(source)


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_configuration_that_is_none(source, text):
    (source / "config.json").write_text(text)
    assert "config.json is not" in refused(source)


def test_every_cut_is_found(tmp_path):
    whole = safetensors({"embeddings": (3, 4), "norm": (3,)})
    path = tmp_path / "model.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ConvertError, match="fetch it again"):
            read_header(str(path))
    path.write_bytes(whole + b"x")
    with pytest.raises(ConvertError, match="something behind it"):
        read_header(str(path))
    path.write_bytes(whole)
    assert read_header(str(path)) == (2, 15)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}{",
        b'{"a": 1}',
        b'{"a": {"shape": [1]}}',
        b'{"a": {"shape": [1], "data_offsets": [0]}}',
        b'{"a": {"shape": [1e999], "data_offsets": [0, 4]}}',
        b"\xff\xff",
    ],
)
def test_headers_that_are_none(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ConvertError, match="is not a safetensors file"):
        read_header(str(path))


def test_a_header_that_would_fill_memory_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", 1 << 34))
        stream.truncate(1 << 35)
    with pytest.raises(ConvertError, match="is not a safetensors file"):
        read_header(str(path))
