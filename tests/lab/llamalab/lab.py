"""Bringing a lab up, taking it down, telling what is there."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import AbstractContextManager
from typing import Any

from . import (
    faults,
    host,
    inventory,
    limits,
    network,
    node,
    preflight,
    proxy,
    reach,
    record,
    roots,
    supervise,
    watchdog,
)
from .names import (
    DEFAULT_SUITE,
    NETWORKS,
    NODE_USER,
    Lab,
    LabError,
    node_names,
    node_number,
)
from .record import LabRecord, NodeRecord, state_directory


def up(
    lab: Lab,
    count: int,
    suites: dict[str, str],
    *,
    check: bool = False,
    owner_pid: int | None = None,
) -> bool:
    """Bring the lab to ``count`` nodes that all answer; tell whether anything had to change.

    Existing nodes keep their disks and suites. With ``check`` nothing is changed.
    """
    wanted = node_names(count)
    strangers = sorted(set(suites) - set(wanted), key=node_number)
    if strangers:
        raise LabError(f"--suite names {', '.join(strangers)}, but the lab is to have {count} nodes")
    with record.at_work(lab):
        known = record.load(lab)
        _check_suites(known, suites)
        if not _pending(lab, known, wanted):
            if check:
                return False
            assert known is not None  # nothing is pending only where there is a lab
            _files(lab, known)
            watchdog.ensure(lab, owner_pid)
            return False
        if check:
            return True
        known = known or LabRecord(lab.name)
        new = [name for name in wanted if name not in known.nodes]
        missing = {
            suite
            for suite in (suites.get(name, DEFAULT_SUITE) for name in new)
            if not roots.path(roots.key(suite)).is_dir()
        }
        preflight.check(lab, new_roots=len(missing), new_nodes=len(new))
        network.check_host_links(lab)
        network.check_namespaces(lab, known, wanted)
        known.save()
        watchdog.ensure(lab, owner_pid)
        _make(lab, known, wanted, suites)
        return True


def _check_suites(known: LabRecord | None, suites: dict[str, str]) -> None:
    for name, suite in suites.items():
        if known and name in known.nodes and known.nodes[name].suite != suite:
            raise LabError(
                f"{name} runs {known.nodes[name].suite}, not {suite}; a node keeps its suite:"
                " take the lab down first, or leave --suite out"
            )


def _pending(lab: Lab, known: LabRecord | None, wanted: list[str]) -> bool:
    """Whether anything differs from ``wanted`` nodes, all running, connected and answering."""
    if known is None or set(known.nodes) != set(wanted):
        return True
    if not network.switch_is_up(lab, known) or not proxy.answers():
        return True
    for name in wanted:
        if not known.nodes[name].seeded or known.nodes[name].cut:
            return True
        if supervise.state(lab.unit(name)) != "running" or not reach.greets(lab, name, 2):
            return True
    return False


def _make(lab: Lab, known: LabRecord, wanted: list[str], suites: dict[str, str]) -> None:
    for name in [name for name in known.nodes if name not in wanted]:
        host.say(f"removing {name}")
        node.remove(lab, known, name)
    if not network.switch_is_up(lab, known):
        for name in known.nodes:  # their cables ended in a switch that is gone
            node.power_off(lab, known, name)
        with _shared():
            network.claim_namespaces_directory()
            network.make_switch(lab, known)
    with _shared():
        proxy.ensure()
        limits.raise_for(len(wanted) + sum(record.others(lab).values()))
    for name in [name for name in wanted if name not in known.nodes]:
        suite = suites.get(name, DEFAULT_SUITE)
        known.nodes[name] = NodeRecord(suite, roots.ensure(suite), uuid.uuid4().hex)
    known.nodes = {name: known.nodes[name] for name in wanted}
    known.save()
    _keys(lab, known)
    _files(lab, known)
    off = [name for name in wanted if supervise.state(lab.unit(name)) == "dead"]
    if off:
        host.say(f"booting {len(off)} of {len(wanted)} nodes")
    pace = host.Pace()
    for number, name in enumerate(wanted):
        if pace.due():
            host.say(f"{number} of {len(wanted)} nodes are switched on")
        if not known.nodes[name].seeded:
            node.power_off(lab, known, name)
            node.seed(lab, known, name)
        if known.nodes[name].cut:
            faults.mend_cables(lab, known, name, list(NETWORKS))
        unit = lab.unit(name)
        if supervise.state(unit) == "frozen":
            supervise.freeze(unit, False)
        if supervise.state(unit) == "dead":
            node.boot(lab, known, name)
    reach.wait(lab, wanted)
    for name in wanted:
        if name not in off:
            node.update_hosts(lab, known, name)


def _keys(lab: Lab, known: LabRecord) -> None:
    ssh = state_directory(lab) / "ssh"
    host.make_directory(ssh / "host_keys")
    (ssh / "host_keys").chmod(0o700)
    _keygen(ssh / "id_ed25519", f"llamacpp-lab-{lab.name}")
    if (person := host.owner()) is not None:
        os.chown(ssh / "id_ed25519", *person)
    for name in known.nodes:
        _keygen(ssh / "host_keys" / name, name)


def _keygen(path: os.PathLike[str], comment: str) -> None:
    """Make a key pair, whole or not at all (the public half is what ssh-keygen writes last)."""
    public = f"{os.fspath(path)}.pub"
    if os.path.exists(public) and os.path.getsize(public):
        return
    if os.path.exists(path):
        os.unlink(path)
    host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", os.fspath(path)])


def _files(lab: Lab, known: LabRecord) -> None:
    """Write known_hosts and the inventories."""
    names = sorted(known.nodes, key=node_number)
    directory = state_directory(lab)
    keys = {name: (directory / "ssh" / "host_keys" / f"{name}.pub").read_text() for name in names}
    host.write_text(directory / "ssh" / "known_hosts", inventory.known_hosts(lab, keys))
    text = inventory.inventory(lab, names, builders=["node1"])
    host.write_text(directory / "inventory.yml", text)
    if lab.name != "lab" or not inventory.MORE_NODES.parent.is_dir():
        return
    more = [name for name in names if node_number(name) > inventory.STATIC_NODES]
    if more:
        if known.extra_inventory != str(inventory.MORE_NODES):
            _drop_extra_inventory(known)
            known.extra_inventory = str(inventory.MORE_NODES)
            known.save()
        text = inventory.inventory(lab, more, builders=[])
        host.write_text(inventory.MORE_NODES, text, for_owner=True)
    else:
        _drop_extra_inventory(known)


def _drop_extra_inventory(known: LabRecord) -> None:
    if known.extra_inventory is None:
        return
    try:
        with open(known.extra_inventory) as file:
            ours = file.readline() == inventory.HEADER
        if ours:
            os.unlink(known.extra_inventory)
    except FileNotFoundError:
        pass
    known.extra_inventory = None
    known.save()


def down(lab: Lab, *, check: bool = False) -> bool:
    """Remove everything of the lab, in whatever state a crash left it; False if there was none."""
    with record.at_work(lab):
        known = record.load(lab)
        directory = state_directory(lab)
        if check:
            return known is not None
        if known is not None:
            host.say(f"taking the lab {lab.name!r} down ({len(known.nodes)} nodes)")
            watchdog.stop(lab)
            pace, total = host.Pace(), len(known.nodes)
            for name in list(known.nodes):
                if pace.due():
                    host.say(f"{total - len(known.nodes)} of {total} nodes are removed")
                node.remove(lab, known, name)
            network.delete_host_links(lab)
            for namespace in list(known.namespaces):
                network.delete_namespace(known, namespace)
            _drop_extra_inventory(known)
            for path in directory.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "record.json":
                    path.unlink()
            (directory / "record.json").unlink()
        if directory.is_dir():  # empty, but for a record that a crash left half-written
            shutil.rmtree(directory)
        roots.clean_all()
        with _shared():
            if record.others(lab):
                return known is not None
            stopped = proxy.stop()
            network.release_namespaces_directory()
            limits.restore()
            return known is not None or stopped


def _shared() -> AbstractContextManager[None]:
    """The lock on what all labs share: the apt proxy, /run/netns and the host's limits."""
    return record.locked("shared", "waiting for another lab to start or stop the apt proxy")


def status(lab: Lab) -> dict[str, Any]:
    """What is there, as a JSON-able mapping."""
    known = record.load(lab)
    nodes: dict[str, Any] = {}
    for name, entry in (known.nodes if known else {}).items():
        nodes[name] = {
            "state": supervise.state(lab.unit(name)),
            "suite": entry.suite,
            "cut": entry.cut,
            **{network_name: lab.address(name, network_name) for network_name in NETWORKS},
            "console": str(node.console(lab, name)),
        }
    return {
        "lab": lab.name,
        "up": known is not None,
        "user": NODE_USER,
        "inventory": str(state_directory(lab) / "inventory.yml"),
        "shapes": known.shapes if known else {},
        "nodes": nodes,
    }
