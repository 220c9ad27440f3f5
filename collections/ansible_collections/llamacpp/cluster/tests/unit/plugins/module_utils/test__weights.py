# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where each tensor goes, and what it takes there."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._model import TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Refused, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._weights import layer_weights, model_bytes, place
from ansible_collections.llamacpp.cluster.tests.unit.builders import model


def facts(*groups, n_layers=4, **changes):
    """Return a model of groups: (name, layers, shape, type, bytes)."""
    return model(n_layers, tensor_groups=tuple(TensorGroup(*group) for group in groups), **changes)


def devices(*kinds, free=0):
    return [MemoryDevice("D%d" % index, kind, free, free) for index, kind in enumerate(kinds)]


EMBEDDING = ("token_embd.weight", (), (256, 100), "F16", 51200)
OUTPUT = ("output.weight", (), (256, 100), "F16", 51200)
NORM = ("output_norm.weight", (), (256,), "F32", 1024)
QUERY = ("blk.*.attn_q.weight", (0, 1, 2, 3), (256, 256), "F16", 131072)
EXPERT = ("blk.*.ffn_up_exps.weight", (1, 2, 3), (256, 256, 8), "F16", 1048576)


def test_embedding_stays_and_output_goes():
    found = layer_weights(facts(EMBEDDING, QUERY, NORM, OUTPUT), "cuda")
    assert (found.inputs, found.output, found.layers) == (51200, 51200 + 1024, (131072,) * 4)


def test_a_tied_embedding_is_there_twice_but_not_in_the_same_memory():
    tied = facts(EMBEDDING, QUERY, NORM)
    assert layer_weights(tied, "cuda").output == 51200 + 1024
    # A worker's processor has memory of its own.
    assert layer_weights(tied, "cpu").output == 51200 + 1024
    assert layer_weights(tied, "host").output == 1024


def test_gemma_4_has_its_embedding_twice_in_the_same_memory_too():
    tied = facts(EMBEDDING, QUERY, NORM, architecture="gemma4", **{"attention.sliding_window_pattern": [1, 1, 1, 0]})
    assert layer_weights(tied, "host").output == 51200 + 1024


@pytest.mark.parametrize("architecture", ["bert", "bitnet", "modern-bert"])
def test_some_have_no_output_at_all(architecture):
    assert layer_weights(facts(EMBEDDING, QUERY, NORM, architecture=architecture), "cuda").output == 1024


def test_codeshell_makes_its_embedding_of_the_output():
    found = layer_weights(facts(OUTPUT, QUERY, architecture="codeshell"), "cuda")
    assert (found.inputs, found.output) == (0, 2 * 51200)


@pytest.mark.parametrize(
    ("architecture", "layer", "output"), [("rwkv6", 1024, 51200), ("bert", 1024, 51200), ("lfm2", 0, 51200 + 1024)]
)
def test_a_norm_of_the_embedding_is_of_the_first_layer(architecture, layer, output):
    norm = ("token_embd_norm.weight", (), (256,), "F32", 1024)
    found = layer_weights(facts(EMBEDDING, norm, OUTPUT, architecture=architecture), "cuda")
    assert (found.layers[0], found.output) == (layer, output)


def test_blocks_that_predict_ahead_are_skipped():
    keys = {"nextn_predict_layers": 1}
    assert layer_weights(facts(QUERY, architecture="glm4moe", **keys), "cuda").layers == (131072,) * 3 + (0,)
    # Not every architecture knows to skip them.
    assert layer_weights(facts(QUERY, architecture="llama", **keys), "cuda").layers == (131072,) * 4


def test_decoders_and_encoders_share_a_layer():
    groups = [
        ("%s.blk.%d.attn_q.weight" % (side, layer), (), (64, 64), "F16", 8192)
        for side in ("enc", "dec")
        for layer in (0, 1)
    ]
    found = layer_weights(facts(*groups, n_layers=2, architecture="t5"), "cuda")
    assert found.layers == (16384, 16384)


def test_what_is_never_used_takes_nothing():
    unused = ("dec.blk.0.cross_attn_rel_b.weight", (), (64, 64), "F16", 8192)
    found = layer_weights(facts(unused, n_layers=2, architecture="t5"), "cuda")
    assert (found.layers, found.output) == ((0, 0), 0)


def test_blocks_beyond_the_layers_go_with_the_output():
    deep = ("dec.blk.5.attn_q.weight", (), (64, 64), "F16", 8192)
    found = layer_weights(facts(deep, n_layers=2, architecture="t5", decoder_block_count=6), "cuda")
    assert (found.layers, found.output) == ((0, 0), 8192)


def test_rows_of_quantised_matrices_are_filled_up_on_cuda():
    matrix = ("blk.*.ffn_down.weight", (0,), (768, 4), "Q4_K", 4 * 432)
    sizes = {kind: layer_weights(facts(matrix, n_layers=1), kind).layers[0] for kind in ("cuda", "vulkan", "host")}
    # 256 numbers fill up the second 512: one block of Q4_K has 144 bytes.
    assert sizes == {"cuda": 1920, "vulkan": 1792, "host": 1728}


def test_ternary_matrices_stay_in_memory_as_cuda_has_no_product_for_them():
    ternary = ("blk.*.attn_q.weight", (0, 1), (256, 4), "TQ2_0", 4 * 66)
    bitnet = facts(ternary, n_layers=2, architecture="bitnet")
    assert layer_weights(bitnet, "cuda").layers == (0, 0)
    found, host = model_bytes(bitnet, devices("cuda"), Settings(), place(bitnet, devices("cuda"), Settings()))
    assert (found, host) == ([0], 2 * 288)
    found, host = model_bytes(bitnet, devices("rpc"), Settings(), place(bitnet, devices("rpc"), Settings()))
    assert (found, host) == ([2 * 288], 0)


ROPE = ("rope_freqs.weight", (), (64,), "F32", 256)
MIXED = facts(EMBEDDING, ROPE, QUERY, EXPERT, NORM, OUTPUT)


def bytes_of(settings, *kinds):
    given = devices(*kinds)
    return model_bytes(MIXED, given, settings, place(MIXED, given, settings))


def test_rope_factors_are_on_every_device_with_layers():
    found, host = bytes_of(Settings(tensor_split=(1, 1, 1)), "cuda", "cuda", "cuda")
    # Layers 0 and 1, then 2 and 3, then the output alone.
    assert found == [256 + 2 * 131072 + 1048576, 256 + 2 * 131072 + 2 * 1048576, 51200 + 1024]
    assert host == 51200


@pytest.mark.parametrize(
    ("settings", "on_device", "in_memory"),
    [
        (Settings(), 3, 0),
        (Settings(cpu_moe=True), 0, 3),
        (Settings(n_cpu_moe=2), 2, 1),
        (Settings(n_cpu_moe=99), 0, 3),
        (Settings(gpu_layers=2), 1, 2),
        (Settings(gpu_layers=2, n_cpu_moe=4), 0, 3),
    ],
)
def test_experts_in_memory(settings, on_device, in_memory):
    found, host = bytes_of(settings, "cuda")
    assert (found[0] // 1048576, host // 1048576) == (on_device, in_memory)


@pytest.mark.parametrize(
    ("settings", "kinds", "wanted"),
    [
        (Settings(), ("cuda",), (0, 0, 0, 0, 0)),
        (Settings(gpu_layers=2), ("cuda",), (HOST, HOST, HOST, 0, 0)),
        (Settings(gpu_layers=0), ("cuda",), (HOST,) * 5),
        (Settings(), (), (HOST,) * 5),
        (Settings(), ("cpu",), (HOST,) * 5),
        (Settings(), ("cpu", "cuda"), (1,) * 5),
        (Settings(split_mode="none"), ("cuda", "cuda"), (0,) * 5),
        (Settings(split_mode="tensor"), ("cuda", "cuda"), (0,) * 5),
        (Settings(tensor_split=(3, 2)), ("cuda", "cuda"), (0, 0, 0, 1, 1)),
        (Settings(tensor_split=(0, 1)), ("cuda", "cuda"), (1,) * 5),
        (Settings(tensor_split=(1,)), ("cuda", "cuda"), (0,) * 5),
        # More shares than devices: llama.cpp looks at as many as it has devices.
        (Settings(tensor_split=(3, 2, 9)), ("rpc", "cuda"), (0, 0, 0, 1, 1)),
    ],
)
def test_placing(settings, kinds, wanted):
    assert place(facts(QUERY), devices(*kinds), settings) == wanted


def test_free_memory_divides_where_nothing_is_said():
    given = [MemoryDevice("A", "cuda", 80, 60), MemoryDevice("B", "cuda", 80, 20)]
    assert place(facts(QUERY, n_layers=7), given, Settings()) == (0,) * 6 + (1, 1)


@pytest.mark.parametrize(
    ("kinds", "settings", "setting"),
    [
        (("cuda",) * 17, Settings(), "devices"),
        (("cuda",), Settings(tensor_split=(1.0,) * 16), "tensor_split"),
        (("cuda", "cuda"), Settings(tensor_split=(1, -1)), "tensor_split"),
        (("cuda", "cuda"), Settings(split_mode="row"), "split_mode"),
    ],
)
def test_what_llama_server_refuses(kinds, settings, setting):
    with pytest.raises(Refused) as caught:
        place(facts(QUERY), devices(*kinds), settings)
    assert caught.value.setting == setting
