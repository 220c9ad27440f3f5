# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find the placements of one model with given settings that fit, best first.

Equal nodes are tried once: an estimate takes about a millisecond, and a cluster has hundreds of
devices of few kinds. Nothing here depends on the order in which nodes are given, and a node that
is not chosen changes nothing for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ansible_collections.llamacpp.cluster.plugins.module_utils._architectures import NO_TENSOR_SPLIT
from ansible_collections.llamacpp.cluster.plugins.module_utils._costs import (
    active_share,
    dequantises,
    token_ms,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import layer_costs
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import (
    MAX_DEVICES,
    Knobs,
    Placement,
    Slot,
    place,
    slot_of,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import CPU, Pool, PoolNode, natural
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused

MIB = 1 << 20
# Nodes are taken for equal when what is left on their devices differs by less.
GRAIN = 64 * MIB
HOST_GRAIN = 16 << 30

ONE_DEVICE, TENSOR, LAYER, RPC, PARTIAL, ON_CPU = (
    "one-device",
    "tensor-split",
    "layer-split",
    "rpc",
    "partial-offload",
    "cpu",
)
# DESIGN, decision 4: one node beats a split, a tensor split over NVLink a layer split, RPC is for capacity.
PREFERENCE = (ONE_DEVICE, TENSOR, LAYER, RPC, PARTIAL, ON_CPU)


@dataclass(frozen=True)
class Option:
    """A placement that was tried.

    ``ms``: milliseconds a token, roughly. ``sticky``: it is where the instance runs already.
    ``crowd``: how many other instances its devices have. ``fabric``: number of its network, the
    fastest is 0.
    """

    strategy: str
    placement: Placement
    on_host: bool
    ms: float
    sticky: bool
    crowd: int
    fabric: int = 0

    @property
    def fits(self) -> bool:
        """Whether every device has room for its part."""
        return not self.placement.excess

    @property
    def dequantises(self) -> bool:
        """Whether one of its GPUs is slow with Q4."""
        return any(dequantises(slot.device) for slot in self.placement.offload)

    @property
    def rank(self) -> tuple[object, ...]:
        """Return what sorts options of one model: strategy, fewest nodes, where it runs, speed, room, name."""
        return (
            *self.plain_rank[:2],
            not self.sticky,
            *self.plain_rank[2:],
        )

    @property
    def plain_rank(self) -> tuple[object, ...]:
        """Return :attr:`rank` without where it runs, which is the same before a start and after it."""
        placement = self.placement
        left = sum(slot.share for slot in placement.offload)
        return (
            PREFERENCE.index(self.strategy),
            len(placement.nodes),
            self.fabric,
            round(self.ms, 1),
            self.crowd,
            len(placement.offload),
            left,
            tuple(natural(node) for node in placement.nodes),
            tuple(slot.device.index for slot in placement.offload),
        )

    @property
    def cost(self) -> float:
        """Return a figure to compare placements by, lower is better.

        100,000 a step of :data:`PREFERENCE`, 10,000 a node after the first, and the milliseconds of a token.
        """
        return round(
            100000.0 * PREFERENCE.index(self.strategy) + 10000.0 * (len(self.placement.nodes) - 1) + self.ms, 1
        )

    def again(self, knobs: Knobs, model: ModelFacts) -> Option:
        """Return the same devices with other settings; raises what :func:`place` does."""
        old = self.placement
        return replace(self, placement=place(old.head, old.offload, old.host, self.on_host, knobs, model))


class Search:
    """The placements of one instance."""

    def __init__(
        self,
        instance: Instance,
        pool: Pool,
        margin: int,
        excluded: frozenset[tuple[str, str]] = frozenset(),
        whole: bool = False,
    ) -> None:
        """``margin``: bytes to keep free, -1 for no check. ``excluded``: devices that must not be used.

        ``whole``: as in :meth:`PoolNode.room`.
        """
        self.whole = whole
        self.instance = instance
        self.pool = pool
        self.margin = margin
        self.excluded = excluded
        self.deployed = pool.deployment(instance.name)
        names = instance.nodes or instance.among or tuple(pool.nodes)
        self.nodes = [pool.nodes[name] for name in pool.nodes if name in names]
        heads = [instance.head] if instance.head else [node.name for node in self.nodes]
        self.heads = [node for node in self.nodes if node.name in heads]
        self.has_gpus = any(self.gpus(node) for node in self.nodes)

    def gpus(self, node: PoolNode) -> list[Device]:
        """Return the GPUs of a node that the instance may use."""
        return [device for device in node.gpus if self.allowed(node, device)]

    def allowed(self, node: PoolNode, device: Device) -> bool:
        """Whether the instance may use a device."""
        if (node.name, device.local_name) in self.excluded:
            return False
        return self.instance.devices is None or device.local_name in self.instance.devices

    def room(self, node: PoolNode, devices: Iterable[Device]) -> int:
        """Return what is left on devices of a node."""
        return sum(max(node.room(device, self.margin, self.whole), 0) for device in devices)

    def slots(
        self, head: PoolNode, own: Sequence[Device], remote: Sequence[tuple[PoolNode, Device]] = ()
    ) -> list[Slot]:
        """List the devices for ``--device``: the workers' in order, then the head's GPUs."""
        slots = [
            slot_of(node, "RPC%d" % number, device, self.margin, self.whole)
            for number, (node, device) in enumerate(remote)
        ]
        return slots + [
            slot_of(head, device.local_name, device, self.margin, self.whole) for device in own if device.kind != "cpu"
        ]

    def host(self, head: PoolNode) -> Slot | None:
        """Return the head's own memory, or None where nobody knows it."""
        return slot_of(head, CPU, head.host, self.margin, self.whole) if head.host else None

    def derived(self, instance: Instance, whole: bool = False) -> Search:
        """Return a search for another declaration of the same instance."""
        return Search(instance, self.pool, self.margin, self.excluded, whole)

    def one_device(self, model: ModelFacts, knobs: Knobs) -> list[Option]:
        """Try every single GPU; return those that fit, one a node."""
        need = least(model, knobs)
        found: list[Option] = []
        tried: dict[tuple[object, ...], Placement | None] = {}
        for node in self.heads:
            options = []
            host = self.host(node)
            for slot in self.slots(node, self.gpus(node)):
                if slot.room < need:
                    continue
                kind = (slot.device.kind, slot.device.compute_capability, host is None)
                if kind not in tried:
                    tried[kind] = self._try(node.name, [slot], host, False, knobs, model)
                pattern = tried[kind]
                if pattern is None:
                    continue
                option = self.option(ONE_DEVICE, _moved(pattern, node.name, slot, host), False, model)
                if option.fits:
                    options.append(option)
            if options:
                found.append(min(options, key=lambda item: item.rank))
        return sorted(found, key=lambda item: item.rank)

    def tensor_split(self, model: ModelFacts, knobs: Knobs, every: bool = False) -> list[Option]:
        """Try GPUs that NVLink joins, the fewest that fit; with ``every`` also more than those."""
        if not can_split_tensors(model, knobs):
            return []
        heads = min(model.per_layer("attention.head_count_kv", model.number("attention.head_count", 1)), default=1)
        knobs = replace(knobs, split_mode="tensor")
        found = []
        for node, twins in self.alike():
            options = []
            for group in nvlink_groups(self.gpus(node)):
                for count in range(2, min(len(group), MAX_DEVICES) + 1):
                    # Whole heads go to each GPU; an uneven cut would leave one of them waiting.
                    if heads % count or self.room(node, group[:count]) < least(model, knobs):
                        continue
                    option = self._on_node(TENSOR, node, group[:count], knobs, model)
                    if option and option.fits:
                        options.append(option)
                        if not every:
                            break
            found += self.for_twins(options, twins)
        return sorted(found, key=lambda item: item.rank)

    def layer_split(self, model: ModelFacts, knobs: Knobs, every: bool = False) -> list[Option]:
        """Try several GPUs of one node, the fewest that fit; with ``every`` also more than those."""
        found = []
        need = least(model, knobs)
        for node, twins in self.alike():
            gpus = sorted(self.gpus(node), key=lambda item: (-node.room(item, 0, self.whole), item.index))
            for count in range(2, min(len(gpus), MAX_DEVICES, model.n_layers + 1) + 1):
                chosen = sorted(gpus[:count], key=lambda item: item.index)
                if self.room(node, chosen) < need:
                    continue
                option = self._on_node(LAYER, node, chosen, knobs, model)
                if option and option.fits:
                    found += self.for_twins([option], twins)
                    if not every:
                        break
        return sorted(found, key=lambda item: item.rank)

    def on_cpu(self, model: ModelFacts, knobs: Knobs) -> list[Option]:
        """Try the processor of every node."""
        if knobs.gpu_layers not in (None, 0):
            return []
        found = []
        tried: dict[bool, Placement | None] = {}
        for node in self.heads:
            host = self.host(node)
            if host is None or (node.name, CPU) in self.excluded or host.room < model.tensor_bytes:
                continue
            if True not in tried:
                tried[True] = self._try(node.name, [], host, True, knobs, model)
            pattern = tried[True]
            if pattern is not None:
                option = self.option(ON_CPU, _moved(pattern, node.name, None, host), True, model)
                if option.fits:
                    found.append(option)
        return sorted(found, key=lambda item: item.rank)

    def option(self, strategy: str, placement: Placement, on_host: bool, model: ModelFacts) -> Option:
        """Return a placement with what ranks it."""
        loads = [
            (share.slot.device, share.usage.model, share.n_layers or 0, share.slot.remote)
            for share in placement.shares
            if share.usage and share.n_layers
        ]
        split = placement.knobs.split_mode == "tensor"
        ms = token_ms(loads, active_share(model), split) if loads else 0.0
        nodes = self.pool.nodes
        crowd = sum(
            len(nodes[share.slot.node].uses.get(share.slot.device.local_name, ())) for share in placement.shares
        ) + sum(1 for node, _device in self.excluded if node in placement.nodes)
        sticky = self.deployed == (placement.head, frozenset(placement.nodes))
        if placement.on_host and not on_host:
            strategy = PARTIAL
        return Option(strategy, placement, on_host, ms, sticky, crowd)

    def alike(self, minimum: int = 2) -> Iterator[tuple[PoolNode, list[PoolNode]]]:
        """Return one of every kind of head with at least ``minimum`` GPUs, and all that are like it."""
        kinds: dict[tuple[object, ...], list[PoolNode]] = {}
        for node in self.heads:
            gpus = self.gpus(node)
            if len(gpus) < minimum:
                continue
            # The room of the poorest decides for all, so what fits there fits on each.
            alike = tuple(
                (replace(item, free_bytes=None), node.used(item.local_name), self.room(node, [item]) // GRAIN)
                for item in gpus
            )
            host = self.host(node)
            key = (alike, host and host.room // HOST_GRAIN)
            kinds.setdefault(key, []).append(node)
        for nodes in kinds.values():
            yield min(nodes, key=lambda item: (self.room(item, self.gpus(item)), natural(item.name))), nodes

    def _on_node(
        self, strategy: str, node: PoolNode, gpus: Sequence[Device], knobs: Knobs, model: ModelFacts
    ) -> Option | None:
        slots = self.slots(node, gpus)
        placement = self._try(node.name, slots, self.host(node), False, knobs, model)
        return self.option(strategy, placement, False, model) if placement else None

    def for_twins(self, options: Sequence[Option], twins: Sequence[PoolNode]) -> list[Option]:
        """Return options of one node for all nodes that are like it, where they fit there too."""
        found = []
        for option in options:
            for node in twins:
                old = option.placement
                own = {slot.device_name: slot for slot in self.slots(node, self.gpus(node))}
                moved = _onto(old, node.name, own, self.host(node))
                twin = replace(
                    option,
                    placement=moved,
                    sticky=self.deployed == (node.name, frozenset([node.name])),
                    crowd=sum(len(node.uses.get(slot.device.local_name, ())) for slot in moved.offload),
                )
                if twin.fits:
                    found.append(twin)
        return found

    def _try(
        self, head: str, slots: Sequence[Slot], host: Slot | None, on_host: bool, knobs: Knobs, model: ModelFacts
    ) -> Placement | None:
        try:
            return place(head, slots, host, on_host, knobs, model)
        except Refused:
            raise
        except ValueError:
            return None  # Fewer layers than devices: another placement is better anyway.


def least(model: ModelFacts, knobs: Knobs) -> int:
    """Return bytes that all devices together take at least: weights and context of the layers that are not left out."""
    layers = layer_costs(model, knobs.settings(model.n_layers + 1, ())).layers
    if knobs.gpu_layers is None or knobs.gpu_layers == "all":
        return sum(layers)
    return sum(layers[max(len(layers) - int(knobs.gpu_layers), 0) :])


def can_split_tensors(model: ModelFacts, knobs: Knobs) -> bool:
    """Whether llama.cpp takes ``--split-mode tensor`` for this model with these settings."""
    return (
        model.architecture not in NO_TENSOR_SPLIT
        and knobs.flash_attention != "off"
        and not knobs.cpu_moe
        and not knobs.n_cpu_moe
        and knobs.gpu_layers in (None, "all")
    )


def nvlink_groups(gpus: Sequence[Device]) -> list[list[Device]]:
    """Return groups of GPUs that are all joined with each other, largest first, each GPU in one."""
    by_index = {device.index: device for device in gpus}
    left = sorted(by_index)
    groups = []
    while left:
        best: list[int] = []
        for first in left:
            group = [first]
            for other in left:
                if other not in group and all(other in by_index[item].nvlink for item in group):
                    group.append(other)
            best = max(best, group, key=len)
        groups.append([by_index[index] for index in sorted(best)])
        left = [index for index in left if index not in best]
    return [group for group in groups if len(group) > 1]


def _moved(pattern: Placement, head: str, slot: Slot | None, host: Slot | None) -> Placement:
    """Return a placement on at most one device for another node, where it takes the same."""
    return _onto(pattern, head, {pattern.offload[0].device_name: slot} if slot else {}, host)


def _onto(pattern: Placement, head: str, slots: dict[str, Slot], host: Slot | None) -> Placement:
    """Return a placement for another node; ``slots``: its own by the name in the pattern."""

    def own(slot: Slot) -> Slot:
        if slot.device_name == CPU:
            assert host
            return host
        return slots[slot.device_name]

    return replace(
        pattern,
        head=head,
        host=host,
        offload=tuple(own(slot) for slot in pattern.offload),
        shares=tuple(replace(share, slot=own(share.slot)) for share in pattern.shares),
        beside=replace(pattern.beside, slot=host) if pattern.beside and host else None,
    )
