# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find the placements of one model on one node, with given settings, that fit, best first.

Equal nodes are tried once: an estimate takes about a millisecond, and a cluster has hundreds of
devices of few kinds. Nothing here depends on the order in which nodes are given, and a node that
is not chosen changes nothing for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ansible_collections.llamacpp.cluster.plugins.module_utils._costs import active_share, bandwidth, token_ms
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._option import (
    LAYER,
    ON_CPU,
    ONE_DEVICE,
    PARTIAL,
    TENSOR,
    Option,
    can_split_tensors,
    least,
    nvlink_groups,
    onto,
)
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
# Of nodes that are alike, so many are looked at: where it runs, the emptiest, the first by name.
TWINS = 20


class Search:
    """The placements of one instance. Good until something is reserved in the pool."""

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
        self._slots: dict[tuple[str, str], Slot] = {}
        self._gpus: dict[str, list[Device]] = {}
        self._alike: dict[int, list[tuple[PoolNode, list[PoolNode]]]] = {}
        names = instance.nodes or instance.among or tuple(pool.nodes)
        self.nodes = [pool.nodes[name] for name in pool.nodes if name in names]
        heads = [instance.head] if instance.head else [node.name for node in self.nodes]
        self.heads = [node for node in self.nodes if node.name in heads]
        self.has_gpus = any(self.gpus(node) for node in self.nodes)

    def gpus(self, node: PoolNode) -> list[Device]:
        """Return the GPUs of a node that the instance may use."""
        if node.name not in self._gpus:
            self._gpus[node.name] = [device for device in node.gpus if self.allowed(node, device)]
        return self._gpus[node.name]

    def allowed(self, node: PoolNode, device: Device) -> bool:
        """Whether the instance may use a device."""
        if (node.name, device.local_name) in self.excluded:
            return False
        return self.instance.devices is None or device.local_name in self.instance.devices

    def slot(self, node: PoolNode, device: Device) -> Slot:
        """Return a device as its own node sees it."""
        key = (node.name, device.local_name)
        if key not in self._slots:
            self._slots[key] = slot_of(node, device.local_name, device, self.margin, self.whole)
        return self._slots[key]

    def room(self, node: PoolNode, devices: Iterable[Device]) -> int:
        """Return what is left on devices of a node."""
        return sum(max(self.slot(node, device).room, 0) for device in devices)

    def slots(
        self, head: PoolNode, own: Sequence[Device], remote: Sequence[tuple[PoolNode, Device]] = ()
    ) -> list[Slot]:
        """List the devices for ``--device``: the workers' in order, then the head's GPUs."""
        slots = [
            replace(self.slot(node, device), device_name="RPC%d" % number)
            for number, (node, device) in enumerate(remote)
        ]
        return slots + [self.slot(head, device) for device in own if device.kind != "cpu"]

    def host(self, head: PoolNode) -> Slot | None:
        """Return the head's own memory, or None where nobody knows it."""
        return self.slot(head, head.host) if head.host else None

    def derived(self, instance: Instance, whole: bool = False) -> Search:
        """Return a search for another declaration of the same instance."""
        return Search(instance, self.pool, self.margin, self.excluded, whole)

    def one_device(self, model: ModelFacts, knobs: Knobs) -> list[Option]:
        """Try every single GPU; return those that fit, one a node."""
        need = least(model, knobs)
        tried: dict[tuple[object, ...], Placement | None] = {}
        found: list[tuple[tuple[object, ...], PoolNode, Slot, Placement]] = []
        for node in self.heads:
            host = self.host(node)
            for device in sorted(self.gpus(node), key=lambda item: (self._emptiness(node, [item]), item.index)):
                slot = self.slot(node, device)
                if slot.room < need:
                    continue
                kind = (device.kind, device.name, device.compute_capability, host is None)
                if kind not in tried:
                    tried[kind] = self._try(node.name, [slot], host, False, knobs, model)
                pattern = tried[kind]
                if pattern is not None and _still_fits(pattern, [slot], host):
                    key = (-bandwidth(device), *self._order(node, [device]))
                    found.append((key, node, slot, pattern))
                    break
        found.sort(key=lambda item: item[0])
        options = [
            self.option(ONE_DEVICE, _on_one(pattern, node.name, slot, self.host(node)), False, model)
            for _key, node, slot, pattern in self._foremost(found)
        ]
        return sorted(options, key=lambda item: item.rank)

    def tensor_split(self, model: ModelFacts, knobs: Knobs, every: bool = False) -> list[Option]:
        """Try GPUs that NVLink joins, the fewest that fit; with ``every`` also more than those."""
        if not can_split_tensors(model, knobs):
            return []
        heads = min(model.per_layer("attention.head_count_kv", model.number("attention.head_count", 1)), default=1)
        need = least(model, knobs)
        knobs = replace(knobs, split_mode="tensor")
        found = []
        for node, twins in self.alike():
            for group in nvlink_groups(self.gpus(node)):
                emptiest = sorted(group, key=lambda item: (self._emptiness(node, [item]), item.index))
                for count in range(2, min(len(group), MAX_DEVICES) + 1):
                    chosen = sorted(emptiest[:count], key=lambda item: item.index)
                    # Whole heads go to each GPU; an uneven cut would leave one of them waiting.
                    if heads % count or self.room(node, chosen) < need:
                        continue
                    option = self._on_node(TENSOR, node, chosen, knobs, model)
                    if option and option.fits:
                        found += self.for_twins(option, twins)
                        if not every:
                            break
        return sorted(found, key=lambda item: item.rank)

    def layer_split(self, model: ModelFacts, knobs: Knobs, every: bool = False) -> list[Option]:
        """Try several GPUs of one node, the fewest that fit; with ``every`` also all of them."""
        found = []
        need = least(model, knobs)
        for node, twins in self.alike():
            gpus = sorted(self.gpus(node), key=lambda item: (-self.slot(node, item).share, item.index))
            most = min(len(gpus), MAX_DEVICES, model.n_layers + 1)
            for count in range(2, most + 1):
                chosen = sorted(gpus[:count], key=lambda item: item.index)
                if self.room(node, chosen) < need:
                    continue
                option = self._on_node(LAYER, node, chosen, knobs, model)
                if option and option.fits:
                    found += self.for_twins(option, twins)
                    if every and count < most:
                        widest = self._on_node(LAYER, node, sorted(gpus[:most], key=_index), knobs, model)
                        found += self.for_twins(widest, twins) if widest and widest.fits else []
                    break
        return sorted(found, key=lambda item: item.rank)

    def on_cpu(self, model: ModelFacts, knobs: Knobs) -> list[Option]:
        """Try the processor of every node."""
        if knobs.gpu_layers not in (None, 0):
            return []
        pattern: Placement | None = None
        nodes = []
        for node in self.heads:
            host = self.host(node)
            if host is None or (node.name, CPU) in self.excluded or host.room < model.tensor_bytes:
                continue
            pattern = pattern or place(node.name, [], host, True, knobs, model)
            if _still_fits(pattern, [], host):
                nodes.append(node)
        nodes.sort(key=lambda node: self._order(node, []))
        if pattern is None:
            return []
        options = [self.option(ON_CPU, onto(pattern, node.name, {}, self.host(node)), True, model) for node in nodes]
        return sorted(options[:TWINS], key=lambda item: item.rank)

    def option(self, strategy: str, placement: Placement, on_host: bool, model: ModelFacts) -> Option:
        """Return a placement with what ranks it."""
        loads = [
            (share.slot.device, share.usage.model, share.n_layers or 0, share.slot.remote)
            for share in placement.shares
            if share.usage and share.n_layers
        ]
        ms = token_ms(loads, active_share(model), placement.knobs.split_mode == "tensor") if loads else 0.0
        nodes = self.pool.nodes
        crowd = sum(nodes[share.slot.node].crowd(share.slot.device.local_name) for share in placement.shares)
        crowd += sum(1 for node, _device in self.excluded if node in placement.nodes)
        sticky = self.deployed == (placement.head, frozenset(placement.nodes))
        if placement.on_host and not on_host:
            strategy = PARTIAL
        return Option(strategy, placement, on_host, ms, sticky, crowd)

    def alike(self, minimum: int = 2) -> list[tuple[PoolNode, list[PoolNode]]]:
        """Return one of every kind of head with at least ``minimum`` GPUs, and all that are like it, the best first."""
        if minimum in self._alike:
            return self._alike[minimum]
        kinds: dict[tuple[object, ...], list[PoolNode]] = {}
        for node in self.heads:
            gpus = self.gpus(node)
            if len(gpus) < minimum:
                continue
            alike = tuple(
                (
                    *(item.kind, item.name, item.compute_capability, item.memory_bytes, item.nvlink, item.index),
                    *(self.slot(node, item).share, self.slot(node, item).room // GRAIN),
                )
                for item in gpus
            )
            host = self.host(node)
            kinds.setdefault((alike, host and host.room // HOST_GRAIN), []).append(node)
        found = []
        for nodes in kinds.values():
            nodes.sort(key=lambda item: self._order(item, self.gpus(item)))
            # The room of the poorest decides for all, so what fits there fits on each.
            poorest = min(nodes, key=lambda item: (self.room(item, self.gpus(item)), natural(item.name)))
            found.append((poorest, nodes))
        self._alike[minimum] = found
        return found

    def for_twins(self, option: Option, twins: Sequence[PoolNode]) -> list[Option]:
        """Return an option of one node for nodes that are like it, where it fits there too."""
        found = []
        for node in twins[:TWINS]:
            own = {device.local_name: self.slot(node, device) for device in self.gpus(node)}
            moved = onto(option.placement, node.name, own, self.host(node))
            sticky = self.deployed == (node.name, frozenset([node.name]))
            crowd = sum(node.crowd(share.slot.device.local_name) for share in moved.shares)
            crowd += sum(1 for name, _device in self.excluded if name == node.name)
            twin = replace(option, placement=moved, sticky=sticky, crowd=crowd)
            if twin.fits:
                found.append(twin)
        return found

    def _emptiness(self, node: PoolNode, devices: Sequence[Device]) -> int:
        return sum(node.crowd(device.local_name) for device in devices)

    def _order(self, node: PoolNode, devices: Sequence[Device]) -> tuple[object, ...]:
        """Return what sorts nodes that are alike: where it runs, the emptiest, the first by name."""
        siblings = sum(1 for name, _device in self.excluded if name == node.name)
        runs = self.deployed == (node.name, frozenset([node.name]))
        return not runs, siblings + self._emptiness(node, devices), natural(node.name)

    def _foremost(
        self, found: Sequence[tuple[tuple[object, ...], PoolNode, Slot, Placement]]
    ) -> list[tuple[tuple[object, ...], PoolNode, Slot, Placement]]:
        """Return the first of every kind of device, and where it runs already."""
        kept: dict[object, int] = {}
        foremost = []
        for entry in found:
            kind = (entry[2].device.name, entry[2].device.memory_bytes)
            kept[kind] = kept.get(kind, 0) + 1
            if kept[kind] <= TWINS or self.deployed == (entry[1].name, frozenset([entry[1].name])):
                foremost.append(entry)
        return foremost

    def _on_node(
        self, strategy: str, node: PoolNode, gpus: Sequence[Device], knobs: Knobs, model: ModelFacts
    ) -> Option | None:
        placement = self._try(node.name, self.slots(node, gpus), self.host(node), False, knobs, model)
        return self.option(strategy, placement, False, model) if placement else None

    def _try(
        self, head: str, slots: Sequence[Slot], host: Slot | None, on_host: bool, knobs: Knobs, model: ModelFacts
    ) -> Placement | None:
        try:
            return place(head, slots, host, on_host, knobs, model)
        except Refused:
            raise
        except ValueError:
            return None  # Fewer layers than devices: another placement is better anyway.


def _index(device: Device) -> int:
    return device.index


def _on_one(pattern: Placement, head: str, slot: Slot, host: Slot | None) -> Placement:
    """Return a placement on one device for another one, where it takes the same."""
    return onto(pattern, head, {pattern.offload[0].device_name: slot}, host)


def _still_fits(pattern: Placement, slots: Sequence[Slot], host: Slot | None) -> bool:
    """Whether a placement on at most one device would fit on another one, and beside it in its head's memory."""
    if pattern.estimate is None:
        raise AssertionError("a pattern is a placement that was estimated")
    if host is not None and pattern.estimate.host.total > host.room:
        return False
    return all(usage.total <= slot.room for usage, slot in zip(pattern.estimate.devices, slots))
