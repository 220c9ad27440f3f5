# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Estimate what an instance takes on each device, in bytes.

Simple on purpose, and the next thing to grow. For dense transformers with grouped-query
attention it is within 1 % of what llama-server b11434 allocates; weights are right for every
architecture. The context of sliding windows and of latent attention is estimated too high,
recurrent state is left out, and so are the f16 copy of a quantised cache and the padding of
quantised rows on CUDA. Where it is wrong an operator switches llamacpp_memory_check off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._context import Context
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import MemoryDevice, Settings

MIB = 1 << 20
CONTEXT_STEP = 256
# Measured on an H200 with CUDA 13.0: what a process takes beside its buffers (context, cuBLAS, kernels).
CUDA_PROCESS_BYTES = 598 * MIB


@dataclass(frozen=True)
class Demand:
    """Bytes on one device: weights, KV cache, compute buffers."""

    model: int
    context: int
    compute: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.model + self.context + self.compute


@dataclass(frozen=True)
class Setting:
    """What of an instance decides its buffers. ``context``: tokens a slot; ``flash``: flash attention."""

    context: int
    parallel: int
    ubatch: int
    type_k: str
    type_v: str
    flash: bool


def padded_context(tokens: int) -> int:
    """Round a number of tokens up as llama.cpp does."""
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP


def cells_per_slot(context: int, parallel: int) -> int:
    """Return the KV cells of each slot with ``--no-kv-unified`` and ``--ctx-size context*parallel``."""
    return padded_context(padded_context(context * parallel) // parallel)


def kv_layer_bytes(model: ModelFacts, setting: Setting) -> list[int]:
    """Return the KV cache of every layer."""
    cells = setting.parallel * cells_per_slot(setting.context, setting.parallel)
    widths = ((by_name(setting.type_k), model.key_length), (by_name(setting.type_v), model.value_length))

    def row(heads: int) -> int:
        # A quantised cache needs heads that divide into blocks; llama.cpp refuses others when it
        # starts. Rounding up keeps this a number, and the refusal with the one who knows best.
        return sum(-(-width * heads // kind.block_elements) * kind.block_bytes for kind, width in widths)

    # Nearly all models have the same heads in every layer.
    rows = {heads: row(heads) for heads in set(model.n_head_kv)}
    return [cells * rows[heads] for heads in model.n_head_kv]


def compute_bytes(model: ModelFacts, setting: Setting, first: bool, logits: bool, pipelined: bool) -> int:
    """Return the compute buffer of one device.

    ``first``: the device holds the first layers of all. ``logits``: it holds the output layer.
    ``pipelined``: llama.cpp keeps four copies of the inputs, as it does when every layer is on a
    device and there are several. Within 4 % of llama.cpp for dense models.
    """
    cells = cells_per_slot(setting.context, setting.parallel)
    mask = 2 * setting.ubatch * cells
    row = 4 * setting.ubatch * model.n_embd
    body = 3 * 4 * setting.ubatch * model.n_ff
    output = 4 * setting.parallel * model.n_vocab
    if not setting.flash:
        # The scores of all heads at once, and their sum.
        body = max(body, 4 * (model.n_head + 1) * cells * setting.ubatch)
    if pipelined:
        peak = body + (16 if first else 11) * row
        return 4 * mask + (max(peak, output + 9 * row) if logits else peak)
    rows = 4 if first else 2
    return mask + (max(body + rows * row, output + rows * row) if logits else body + rows * row)


def demands(
    model: ModelFacts,
    placed: Sequence[int],
    devices: int,
    kv: Sequence[int],
    compute: Sequence[int],
) -> list[Demand]:
    """Add up layers by device.

    ``placed``: device of every layer and of the output, numbers below ``devices``. ``kv``: bytes
    a layer. ``compute``: bytes a device.
    """
    weights = [0] * devices
    context = [0] * devices
    for layer, device in enumerate(placed):
        weights[device] += model.layer_bytes[layer] if layer < model.n_layers else model.output_bytes
        context[device] += kv[layer] if layer < model.n_layers else 0
    return [Demand(weights[device], context[device], compute[device]) for device in range(devices)]


class RoughBuffers(NamedTuple):
    """Compute buffers by the old formula, until the graph is followed node by node."""

    devices: tuple[int, ...]
    host: int
    exact: bool
    flash_attn: bool
    pipeline: bool


def compute_buffers(
    model: ModelFacts, placed: Sequence[int], devices: Sequence[MemoryDevice], settings: Settings, context: Context
) -> RoughBuffers:
    """Return compute buffers by :func:`compute_bytes`: within 4 % for dense models, and not exact."""
    flash = settings.flash_attn != "off"
    setting = Setting(context.n_ctx_seq, context.n_seq_max, context.n_ubatch, context.type_k, context.type_v, flash)
    used = sorted({index for index in placed if index >= 0})
    pipelined = len(used) > 1 and all(index >= 0 for index in placed) and not (settings.cpu_moe or settings.n_cpu_moe)
    found = [0] * len(devices)
    for index in used:
        found[index] = compute_bytes(model, setting, index == used[0], index == placed[-1], pipelined)
    mask = 2 * context.n_ubatch * context.n_ctx_seq
    host = (4 if pipelined else 1) * mask + (10 if pipelined else 4) * context.n_ubatch * model.n_embd * 4
    return RoughBuffers(tuple(found), host, False, flash, pipelined)
