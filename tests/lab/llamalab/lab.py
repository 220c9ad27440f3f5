"""What labctl does with a lab: up, down, faults, status."""
from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from . import (
    host,
    inventory,
    network,
    node,
    preflight,
    proxy,
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
    rate_bits,
)
from .record import LabRecord, NodeRecord, state_directory


def _lock(lab: Lab) -> AbstractContextManager[None]:
    return record.locked(lab.name, f"waiting for another labctl at work on the lab {lab.name!r}")


@contextmanager
def _existing(lab: Lab, name: str | None) -> Iterator[LabRecord]:
    """The locked record of a lab that is up and has the node ``name``."""
    with _lock(lab):
        known = record.load(lab)
        if known is None:
            raise LabError(f"the lab {lab.name!r} is down; bring it up first")
        if name is not None and name not in known.nodes:
            raise LabError(
                f"the lab {lab.name!r} has no {name}; its nodes are: {', '.join(known.nodes)}"
            )
        yield known


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
    with _lock(lab):
        known = record.load(lab)
        _check_suites(known, suites)
        if not _pending(lab, known, wanted):
            if check:
                return False
            assert known is not None  # nothing is pending only where there is a lab
            _files(lab, known)
            watchdog.ensure(lab, known, owner_pid)
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
        known.save()
        watchdog.ensure(lab, known, owner_pid)
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
    if known is None or list(known.nodes) != wanted:
        return True
    if not network.switch_is_up(lab, known) or not proxy.answers():
        return True
    for name in wanted:
        if not known.nodes[name].seeded or known.nodes[name].cut:
            return True
        if supervise.state(lab.unit(name)) != "running" or not _greets(lab, name, 2):
            return True
    return False


def _make(lab: Lab, known: LabRecord, wanted: list[str], suites: dict[str, str]) -> None:
    for name in [name for name in known.nodes if name not in wanted]:
        host.say(f"removing {name}")
        node.remove(lab, known, name)
    if not network.switch_is_up(lab, known):
        for name in known.nodes:  # their cables ended in a switch that is gone
            node.power_off(lab, known, name)
        network.make_switch(lab, known)
    with record.locked("shared", "waiting for another lab to start or stop the apt proxy"):
        proxy.ensure()
    for name in [name for name in wanted if name not in known.nodes]:
        suite = suites.get(name, DEFAULT_SUITE)
        known.nodes[name] = NodeRecord(suite, roots.ensure(suite), uuid.uuid4().hex)
    known.nodes = {name: known.nodes[name] for name in wanted}
    known.save()
    _keys(lab, known)
    _files(lab, known)
    for name in wanted:
        if not known.nodes[name].seeded:
            node.power_off(lab, known, name)
            node.seed(lab, known, name)
        if known.nodes[name].cut:
            _mend(lab, known, name, list(NETWORKS))
        unit = lab.unit(name)
        if supervise.state(unit) == "frozen":
            supervise.freeze(unit, False)
        if supervise.state(unit) == "dead":
            _boot(lab, known, name)
    for name in wanted:
        node.write_hosts(lab, known, name)
    _wait(lab, wanted)


def _boot(lab: Lab, known: LabRecord, name: str) -> None:
    node.power_off(lab, known, name)  # what an end from inside, or a crash, left of it
    node.write_hosts(lab, known, name)
    node.power_on(lab, known, name)


def _keys(lab: Lab, known: LabRecord) -> None:
    ssh = state_directory(lab) / "ssh"
    (ssh / "host_keys").mkdir(parents=True, exist_ok=True)
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
    keys = {
        name: (directory / "ssh" / "host_keys" / f"{name}.pub").read_text() for name in names
    }
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


def _greets(lab: Lab, name: str, timeout: float) -> bool:
    """Whether the node's sshd sends its banner within ``timeout`` seconds."""
    try:
        address = (lab.address(name, "management"), 22)
        with socket.create_connection(address, timeout=timeout) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _logs_in(lab: Lab, name: str) -> bool:
    """Whether Ansible's user can log in; early in a boot sshd answers but lets nobody in."""
    argv = [*inventory.ssh_command(lab, name, connect_timeout=2), "true"]
    try:
        return host.run(argv, check=False, timeout=10).returncode == 0
    except LabError:  # no end within 10 s
        return False


def _wait(lab: Lab, names: list[str]) -> None:
    """Wait until every node lets Ansible's user in."""
    begin = told = time.monotonic()
    limit = 60 + 5 * len(names)
    pending = list(names)
    with ThreadPoolExecutor(4) as pool:
        while pending:
            ready = pool.map(lambda name: _greets(lab, name, 1) and _logs_in(lab, name), pending)
            pending = [name for name, there in zip(pending, list(ready), strict=True) if not there]
            now = time.monotonic()
            if pending and now - told > 2:
                host.say(f"{len(names) - len(pending)} of {len(names)} nodes answer ssh")
                told = now
            for name in pending:
                if supervise.state(lab.unit(name)) == "dead":
                    raise LabError(f"{name} died while booting; see {node.console(lab, name)}")
            if pending and now - begin > limit:
                raise LabError(
                    f"{', '.join(pending)} did not answer ssh within {limit} s;"
                    f" see {node.console(lab, pending[0])}"
                )
            if pending:
                time.sleep(0.1)
    host.say(f"{len(names)} of {len(names)} nodes answer ssh ({time.monotonic() - begin:.1f} s)")


def down(lab: Lab, *, check: bool = False) -> bool:
    """Remove everything of the lab, in whatever state a crash left it; False if there was none."""
    with _lock(lab):
        known = record.load(lab)
        directory = state_directory(lab)
        if check:
            return known is not None
        if known is not None:
            host.say(f"taking the lab {lab.name!r} down ({len(known.nodes)} nodes)")
            watchdog.stop(known)
            for name in list(known.nodes):
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
        with record.locked("shared", "waiting for another lab to start or stop the apt proxy"):
            stopped = not record.others(lab) and proxy.stop()
        return known is not None or stopped


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
        _boot(lab, known, name)
        if "management" not in known.nodes[name].cut:
            _wait(lab, [name])
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
            for network_name in new:
                network.set_cable(lab, name, network_name, up=False)
        return bool(new)


def mend(lab: Lab, name: str, networks: list[str]) -> bool:
    """Plug a node's cables in again."""
    with _existing(lab, name) as known:
        return _mend(lab, known, name, networks)


def _mend(lab: Lab, known: LabRecord, name: str, networks: list[str]) -> bool:
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
