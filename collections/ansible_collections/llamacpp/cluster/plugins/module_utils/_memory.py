# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a model takes on every device and in the head's memory, as llama.cpp b11434 would reserve it.

The façade over weights, context, compute buffers and what a process takes beside them. Pure: it
reads no file and asks no device. Weights and context are llama.cpp's to the byte, but for weights
that a CPU build repacks: they are counted where they are, which ``llama-fit-params`` leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._bound import bound
from ansible_collections.llamacpp.cluster.plugins.module_utils._compute import ComputeBuffers, compute_buffers
from ansible_collections.llamacpp.cluster.plugins.module_utils._context import Context, layer_context, resolve
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_models import builder_for
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._overhead import (
    Overhead,
    host_overhead,
    process_overhead,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import (
    HOST,
    MemoryDevice,
    Refused,
    Settings,
    offload_devices,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._tensor_split import spread
from ansible_collections.llamacpp.cluster.plugins.module_utils._weights import layer_weights, model_bytes, place

__all__ = (
    "HOST",
    "Estimate",
    "LayerCosts",
    "MemoryDevice",
    "Refused",
    "Settings",
    "Usage",
    "estimate",
    "layer_costs",
)


@dataclass(frozen=True)
class Usage:
    """Bytes in the memory of one device or of the host. ``overhead``: of the process, in no buffer of llama.cpp."""

    name: str
    model: int
    context: int
    compute: int
    overhead: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.model + self.context + self.compute + self.overhead


@dataclass(frozen=True)
class Estimate:
    """What an instance takes, and what llama.cpp makes of its settings.

    ``devices``: in the order in which they were given; a device of kind cpu is the host and shows
    the same. ``layers``: the device of every layer and, last, of the output; :data:`HOST` is the
    head's memory. ``n_ctx``: tokens of context in all, ``n_ctx_slot``: that one request can have.
    ``exact``: False where a part is a bound and not llama.cpp's own figure; ``notes`` say which.
    """

    devices: tuple[Usage, ...]
    host: Usage
    layers: tuple[int, ...]
    n_ctx: int
    n_ctx_slot: int
    flash_attn: bool
    pipeline: bool
    exact: bool
    notes: tuple[str, ...]


class LayerCosts(NamedTuple):
    """Bytes that move with a layer, the output last; ``host``: what stays in the head's memory wherever they go."""

    layers: tuple[int, ...]
    host: int


def layer_costs(model: ModelFacts, settings: Settings, kind: str = "cuda") -> LayerCosts:
    """Return what each layer brings to a device of ``kind``: weights and context, without compute buffers.

    Raises :class:`Refused` as :func:`estimate` does.
    """
    weights, host = layer_weights(model, kind), layer_weights(model, "host")
    context = layer_context(model, resolve(model, settings), kind)
    count = len(weights.layers)
    kept = count if settings.cpu_moe else min(settings.n_cpu_moe, count)
    moving = [0 if settings.no_kv_offload else size for size in context]
    layers = [
        weights.layers[layer] + moving[layer] + (0 if layer < kept else weights.experts[layer])
        for layer in range(count)
    ]
    staying = host.inputs + sum(host.experts[:kept]) + (sum(context) if settings.no_kv_offload else 0)
    return LayerCosts((*layers, weights.output), staying)


def estimate(model: ModelFacts, devices: Sequence[MemoryDevice], settings: Settings) -> Estimate:
    """Say what llama-server takes on each of ``devices`` and in the head's memory.

    Raises :class:`Refused` for settings with which llama-server would not start.
    """
    context = resolve(model, settings)
    placed = place(model, devices, settings)
    weights, at_host = model_bytes(model, devices, settings, placed)
    caches, cache_at_host = _context_bytes(model, context, devices, placed)
    compute = _compute(model, placed, devices, settings, context)
    buffers = list(compute.devices)
    together = offload_devices(devices, settings)
    parallel = settings.split_mode == "tensor" and len(together) > 1
    if parallel:
        weights, caches = _spread(model, context, devices, settings, placed)
        # Each device computes its part of every layer: the buffers of one that has it all are a bound.
        buffers = [max(buffers) if index in together else 0 for index in range(len(devices))]
    notes = _notes(model, compute, parallel)
    found = []
    for index, device in enumerate(devices):
        overhead = 0
        if index in together:
            beside = _overhead(model, settings, device, compute.flash_attn, context.n_seq_max)
            overhead = beside.working
            if not beside.measured:
                notes.append(
                    "what the process itself takes was not measured on %s%s; it is taken from a similar GPU"
                    % (device.name, " (%s)" % device.compute_capability if device.compute_capability else "")
                )
        found.append(Usage(device.name, weights[index], caches[index], buffers[index], overhead))
    host = Usage(
        "host",
        at_host,
        cache_at_host,
        compute.host,
        _host_overhead(model, context, [devices[index] for index in offload_devices(devices, settings)], settings),
    )
    return Estimate(
        devices=tuple(
            Usage(item.name, host.model, host.context, host.compute, host.overhead) if item.kind == "cpu" else usage
            for item, usage in zip(devices, found)
        ),
        host=host,
        layers=tuple(placed),
        n_ctx=context.n_ctx,
        n_ctx_slot=context.n_ctx_seq,
        flash_attn=compute.flash_attn,
        pipeline=compute.pipeline,
        exact=compute.exact and hparams(model).known and not parallel,
        notes=tuple(dict.fromkeys(notes)),
    )


def _compute(
    model: ModelFacts,
    placed: Sequence[int],
    devices: Sequence[MemoryDevice],
    settings: Settings,
    context: Context,
) -> ComputeBuffers:
    """Return the compute buffers, or a bound for an architecture, or a file of one, that cannot be followed."""
    if builder_for(model.architecture):
        try:
            return compute_buffers(model, placed, devices, settings, context)
        except (LookupError, ArithmeticError):
            # A tensor or a key is missing that every file of this architecture has.
            pass
    return bound(model, placed, devices, settings, context)


def _context_bytes(
    model: ModelFacts, context: Context, devices: Sequence[MemoryDevice], placed: Sequence[int]
) -> tuple[list[int], int]:
    """Return the bytes of caches on each device and in the head's memory."""
    host = layer_context(model, context, "host")
    found = [0] * len(devices)
    at_host = 0
    tables = [layer_context(model, context, device.hardware) for device in devices]
    for layer, index in enumerate(placed[:-1]):
        if index == HOST or not context.offload_kqv:
            at_host += host[layer]
        else:
            found[index] += tables[index][layer]
    return found, at_host


def _spread(
    model: ModelFacts,
    context: Context,
    devices: Sequence[MemoryDevice],
    settings: Settings,
    placed: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Return the bytes of weights and caches on each device when all compute every layer together."""
    used = offload_devices(devices, settings)
    given = (settings.tensor_split or ())[: len(used)]
    shares = tuple(float(share) for share in given) + (0.0,) * (len(used) - len(given))
    kept = len(placed) if settings.cpu_moe else settings.n_cpu_moe
    parts = spread(model, context, placed, shares, [devices[index].hardware for index in used], kept)
    weights, caches = [0] * len(devices), [0] * len(devices)
    for index, of_model, of_context in zip(used, parts.model, parts.context):
        weights[index], caches[index] = of_model, of_context
    return weights, caches


def _notes(model: ModelFacts, compute: ComputeBuffers, parallel: bool) -> list[str]:
    if not hparams(model).known:
        return [
            "llama.cpp b11434 does not know the architecture %s: weights are exact, the context follows its keys, "
            "compute buffers are a bound" % model.architecture
        ]
    if parallel:
        return ["with split_mode tensor the compute buffers are a bound: those of a device that has everything"]
    if not compute.exact:
        return ["the compute buffers are a bound, the rest is exact"]
    return []


@per_model
def _overheads(model: ModelFacts) -> dict[tuple[object, ...], Overhead]:
    return {}


def _overhead(
    model: ModelFacts, settings: Settings, device: MemoryDevice, flash_attn: bool, sequences: int
) -> Overhead:
    known = _overheads(model)
    key = (
        device.hardware,
        device.compute_capability,
        settings.ubatch_size,
        settings.split_mode,
        flash_attn,
        sequences,
    )
    if key not in known:
        known[key] = process_overhead(model, settings, device, flash_attn, sequences)
    return known[key]


def _host_overhead(model: ModelFacts, context: Context, devices: Sequence[MemoryDevice], settings: Settings) -> int:
    """What llama-server takes of the head's memory beside its buffers.

    The rows of logits that it hands out (llama_context::output_reserve: one row a slot, in single precision),
    and the process itself.
    """
    return 4 * context.n_seq_max * hparams(model).n_vocab + host_overhead(devices, settings)
