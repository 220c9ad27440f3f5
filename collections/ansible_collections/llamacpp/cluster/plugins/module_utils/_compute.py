# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The compute buffers that llama.cpp reserves on each device and in the head's memory, in bytes.

llama.cpp (b11434) builds the graph of its largest batch, gives each node to a backend, and keeps
the peak of a liveness allocator (llama_context::sched_reserve). The same is done here with shapes
alone, on as few layers as are needed for the peak. Its figures are those of ``llama-fit-params``
and of llama-server's memory breakdown, which measure without allocating; the buffers that are
allocated afterwards are the same or, with pipeline parallelism, a few copies of a hidden state
smaller (what was pinned to a device is forgotten when measuring).

On CUDA, and behind a worker that has CUDA, flash attention reserves copies of quantised keys and
values in f16, and operations on weights in the head's memory move to the first GPU for batches of
32 and more, with a copy of the weights. What cuBLAS and the kernels' own pools take is in no
buffer: see _overhead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._context import Context, caches
from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import PIPELINE_COPIES, place_nodes, reserve
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import Batch, Place, Weight
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_models import builder_for
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import Hparams, hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import (
    HOST,
    MemoryDevice,
    Settings,
    offload_devices,
)

# What takes over operations on the head's weights (ggml_backend_*_offload_op); a worker behind RPC does not.
_OFFLOADS = ("cuda", "rocm", "vulkan", "sycl", "metal")
# LLM_FFN_EXPS_REGEX (common/common.h): what --cpu-moe and --n-cpu-moe keep in the head's memory.
_EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
# Tensors that are not of a block: in the head's memory always, and created for layer 0 (LLM_TENSOR_INFOS).
_AT_HOST = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_FIRST_LAYER = ("token_embd_norm.", "per_layer_model_proj.", "per_layer_proj_norm.", "hrm.z_l_init")
# Names of blocks that are not "blk.N.": of encoders and decoders.
_NUMBERED = re.compile(r"^(?:enc|dec)\.blk\.(\d+)\.")
_CUDA = ("cuda", "rocm")
# How often a pattern of layers stays, for the allocator to come to its rhythm; and how long one may be.
_REPEATS = 6
_LONGEST_PATTERN = 8
# Their graphs leave gaps that grow with every layer.
_WHOLE = frozenset(("t5", "t5encoder"))


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


class _Layer(NamedTuple):
    """A layer of the graph: its number, what kind it is, and the backends of it and of its experts."""

    number: int
    kind: int
    backend: int
    experts: int


class _Tables(NamedTuple):
    """Of one model: tensors by layer, what kind each layer is, and what was computed before."""

    layers: Mapping[int, Mapping[str, TensorGroup]]
    kinds: tuple[int, ...]
    known: dict[object, tuple[int, ...]]
    flash: dict[object, bool]


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

    ``context``: what :func:`_context.resolve` made of the settings.
    """
    hp = hparams(model)
    tables = _tables(model)
    pipeline = pipeline_parallel(devices, placed, settings)
    cpu = len(devices)
    kept = hp.n_layer_all if settings.cpu_moe else settings.n_cpu_moe
    layers = []
    for number in range(hp.n_layer):
        backend = cpu if placed[number] == HOST else placed[number]
        layers.append(_Layer(number, tables.kinds[number], backend, cpu if number < kept else backend))
    output = cpu if placed[-1] == HOST else placed[-1]
    flash = _flash_attention(model, hp, tables, layers, output, devices, context)
    sizes = _sizes(model, hp, tables, layers, output, devices, context, flash, pipeline, settings.embedding)
    return ComputeBuffers(tuple(sizes[:-1]), sizes[-1], builder_for(hp.architecture) is not None, flash, pipeline)


def _sizes(
    model: ModelFacts,
    hp: Hparams,
    tables: _Tables,
    layers: Sequence[_Layer],
    output: int,
    devices: Sequence[MemoryDevice],
    context: Context,
    flash: bool,
    pipeline: bool,
    embeddings: bool,
) -> list[int]:
    """Compute a reduced graph, and spread its figures over the devices that look the same."""
    chosen, twins = _reduced(layers, hp.architecture in _WHOLE)
    keepers = [layer for layer in layers if hp.kv_from_start - 2 <= layer.number < hp.kv_from_start]
    used = sorted({layer.backend for layer in (*chosen, *keepers)} | {layer.experts for layer in chosen} | {output, len(devices)})
    number = {backend: index for index, backend in enumerate(used)}
    short = [_Layer(layer.number, layer.kind, number[layer.backend], number[layer.experts]) for layer in chosen]
    kinds = tuple(devices[index].hardware if index < len(devices) else "host" for index in used)
    offload = next((number[index] for index in used[:-1] if devices[index].kind in _OFFLOADS), -1)
    owners = {layer.number: number[layer.backend] for layer in keepers}
    key = (tuple(short), number[output], kinds, offload, context, flash, pipeline, embeddings, tuple(owners.items()))
    found = tables.known.get(key)
    if found is None:
        place = Place(
            {layer.number: layer.backend for layer in short},
            number[output],
            len(used) - 1,
            frozenset(index for index, kind in enumerate(kinds) if kind in _CUDA),
            owners,
        )
        blocks = _blocks(model, hp, tables, short, place, context, flash, embeddings)
        found = tuple(reserve(blocks.graph, len(used), PIPELINE_COPIES if pipeline else 1, offload))
        tables.known[key] = found
    sizes = [0] * (len(devices) + 1)
    for backend in range(len(sizes)):
        same = twins.get(backend, backend)
        if same in number:
            sizes[backend] = found[number[same]]
    return sizes


def _reduced(layers: Sequence[_Layer], whole: bool) -> tuple[list[_Layer], dict[int, int]]:
    """Choose the layers that decide the peak, and say which devices look the same as another.

    Of a run of layers of one kind the first few are enough: the allocator's state repeats. A device
    in the middle needs what another in the middle with the same layers needs. ``whole``: nothing
    can be left out.
    """
    if whole:
        return list(layers), {}
    segments: list[list[_Layer]] = []
    for layer in layers:
        if not segments or segments[-1][-1].backend != layer.backend:
            segments.append([])
        segments[-1].append(layer)
    chosen: list[_Layer] = []
    twins: dict[int, int] = {}
    seen: dict[tuple[tuple[int, bool], ...], int] = {}
    for index, segment in enumerate(segments):
        kept = _without_repeats(segment)
        shape = tuple((layer.kind, layer.experts != layer.backend) for layer in kept)
        middle = 0 < index < len(segments) - 1
        if middle and shape in seen:
            twins[segment[0].backend] = seen[shape]
            continue
        if middle:
            seen[shape] = segment[0].backend
        chosen.extend(kept)
    return chosen, twins


def _without_repeats(segment: Sequence[_Layer]) -> list[_Layer]:
    """Shorten what repeats, be it one kind of layer or a pattern of several.

    After a few repetitions the allocator's free blocks come again in every one, or in every second
    one: so an odd number stays odd.
    """
    what = [(layer.kind, layer.experts != layer.backend) for layer in segment]
    kept: list[_Layer] = []
    start = 0
    while start < len(segment):
        saved, period, repeats = 0, 1, 1
        for length in range(1, _LONGEST_PATTERN + 1):
            count = 1
            while what[start : start + length] == what[start + count * length : start + (count + 1) * length]:
                count += 1
            saves = (count - min(count, _REPEATS + (count - _REPEATS) % 2)) * length if count > _REPEATS else 0
            if saves > saved:
                saved, period, repeats = saves, length, count
        kept.extend(segment[start : start + period * repeats - saved])
        start += period * repeats
    if kept[-1] is not segment[-1]:
        # The last layer of the model is special, so it has to be the one that stays.
        kept[-1] = segment[-1]
    return kept


def _blocks(
    model: ModelFacts,
    hp: Hparams,
    tables: _Tables,
    layers: Sequence[_Layer],
    place: Place,
    context: Context,
    flash: bool,
    embeddings: bool,
    probe: bool = False,
) -> Blocks:
    """Build the graph. ``probe``: of one token a sequence, with which llama.cpp tries flash attention."""
    weights: dict[int, dict[str, Weight]] = {}
    for layer in layers:
        weights[layer.number] = {
            name: Weight(
                _four(group.shape), group.nbytes, layer.experts if _EXPERTS.search(group.name) else layer.backend
            )
            for name, group in tables.layers.get(layer.number, {}).items()
        }
    outside = {}
    for name, group in tables.layers.get(-1, {}).items():
        backend = place.output
        if name.startswith(_AT_HOST):
            backend = place.cpu
        elif name.startswith(_FIRST_LAYER) and hp.architecture not in ("lfm2", "lfm2moe"):
            backend = layers[0].backend
        else:
            match = _NUMBERED.match(name)
            if match:
                backend = place.layers.get(int(match.group(1)), place.output)
        outside[name] = Weight(_four(group.shape), group.nbytes, backend)
    if "output.weight" not in outside and "token_embd.weight" in outside:
        table = outside["token_embd.weight"]
        outside["output.weight"] = Weight(table.ne, table.nbytes, place.output)
    weights[-1] = outside
    cells = {cache.kind: cache.cells for cache in caches(model, context)}
    sequences = context.n_seq_max
    tokens = sequences if probe else -(-context.n_tokens // sequences) * sequences
    batch = Batch(
        tokens=tokens,
        sequences=sequences,
        outputs=sequences if probe else context.n_outputs,
        streams=context.n_stream,
        cells=cells.get("kv", 0),
        cells_swa=cells.get("swa", 0),
        states=cells.get("recurrent", 0),
        type_k=context.type_k,
        type_v=context.type_v,
        flash=flash,
        v_trans=context.v_trans,
        offload_kqv=context.offload_kqv,
        full_offload=all(layer.backend != place.cpu for layer in layers) and place.output != place.cpu,
        embeddings=embeddings,
    )
    blocks = Blocks(hp, model.hyperparameters, weights, batch, place)
    build = builder_for(hp.architecture)
    if build is None:
        raise KeyError(hp.architecture)
    build(blocks)
    return blocks


def _flash_attention(
    model: ModelFacts,
    hp: Hparams,
    tables: _Tables,
    layers: Sequence[_Layer],
    output: int,
    devices: Sequence[MemoryDevice],
    context: Context,
) -> bool:
    """What becomes of ``auto`` (llama_context::resolve_fused_ops).

    It stays on unless flash attention would be computed elsewhere than the rest of its layer. That
    can only be where caches or layers are in the head's memory.
    """
    if context.flash_attn is not None:
        return context.flash_attn
    cpu = len(devices)
    if context.offload_kqv and all(layer.backend != cpu for layer in layers):
        return True
    chosen, _ = _reduced(layers, hp.architecture in _WHOLE)
    key = (tuple(chosen), output, context.offload_kqv, context.n_seq_max, context.kv_unified)
    found = tables.flash.get(key)
    if found is None:
        place = Place({layer.number: layer.backend for layer in layers}, output, cpu)
        blocks = _blocks(model, hp, tables, chosen, place, context, True, False, probe=True)
        place_nodes(blocks.graph, cpu + 1)
        found = all(
            node.backend == place.layers[int(node.tag)] for node in blocks.graph.nodes if node.op == "flash_attn"
        )
        tables.flash[key] = found
    return found


def _four(shape: Sequence[int]) -> tuple[int, int, int, int]:
    ne = tuple(shape) + (1, 1, 1)
    return ne[0], ne[1], ne[2], ne[3]


@per_model
def _tables(model: ModelFacts) -> _Tables:
    hp = hparams(model)
    layers: dict[int, dict[str, TensorGroup]] = {}
    for group in model.tensor_groups:
        if not group.layers:
            layers.setdefault(-1, {})[group.name] = group
        for number in group.layers:
            layers.setdefault(number, {})[group.name[len("blk.*.") :]] = group
    numbers: dict[object, int] = {}
    kinds = []
    for number in range(hp.n_layer):
        tensors = tuple(sorted((name, group.shape, group.nbytes) for name, group in layers.get(number, {}).items()))
        own = hp.kv_from_start < 0 or number < hp.kv_from_start
        facts = (tensors, hp.swa[number], hp.recurrent[number], hp.n_head[number], hp.n_head_kv[number], own)
        kinds.append(numbers.setdefault(facts, len(numbers)))
    return _Tables(layers, tuple(kinds), {}, {})
