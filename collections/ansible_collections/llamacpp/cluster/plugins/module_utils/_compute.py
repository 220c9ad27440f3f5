# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The compute buffers that llama.cpp reserves on each device and in the head's memory, in bytes.

llama.cpp (b11434) builds the graph of its largest batch, gives each node to a backend, and keeps
the peak of a liveness allocator (llama_context::sched_reserve). The same is done here with shapes
alone, on as few layers as are needed for the peak. Its figures are those of ``llama-fit-params``
and of llama-server's memory breakdown, which measure without allocating. What was pinned to a
device is forgotten there, so that the buffers allocated afterwards are a few copies of a hidden
state smaller on all devices of a pipeline but the first: for CUDA devices of the head that smaller
size is given, which is what its GPUs show.

On CUDA, and behind a worker that has CUDA, flash attention reserves copies of quantised keys and
values in f16, and operations on weights in the head's memory move to the first GPU for batches of
32 and more, with a copy of the weights. On local CUDA devices the results of experts are added up in
one step, for which they stay where they are. What cuBLAS and the kernels' own pools take is in no
buffer: see _overhead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._compute_graph import (
    WHOLE,
    Layer,
    build,
    reduced,
    tables,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._context import Context, swa_cells
from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import (
    PIPELINE_COPIES,
    Event,
    place_nodes,
    record,
    replay,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import Place
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import Hparams, hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import (
    HOST,
    MemoryDevice,
    Settings,
    offload_devices,
)

# What takes over operations on the head's weights (ggml_backend_*_offload_op); a worker behind RPC does not.
OFFLOADS = ("cuda", "rocm", "vulkan", "sycl", "metal")
CUDA = ("cuda", "rocm")
# Answers that are kept for a model.
_REMEMBERED = 8192
# Widths of heads for which ggml-cuda has flash attention: keys -> (values, queries a key head are a multiple of).
# ggml_cuda_get_best_fattn_kernel (ggml/src/ggml-cuda/fattn.cu).
_CUDA_HEADS = {
    **{width: (width, 1) for width in (40, 64, 72, 80, 96, 112, 128, 256)},
    192: (128, 8),
    320: (256, 32),
    512: (512, 2),
    576: (512, 2),
}


@dataclass(frozen=True)
class ComputeBuffers:
    """Bytes of each device in the order given, and of the head's memory.

    ``exact``: False where the architecture is not known and the figures are a bound.
    ``flash_attn``: what llama.cpp makes of ``auto``. ``pipeline``: pipeline parallelism is on.
    """

    devices: tuple[int, ...]
    host: int
    exact: bool
    flash_attn: bool
    pipeline: bool


class _Placement(NamedTuple):
    """Where everything is: the layers, the output, and the layers whose caches others read."""

    layers: tuple[Layer, ...]
    output: int
    owners: tuple[Layer, ...]
    cpu: int


def pipeline_parallel(devices: Sequence[MemoryDevice], placed: Sequence[int], settings: Settings) -> bool:
    """Whether llama.cpp keeps four copies of its inputs to work on several batches at once.

    The constructor of llama_context: more than one device, everything on them, split by layers,
    caches on the devices, no tensor placed by pattern, and devices with events (all but Metal).
    """
    used = offload_devices(devices, settings)
    return (
        len(used) > 1
        and HOST not in placed
        and settings.split_mode == "layer"
        and not settings.no_kv_offload
        and not settings.cpu_moe
        and not settings.n_cpu_moe
        and all(devices[index].kind != "metal" for index in used)
    )


def compute_buffers(
    model: ModelFacts,
    placed: Sequence[int],
    devices: Sequence[MemoryDevice],
    settings: Settings,
    context: Context,
) -> ComputeBuffers:
    """Return what is reserved for computing. ``placed``: the device of every layer and of the output.

    ``context``: what :func:`_context.resolve` made of the settings. Raises :class:`LookupError` for
    an architecture that is not known here, or a file that lacks a tensor that its architecture has.
    """
    asked = (
        tuple(placed),
        tuple((device.kind, device.backend) for device in devices),
        (settings.split_mode, settings.cpu_moe, settings.n_cpu_moe, settings.embedding),
        context,
    )
    answers = _known(model).answers
    found = answers.get(asked)
    if found is None:
        if len(answers) >= _REMEMBERED:
            answers.clear()
        found = answers[asked] = _compute_buffers(model, placed, devices, settings, context)
    return found


def _compute_buffers(
    model: ModelFacts,
    placed: Sequence[int],
    devices: Sequence[MemoryDevice],
    settings: Settings,
    context: Context,
) -> ComputeBuffers:
    hp = hparams(model)
    kinds = tables(model).kinds
    pipeline = pipeline_parallel(devices, placed, settings)
    cpu = len(devices)
    kept = hp.n_layer_all if settings.cpu_moe else settings.n_cpu_moe
    layers = []
    for number in range(hp.n_layer):
        backend = cpu if placed[number] == HOST else placed[number]
        layers.append(Layer(number, kinds[number], backend, cpu if number < kept else backend))
    output = cpu if placed[-1] == HOST else placed[-1]
    owners = tuple(layer for layer in layers if hp.kv_from_start - 2 <= layer.number < hp.kv_from_start)
    placement = _Placement(tuple(layers), output, owners, cpu)
    flash = _flash_attention(model, hp, placement, devices, context)
    # Nothing is pinned where a layer is in memory, and on one device pins are of no consequence.
    used = set(placed)
    local = {index for index in used if index != HOST and devices[index].kind in CUDA}
    pins = len(used) > 1 and HOST not in used and bool(local)
    every = pins and local == used
    sizes = _sizes(model, hp, placement, devices, context, flash, pipeline, settings.embedding, every)
    if pins and not every:
        allocated = _sizes(model, hp, placement, devices, context, flash, pipeline, settings.embedding, True)
        sizes = [allocated[index] if index in local else size for index, size in enumerate(sizes)]
    return ComputeBuffers(tuple(sizes[:-1]), sizes[-1], True, flash, pipeline)


def _sizes(
    model: ModelFacts,
    hp: Hparams,
    placement: _Placement,
    devices: Sequence[MemoryDevice],
    context: Context,
    flash: bool,
    pipeline: bool,
    embeddings: bool,
    pinned: bool,
) -> list[int]:
    """Compute a reduced graph, and spread its figures over the devices that look the same."""
    chosen, twins = reduced(placement.layers, model.architecture in WHOLE)
    backends = {layer.backend for layer in (*chosen, *placement.owners)} | {layer.experts for layer in chosen}
    backends |= {placement.output}
    # The first that can compute with the head's weights does, even if it has no layer of its own.
    helper = next((index for index, device in enumerate(devices) if device.kind in OFFLOADS), -1)
    if helper >= 0 and placement.cpu in backends:
        backends.add(helper)
    used = sorted(backends | {placement.cpu})
    number = {backend: index for index, backend in enumerate(used)}
    short = tuple(Layer(item.number, item.kind, number[item.backend], number[item.experts]) for item in chosen)
    kinds = tuple((devices[index].kind, devices[index].hardware) for index in used[:-1])
    owners = {layer.number: number[layer.backend] for layer in placement.owners}
    offload = number.get(helper, -1)
    cells, sliding = context.n_ctx_seq, swa_cells(hp, context) if hp.has_swa else 0
    shape = (
        (short, number[placement.output], tuple(owners.items()), kinds, offload, flash, pipeline, embeddings, pinned),
        # All that the graph depends on but for the length of the cache, in which its sizes are linear.
        replace(context, n_ctx=0, n_ctx_seq=0),
        (sliding == cells, 0 if sliding == cells else sliding, min(cells, hp.indexer_top_k)),
    )

    def steps() -> list[Event]:
        place = Place(
            {layer.number: layer.backend for layer in short},
            number[placement.output],
            len(used) - 1,
            frozenset(index for index, (_kind, hardware) in enumerate(kinds) if hardware in CUDA),
            owners,
            frozenset(index for index, (kind, _hardware) in enumerate(kinds) if kind in CUDA),
        )
        blocks = build(model, short, place, context, flash, embeddings)
        return record(blocks.graph, len(used), PIPELINE_COPIES if pipeline else 1, offload, pinned=pinned)

    recipe = _known(model).recipes.setdefault(shape, _Recipe())
    found = recipe.sizes(cells, len(used), steps)
    sizes = []
    for index in range(len(devices) + 1):
        twin = twins.get(index, index)
        sizes.append(found[number[twin]] if twin in number else 0)
    return sizes


class _Recipe:
    """The allocator's steps for one graph, for any length of the cache.

    Graphs for two lengths differ in nothing but sizes, and every size is linear in the length: so
    two recordings are enough for all others.
    """

    def __init__(self) -> None:
        self._recorded: dict[int, list[Event]] = {}

    def sizes(self, cells: int, backends: int, steps: Callable[[], list[Event]]) -> list[int]:
        """Return the bytes on each backend. ``steps`` records them for ``cells``."""
        events: Sequence[tuple[int, int, int]] | None = self._recorded.get(cells)
        if events is None and len(self._recorded) < 2:
            events = self._recorded[cells] = steps()
        elif events is None:
            (first, one), (second, other) = tuple(self._recorded.items())
            events = [
                (left.backend, left.slot, left.size + (right.size - left.size) * (cells - first) // (second - first))
                for left, right in zip(one, other)
            ]
        return replay(events, backends)


def _flash_attention(
    model: ModelFacts, hp: Hparams, placement: _Placement, devices: Sequence[MemoryDevice], context: Context
) -> bool:
    """What becomes of ``auto`` (llama_context::resolve_fused_ops).

    It stays on unless flash attention would be computed elsewhere than the rest of its layer. That
    can only be where caches or layers are in the head's memory, or on a GPU without a kernel for it.
    """
    if context.flash_attn is not None:
        return context.flash_attn
    local = {index for index, device in enumerate(devices) if device.kind in CUDA}
    if any(layer.backend in local and not _cuda_flash(hp, layer.number) for layer in placement.layers):
        return False
    if context.offload_kqv and all(layer.backend != placement.cpu for layer in placement.layers):
        return True
    chosen, _rest = reduced(placement.layers, model.architecture in WHOLE)
    key = (tuple(chosen), placement.output, context.offload_kqv, context.n_seq_max, context.kv_unified)
    known = _known(model).flash
    found = known.get(key)
    if found is None:
        owners = {layer.number: layer.backend for layer in placement.owners}
        where = {layer.number: layer.backend for layer in chosen}
        place = Place(where, placement.output, placement.cpu, owners=owners)
        blocks = build(model, chosen, place, context, True, probe=True)
        place_nodes(blocks.graph, placement.cpu + 1)
        attending = [node for node in blocks.graph.nodes if node.op == "flash_attn"]
        found = known[key] = all(node.backend == where[int(node.tag)] for node in attending)
    return found


def _cuda_flash(hp: Hparams, layer: int) -> bool:
    """Whether ggml-cuda has flash attention for a layer's heads; without attention there is nothing to have."""
    count, kv = hp.n_head[layer], 1 if hp.mla else hp.n_head_kv[layer]
    if not kv or (hp.recurrent[layer] and hp.architecture != "falcon-h1"):
        return True
    swa = hp.swa[layer]
    keys, values = (hp.head_k_swa, hp.head_v_swa) if swa else (hp.head_k, hp.head_v)
    width, multiple = _CUDA_HEADS.get(keys, (0, 1))
    return values == width and count // kv % multiple == 0


class _Known(NamedTuple):
    """What was worked out for a model before."""

    answers: dict[object, ComputeBuffers]
    recipes: dict[object, _Recipe]
    flash: dict[object, bool]


@per_model
def _known(model: ModelFacts) -> _Known:
    return _Known({}, {}, {})
