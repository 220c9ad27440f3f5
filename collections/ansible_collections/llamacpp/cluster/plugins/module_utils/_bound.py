# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compute buffers of an architecture that nobody knows: what they cannot exceed if it is made of the usual parts.

No graph is followed. In its place every result of every matrix of a layer is held to be alive at
the same time, which ggml's allocator (ggml/src/ggml-alloc.c) avoids wherever it can.
"""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._compute import (
    CUDA,
    OFFLOADS,
    ComputeBuffers,
    pipeline_parallel,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._context import Context, caches, layer_context
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Settings

# Known to llama.cpp, but without a graph here; tests/fit has their true figures.
_COMPARED = frozenset(("deepseek4", "dots3note", "glm5-next", "hy_v4", "kimi-k3", "qwen4exp"))
# GGML_SCHED_MAX_COPIES: inputs are kept so often when devices work one behind the other.
COPIES = 4
_F32 = 4
# What experts get and give, where they are computed apart from the rest of the layer.
_ROUTED_APART = 3
# Residual, normed, and their sums, at the beginning and the end of a layer; and what goes on to the next device.
_ROWS_BESIDE = 8
_ROWS_COPIED = 8
# Heads of an indexer whose scores may be alive together, in an architecture that nobody knows.
_SCORES = 16
# Scores, masks made of them, and their sums, where one operation does without scores of each head.
_FUSED_SCORES = 5
# Indexers of pools of cells: what they make of each cell that may be chosen, and of each there is
# (build_attn_qsa in src/models/qwen4exp.cpp, build_inp_kpool in src/models/glm5-next.cpp).
_POOLING = ("glm5-next", "qwen4exp")
_OF_CHOSEN, _OF_CELLS = 6, 2
# What goes on to the next device of the streams of hyper connections. hy_v4 computes them in steps that the
# scheduler leaves on the device before (hy_v4_hc_reduce and build_hc_post in src/models/hy-v4.cpp, b11434).
_STREAMS_COPIED = 4
_STREAMS_COPIED_IN_STEPS = 6
# Copies of the streams beside each other in a layer; those steps concatenate them one by one.
_STREAMS_BESIDE = 4
_STREAMS_BESIDE_IN_STEPS = 9
# Heads and their size for which ggml-cuda has the operation (ggml_cuda_lightning_indexer_supported).
_CUDA_INDEXERS, _CUDA_INDEXER_SIZE = (4, 32, 64), 128


def _compared(model: ModelFacts) -> bool:
    """Whether the bound of this architecture was held against llama.cpp's figures, so that it can be closer."""
    return model.architecture in _COMPARED


@per_model
def _widths(model: ModelFacts) -> tuple[int, ...]:
    """Numbers that the matrices of each layer make of one token, all together."""
    return _made(model, 2)


@per_model
def _expert_widths(model: ModelFacts) -> tuple[int, ...]:
    """The same of matrices of experts alone."""
    return _made(model, 3)


def _made(model: ModelFacts, dimensions: int) -> tuple[int, ...]:
    h = hparams(model)
    found = [0] * h.n_layer_all
    for group in model.tensor_groups:
        if len(group.shape) < dimensions:
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
    h, compared = hparams(model), _compared(model)
    pipeline = pipeline_parallel(devices, placed, settings)
    copies = COPIES if pipeline else 1
    flash = context.flash_attn is not False
    masks = _masks(model, context)
    rows = _F32 * context.n_tokens * h.n_embd
    inputs = copies * (masks + _ROWS_COPIED * rows)
    streams, in_steps = model.number("hyper_connection.count", 0), h.architecture == "hy_v4" or not compared
    entering = copies * streams * rows * (_STREAMS_COPIED_IN_STEPS if in_steps else _STREAMS_COPIED)
    beside = streams * rows * (_STREAMS_BESIDE_IN_STEPS if in_steps else _STREAMS_BESIDE)
    scores = _scores(model, context, devices)
    if flash and (context.type_k, context.type_v) != ("f16", "f16") and any(d.hardware in CUDA for d in devices):
        scores += _converted(model, context)
    cells = _cells(model, context)
    # Products with matrices in memory are made on the first device that can, from a copy.
    helper = next((index for index, device in enumerate(devices) if device.kind in OFFLOADS), -1)
    copied = max(_experts(model), default=0) if helper >= 0 else 0
    widest = copied if settings.cpu_moe or settings.n_cpu_moe else 0
    found = [0] * len(devices)
    # Experts in memory are computed there, and what comes out lies there.
    kept = h.n_layer_all if settings.cpu_moe else settings.n_cpu_moe
    routed = {layer for layer, made in enumerate(_expert_widths(model)) if made}
    host = inputs if compared else inputs + masks
    for layer, width in enumerate(_widths(model)):
        if not compared and layer in routed:
            # Experts may get their input weighted, one for each (llama4); in memory there are copies of all this.
            width += h.n_embd * max(h.n_expert_used[layer], 1) * (_ROUTED_APART if kept else 1)
        size = inputs + _layer(model, context, layer, width, cells, flash) + widest + beside + scores
        if placed[layer] != placed[0]:
            size += entering
        if placed[layer] == HOST:
            host = max(host, size)
            if helper >= 0:
                found[helper] = max(found[helper], size + copied)
        else:
            found[placed[layer]] = max(found[placed[layer]], size)
            if layer < kept:
                host = max(host, inputs + _F32 * context.n_tokens * _expert_widths(model)[layer] * 5 // 4)
    logits = inputs + _F32 * (2 * context.n_outputs * h.n_vocab + _ROWS_BESIDE * context.n_tokens * h.n_embd)
    if placed[-1] == HOST:
        host = max(host, logits)
    else:
        found[placed[-1]] = max(found[placed[-1]], logits)
    return ComputeBuffers(tuple(found), host, False, flash, pipeline)


@per_model
def _experts(model: ModelFacts) -> tuple[int, ...]:
    """Bytes of each kind of tensor of a layer that may be copied to a device to compute with it."""
    return tuple(group.nbytes for group in model.tensor_groups if group.layers and len(group.shape) > 1)


def _layer(model: ModelFacts, context: Context, layer: int, width: int, cells: int, flash: bool) -> int:
    h, compared = hparams(model), _compared(model)
    # A quarter more, for what is made of the results before they are summed up.
    size = _F32 * context.n_tokens * (width + _ROWS_BESIDE * h.n_embd) * 5 // 4
    size += 3 * _F32 * context.n_seq_max * (h.n_embd_r + h.n_embd_s)
    # An input for every layer (gemma3n), or one made of n-grams (qwen4exp); a bias for every position (T5).
    parts = model.number("ple.ngram_size", 0) * model.number("ple.heads_per_ngram", 0)
    size += 4 * _F32 * context.n_tokens * model.number("embedding_length_per_layer_input", 0) * (parts or h.n_layer)
    if model.number("attention.relative_buckets_count", 0):
        size += 4 * _F32 * context.n_tokens * cells * h.n_head[layer]
    # Where caches are in memory, "auto" is off for many of those with states (llama_context::resolve_fused_ops).
    if not flash or (not compared and context.flash_attn is None and not context.offload_kqv):
        # The scores of all heads, and what softmax makes of them.
        size += (2 if compared else 3) * _F32 * context.n_tokens * h.n_head[layer] * cells
    if not (flash and context.offload_kqv):
        # Keys and values in another order, or from the head's memory.
        size += 2 * layer_context(model, context, "cuda")[layer]
    return size


def _scores(model: ModelFacts, context: Context, devices: Sequence[MemoryDevice]) -> int:
    """Scores of an indexer for every cell: one operation sums up its heads, where there is a kernel for it."""
    heads = model.number("attention.indexer.head_count", 0)
    if not heads:
        return 0
    if model.architecture in _POOLING:
        chosen, cells = _pooled(model, context)
        return _F32 * context.n_tokens * (_OF_CHOSEN * chosen + _OF_CELLS * cells)
    if not _compared(model):
        count = 2 * min(heads, _SCORES)
    elif any(device.kind in CUDA for device in devices) and (
        heads not in _CUDA_INDEXERS or model.number("attention.indexer.key_length", 0) != _CUDA_INDEXER_SIZE
    ):
        count = 2 * heads
    else:
        count = _FUSED_SCORES
    return _F32 * context.n_tokens * _cells(model, context) * count


def _converted(model: ModelFacts, context: Context) -> int:
    """Keys and values of one layer in f16, which CUDA's flash attention makes of a quantised cache."""
    h = hparams(model)
    widest = max((h.k_gqa(layer) + h.v_gqa(layer) for layer in range(h.n_layer)), default=0)
    return _F32 // 2 * widest * _cells(model, context) * context.n_stream


def _pooled(model: ModelFacts, context: Context) -> tuple[int, int]:
    """Cells that an indexer of pools may choose, and those there are: of a unified cache all for every sequence."""
    cells = max((cache.cells for cache in caches(model, context) if cache.kind == "indexer"), default=0)
    cells *= context.n_seq_max
    return min(model.number("attention.indexer.top_k", 0), cells), cells


def _cells(model: ModelFacts, context: Context) -> int:
    return max((cache.cells for cache in caches(model, context) if cache.kind != "recurrent"), default=context.n_tokens)


def _masks(model: ModelFacts, context: Context) -> int:
    """Masks of every cache: in half precision with flash attention, else in single (llm_graph_input_attn_kv)."""
    cells = sum(cache.cells for cache in caches(model, context) if cache.kind != "recurrent")
    each = _F32 // 2 if context.flash_attn is not False else _F32
    if not _compared(model):
        each = _F32 + _F32 // 2
    pooled = 0
    if model.architecture in _POOLING:
        # A place for each that is chosen, and a mask of the pools.
        chosen, all_cells = _pooled(model, context)
        pooled = _F32 * context.n_tokens * (chosen + all_cells // 4)
    return each * context.n_tokens * max(cells, context.n_tokens) + pooled
