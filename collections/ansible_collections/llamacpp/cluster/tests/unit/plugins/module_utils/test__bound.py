# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bounds of compute buffers; that they are never below llama.cpp's figures is in tests/fit."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._bound import bound
from ansible_collections.llamacpp.cluster.plugins.module_utils._compute import ComputeBuffers
from ansible_collections.llamacpp.cluster.plugins.module_utils._context import resolve
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import MemoryDevice, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._weights import place
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, MIB, model

CUDA = tuple(MemoryDevice("CUDA%d" % index, "cuda", 80 * GIB, 80 * GIB, "9.0") for index in range(2))
WORKERS = tuple(MemoryDevice("RPC%d" % index, "rpc", 80 * GIB, 80 * GIB) for index in range(2))
LAYERS = (0, 1, 2, 3)
EXPERT_BYTES = 64 * MIB
# The scores of one head for a batch of 512 and a context of 32768.
SCORES = 4 * 512 * 32768


def facts(architecture: str = "deepseek4", **changes: object) -> ModelFacts:
    """A small model with experts and attention to what an indexer chooses."""
    shapes = {"attn_q": (2048, 4096), "attn_k": (2048, 512), "ffn_up_exps": (2048, 512, 128)}
    groups = [
        TensorGroup("blk.*.%s.weight" % name, LAYERS, shape, "Q4_K", EXPERT_BYTES if len(shape) > 2 else MIB)
        for name, shape in shapes.items()
    ]
    groups.append(TensorGroup("token_embd.weight", (), (2048, 32000), "Q4_K", 32 * MIB))
    keys = {
        "embedding_length": 2048,
        "vocab_size": 32000,
        "attention.head_count": 32,
        "attention.head_count_kv": 4,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "expert_count": 128,
        "expert_used_count": 4,
    }
    keys.update(changes)
    return model(len(LAYERS), architecture=architecture, tensor_groups=tuple(groups), **keys)


def bounds(given: ModelFacts, devices: tuple[MemoryDevice, ...], **settings: object) -> ComputeBuffers:
    asked = Settings(**dict({"ctx_size": 32768}, **settings))
    return bound(given, place(given, devices, asked), devices, asked, resolve(given, asked))


def test_it_says_that_it_is_a_bound():
    assert not bounds(facts("qwen3moe"), WORKERS).exact


def test_streams_are_copied_to_all_devices_but_the_first():
    streams = {"hyper_connection.count": 4}
    plain, wide = bounds(facts("hy_v4"), WORKERS), bounds(facts("hy_v4", **streams), WORKERS)
    state = 4 * 512 * 2048 * 4
    first, second = (there - here for here, there in zip(plain.devices, wide.devices))
    # A pipeline keeps four copies of each.
    assert second - first >= 4 * 4 * state
    assert first >= 8 * state


def test_scores_of_an_indexer_are_of_all_heads_where_a_gpu_has_no_kernel():
    odd = {"attention.indexer.head_count": 24, "attention.indexer.key_length": 128, "attention.indexer.top_k": 2048}
    even = {**odd, "attention.indexer.head_count": 32}
    per_head = bounds(facts("hy_v4", **odd), CUDA[:1]).devices[0] - bounds(facts("hy_v4", **even), CUDA[:1]).devices[0]
    assert per_head >= 24 * SCORES
    assert bounds(facts("hy_v4", **odd), WORKERS[:1]) == bounds(facts("hy_v4", **even), WORKERS[:1])


def test_only_local_gpus_take_copies_of_experts_in_memory():
    here = bounds(facts("qwen3moe"), CUDA[:1], cpu_moe=True).devices[0]
    there = bounds(facts("qwen3moe"), WORKERS[:1], cpu_moe=True).devices[0]
    assert here - there == EXPERT_BYTES


def test_experts_in_memory_need_room_for_their_results_there():
    results = 4 * 512 * 4 * 512
    kept = bounds(facts("hy_v4"), WORKERS[:1], cpu_moe=True).host - bounds(facts("hy_v4"), WORKERS[:1]).host
    assert kept >= results


def test_cuda_converts_a_quantised_cache():
    q8 = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    more = (
        bounds(facts("qwen3moe"), CUDA[:1], **q8).devices[0] - bounds(facts("qwen3moe"), WORKERS[:1], **q8).devices[0]
    )
    assert more == 2 * 32768 * (2 * 4 * 128)


def test_bounds_are_closer_where_they_were_compared():
    unknown, known = bounds(facts("marvellous"), WORKERS[:1]), bounds(facts("hy_v4"), WORKERS[:1])
    assert unknown.devices[0] > known.devices[0]
    assert unknown.host > known.host
