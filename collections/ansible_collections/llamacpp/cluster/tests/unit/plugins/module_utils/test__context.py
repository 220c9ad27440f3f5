# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Caches and recurrent state, and which settings llama-server b11434 refuses."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._context import (
    caches,
    layer_context,
    padded_tensor,
    resolve,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused, Settings
from ansible_collections.llamacpp.cluster.tests.unit.builders import model

MIB = 1 << 20
LLAMA_8B = model(
    32,
    **{
        "embedding_length": 4096,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "context_length": 131072,
    },
)


def context_mib(facts, **settings):
    return sum(layer_context(facts, resolve(facts, Settings(**settings)), "cpu")) / MIB


# As llama-server b11434 allocated it.
@pytest.mark.parametrize(
    ("settings", "mib"),
    [
        ({"ctx_size": 32768}, 4096),
        ({"ctx_size": 4096}, 512),
        ({"ctx_size": 0}, 16384),
        ({"ctx_size": 32768, "parallel": 4}, 4096),
        ({"ctx_size": 32768, "parallel": 4, "kv_unified": True}, 4096),
        ({"ctx_size": 32768, "cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 2176),
        ({"ctx_size": 32768, "cache_type_k": "q4_0", "cache_type_v": "q4_0"}, 1152),
        ({"ctx_size": 32768, "cache_type_k": "q8_0"}, 3136),
    ],
)
def test_context_of_llama_8b(settings, mib):
    assert context_mib(LLAMA_8B, **settings) == mib


@pytest.mark.parametrize(
    ("settings", "n_ctx", "slot"),
    [
        ({"ctx_size": 10000, "parallel": 3}, 10752, 3584),
        ({"ctx_size": 10000, "parallel": 3, "kv_unified": True}, 10240, 10240),
        ({"ctx_size": 1}, 256, 256),
        # llama-server's own choice of slots shares a cache.
        ({"ctx_size": 10000, "parallel": -1}, 10240, 10240),
        ({"ctx_size": 10000, "parallel": -1, "kv_unified": False}, 10240, 10240),
    ],
)
def test_tokens_are_rounded_up(settings, n_ctx, slot):
    found = resolve(LLAMA_8B, Settings(**settings))
    assert (found.n_ctx, found.n_ctx_seq) == (n_ctx, slot)


@pytest.mark.parametrize(
    ("settings", "batch", "ubatch", "tokens", "rows"),
    [
        ({}, 2048, 512, 512, 1),
        ({"parallel": 4}, 2048, 512, 512, 4),
        ({"parallel": 4, "draft_max": 3}, 2048, 512, 512, 16),
        ({"logits": "fit_params"}, 2048, 512, 512, 512),
        ({"ctx_size": 100}, 100, 100, 100, 1),
        ({"embedding": True}, 512, 512, 512, 512),
        ({"batch_size": 64}, 64, 64, 64, 1),
    ],
)
def test_batches(settings, batch, ubatch, tokens, rows):
    found = resolve(LLAMA_8B, Settings(**settings))
    assert (found.n_batch, found.n_ubatch, found.n_tokens, found.n_outputs) == (batch, ubatch, tokens, rows)


SLIDING = {"attention.sliding_window": 1024, "context_length": 131072}


@pytest.mark.parametrize(
    ("settings", "cells"),
    [
        ({"ctx_size": 32768}, 1536),
        ({"ctx_size": 32768, "ubatch_size": 2048}, 3072),
        ({"ctx_size": 32768, "parallel": 4, "kv_unified": True}, 4608),
        ({"ctx_size": 32768, "parallel": 4}, 1536),
        ({"ctx_size": 1024}, 1024),
        ({"ctx_size": 32768, "swa_full": True}, 32768),
    ],
)
def test_a_sliding_cache_holds_the_window_and_a_micro_batch(settings, cells):
    gemma = model(12, architecture="gemma3", **SLIDING)
    kv, swa = caches(gemma, resolve(gemma, Settings(**settings)))
    assert (kv.layers, len(swa.layers), swa.cells) == ((5, 11), 10, cells)


def test_layers_that_share_have_no_cache_of_their_own():
    pattern = [True, True, True, False] * 3
    keys = {"attention.sliding_window_pattern": pattern, "attention.shared_kv_layers": 4, **SLIDING}
    gemma = model(12, architecture="gemma4", **keys)
    kv, swa = caches(gemma, resolve(gemma, Settings(ctx_size=4096)))
    assert kv.layers + swa.layers == (3, 7, 0, 1, 2, 4, 5, 6)


def test_latent_attention_keeps_keys_only():
    keys = {
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
    }
    latent = model(2, architecture="deepseek2", **keys)
    (cache,) = caches(latent, resolve(latent, Settings(ctx_size=4096)))
    assert [(item.role, item.nbytes) for item in cache.tensors] == [("k", 4096 * 576 * 2)] * 2


def test_transposed_values_are_as_wide_as_the_widest():
    facts = model(2, **{"attention.head_count_kv": [2, 8]})
    widths = {}
    for flash in ("auto", "off"):
        (cache,) = caches(facts, resolve(facts, Settings(ctx_size=256, flash_attn=flash)))
        widths[flash] = [item.shape[0] for item in cache.tensors if item.role == "v"]
    assert widths == {"auto": [128, 512], "off": [512, 512]}


STATE = {"ssm.conv_kernel": 4, "ssm.inner_size": 1024, "ssm.state_size": 16, "ssm.group_count": 2}


def test_recurrent_state_grows_with_slots_and_not_with_context():
    facts = model(2, architecture="mamba2", **STATE)
    sizes = [context_mib(facts, ctx_size=tokens, parallel=slots) for tokens, slots in ((256, 1), (65536, 1), (256, 4))]
    each = 2 * 4 * (3 * (1024 + 2 * 2 * 16) + 16 * 1024) / MIB
    assert sizes == [each, each, 4 * each]


def test_hybrids_have_both():
    keys = {"attention.head_count_kv": [0, 8], **STATE}
    facts = model(2, architecture="granitehybrid", **keys)
    kv, state = caches(facts, resolve(facts, Settings(ctx_size=512)))
    assert (kv.layers, state.layers, {item.type for item in state.tensors}) == ((1,), (0,), {"f32"})


def test_an_indexer_keeps_keys_of_its_own():
    keys = {
        "attention.head_count_kv": 1,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "attention.indexer.key_length": 128,
        "attention.indexer.types": [True, False],
        "nextn_predict_layers": 0,
    }
    facts = model(2, architecture="glm-dsa", **keys)
    _kv, indexer = caches(facts, resolve(facts, Settings(ctx_size=512)))
    assert [(item.layer, item.shape) for item in indexer.tensors] == [(0, (128, 512, 1))]


def test_blocks_that_predict_ahead_keep_nothing():
    facts = model(4, architecture="glm4moe", nextn_predict_layers=1)
    assert layer_context(facts, resolve(facts, Settings(ctx_size=256)), "cpu")[3] == 0


def test_encoders_keep_nothing():
    facts = model(4, architecture="bert")
    assert caches(facts, resolve(facts, Settings(ctx_size=512))) == ()


def test_slots_of_deepseek4_never_share():
    keys = {"attention.sliding_window": 128, "attention.compress_ratios": [0, 4, 128, 4]}
    facts = model(4, architecture="deepseek4", **keys)
    found = {}
    for unified in (False, True):
        settings = Settings(ctx_size=8192, parallel=2, kv_unified=unified)
        found[unified] = caches(facts, resolve(facts, settings))
    assert {cache.n_stream for both in found.values() for cache in both} == {2}
    # Unified, each slot has the whole context.
    assert [dict((cache.kind, cache.cells) for cache in found[unified])["csa"] for unified in (False, True)] == [
        1024,
        2048,
    ]


@pytest.mark.parametrize(
    ("kind", "type_name", "width", "nbytes", "wanted"),
    [
        ("cuda", "q8_0", 1024, 1088, 1152),
        # 128 more numbers of q8_0 fill up the last 512.
        ("cuda", "q8_0", 384, 408, 640),
        ("rocm", "q8_0", 384, 408, 640),
        ("vulkan", "q8_0", 384, 408, 512),
        ("cpu", "q8_0", 384, 408, 416),
        ("cuda", "f16", 384, 768, 768),
    ],
)
def test_padding(kind, type_name, width, nbytes, wanted):
    assert padded_tensor(kind, type_name, width, nbytes) == wanted


@pytest.mark.parametrize(
    ("facts", "settings", "setting"),
    [
        ({}, {"cache_type_k": "q3_K"}, "cache_type_k"),
        ({}, {"flash_attn": "maybe"}, "flash_attn"),
        ({}, {"split_mode": "columns"}, "split_mode"),
        ({}, {"gpu_layers": "most"}, "gpu_layers"),
        ({}, {"parallel": 257}, "parallel"),
        ({}, {"ctx_size": -1}, "ctx_size"),
        ({}, {"n_cpu_moe": -1}, "n_cpu_moe"),
        ({}, {"batch_size": 0, "ubatch_size": 0}, "batch_size"),
        ({"context_length": 0}, {}, "ctx_size"),
        ({}, {"cache_type_v": "q8_0", "flash_attn": "off"}, "cache_type_v"),
        ({"architecture": "grok"}, {"cache_type_v": "q8_0"}, "cache_type_v"),
        ({"architecture": "grok"}, {"split_mode": "tensor"}, "split_mode"),
        ({}, {"split_mode": "tensor", "flash_attn": "off"}, "flash_attn"),
        ({"attention.key_length": 80}, {"cache_type_k": "q8_0"}, "cache_type_k"),
        ({"attention.value_length": 80}, {"cache_type_v": "q4_0"}, "cache_type_v"),
        (
            {"attention.head_count_kv": 1, "attention.key_length": 24},
            {"cache_type_k": "q8_0", "flash_attn": "off"},
            "cache_type_k",
        ),
        ({"architecture": "deepseek4"}, {"cache_type_k": "q8_0"}, "cache_type_v"),
        ({"architecture": "t5"}, {"parallel": 2}, "kv_unified"),
        ({"architecture": "kimi-linear"}, {"parallel": 3}, "ubatch_size"),
        ({"architecture": "eagle3"}, {}, "model"),
    ],
)
def test_what_llama_server_refuses(facts, settings, setting):
    refused = model(4, **facts)
    with pytest.raises(Refused) as caught:
        caches(refused, resolve(refused, Settings(**settings)))
    assert caught.value.setting == setting


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        ({"attention.key_length": 80}, {"cache_type_k": "q8_0", "flash_attn": "off"}),
        ({}, {"cache_type_v": "q8_0"}),
        ({"architecture": "t5"}, {"parallel": 2, "kv_unified": True}),
        ({"architecture": "kimi-linear"}, {"parallel": 3, "ubatch_size": 384}),
        ({"architecture": "kimi-linear"}, {"parallel": 3, "kv_unified": True}),
        ({"architecture": "eagle3"}, {"for_draft": True}),
        ({}, {"ctx_size": 1 << 20}),
    ],
)
def test_what_it_takes(facts, settings):
    taken = model(4, **facts)
    assert caches(taken, resolve(taken, Settings(**settings)))


def test_quantised_values_switch_flash_attention_on():
    assert resolve(LLAMA_8B, Settings(cache_type_v="q8_0")).flash_attn is True
    assert resolve(LLAMA_8B, Settings()).flash_attn is None
    assert resolve(model(4, architecture="grok"), Settings(flash_attn="on")).flash_attn is False
