# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Place one instance: the order of its devices, the layers of each, and what they take.

Order: the workers' devices first, the head's GPUs last, so that the output layer and with it
the logits stay on the head. A head without a GPU keeps the first layers in its own memory
instead, which is where llama.cpp leaves what ``--n-gpu-layers`` does not cover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._layers import HOST, assign_layers, distribute
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import (
    Demand,
    Setting,
    compute_bytes,
    demands,
    kv_layer_bytes,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem

GIB = 1 << 30
# llama.cpp's limits for devices of one process (GGML_SCHED_MAX_BACKENDS less the host, b11434).
MAX_DEVICES = 15
# More than any model has: llama.cpp takes it for "all" in every version.
ALL_LAYERS = 999


@dataclass(frozen=True)
class Slot:
    """A device in the order of ``--device``; ``device_name`` as the head calls it."""

    node: str
    device_name: str
    device: Device

    @property
    def capacity(self) -> int:
        """Whole GiB of memory, at least one.

        Total and not free memory, and rounded: what runs on a device already is ours more often
        than not, and a second run has to come to the same plan.
        """
        return max(1, round(self.device.memory_bytes / GIB))


@dataclass(frozen=True)
class Share:
    """What a slot gets. ``layers``: first and last (the output counts as one more layer); None when unknown."""

    slot: Slot
    layers: tuple[int, int] | None
    n_layers: int | None
    demand: Demand | None


@dataclass(frozen=True)
class Placement:
    """Where an instance goes. ``offload``: the names for ``--device``; empty for none."""

    offload: tuple[str, ...]
    tensor_split: tuple[float, ...]
    gpu_layers: int
    shares: tuple[Share, ...]


def place(
    instance: Instance, devices: Mapping[str, Sequence[Device]], host: Device, model: ModelFacts | None
) -> tuple[Placement | None, list[Problem]]:
    """Place an instance on the devices of its nodes.

    ``devices``: by node. ``host``: the head's own memory and processor. ``model``: None when its
    header cannot be read; then layers are left to llama.cpp, in proportion to memory.
    """
    offload = _offload(instance, devices)
    problems = _check_offload(instance, offload)
    if problems:
        return None, problems
    # Without a GPU the head's processor is one of the devices that the model is spread over.
    on_host = devices[instance.head][0].kind == "cpu"
    names = tuple(slot.device_name for slot in offload)
    head = Slot(instance.head, "CPU", host)
    if model is None:
        split = instance.tensor_split or tuple(float(slot.capacity) for slot in offload)
        shown = [*offload] if offload else [head]
        return Placement(names, split, _unknown_layers(instance, offload), _unknown_shares(shown)), []
    kv = kv_layer_bytes(model, _setting(instance))
    costs = [weights + cache for weights, cache in zip(model.layer_bytes, kv)] + [model.output_bytes]
    try:
        gpu_layers, split = _split(instance, model, costs, head if on_host else None, offload)
    except ValueError as error:
        fix = "%s (the output counts as one): use fewer nodes, or another gpu_layers" % error
        return None, [Problem(instance.variable + ".nodes", list(instance.nodes), fix)]
    if instance.split_mode == "tensor":
        return Placement(names, split, gpu_layers, _sliced(instance, model, offload, split, kv)), []
    placed = assign_layers(model.n_layers, gpu_layers, split)
    slots = [head, *offload] if on_host or HOST in placed else offload
    shift = len(slots) - len(offload)
    shares = _layered(instance, model, slots, [item + shift for item in placed], kv)
    return Placement(names, split, gpu_layers, shares), []


def _offload(instance: Instance, devices: Mapping[str, Sequence[Device]]) -> list[Slot]:
    """List the devices for ``--device``: the workers' in order, then the head's GPUs."""
    remote = [(node, device) for node in instance.workers for device in devices[node]]
    slots = [Slot(node, "RPC%d" % number, device) for number, (node, device) in enumerate(remote)]
    own = [Slot(instance.head, item.local_name, item) for item in devices[instance.head] if item.kind != "cpu"]
    if instance.split_mode == "none":
        own = own[:1]
    return [] if instance.gpu_layers == 0 and not instance.workers else slots + own


def _check_offload(instance: Instance, offload: Sequence[Slot]) -> list[Problem]:
    def problem(key: str, value: object, fix: str) -> list[Problem]:
        return [Problem("%s.%s" % (instance.variable, key), value, fix)]

    if len(offload) > MAX_DEVICES:
        return problem(
            "nodes",
            list(instance.nodes),
            "they have %d devices, llama.cpp takes at most %d; use fewer nodes" % (len(offload), MAX_DEVICES),
        )
    if instance.workers and instance.gpu_layers == 0:
        return problem("gpu_layers", 0, "the workers would get no layer; leave it out, or serve it from one node")
    if instance.split_mode == "tensor" and len(offload) < 2:
        return problem("split_mode", "tensor", "%s has fewer than two GPUs; write layer" % instance.head)
    if instance.tensor_split is not None and len(instance.tensor_split) != len(offload):
        order = ", ".join("%s of %s" % (slot.device_name, slot.node) for slot in offload) or "none"
        return problem(
            "tensor_split",
            list(instance.tensor_split),
            "needs a number for each of %d devices, in this order: %s" % (len(offload), order),
        )
    return []


def _split(
    instance: Instance, model: ModelFacts, costs: Sequence[int], head: Slot | None, offload: Sequence[Slot]
) -> tuple[int, tuple[float, ...]]:
    """Return ``--n-gpu-layers`` and ``--tensor-split``.

    ``costs``: bytes of every layer and the output. ``head``: the head's processor when it takes
    a share. Raises :class:`ValueError` when there are fewer layers than devices.
    """
    if not offload:
        return 0, ()
    every = model.n_layers + 1
    capacities = [float(slot.capacity) for slot in offload]
    if instance.gpu_layers is not None:
        gpu_layers = every if instance.gpu_layers == "all" else min(int(instance.gpu_layers), every)
    elif head is not None:
        # The embedding stays with the head whatever the split, so it counts against its share.
        first = [costs[0] + model.embed_bytes, *costs[1:]]
        gpu_layers = every - distribute(first, [float(head.capacity), *capacities])[0]
    else:
        gpu_layers = every
    if instance.tensor_split is not None:
        return gpu_layers, instance.tensor_split
    if instance.split_mode == "tensor":
        return gpu_layers, tuple(capacities)
    # A share of as many units as layers: llama.cpp's rule then cuts exactly there.
    return gpu_layers, tuple(float(count) for count in distribute(costs[every - gpu_layers :], capacities))


def _setting(instance: Instance) -> Setting:
    # "auto" is on wherever the backend has it, and every backend that is built here has it.
    return Setting(
        instance.context,
        instance.parallel,
        instance.ubatch,
        instance.cache_type_k,
        instance.cache_type_v,
        instance.flash_attention != "off",
    )


def _layered(
    instance: Instance, model: ModelFacts, slots: Sequence[Slot], placed: Sequence[int], kv: Sequence[int]
) -> tuple[Share, ...]:
    """Return the shares of whole layers. ``placed``: index into ``slots`` of every layer and the output."""
    has_host = slots[0].device_name == "CPU"
    # llama.cpp overlaps batches, and pays with copies of the inputs, when no layer is left to the host.
    pipelined = len(slots) - has_host > 1 and not (has_host and 0 in placed)
    compute = [
        compute_bytes(model, _setting(instance), index == 0, placed[-1] == index, pipelined)
        for index in range(len(slots))
    ]
    needs = demands(model, placed, len(slots), kv, compute)
    if has_host:
        needs[0] = Demand(needs[0].model + model.embed_bytes, needs[0].context, needs[0].compute)
    shares = []
    for index, slot in enumerate(slots):
        layers = [layer for layer, device in enumerate(placed) if device == index]
        shares.append(Share(slot, (layers[0], layers[-1]) if layers else None, len(layers), needs[index]))
    return tuple(shares)


def _sliced(
    instance: Instance, model: ModelFacts, slots: Sequence[Slot], split: Sequence[float], kv: Sequence[int]
) -> tuple[Share, ...]:
    """Return the shares when every device holds a slice of every layer (``--split-mode tensor``)."""
    weights = sum(model.layer_bytes) + model.output_bytes
    compute = compute_bytes(model, _setting(instance), True, True, False)
    return tuple(
        Share(
            slot,
            (0, model.n_layers),
            model.n_layers + 1,
            Demand(int(weights * part / sum(split)), int(sum(kv) * part / sum(split)), compute),
        )
        for slot, part in zip(slots, split)
    )


def _unknown_layers(instance: Instance, offload: Sequence[Slot]) -> int:
    if not offload:
        return 0
    return instance.gpu_layers if isinstance(instance.gpu_layers, int) else ALL_LAYERS


def _unknown_shares(slots: Sequence[Slot]) -> tuple[Share, ...]:
    return tuple(Share(slot, None, None, None) for slot in slots)
