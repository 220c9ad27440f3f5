# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Estimates, against what llama-server b11434 allocated for real-size models (MiB, CPU devices behind RPC)."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import (
    MIB,
    Setting,
    cells_per_slot,
    compute_bytes,
    demands,
    kv_layer_bytes,
)
from ansible_collections.llamacpp.cluster.tests.unit.builders import model

LLAMA_8B = model(
    32, n_embd=4096, n_ff=14336, n_head=32, n_head_kv=(8,) * 32, key_length=128, value_length=128, n_vocab=128256
)


def setting(
    context: int = 32768, parallel: int = 1, ubatch: int = 512, k: str = "f16", v: str = "f16", flash: bool = True
) -> Setting:
    return Setting(context, parallel, ubatch, k, v, flash)


@pytest.mark.parametrize(
    ("wanted", "mib"),
    [
        (setting(), 4096),
        (setting(4096), 512),
        (setting(131072), 16384),
        (setting(8192, 4), 4096),
        (setting(k="q8_0", v="q8_0"), 2176),
        (setting(k="q4_0", v="q4_0"), 1152),
        (setting(k="q8_0"), 3136),
    ],
)
def test_context_of_llama_8b(wanted, mib):
    assert sum(kv_layer_bytes(LLAMA_8B, wanted)) == mib * MIB


def test_slots_are_rounded_up_to_256_tokens():
    # llama-server -c 10000 -np 3 has slots of 3584 tokens: 10000 -> 10240, a third of it -> 3584.
    assert cells_per_slot(4096, 3) == 4096
    assert cells_per_slot(3333, 3) == 3584
    assert cells_per_slot(1, 1) == 256


def test_layers_without_attention_have_no_cache():
    hybrid = model(2, n_head_kv=(0, 8), key_length=128, value_length=128)
    assert kv_layer_bytes(hybrid, setting(256)) == [0, 256 * 2 * 8 * 128 * 2]


# One device; the first, the others of several (pipelined); as measured.
@pytest.mark.parametrize(
    ("wanted", "first", "logits", "pipelined", "mib"),
    [
        (setting(), True, True, False, 148),
        (setting(4096), True, True, False, 120),
        (setting(131072), True, True, False, 244),
        (setting(ubatch=2048), True, True, False, 592),
        (setting(ubatch=128), True, True, False, 37),
        (setting(flash=False), True, True, False, 2156),
        (setting(), True, False, True, 340),
        (setting(), False, True, True, 300),
        (setting(8192, 4, 2048), True, False, True, 976),
        (setting(8192, 4, 2048), False, True, True, 816),
        (setting(), False, True, False, 132),
    ],
)
def test_compute_of_llama_8b(wanted, first, logits, pipelined, mib):
    estimate = compute_bytes(LLAMA_8B, wanted, first, logits, pipelined) / MIB
    assert estimate == pytest.approx(mib, rel=0.04)


def test_layers_add_up_by_device():
    toy = model(3, layer=10, output_bytes=7)
    needs = demands(toy, [0, 0, 1, 1], 2, [1, 2, 4], [100, 200])
    assert [(need.model, need.context, need.compute, need.total) for need in needs] == [
        (20, 3, 100, 123),
        (17, 4, 200, 221),
    ]
