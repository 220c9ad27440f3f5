# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Check that what is planned fits into the memory of every device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import CUDA_PROCESS_BYTES
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import Placement, Share
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem

MIB = 1 << 20


def check_memory(
    placements: Sequence[tuple[Instance, Placement]], nodes: Mapping[str, NodeFacts], margin: int
) -> list[Problem]:
    """Compare what instances take on each device with its memory.

    All of them together have to fit into the whole memory and, on a node where nothing of ours
    runs yet, into what is free: there somebody else has the rest. Where our own services run,
    free memory says nothing, as they may be about to shrink or to go. ``margin``: bytes to keep free.
    """
    by_device: dict[tuple[str, str], list[tuple[Instance, Share]]] = {}
    for instance, placement in placements:
        for share in placement.shares:
            if share.demand and share.slot.device.memory_bytes:
                key = (share.slot.node, share.slot.device.local_name)
                by_device.setdefault(key, []).append((instance, share))
    problems = []
    for (node, name), users in sorted(by_device.items()):
        device = users[0][1].slot.device
        need = _need(users) + margin
        ours = node in nodes and nodes[node].serves
        if need > device.memory_bytes:
            problems.append(_problem(node, name, device, "memory", device.memory_bytes, users, margin))
        elif device.free_bytes is not None and not ours and need > device.free_bytes:
            problems.append(_problem(node, name, device, "free memory", device.free_bytes, users, margin))
    return problems


def _need(users: Sequence[tuple[Instance, Share]]) -> int:
    """Return the bytes that instances take on one device."""
    extra = CUDA_PROCESS_BYTES if users[0][1].slot.device.kind == "cuda" else 0
    return sum(share.demand.total + extra for _instance, share in users if share.demand)


def _problem(
    node: str,
    name: str,
    device: Device,
    what: str,
    there: int,
    users: Sequence[tuple[Instance, Share]],
    margin: int,
) -> Problem:
    parts = [
        "%s takes %d MiB (weights %d, context %d, compute %d)"
        % (
            instance.name,
            _need([(instance, share)]) // MIB,
            share.demand.model // MIB,
            share.demand.context // MIB,
            share.demand.compute // MIB,
        )
        for instance, share in users
        if share.demand
    ]
    settings = ", ".join(
        "%s.context (%d) or parallel (%d)" % (instance.variable, instance.context, instance.parallel)
        for instance, _share in users
    )
    return Problem(
        "%s of %s of %s%s" % (what, name, node, " (%s)" % device.name if device.kind != "cpu" else ""),
        "%d MiB" % (there // MIB),
        "%s and %d MiB stay free: lower %s, choose a smaller quantisation, or add nodes"
        % (", ".join(parts), margin // MIB, settings),
    )
