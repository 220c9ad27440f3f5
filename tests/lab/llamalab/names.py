"""Names, addresses and suites of the labs: pure functions, no access to the system.

Every name that the lab gives to something on the host begins with ``lclab``, so that a person
who meets one knows where it came from. Names are never used to decide whom something belongs
to; the record (:mod:`llamalab.record`) and link aliases are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Labs by name with their index; the index gives each its own networks, so that they can be
#: up side by side (the demo keeps running while the tests use theirs).
LABS: dict[str, int] = {
    "lab": 0,
    "test": 1,
    "molecule": 2,
    "bench": 3,
    "faults": 4,
    "toolchains": 5,
    "backends": 6,
    "bundle": 7,
    "el": 8,
    "models": 9,
}

#: A Debian root with dnf, rpm and the name of Rocky Linux 8.10: enough for what installs packages, no more.
SIMULATED_EL8 = "simulated-el8"

#: What a node can run: releases of Debian, and the simulation.
SUITES: tuple[str, ...] = ("bookworm", "bullseye", "trixie", SIMULATED_EL8)
DEFAULT_SUITE = "bookworm"

#: The networks of a lab: name -> (interface inside a node, third octet of the address, letter
#: in interface names of the host).
NETWORKS: dict[str, tuple[str, int, str]] = {
    "management": ("mgmt0", 0, "m"),
    "fabric": ("fab0", 1, "f"),
}

#: Where the caching apt proxy listens; one proxy serves all labs.
PROXY_ADDRESS = "10.212.0.1"
PROXY_PORT = 3142
PROXY_UNIT = "lclab-apt"

#: The user that Ansible logs in as, and its number inside the nodes.
NODE_USER = "ops"
NODE_UID = 1000

MAX_NODES = 200  # .11 to .210 of a /24

_NODE = re.compile(r"node([1-9][0-9]{0,2})\Z")
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kmg])bit\Z")


class LabError(Exception):
    """Something that the person at the keyboard can act on; the message says how."""


@dataclass(frozen=True)
class Lab:
    """One of the labs of :data:`LABS` and everything that follows from its name."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in LABS:
            raise LabError(f"there is no lab {self.name!r}; the labs are {', '.join(LABS)}")

    @property
    def index(self) -> int:
        """Its place in :data:`LABS`."""
        return LABS[self.name]

    @property
    def alias(self) -> str:
        """The ifalias that marks host links as this lab's."""
        return f"llamacpp-lab {self.name}"

    @property
    def switch_namespace(self) -> str:
        """The network namespace that holds both bridges."""
        return f"lclab-{self.name}"

    def node_namespace(self, node: str) -> str:
        """The network namespace of a node."""
        return f"lclab-{self.name}-{node}"

    def unit(self, node: str) -> str:
        """The name under which a node's processes are supervised, and its machine name."""
        return f"lclab-{self.name}-{node}"

    def host_link(self, network: str) -> str:
        """The host's end of the cable to a bridge, such as ``lclab0m``."""
        return f"lclab{self.index}{NETWORKS[network][2]}"

    def prefix(self, network: str) -> str:
        """The first three octets of a network, such as ``10.213.0``."""
        return f"10.{213 + self.index}.{NETWORKS[network][1]}"

    def host_address(self, network: str) -> str:
        """The host's address on a network."""
        return f"{self.prefix(network)}.1"

    def address(self, node: str, network: str) -> str:
        """A node's address on a network: node k has ``.(10 + k)``."""
        return f"{self.prefix(network)}.{10 + node_number(node)}"

    def mac(self, node: str, network: str) -> str:
        """A node's hardware address on a network.

        It follows from the node, as on a real network card: a node that comes back after a
        power loss would otherwise be unreachable until its peers' ARP entries have expired.
        """
        octet = NETWORKS[network][1]
        return f"02:6c:6c:{self.index:02x}:{octet:02x}:{node_number(node):02x}"


def node_number(node: str) -> int:
    """The k of ``node<k>``; raises :class:`LabError` for any other name."""
    match = _NODE.match(node)
    if match is None or int(match.group(1)) > MAX_NODES:
        raise LabError(f"{node!r} is no node name; nodes are node1 to node{MAX_NODES}")
    return int(match.group(1))


def node_names(count: int) -> list[str]:
    """``["node1", ..., "node<count>"]``; raises :class:`LabError` outside 1 to 200."""
    if not 1 <= count <= MAX_NODES:
        raise LabError(f"a lab has 1 to {MAX_NODES} nodes, not {count}")
    return [f"node{number}" for number in range(1, count + 1)]


def port(node: str, network: str) -> str:
    """The bridge port of a node inside the switch namespace, such as ``fab-node12``."""
    return f"{NETWORKS[network][0].rstrip('0')}-{node}"


def parse_suites(words: list[str]) -> dict[str, str]:
    """``["node2=bullseye"]`` to ``{"node2": "bullseye"}``; raises :class:`LabError`."""
    suites: dict[str, str] = {}
    for word in words:
        node, equals, suite = word.partition("=")
        if not equals:
            raise LabError(f"--suite {word}: write NODE=SUITE, such as node2=bullseye")
        node_number(node)
        if suite not in SUITES:
            raise LabError(f"--suite {word}: the lab knows the suites {', '.join(SUITES)}")
        if suites.setdefault(node, suite) != suite:
            raise LabError(f"--suite: {node} is given two suites; give it one")
    return suites


def rate_bits(rate: str) -> int:
    """A rate as tc writes it (``500mbit``, ``1gbit``) in bits a second."""
    match = _RATE.match(rate)
    if match is None:
        raise LabError(f"--rate {rate}: write a number and a unit, such as 500mbit or 1gbit")
    bits = int(float(match.group(1)) * {"k": 10**3, "m": 10**6, "g": 10**9}[match.group(2)])
    if bits < 8000:
        raise LabError(f"--rate {rate}: the slowest link is 8kbit")
    return bits
