# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is drawn from a model's headers."""

from __future__ import annotations

import io
import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import Header, parse_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, describe, tensor_list
from ansible_collections.llamacpp.cluster.tests.unit.builders import gguf, llama
from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import build, pair, split


def header(raw: bytes) -> Header:
    return parse_header(io.BytesIO(raw).read, len(raw))


def facts(raw: bytes) -> ModelFacts:
    return describe([header(raw)], ["m.gguf"])


def test_a_whole_model():
    raw = llama(n_layers=3, vocabulary=96)
    model = facts(raw)
    assert (model.architecture, model.name, model.file_type, model.version) == ("llama", "toy", "F16", 3)
    assert (model.n_layers, model.n_ctx_train, model.chat_template) == (3, 2048, True)
    assert (model.number("embedding_length", 0), model.number("vocab_size", 0)) == (64, 96)
    assert model.per_layer("attention.head_count_kv", 0) == (2, 2, 2)
    sizes = {(group.name, group.copies): group.nbytes for group in model.tensor_groups}
    assert sizes["blk.*.attn_q.weight", 3] == 64 * 64 * 2
    assert sizes["token_embd.weight", 1] == sizes["output.weight", 1] == 64 * 96 * 2
    assert model.tensor_bytes == sum(nbytes * copies for (_name, copies), nbytes in sizes.items())
    assert model.file_size == len(raw)


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
    assert model.per_layer("attention.head_count_kv", 4) == (0, 2, 0)
    assert [(group.name, group.layers, group.nbytes) for group in model.tensor_groups] == [("blk.*.w", (1,), 128)]
    assert model.chat_template is False


def test_facts_survive_json():
    model = facts(llama())
    assert ModelFacts.from_dict(model.as_dict()) == model


LLAMA = {"general.architecture": "llama"}
TENSOR = [("blk.0.w", (32,), "F32")]


@pytest.mark.parametrize(
    ("values", "tensors", "words"),
    [
        ({}, TENSOR, "names no architecture"),
        ({"general.architecture": 5}, TENSOR, "names no architecture"),
        ({"general.architecture": "clip", "clip.block_count": 3}, TENSOR, "a projector for images"),
        (dict(LLAMA, **{"general.type": "adapter"}), TENSOR, "an adapter"),
        ({"general.type": "imatrix"}, TENSOR, "an importance matrix"),
        (dict(LLAMA, **{"llama.block_count": 1}), [], "a bare vocabulary"),
        (LLAMA, TENSOR, "says 0 layers"),
        (dict(LLAMA, **{"llama.block_count": 513}), TENSOR, "says 513 layers"),
        (dict(LLAMA, **{"llama.block_count": "8"}), TENSOR, "says 8 layers"),
        (dict(LLAMA, **{"llama.block_count": True}), TENSOR, "says True layers"),
        (
            dict(LLAMA, **{"llama.block_count": 4, "llama.attention.head_count_kv": [1, 1]}),
            TENSOR,
            "head_count_kv has 2 entries, the model 4 layers",
        ),
        (
            dict(LLAMA, **{"llama.block_count": 4, "llama.attention.head_count_kv": [1] * 5000}),
            TENSOR,
            "head_count_kv is too long",
        ),
        (dict(LLAMA, **{"llama.block_count": 1}), [("blk.1.w", (32,), "F32")], "belongs to layer 1, the model has 1"),
    ],
)
def test_what_cannot_be_served_is_described_all_the_same(values, tensors, words):
    model = facts(gguf(values, tensors))
    assert words in model.servable()
    assert ModelFacts.from_dict(json.loads(json.dumps(model.as_dict()))) == model


def test_a_model_can_be_served():
    assert facts(llama()).servable() is None


def test_odd_values_pass_json():
    pairs = [
        pair("nan", "f32", float("nan")),
        pair("infinities", "[f64]", [float("inf"), float("-inf")]),
        pair(b"bytes \xff", "str", b"\xfe"),
        pair("general.name", "str", b"\xc3\xa9\xff"),
    ]
    model = facts(build(pairs))
    assert model.metadata == {
        "nan": "nan",
        "infinities": ["inf", "-inf"],
        "bytes \\xff": "\\xfe",
        "general.name": "\xe9\\xff",
    }
    assert json.loads(json.dumps(model.as_dict(), allow_nan=False))["name"] == "\xe9\\xff"


def test_hyperparameters_of_odd_types_are_not_taken_for_numbers():
    pairs = [
        pair("general.architecture", "str", "x"),
        pair("x.block_count", "u32", 2),
        pair("x.attention.head_count", "str", "many"),
        pair("x.attention.head_count_kv", "[f32]", [float("inf"), 1.5]),
        pair("x.feed_forward_length", "[u8]", [1] * 5000),
        pair("x.vocab_size", "str", "large"),
    ]
    model = facts(build(pairs))
    assert model.number("attention.head_count", 7) == 7
    assert model.per_layer("attention.head_count", 7) == (7, 7)
    assert model.per_layer("attention.head_count_kv", 3) == (3, 3)
    assert model.number("attention.head_count_kv", 3) == 3
    assert model.per_layer("feed_forward_length", 1) == (1, 1)
    assert model.hyperparameters["vocab_size"] == 0


def test_a_split_model_adds_up():
    headers = [header(raw) for raw in split(3)]
    model = describe(headers, ["a", "b", "c"])
    assert [(group.layers, group.nbytes) for group in model.tensor_groups] == [((0, 1, 2), 128)]
    assert model.file_size == sum(item.file_bytes for item in headers)
    assert [(shard.name, shard.tensor_count) for shard in model.shards] == [("a", 1), ("b", 1), ("c", 1)]


def test_every_tensor_knows_its_file():
    headers = [header(raw) for raw in split(2, tensors=2)]
    listed = tensor_list(headers, ["a", "b"])
    assert [(item["name"], item["shard"]) for item in listed] == [
        ("blk.0.w", "a"),
        ("blk.1.w", "a"),
        ("blk.2.w", "b"),
        ("blk.3.w", "b"),
    ]
    assert listed[1]["offset"] == listed[0]["offset"] + 128 == headers[0].data_offset + 128
