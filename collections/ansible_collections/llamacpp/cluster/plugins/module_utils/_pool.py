# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The memory of the cluster, and what of it is still to be had while the plan is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Device
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts

# More than any device has; what a check is done with that was switched off.
UNBOUNDED = 1 << 62
CPU = "CPU"
# A sixteenth of a host's memory is left to its system.
SYSTEM_SHARE = 16


class Use(NamedTuple):
    """What one instance takes of one device, in bytes. ``role``: head or worker."""

    instance: str
    declared: str
    role: str
    model: int
    context: int
    compute: int
    overhead: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.model + self.context + self.compute + self.overhead


@dataclass
class PoolNode:
    """A node while the plan is made. ``host``: its processor and memory, None where nobody knows them.

    ``gpus``: empty for a node that computes on its processor. ``serves``: a service of ours runs
    on it already. ``deployed``: instances with a unit here, and in which role. ``uses``: what is
    planned on each device so far, by its local name.
    """

    name: str
    gpus: tuple[Device, ...]
    host: Device | None
    serves: bool
    deployed: Mapping[str, str]
    uses: dict[str, list[Use]] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[Device, ...]:
        """Return what computes: the GPUs, else the processor."""
        if self.gpus:
            return self.gpus
        return (self.host,) if self.host else ()

    def used(self, name: str) -> int:
        """Return the bytes that are planned on a device so far."""
        return sum(use.total for use in self.uses.get(name, ()))

    def crowd(self, name: str) -> int:
        """Return how many instances are planned on a device so far."""
        return len(self.uses.get(name, ()))

    def room(self, device: Device, margin: int, whole: bool = False) -> int:
        """Return the bytes that an instance may still take of a device; any number when ``margin`` is below 0.

        Free memory counts only where nothing of ours runs: there somebody else has the rest.
        Where our own services run it says nothing, as they may be about to shrink or to go.
        A little less than all of an idle device is free; that is what the margin is for, and of a
        host a share is the system's: so that a plan is the same before a start and after it.
        ``whole``: never ask what is free, for words that have to be the same, too.
        """
        if margin < 0:
            return UNBOUNDED
        there = device.memory_bytes
        if device.kind == "cpu":
            there -= there // SYSTEM_SHARE
        free = device.free_bytes
        if free is not None and not self.serves and not whole and free < there - margin // 2:
            there = free
        return there - margin - self.used(device.local_name)


class Pool:
    """All nodes that may serve, by name, in natural order of their names."""

    def __init__(self, nodes: Iterable[PoolNode]) -> None:
        self.nodes: dict[str, PoolNode] = {
            node.name: node for node in sorted(nodes, key=lambda item: natural(item.name))
        }

    @classmethod
    def of(cls, declared: Declared, facts: Mapping[str, NodeFacts]) -> Pool:
        """Gather the nodes: what is declared of devices wins over what was found."""
        nodes = []
        for name in declared.inventory:
            found = facts.get(name)
            if found is None and not declared.static:
                continue
            known = declared.node(name).devices
            if known is None:
                known = found.devices if found else ()
            gpus = tuple(device for device in known if device.kind != "cpu")
            host = next((device for device in known if device.kind == "cpu"), found.host if found else None)
            deployed = {unit.instance: unit.role for unit in found.units} if found else {}
            nodes.append(PoolNode(name, gpus, host, bool(found and found.serves), deployed))
        return cls(nodes)

    def reserve(self, node: str, device: str, use: Use) -> None:
        """Note what an instance takes of a device."""
        self.nodes[node].uses.setdefault(device, []).append(use)

    def deployment(self, instance: str) -> tuple[str, frozenset[str]] | None:
        """Return head and nodes that an instance has units on; None when it is not deployed."""
        head = next((node.name for node in self.nodes.values() if node.deployed.get(instance) == "head"), None)
        if head is None:
            return None
        return head, frozenset(node.name for node in self.nodes.values() if instance in node.deployed)


@lru_cache(maxsize=4096)
def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts node2 before node10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name))
