# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find a node's network links and RDMA devices, among which the fabric is. Speeds in Mbit/s.

Layout of /sys/class/infiniband: Linux, Documentation/ABI/stable/sysfs-class-infiniband; of /sys/class/net:
Documentation/ABI/testing/sysfs-class-net.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._node import KINDS
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

_NO_GID = re.compile(r"^(0000:)*0000$|^$")


def rate_mbit(text: str) -> int | None:
    """Read an RDMA port's rate: 100000 for ``100 Gb/sec (4X EDR)``; None when it says nothing of the kind."""
    match = re.match(r"([\d.]+) Gb/sec", text)
    return round(float(match.group(1)) * 1000) if match else None


def rdma(tree: Tree) -> list[dict[str, Any]]:
    """Return a node's RDMA ports (InfiniBand, RoCE, iWARP).

    ``device``, ``port``, ``state`` (V(active), V(down), V(init) ...), ``rate_mbit``, ``link_layer`` (V(InfiniBand)
    or V(Ethernet)), ``interfaces`` (network interfaces on the same port), ``gids`` (``index``, ``gid``, ``type``,
    ``interface``), ``pci_id``, ``numa_node``.
    """
    found = []
    for device in tree.names("/sys/class/infiniband"):
        base = "/sys/class/infiniband/" + device
        for port in tree.names(base + "/ports"):
            where = "%s/ports/%s" % (base, port)
            gids = _gids(tree, where)
            found.append(
                {
                    "device": device,
                    "port": int(port),
                    "state": tree.read(where + "/state").partition(":")[2].strip().lower() or None,
                    "rate_mbit": rate_mbit(tree.read(where + "/rate")),
                    "link_layer": tree.read(where + "/link_layer") or None,
                    "interfaces": _interfaces(tree, base, int(port), gids),
                    "gids": gids,
                    "pci_id": tree.pci_id(base + "/device"),
                    "numa_node": tree.numa_node(base + "/device"),
                }
            )
    return found


def _gids(tree: Tree, port: str) -> list[dict[str, Any]]:
    gids = []
    for index in sorted(tree.names(port + "/gids"), key=int):
        gid = tree.read("%s/gids/%s" % (port, index))
        if not _NO_GID.match(gid):
            gids.append(
                {
                    "index": int(index),
                    "gid": gid,
                    "type": tree.read("%s/gid_attrs/types/%s" % (port, index)) or None,
                    "interface": tree.read("%s/gid_attrs/ndevs/%s" % (port, index)) or None,
                }
            )
    return gids


def _interfaces(tree: Tree, base: str, port: int, gids: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the network interfaces of a port: those of its GIDs (RoCE), and those of its PCI function (IPoIB)."""
    names = {gid["interface"] for gid in gids if gid["interface"]}
    several = len(tree.names(base + "/ports")) > 1
    for name in tree.names(base + "/device/net"):
        # Two ports may share a PCI function; dev_port, from 0, tells their interfaces apart.
        if not several or tree.number("/sys/class/net/%s/dev_port" % name) == port - 1:
            names.add(name)
    return sorted(names)


def speeds(tree: Tree, ports: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Return the speed of every network interface; None when neither its driver nor its RDMA port says it.

    IPoIB interfaces of older kernels have none of their own.
    """
    by_rdma = {name: port["rate_mbit"] for port in ports for name in port["interfaces"]}
    return {
        name: tree.positive("/sys/class/net/%s/speed" % name) or by_rdma.get(name)
        for name in tree.names("/sys/class/net")
    }


def links(text: str, tree: Tree, ports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Read ``ip -j address``: every network link, up or not, with what /sys and ``ports`` of :func:`rdma` add."""
    speed = speeds(tree, ports)
    by_rdma = {name: port["device"] for port in ports for name in port["interfaces"]}
    found = []
    for link in json.loads(text):
        if not link:
            continue
        name = link["ifname"]
        base = "/sys/class/net/" + name
        found.append(
            {
                "interface": name,
                "kind": KINDS.get(link.get("link_type", ""), "other"),
                "up": "UP" in link.get("flags", []) and "NO-CARRIER" not in link.get("flags", []),
                "mtu": link["mtu"],
                "speed_mbit": speed.get(name),
                "addresses": [
                    "%s/%d" % (item["local"], item["prefixlen"])
                    for item in link.get("addr_info", [])
                    if "local" in item and not (item["family"] == "inet6" and item.get("scope") == "link")
                ],
                "master": link.get("master"),
                "driver": tree.target(base + "/device/driver"),
                "pci_id": tree.pci_id(base + "/device"),
                "numa_node": tree.numa_node(base + "/device"),
                "rdma": by_rdma.get(name),
            }
        )
    return sorted(found, key=lambda item: str(item["interface"]))
