"""What can be done to a running lab: break nodes and bring them back, slow networks down."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from . import host, network, node, reach, record, supervise
from .names import Lab, LabError, rate_bits
from .record import LabRecord


@contextmanager
def _existing(lab: Lab, name: str | None) -> Iterator[LabRecord]:
    """The locked record of a lab that is up and has the node ``name``."""
    with record.at_work(lab):
        known = record.load(lab)
        if known is None:
            raise LabError(f"the lab {lab.name!r} is down; bring it up first")
        if name is not None and name not in known.nodes:
            raise LabError(f"the lab {lab.name!r} has no {name}; its nodes are: {', '.join(known.nodes)}")
        yield known


def kill(lab: Lab, name: str) -> bool:
    """Power loss. Peers get no goodbye; what the node wrote to its disk stays."""
    with _existing(lab, name) as known:
        if supervise.state(lab.unit(name)) == "dead":
            return False
        node.power_off(lab, known, name)
        return True


def start(lab: Lab, name: str) -> bool:
    """Boot a node that is off, on the disk it had, and wait until it answers if it can."""
    with _existing(lab, name) as known:
        if supervise.state(lab.unit(name)) != "dead":
            return False
        node.boot(lab, known, name)
        if "management" not in known.nodes[name].cut:
            reach.wait(lab, [name])
        return True


def freeze(lab: Lab, name: str, frozen: bool) -> bool:
    """Stop all of a node's processes where they stand; connections stay open, unanswered."""
    with _existing(lab, name):
        unit = lab.unit(name)
        if supervise.state(unit) == "dead":
            raise LabError(f"{name} is off; start it first")
        return supervise.freeze(unit, frozen)


def cut(lab: Lab, name: str, networks: list[str]) -> bool:
    """Pull a node's cables; they stay out across a restart of the node, until mended."""
    with _existing(lab, name) as known:
        entry = known.nodes[name]
        new = [network_name for network_name in networks if network_name not in entry.cut]
        entry.cut = sorted({*entry.cut, *new})
        known.save()
        if supervise.state(lab.unit(name)) != "dead":
            for network_name in networks:
                network.set_cable(lab, name, network_name, up=False)
        return bool(new)


def mend(lab: Lab, name: str, networks: list[str]) -> bool:
    """Plug a node's cables in again."""
    with _existing(lab, name) as known:
        return mend_cables(lab, known, name, networks)


def mend_cables(lab: Lab, known: LabRecord, name: str, networks: list[str]) -> bool:
    """:func:`mend` for a caller that holds the lab's lock."""
    entry = known.nodes[name]
    pulled = [network_name for network_name in networks if network_name in entry.cut]
    if supervise.state(lab.unit(name)) != "dead":
        for network_name in pulled:
            network.set_cable(lab, name, network_name, up=True)
    entry.cut = [network_name for network_name in entry.cut if network_name not in pulled]
    known.save()
    return bool(pulled)


def shape(lab: Lab, network_name: str, rate: str) -> bool:
    """Limit every node's cable to a network, those of nodes to come too; ``none`` lifts it."""
    if rate != "none":
        rate_bits(rate)
    with _existing(lab, None) as known:
        changed = known.shapes.get(network_name, "none") != rate
        known.shapes.pop(network_name, None)
        if rate != "none":
            known.shapes[network_name] = rate
        known.save()
        for name in known.nodes:
            if supervise.state(lab.unit(name)) != "dead":
                network.shape_node(lab, name, network_name, rate)
        return changed


def execute(lab: Lab, name: str, argv: list[str]) -> int:
    """Run a command as root inside a node, without its network; return its exit status."""
    with _existing(lab, name):
        pid = supervise.leader(lab.unit(name))
    if pid is None:
        raise LabError(f"{name} is off; start it first")
    return subprocess.run([*node.enter(pid), *argv], env=host.ENVIRONMENT, check=False).returncode
