# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give every instance its HTTP port on the head and its RPC port on the workers.

Sticky: what is deployed stays, so adding or removing an instance never moves the port of
another. A declared port wins, then the port that the instance's own units have, then the
lowest free one from the base, in order of declaration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Instance, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem


@dataclass(frozen=True)
class Ports:
    """The ports of an instance; ``rpc`` None when it has no workers."""

    http: int
    rpc: int | None


class _Wish:
    """A port that an instance needs, free on some nodes."""

    def __init__(self, instance: Instance, key: str, nodes: Sequence[str], declared: int | None, role: str) -> None:
        self.instance = instance
        self.key = key
        self.nodes = nodes
        self.declared = declared
        self.role = role


def assign_ports(
    settings: Settings, instances: Sequence[Instance], nodes: Mapping[str, NodeFacts]
) -> tuple[dict[str, Ports], list[Problem]]:
    """Return the ports of every instance by its name, and declared ports that somebody else has.

    ``instances``: with their nodes known.
    """
    wishes = []
    for instance in instances:
        wishes.append(_Wish(instance, "port", [instance.head or ""], instance.port, "head"))
        if instance.workers:
            wishes.append(_Wish(instance, "rpc_port", instance.workers, instance.rpc_port, "worker"))
    taken: dict[str, set[int]] = {node: set() for instance in instances for node in instance.nodes or ()}
    given: dict[tuple[str, str], int] = {}

    def give(wish: _Wish, port: int) -> None:
        given[wish.instance.name, wish.key] = port
        for node in wish.nodes:
            taken[node].add(port)

    problems = []
    for wish in wishes:
        if wish.declared is not None:
            problems += _foreign(wish, wish.declared, nodes)
            give(wish, wish.declared)
    for wish in wishes:
        deployed = _deployed(wish, nodes) if wish.declared is None else None
        if deployed is not None and not any(deployed in taken[node] for node in wish.nodes):
            problems += _foreign(wish, deployed, nodes)
            give(wish, deployed)
    for wish in wishes:
        if (wish.instance.name, wish.key) in given:
            continue
        setting = "http_port_base" if wish.key == "port" else "rpc_port_base"
        base = getattr(settings, setting)
        busy = set().union(*(taken[node] | _unusable(wish.instance, node, nodes) for node in wish.nodes))
        port = next((number for number in range(base, 65536) if number not in busy), None)
        if port is None:
            problems.append(Problem("llamacpp_" + setting, base, "no port is free above it; choose a lower one"))
            port = base
        give(wish, port)
    ports = {
        instance.name: Ports(given[instance.name, "port"], given.get((instance.name, "rpc_port")))
        for instance in instances
    }
    return ports, problems


def _deployed(wish: _Wish, nodes: Mapping[str, NodeFacts]) -> int | None:
    """Return the port that the instance's units have, on its own nodes first; lowest when they differ."""
    found = [
        (node not in wish.nodes, unit.port)
        for node, facts in nodes.items()
        for unit in facts.units
        if unit.instance == wish.instance.name and unit.role == wish.role
    ]
    return min(found)[1] if found else None


def _unusable(instance: Instance, node: str, nodes: Mapping[str, NodeFacts]) -> set[int]:
    """Return ports of a node that strangers listen on or other instances' units have."""
    if node not in nodes:
        return set()
    others = {unit.port for unit in nodes[node].units if unit.instance != instance.name}
    return others | nodes[node].foreign_ports


def _foreign(wish: _Wish, port: int, nodes: Mapping[str, NodeFacts]) -> list[Problem]:
    """Return a problem for every node on which a program that is not ours has the port."""
    return [
        Problem(
            "%s.%s" % (wish.instance.variable, wish.key),
            port,
            "another program listens on this port of %s (ss -ltnp there says which); stop it, or choose another port"
            % node,
        )
        for node in wish.nodes
        if node in nodes and port in nodes[node].foreign_ports
    ]
