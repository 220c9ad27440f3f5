# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is drawn from a model's headers."""

from __future__ import annotations

import io

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, Header, parse_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, describe, shard_names
from ansible_collections.llamacpp.cluster.tests.unit.builders import gguf, llama


def header(raw: bytes) -> Header:
    return parse_header(io.BytesIO(raw).read, len(raw))


def facts(raw: bytes) -> ModelFacts:
    return describe([header(raw)], ["m.gguf"])


def test_a_whole_model():
    raw = llama(n_layers=3, vocabulary=96)
    model = facts(raw)
    assert (model.architecture, model.name, model.file_type, model.version) == ("llama", "toy", 1, 3)
    assert (model.n_layers, model.n_embd, model.n_ff, model.n_ctx_train) == (3, 64, 128, 2048)
    assert (model.n_head, model.n_head_kv) == (4, (2, 2, 2))
    assert (model.key_length, model.value_length) == (16, 16)  # embedding over heads
    assert (model.n_vocab, model.chat_template) == (96, True)
    assert model.layer_bytes == (64 * 64 * 2 + 64 * 128 * 2,) * 3
    assert model.embed_bytes == 64 * 96 * 2
    assert model.output_bytes == 64 * 96 * 2 + 64 * 4
    assert model.tensor_bytes == sum(model.layer_bytes) + model.embed_bytes + model.output_bytes
    assert model.file_bytes == len(raw)


def test_a_tied_output_needs_the_embedding_again():
    model = facts(llama(tied=True))
    assert model.output_bytes == model.embed_bytes + 64 * 4


def test_heads_by_layer():
    values = {
        "general.architecture": "hybrid",
        "hybrid.block_count": 3,
        "hybrid.embedding_length": 64,
        "hybrid.attention.head_count": 4,
        "hybrid.attention.head_count_kv": [0, 2, 0],
        "hybrid.attention.key_length": 24,
    }
    model = facts(gguf(values, [("blk.1.w", (32,), "F32")]))
    assert model.n_head_kv == (0, 2, 0)
    assert (model.key_length, model.value_length) == (24, 16)
    assert model.layer_bytes == (0, 128, 0)
    assert model.chat_template is False


def test_facts_survive_json():
    model = facts(llama())
    assert ModelFacts.from_dict(model.as_dict()) == model


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({}, "general.architecture", "names no architecture"),
        ({"general.architecture": 5}, "general.architecture", "names no architecture"),
        ({"general.architecture": "llama"}, "llama.block_count", "0 layers"),
        ({"general.architecture": "llama", "llama.block_count": 513}, "llama.block_count", "513 layers"),
        ({"general.architecture": "llama", "llama.block_count": "8"}, "llama.block_count", "'8' is not a number"),
        (
            {"general.architecture": "llama", "llama.block_count": 4, "llama.attention.head_count_kv": [1, 1]},
            "llama.attention.head_count_kv",
            "2 entries, the model 4 layers",
        ),
    ],
)
def test_what_cannot_be_served(values, field, words):
    with pytest.raises(GgufError, match=words) as caught:
        facts(gguf(values, []))
    assert caught.value.field == field


def test_a_tensor_beyond_the_last_layer():
    with pytest.raises(GgufError, match="belongs to layer 1, the model has 1"):
        facts(gguf(tensors=[("blk.1.w", (32,), "F32")]))


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


def test_a_split_model_adds_up():
    values = {"general.architecture": "llama", "llama.block_count": 2, "split.count": 2}
    # Everything but tensors stands in the first file.
    values["llama.attention.key_length"] = 24
    first = gguf(values, [("blk.0.w", (8,), "F32")])
    second = gguf({"split.count": 2}, [("blk.1.w", (16,), "F32")], version=2)
    model = describe([header(first), header(second)], ["a", "b"])
    assert model.layer_bytes == (32, 64)
    assert model.file_bytes == len(first) + len(second)
    assert model.files == ("a", "b")
    assert (model.key_length, model.version) == (24, 3)


def test_a_split_model_with_files_missing():
    first = gguf({"general.architecture": "llama", "llama.block_count": 2, "split.count": 2}, [])
    with pytest.raises(GgufError, match="the model has 2 files, 1 were found"):
        describe([header(first)], ["a"])
