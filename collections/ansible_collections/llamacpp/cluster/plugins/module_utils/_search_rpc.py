# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find placements that one node's GPUs do not hold: over several nodes, or with a part in the head's memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Device
from ansible_collections.llamacpp.cluster.plugins.module_utils._fabric import networks
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import layer_costs
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._option import (
    LAYER,
    ON_CPU,
    ONE_DEVICE,
    PARTIAL,
    RPC,
    TENSOR,
    Option,
    least,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import (
    MAX_DEVICES,
    Knobs,
    Share,
    Slot,
    place,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import PoolNode, natural
from ansible_collections.llamacpp.cluster.plugins.module_utils._search import Search

GIB = 1 << 30
# More networks than this are no alternatives that an operator would think of.
MAX_NETWORKS = 3
# So many kinds of nodes are tried for a part; the one with most on its GPUs leaves least in memory.
MAX_KINDS = 3
# What a device needs beside layers, about: a first guess, which attempts correct.
BESIDE = 1 * GIB


def explicit(search: Search, model: ModelFacts | None, knobs: Knobs) -> Option | None:
    """Place on all devices of the nodes that were named, the workers' first, at most as many as llama.cpp takes.

    Raises what :func:`place` does. None when a node has no device.
    """
    names = search.instance.nodes or ()
    nodes = [search.pool.nodes[name] for name in names]
    head, workers = nodes[0], nodes[1:]
    own = search.gpus(head) if head.gpus else []
    remote = [(node, device) for node in workers for device in usable(search, node)]
    remote = remote[: MAX_DEVICES - len(own)]
    if knobs.split_mode == "none":
        own = own[:1]
    if knobs.gpu_layers == 0 and not workers:
        own = []
    slots = search.slots(head, own, remote)
    host = search.host(head)
    if not slots and host is None:
        return None
    # Without a GPU the head's processor is one of the devices that the model is spread over.
    on_host = not head.gpus or not slots
    placement = place(head.name, slots, host, on_host, knobs, model)
    split = TENSOR if knobs.split_mode == "tensor" else LAYER
    strategy = RPC if workers else ON_CPU if not slots else ONE_DEVICE if len(slots) == 1 else split
    if model is None:
        return Option(strategy, placement, on_host, 0.0, False, 0)
    return search.option(strategy, placement, on_host, model)


def usable(search: Search, node: PoolNode) -> list[Device]:
    """Return the devices of a node that the instance may use: its GPUs, else its processor."""
    return [device for device in node.devices if search.allowed(node, device)]


def over_nodes(
    search: Search,
    declared: Declared,
    facts: Mapping[str, NodeFacts],
    model: ModelFacts,
    knobs: Knobs,
    gpus: bool,
    every: bool = False,
) -> list[Option]:
    """Try several nodes on each network that they share: the fewest that fit, where it runs already first.

    ``gpus``: nodes with GPUs, else those without. With ``every``, also one node more than the fewest.
    """
    need = least(model, knobs)
    found: dict[tuple[str, ...], Option] = {}
    for fabric, members in enumerate(_groups(search, declared, facts)):
        # The processors of nodes with GPUs are no workers, they would slow the GPUs down.
        nodes = [search.pool.nodes[name] for name in members if search.pool.nodes[name] in search.nodes]
        nodes = [node for node in nodes if bool(node.gpus) == gpus and usable(search, node)]
        for ordered in _orders(search, nodes):
            left = 1 + every
            for slots, head, on_host in _growing(search, ordered, need):
                try:
                    placement = place(head.name, slots, search.host(head), on_host, knobs, model)
                except ValueError:
                    break  # Fewer layers than devices, or more devices than llama.cpp takes.
                option = replace(search.option(RPC, placement, on_host, model), fabric=fabric)
                if option.fits:
                    found.setdefault(placement.nodes, option)
                    left -= 1
                    if not left:
                        break
    return sorted(found.values(), key=lambda item: item.rank)


def widest(
    search: Search, declared: Declared, facts: Mapping[str, NodeFacts], model: ModelFacts, knobs: Knobs
) -> Option | None:
    """Return the placement over all nodes that share a network, whether it fits or not; None without such nodes.

    Raises what :func:`place` does.
    """
    for members in _groups(search, declared, facts):
        nodes = [search.pool.nodes[name] for name in members if search.pool.nodes[name] in search.nodes]
        nodes = [node for node in nodes if bool(node.gpus) == search.has_gpus and usable(search, node)]
        for ordered in _orders(search, nodes):
            tried = list(_growing(search, ordered, 0))
            if tried:
                slots, head, on_host = tried[-1]
                placement = place(head.name, slots, search.host(head), on_host, knobs, model)
                return search.option(RPC, placement, on_host, model)
    return None


def _groups(search: Search, declared: Declared, facts: Mapping[str, NodeFacts]) -> list[tuple[str, ...]]:
    """Return the sets of nodes that share a network, that on the fastest first, each set once."""
    shared = networks(declared, [node.name for node in search.nodes], facts)
    ranked = dict.fromkeys(tuple(sorted(members, key=natural)) for members in shared)
    return [members for members in ranked if len(members) > 1][:MAX_NETWORKS]


def _orders(search: Search, nodes: Sequence[PoolNode]) -> Iterator[list[PoolNode]]:
    """Return orders in which to take nodes: as it is deployed, and the largest first. The first is the head."""
    largest = sorted(nodes, key=lambda item: (-(search.room(item, usable(search, item)) // GIB), natural(item.name)))
    heads = search.heads
    if search.deployed:
        head, names = search.deployed
        there = [node for node in largest if node.name in names]
        if len(there) == len(names) and len(there) > 1 and any(node.name == head for node in heads):
            yield sorted(there, key=lambda item: item.name != head)
    fixed = [node for node in largest if node in heads]
    if fixed:
        yield [fixed[0], *(node for node in largest if node is not fixed[0])]


def _growing(search: Search, nodes: Sequence[PoolNode], need: int) -> Iterator[tuple[list[Slot], PoolNode, bool]]:
    """Take one device more at a time, from the head on, once they could hold ``need`` bytes; two nodes at least."""
    head = nodes[0]
    own = search.gpus(head)
    remote: list[tuple[PoolNode, Device]] = []
    host = search.host(head)
    on_host = not head.gpus
    room = host.room if on_host and host else search.room(head, own)
    for node in nodes[1:]:
        for device in usable(search, node):
            if len(own) + len(remote) >= MAX_DEVICES:
                return
            remote.append((node, device))
            room += search.room(node, [device])
            if room >= need:
                yield search.slots(head, own, remote), head, on_host


def partly(search: Search, model: ModelFacts, knobs: Knobs, kinds: int = MAX_KINDS) -> list[Option]:
    """Try to leave a part in the memory of a head with GPUs: experts of the first layers, else whole layers.

    Looks at so many ``kinds`` of nodes, those with most on their GPUs.
    """
    if knobs.gpu_layers is not None:
        return []
    found = []
    alike = sorted(search.alike(1), key=lambda item: (-search.room(item[0], search.gpus(item[0])), item[0].name))
    for node, twins in alike[:kinds]:
        host = search.host(node)
        if host is not None:
            slots = search.slots(node, search.gpus(node))
            option = best_part(search, node.name, slots, host, model, knobs)
            found += search.for_twins(option, twins) if option else []
    return sorted(found, key=lambda item: item.rank)


def best_part(
    search: Search, head: str, slots: Sequence[Slot], host: Slot, model: ModelFacts, knobs: Knobs
) -> Option | None:
    """Return the placement that leaves least in the head's memory; None when nothing fits."""

    def with_experts(count: int) -> Option:
        chosen = replace(knobs, n_cpu_moe=count, gpu_layers="all")
        return search.option(PARTIAL, place(head, slots, host, False, chosen, model, BESIDE), False, model)

    def with_layers(count: int) -> Option:
        chosen = replace(knobs, gpu_layers=model.n_layers + 1 - count)
        return search.option(PARTIAL, place(head, slots, host, False, chosen, model, BESIDE), False, model)

    every = model.n_layers + 1
    layers = layer_costs(model, knobs.settings(every, ())).layers
    over = sum(layers) - sum(slot.room - BESIDE for slot in slots)
    if model.number("expert_count", 0) > 1 and not knobs.cpu_moe and search.instance.n_cpu_moe is None:
        without = layer_costs(model, replace(knobs, cpu_moe=True).settings(every, ())).layers
        experts = [whole - rest for whole, rest in zip(layers, without)]
        option = _least_that_fits(with_experts, experts[:-1], over)
        if option:
            return option
    # At least one layer and the output for each device, or the devices are better left out.
    return _least_that_fits(with_layers, layers[: every - len(slots)], over)


def _least_that_fits(attempt: Callable[[int], Option], sizes: Sequence[int], over: int) -> Option | None:
    """Return the fitting option with the smallest count from 1 on; more on the host means less on devices.

    ``sizes``: bytes that each step takes off the devices; ``over``: bytes that have to go, about.
    They lead to the right count in few attempts, each of which costs an estimate.
    """
    best: Option | None = None
    low, high = 0, len(sizes) + 1
    if high < 2:
        return None
    step = max(sum(sizes) // len(sizes), 1)
    middle = -(-over // step)
    while high - low > 1:
        middle = min(max(middle, low + 1), high - 1)
        option = attempt(middle)
        if option.fits:
            best, high = option, middle
            left = [share.slot.room - share.usage.total for share in _offloaded(option) if share.usage]
            middle = high - max(min(left, default=0) * len(left) // step, 1)
        elif _host_overflows(option):
            high, middle = middle, (low + middle) // 2
        else:
            low = middle
            middle = low + max(-(-sum(share.excess for share in _offloaded(option)) // step), 1)
    return best


def _offloaded(option: Option) -> list[Share]:
    return [share for share in option.placement.shares if share.slot != option.placement.host]


def _host_overflows(option: Option) -> bool:
    """Whether the head's memory is too small, so that leaving more there cannot help."""
    return any(share.excess for share in option.placement.all_shares if share.slot == option.placement.host)
