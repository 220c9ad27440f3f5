# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compute buffers of an architecture that nobody knows: what they cannot exceed if it is made of the usual parts.

No graph is followed. In its place every result of every matrix of a layer is held to be alive at
the same time, which ggml's allocator (ggml/src/ggml-alloc.c) avoids wherever it can.
"""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._compute import ComputeBuffers, pipeline_parallel
from ansible_collections.llamacpp.cluster.plugins.module_utils._context import Context, caches, layer_context
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Settings

# GGML_SCHED_MAX_COPIES: inputs are kept so often when devices work one behind the other.
COPIES = 4
_F32 = 4
# Residual, normed, and their sums, at the beginning and the end of a layer; and what goes on to the next device.
_ROWS_BESIDE = 8
_ROWS_COPIED = 8
# Heads of an indexer whose scores may be alive together, in an architecture that nobody knows.
_SCORES = 16
# Scores, masks made of them, and their sums, where one operation does without scores of each head.
_FUSED_SCORES = 4
# What goes on to the next device of the streams of hyper connections. hy_v4 computes them in steps that the
# scheduler leaves on the device before (hy_v4_hc_reduce and build_hc_post in src/models/hy-v4.cpp, b11434).
_STREAMS_COPIED = 3
_STREAMS_COPIED_IN_STEPS = 6
# Copies of the streams beside each other in a layer; those steps concatenate them one by one.
_STREAMS_BESIDE = 4
_STREAMS_BESIDE_IN_STEPS = 9
# Heads and their size for which ggml-cuda has the operation (ggml_cuda_lightning_indexer_supported).
_CUDA_INDEXERS, _CUDA_INDEXER_SIZE = (4, 32, 64), 128


@per_model
def _widths(model: ModelFacts) -> tuple[int, ...]:
    """Numbers that the matrices of each layer make of one token, all together."""
    h = hparams(model)
    found = [0] * h.n_layer_all
    for group in model.tensor_groups:
        if len(group.shape) < 2:
            continue
        for layer in group.layers:
            times = max(h.n_expert_used[layer], 1) if len(group.shape) > 2 else 1
            found[layer] += group.shape[1] * times
    return tuple(found)


def bound(
    model: ModelFacts,
    placed: Sequence[int],
    devices: Sequence[MemoryDevice],
    settings: Settings,
    context: Context,
) -> ComputeBuffers:
    """Return a bound of the compute buffers, by the shapes of the matrices alone; parameters as of compute_buffers."""
    h = hparams(model)
    pipeline = pipeline_parallel(devices, placed, settings)
    copies = COPIES if pipeline else 1
    flash = context.flash_attn is not False
    masks = _masks(model, context)
    rows = _F32 * context.n_tokens * h.n_embd
    inputs = copies * (masks + _ROWS_COPIED * rows)
    streams, in_steps = model.number("hyper_connection.count", 0), h.architecture == "hy_v4" or not h.known
    entering = copies * streams * rows * (_STREAMS_COPIED_IN_STEPS if in_steps else _STREAMS_COPIED)
    beside = streams * rows * (_STREAMS_BESIDE_IN_STEPS if in_steps else _STREAMS_BESIDE)
    scores = _scores(model, context, devices)
    cells = _cells(model, context)
    widest = max(_experts(model), default=0) if settings.cpu_moe or settings.n_cpu_moe else 0
    found = [0] * len(devices)
    host = inputs if h.known else inputs + masks
    for layer, width in enumerate(_widths(model)):
        size = inputs + _layer(model, context, layer, width, cells, flash) + widest + beside + scores
        if placed[layer] != placed[0]:
            size += entering
        if placed[layer] == HOST:
            host = max(host, size)
            # Products with matrices in memory are made on the first device that can, from a copy.
            size += max(_experts(model), default=0)
            found = [max(item, size) for item in found]
        else:
            found[placed[layer]] = max(found[placed[layer]], size)
    logits = inputs + _F32 * (2 * context.n_outputs * h.n_vocab + _ROWS_BESIDE * context.n_tokens * h.n_embd)
    if placed[-1] == HOST:
        host = max(host, logits)
    else:
        found[placed[-1]] = max(found[placed[-1]], logits)
    # A device that llama-server uses but that holds nothing computes nothing.
    idle = set(range(len(devices))) - {index for index in placed if index != HOST}
    if HOST not in placed:
        found = [0 if index in idle else item for index, item in enumerate(found)]
    return ComputeBuffers(tuple(found), host, False, flash, pipeline)


@per_model
def _experts(model: ModelFacts) -> tuple[int, ...]:
    """Bytes of each kind of tensor of a layer that may be copied to a device to compute with it."""
    return tuple(group.nbytes for group in model.tensor_groups if group.layers and len(group.shape) > 1)


def _layer(model: ModelFacts, context: Context, layer: int, width: int, cells: int, flash: bool) -> int:
    h = hparams(model)
    # A quarter more, for what is made of the results before they are summed up.
    size = _F32 * context.n_tokens * (width + _ROWS_BESIDE * h.n_embd) * 5 // 4
    size += 3 * _F32 * context.n_seq_max * (h.n_embd_r + h.n_embd_s)
    # An input for every layer (gemma3n), scores of an indexer (DeepSeek 3.2), a bias for every position (T5).
    size += 4 * _F32 * context.n_tokens * model.number("embedding_length_per_layer_input", 0) * h.n_layer
    if model.number("attention.relative_buckets_count", 0):
        size += 4 * _F32 * context.n_tokens * cells * h.n_head[layer]
    if not flash:
        # The scores of all heads, and what softmax makes of them.
        size += 2 * _F32 * context.n_tokens * h.n_head[layer] * cells
    if not (flash and context.offload_kqv):
        # Keys and values in another order, or from the head's memory.
        size += 2 * layer_context(model, context, "cuda")[layer]
    return size


def _scores(model: ModelFacts, context: Context, devices: Sequence[MemoryDevice]) -> int:
    """Scores of an indexer for every cell: one operation sums up its heads, where there is a kernel for it."""
    heads = model.number("attention.indexer.head_count", 0)
    if not heads:
        return 0
    if not hparams(model).known:
        count = 2 * min(heads, _SCORES)
    elif any(device.kind in ("cuda", "rocm") for device in devices) and (
        heads not in _CUDA_INDEXERS or model.number("attention.indexer.key_length", 0) != _CUDA_INDEXER_SIZE
    ):
        count = 2 * heads
    else:
        count = _FUSED_SCORES
    return _F32 * context.n_tokens * _cells(model, context) * count


def _cells(model: ModelFacts, context: Context) -> int:
    return max((cache.cells for cache in caches(model, context) if cache.kind != "recurrent"), default=context.n_tokens)


def _masks(model: ModelFacts, context: Context) -> int:
    """Masks of every cache: in half precision with flash attention, else in single (llm_graph_input_attn_kv)."""
    cells = sum(cache.cells for cache in caches(model, context) if cache.kind != "recurrent")
    if hparams(model).known:
        each = _F32 // 2 if context.flash_attn is not False else _F32
    else:
        each = _F32 + _F32 // 2
    return each * context.n_tokens * max(cells, context.n_tokens)
