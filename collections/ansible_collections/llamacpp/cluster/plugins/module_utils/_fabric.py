# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find the address that each node of an instance speaks RPC on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import Address, NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, listing


def fabric_addresses(
    declared: Declared, instance: Instance, nodes: Mapping[str, NodeFacts]
) -> tuple[dict[str, str], list[Problem]]:
    """Return the fabric address of every node of an instance that needs one, and what stands in the way.

    A declared address is taken as it is. The others get an address in the fastest network that
    all nodes share; among equally fast ones that of the first interface name. An instance on one
    node needs no fabric: it gets an address only where one is declared.
    """
    chosen = {
        node: address for node in instance.nodes or () for address in [declared.node(node).fabric_address] if address
    }
    open_nodes = [node for node in instance.nodes or () if node not in chosen]
    if not instance.workers or not open_nodes:
        return chosen, []
    if declared.static:
        return chosen, [
            Problem("llamacpp_fabric_address of %s" % node, None, "set it: without asking the node it cannot be found")
            for node in open_nodes
        ]
    shared = _shared_networks(instance.nodes or (), nodes, chosen)
    if not shared:
        seen = "; ".join(
            "%s has %s" % (node, listing("%s/%d" % (item.address, item.prefix) for item in _candidates(nodes[node])))
            for node in instance.nodes or ()
        )
        return chosen, [
            Problem(
                "llamacpp_fabric_address of %s" % listing(open_nodes),
                None,
                "the nodes of %s share no network (%s); set the address on each" % (instance.name, seen),
            )
        ]
    chosen.update({node: _best(shared)[node].address for node in open_nodes})
    return chosen, []


def shared_addresses(declared: Declared, names: Sequence[str], nodes: Mapping[str, NodeFacts]) -> dict[str, str]:
    """Return the address of each node by which the others reach it, on the fastest network; empty if there is none.

    Declared fabric addresses are taken as they are.
    """
    chosen = {name: address for name in names for address in [declared.node(name).fabric_address] if address}
    if len(chosen) == len(names):
        return chosen
    shared = _shared_networks(names, nodes, chosen) if all(name in nodes for name in names) else {}
    return {name: chosen.get(name, item.address) for name, item in _best(shared).items()} if shared else {}


def networks(declared: Declared, names: Sequence[str], nodes: Mapping[str, NodeFacts]) -> list[list[str]]:
    """Return which of some nodes could speak RPC with each other: the members of each network, fastest first.

    Nodes with a declared address are also taken to reach each other, as nobody can tell from outside.
    """
    found: dict[str, dict[str, Address]] = {}
    for name in names:
        fixed = declared.node(name).fabric_address
        for item in _candidates(nodes[name]) if name in nodes else []:
            if fixed in (None, item.address):
                found.setdefault(item.network, {}).setdefault(name, item)
    # A container bridge has the same network, and the same address, on every node.
    found = {
        network: by_node
        for network, by_node in found.items()
        if len({item.address for item in by_node.values()}) == len(by_node)
    }
    ordered = [list(found[network]) for network in sorted(found, key=lambda network: _rank(network, found[network]))]
    told = [name for name in names if declared.node(name).fabric_address]
    return ordered + ([told] if told else [])


def _candidates(facts: NodeFacts) -> list[Address]:
    """Return the addresses that another node could reach, by interface and address."""
    usable = [
        item
        for item in facts.addresses
        if item.kind != "loopback" and not item.address.startswith(("127.", "169.254."))
    ]
    return sorted(usable, key=lambda item: (item.interface, item.address))


def _shared_networks(
    names: Sequence[str], nodes: Mapping[str, NodeFacts], declared: Mapping[str, str]
) -> dict[str, dict[str, Address]]:
    """Return network -> node -> address for every network that all nodes have an address of their own in."""
    found: dict[str, dict[str, Address]] = {}
    for node in names:
        for item in _candidates(nodes[node]):
            if declared.get(node, item.address) == item.address:
                found.setdefault(item.network, {}).setdefault(node, item)
    # A container bridge has the same network, and the same address, on every node.
    return {
        network: by_node
        for network, by_node in found.items()
        if len({item.address for item in by_node.values()}) == len(names)
    }


def _best(shared: Mapping[str, dict[str, Address]]) -> dict[str, Address]:
    return shared[min(shared, key=lambda network: _rank(network, shared[network]))]


def _rank(network: str, by_node: Mapping[str, Address]) -> tuple[int, bool, str, str]:
    """Order networks: fastest first, known InfiniBand before others, then by interface name."""
    items = list(by_node.values())
    return (
        -min(item.speed_mbit for item in items),
        any(item.kind != "infiniband" for item in items),
        min(item.interface for item in items),
        network,
    )
