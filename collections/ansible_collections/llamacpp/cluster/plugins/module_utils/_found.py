# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ``node_info`` found on nodes, typed, and the checks that need nothing else."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Device, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, listing, size_text

MINIMUM_PYTHON = (3, 9)
# Distribution id of os-release -> major versions. What is not here may work, but nobody looked.
SUPPORTED_OS: dict[str, tuple[str, ...]] = {
    "almalinux": ("8", "9", "10"),
    "centos": ("8", "9", "10"),
    "debian": ("11", "12", "13"),
    "rhel": ("8", "9", "10"),
    "rocky": ("8", "9", "10"),
    "ubuntu": ("22.04", "24.04", "26.04"),
}


@dataclass(frozen=True)
class Address:
    """An IPv4 address of a node. ``speed_mbit`` 0 when unknown."""

    interface: str
    address: str
    prefix: int
    speed_mbit: int
    kind: str

    @property
    def network(self) -> str:
        """Return the network that it is in, e.g. ``10.0.1.0/24``."""
        return str(ipaddress.IPv4Network("%s/%d" % (self.address, self.prefix), strict=False))


@dataclass(frozen=True)
class Unit:
    """One of our services on a node."""

    role: str
    instance: str
    port: int
    active: bool


@dataclass(frozen=True)
class NodeFacts:
    """What was found on one node. Sizes in bytes."""

    os_id: str
    os_family: str
    os_version: str
    os_name: str
    machine: str
    libc: str
    python: str
    cores: int
    memory_bytes: int
    available_bytes: int
    addresses: tuple[Address, ...]
    free_disk: Mapping[str, int]
    files: Mapping[str, int | None]
    devices: tuple[Device, ...]
    releases: tuple[str, ...]
    current_release: str | None
    previous_release: str | None
    manifests: Mapping[str, Mapping[str, Any]]
    cpu_flags: frozenset[str]
    driver: str
    toolkits: tuple[Mapping[str, str], ...]
    compilers: Mapping[str, str]
    rdma: tuple[str, ...]
    units: tuple[Unit, ...]
    listening: frozenset[int]

    @property
    def host(self) -> Device:
        """Return the node's processor and memory as a device."""
        return Device("cpu", "host memory", 0, self.memory_bytes, self.available_bytes)

    @property
    def foreign_ports(self) -> frozenset[int]:
        """Return the ports that somebody else listens on."""
        return self.listening - {unit.port for unit in self.units if unit.active}

    @property
    def platform(self) -> tuple[str, str]:
        """Return what a build here is for, e.g. ``("debian-12", "x86_64")``.

        Minor releases of EL are compatible with each other, Debian has none, those of Ubuntu are not.
        """
        version = self.os_version if self.os_id == "ubuntu" else self.os_version.split(".", 1)[0]
        return "%s-%s" % (self.os_id, version), self.machine

    @property
    def serves(self) -> bool:
        """Whether a service of ours runs here, so that free memory lacks what it takes."""
        return any(unit.active for unit in self.units)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeFacts:
        """Read ``node_info``'s ``node``; raises :class:`KeyError` when a field is missing."""
        system = data["os"]
        return cls(
            os_id=system["id"],
            os_family=system["family"],
            os_version=system["version"],
            os_name=system["name"],
            machine=data["machine"],
            libc=data["libc"],
            python=data["python"],
            cores=data["cores"],
            memory_bytes=data["memory"]["total_bytes"],
            available_bytes=data["memory"]["available_bytes"],
            addresses=tuple(
                Address(item["interface"], item["address"], item["prefix"], item["speed_mbit"] or 0, item["kind"])
                for item in data["addresses"]
                if ":" not in item["address"]
            ),
            free_disk={path: disk["free_bytes"] for path, disk in data["disks"].items()},
            files=dict(data["files"]),
            devices=tuple(
                Device(
                    item["kind"],
                    item["name"],
                    item["index"],
                    item["memory_bytes"],
                    item["free_bytes"],
                    item["compute_capability"],
                    tuple(item.get("nvlink") or ()),
                )
                for item in data["devices"]
            ),
            releases=tuple(data["releases"]),
            current_release=data["current_release"],
            previous_release=data["previous_release"],
            manifests=dict(data["manifests"]),
            cpu_flags=frozenset(data["cpu_flags"]),
            driver=data["driver"],
            toolkits=tuple(data["toolkits"]),
            compilers=dict(data["compilers"]),
            rdma=tuple(data["rdma"]),
            units=tuple(
                Unit(unit["role"], unit["instance"], unit["port"], unit["active"])
                for _name, unit in sorted(data["units"].items())
            ),
            listening=frozenset(data["listening"]),
        )


def check_nodes(declared: Declared, nodes: Mapping[str, NodeFacts]) -> list[Problem]:
    """Check every node that answered: operating system, Python, declared fabric address."""
    problems = []
    for name in sorted(nodes):
        facts = nodes[name]
        if declared.settings.os_check:
            problems += _check_system(name, facts)
        fabric = declared.node(name).fabric_address
        if fabric and fabric not in [item.address for item in facts.addresses]:
            problems.append(
                Problem(
                    "llamacpp_fabric_address of %s" % name,
                    fabric,
                    "no interface has this address; there are %s"
                    % listing("%s (%s)" % (item.address, item.interface) for item in facts.addresses),
                )
            )
    return problems


def _check_system(name: str, facts: NodeFacts) -> list[Problem]:
    problems = []
    known = SUPPORTED_OS.get(facts.os_id, ())
    major = facts.os_version if facts.os_id == "ubuntu" else facts.os_version.split(".")[0]
    if major not in known:
        supported = "; ".join("%s %s" % (key, ", ".join(SUPPORTED_OS[key])) for key in sorted(SUPPORTED_OS))
        problems.append(
            Problem(
                "operating system of %s" % name,
                facts.os_name or "%s %s" % (facts.os_id, facts.os_version),
                "is not supported; use one of %s, or set llamacpp_os_check to false to try" % supported,
            )
        )
    version = tuple(int(part) for part in re.findall(r"\d+", facts.python)[:2])
    if version < MINIMUM_PYTHON:
        problems.append(
            Problem(
                "Python of %s" % name,
                facts.python,
                "too old: install Python %d.%d or newer there and point ansible_python_interpreter to it"
                % MINIMUM_PYTHON,
            )
        )
    return problems


def check_reachable(declared: Declared, nodes: Mapping[str, NodeFacts]) -> list[Problem]:
    """Check that every node of every instance answered."""
    problems = []
    for instance in declared.instances:
        if instance.nodes is None:
            continue
        missing = [name for name in instance.nodes if name not in nodes]
        if missing:
            problems.append(
                Problem(
                    "%s.nodes" % instance.variable,
                    list(instance.nodes),
                    "%d of the %d nodes of %s answered; no answer from %s: bring it up, or take it out of nodes"
                    % (len(instance.nodes) - len(missing), len(instance.nodes), instance.name, listing(missing)),
                )
            )
    return problems


def check_model_disk(
    declared: Declared,
    instance: Instance,
    facts: NodeFacts,
    targets: Sequence[str],
    total: int,
    planned: Collection[str] = (),
) -> list[Problem]:
    """Check that the head can have room for the model and a twentieth more, unless it is there already.

    ``targets``: the model's files in the store; ``total``: their bytes; ``planned``: files of all models of the plan.
    The instance has a source. What the store has beside these is on its way in, or may go: how much of that really
    does, the store finds out before it asks for the first byte.
    """
    sizes = [facts.files.get(target) for target in targets]
    if sum(size or 0 for size in sizes) == total:
        return []
    source = instance.model.source
    if source and source.local:
        return []  # It is linked into the store, not copied.
    free = facts.free_disk.get(declared.settings.models_dir)
    needed = total + total // 20
    stay = {*planned, *targets}
    others = sum(size or 0 for path, size in facts.files.items() if path not in stay)
    if free is None or free + others >= needed:
        return []
    going = ", and what could go for it %s" % size_text(others) if others else ""
    return [
        Problem(
            "free disk of %s for %s" % (instance.head, declared.settings.models_dir),
            size_text(free),
            "the model of %s takes %s%s; free some space, or set llamacpp_models_dir to another disk"
            % (instance.name, size_text(needed), going),
        )
    ]
