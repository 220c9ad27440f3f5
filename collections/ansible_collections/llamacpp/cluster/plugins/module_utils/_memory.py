# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Estimate what an instance takes on each device, in bytes.

Simple on purpose, and the next thing to grow. Exact in mechanism for dense transformers with
grouped-query attention (llama.cpp b11434). Too high for sliding windows, multi-head latent
attention and recurrent layers; without a quantised cache's f16 copy and the padding of
quantised rows on CUDA. Where it is wrong an operator switches llamacpp_memory_check off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts

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


def padded_context(tokens: int) -> int:
    """Round a number of tokens up as llama.cpp does."""
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP


def cells_per_slot(context: int, parallel: int) -> int:
    """Return the KV cells of each slot with ``--no-kv-unified`` and ``--ctx-size context*parallel``."""
    return padded_context(padded_context(context * parallel) // parallel)


def kv_layer_bytes(model: ModelFacts, context: int, parallel: int, type_k: str, type_v: str) -> list[int]:
    """Return the KV cache of every layer. ``context``: tokens a slot; ``parallel``: slots."""
    cells = parallel * cells_per_slot(context, parallel)
    sizes = []
    for heads in model.n_head_kv:
        # A quantised cache needs heads that divide into blocks; llama.cpp refuses others when it
        # starts. Rounding up keeps this a number, and the refusal with the one who knows best.
        row = sum(
            by_name(kind).row_bytes(-(-elements // by_name(kind).block_elements) * by_name(kind).block_elements)
            for kind, elements in ((type_k, model.key_length * heads), (type_v, model.value_length * heads))
        )
        sizes.append(cells * row)
    return sizes


def compute_bytes(model: ModelFacts, context: int, parallel: int, ubatch: int, logits: bool, pipelined: bool) -> int:
    """Return the compute buffer of one device, an upper bound for dense models.

    ``logits``: the device holds the output layer. ``pipelined``: llama.cpp keeps four copies of
    the inputs, as it does when every layer is on a device and there are several.
    """
    mask = 2 * ubatch * cells_per_slot(context, parallel)
    row = 4 * ubatch * model.n_embd
    body = 3 * 4 * ubatch * model.n_ff
    if pipelined:
        peak, inputs = body + 16 * row, 4 * mask
        output = 4 * parallel * model.n_vocab + 9 * row
    else:
        peak, inputs = body + 4 * row, mask
        output = 4 * parallel * model.n_vocab + 4 * row
    return inputs + (max(peak, output) if logits else peak)


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
