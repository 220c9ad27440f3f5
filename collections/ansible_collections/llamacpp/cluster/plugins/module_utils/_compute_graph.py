# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The graph of a model for one placement: which layers have to be looked at, and where their tensors are.

Source: llama_model_base::load_tensors (src/llama-model.cpp) for which backend has a tensor, and
llama_context::sched_reserve (src/llama-context.cpp) for the batch, both b11434.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._context import Context, swa_cells
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import Batch, Place, Weight
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_models import builder_for
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import Hparams, hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup

# LLM_FFN_EXPS_REGEX (common/common.h): what --cpu-moe and --n-cpu-moe keep in the head's memory.
_EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")
# Tensors that are not of a block: in the head's memory always, and created for layer 0 (LLM_TENSOR_INFOS).
_AT_HOST = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
_FIRST_LAYER = ("token_embd_norm.", "per_layer_model_proj.", "per_layer_proj_norm.", "hrm.z_l_init")
# Names of blocks that are not "blk.N.": of encoders and decoders.
_NUMBERED = re.compile(r"^(?:enc|dec)\.blk\.(\d+)\.")
# How often a pattern of layers stays, for the allocator to come to its rhythm; and how long one may be.
_REPEATS = 6
_LONGEST_PATTERN = 8
# In their graphs something stays with every layer.
WHOLE = frozenset(("t5", "t5encoder", "deepseek32", "glm-dsa", "hrm_text"))


class Layer(NamedTuple):
    """A layer of the graph: its number, what kind it is, and the backends of it and of its experts."""

    number: int
    kind: int
    backend: int
    experts: int


class Tables(NamedTuple):
    """Of one model: tensors by layer (-1: of none) and name, and what kind each layer is."""

    layers: Mapping[int, Mapping[str, TensorGroup]]
    kinds: tuple[int, ...]


@per_model
def tables(model: ModelFacts) -> Tables:
    """Return a model's tensors by layer; layers are of one kind when nothing tells them apart."""
    hp = hparams(model)
    layers: dict[int, dict[str, TensorGroup]] = {}
    for group in model.tensor_groups:
        if not group.layers:
            layers.setdefault(-1, {})[group.name] = group
        for number in group.layers:
            layers.setdefault(number, {})[group.name[len("blk.*.") :]] = group
    numbers: dict[object, int] = {}
    kinds = []
    lists = [value for value in model.hyperparameters.values() if isinstance(value, (list, tuple))]
    by_layer = [value for value in lists if len(value) == hp.n_layer_all]
    for number in range(hp.n_layer):
        tensors = tuple(sorted((name, group.shape, group.nbytes) for name, group in layers.get(number, {}).items()))
        facts = (
            tensors,
            tuple(value[number] for value in by_layer),
            (hp.swa[number], hp.recurrent[number], hp.n_head[number], hp.n_head_kv[number]),
            hp.kv_from_start < 0 or number < hp.kv_from_start,
            hp.indexer_full[number : number + 1],
        )
        kinds.append(numbers.setdefault(facts, len(numbers)))
    return Tables(layers, tuple(kinds))


def build(
    model: ModelFacts,
    layers: Sequence[Layer],
    place: Place,
    context: Context,
    flash: bool,
    embeddings: bool = False,
    probe: bool = False,
) -> Blocks:
    """Build the graph of ``layers``. ``probe``: of one token a sequence, with which llama.cpp tries things.

    Raises :class:`LookupError` for an architecture that has no builder, or a file that lacks a
    tensor that its architecture has.
    """
    hp = hparams(model)
    arrange = builder_for(hp.architecture)
    if arrange is None:
        raise KeyError(hp.architecture)
    full = place.output != place.cpu and all(layer.backend != place.cpu for layer in layers)
    batch = _batch(model, context, flash, embeddings, full, probe)
    blocks = Blocks(hp, model.hyperparameters, _weights(tables(model), hp, layers, place), batch, place)
    arrange(blocks)
    return blocks


def reduced(layers: Sequence[Layer], whole: bool) -> tuple[list[Layer], dict[int, int]]:
    """Choose the layers that decide the peak, and say which devices look the same as another.

    Of a run of layers of one kind the first few are enough: the allocator's state repeats. A device
    in the middle needs what another in the middle with the same layers needs. ``whole``: nothing
    can be left out.
    """
    if whole:
        return list(layers), {}
    segments: list[list[Layer]] = []
    for layer in layers:
        if not segments or segments[-1][-1].backend != layer.backend:
            segments.append([])
        segments[-1].append(layer)
    chosen: list[Layer] = []
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


def _without_repeats(segment: Sequence[Layer]) -> list[Layer]:
    """Shorten what repeats, be it one kind of layer or a pattern of several.

    After a few repetitions the allocator's free blocks come again in every one, or in every second
    one: so an odd number stays odd.
    """
    what = [(layer.kind, layer.experts != layer.backend) for layer in segment]
    kept: list[Layer] = []
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


def _weights(known: Tables, hp: Hparams, layers: Sequence[Layer], place: Place) -> dict[int, dict[str, Weight]]:
    """Return the weights of ``layers`` and, under -1, all that are of none, with the backends that have them."""
    weights: dict[int, dict[str, Weight]] = {}
    for layer in layers:
        weights[layer.number] = {
            name: Weight(
                _four(group.shape),
                group.nbytes,
                layer.experts if _EXPERTS.search(group.name) else layer.backend,
            )
            for name, group in known.layers.get(layer.number, {}).items()
        }
    outside = {}
    for name, group in known.layers.get(-1, {}).items():
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
    return weights


def _batch(model: ModelFacts, context: Context, flash: bool, embeddings: bool, full: bool, probe: bool) -> Batch:
    """Return what the graph is made for. ``probe``: one token a sequence, with which llama.cpp tries things."""
    hp = hparams(model)
    sequences = context.n_seq_max
    return Batch(
        tokens=sequences if probe else -(-context.n_tokens // sequences) * sequences,
        sequences=sequences,
        outputs=sequences if probe else context.n_outputs,
        streams=context.n_stream,
        cells=context.n_ctx_seq,
        cells_swa=swa_cells(hp, context) if hp.has_swa else 0,
        states=context.n_seq_max,
        type_k=context.type_k,
        type_v=context.type_v,
        flash=flash,
        v_trans=context.v_trans,
        offload_kqv=context.offload_kqv,
        full_offload=full,
        embeddings=embeddings,
    )


def _four(shape: Sequence[int]) -> tuple[int, int, int, int]:
    ne = (*tuple(shape), 1, 1, 1)
    return ne[0], ne[1], ne[2], ne[3]
