# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""RDMA ports and network links. The trees are composed from the kernel's documentation of sysfs."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _links
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

HCA = "sys/devices/pci0000:80/0000:81:00.0"
NIC = "sys/devices/pci0000:00/0000:01:00.0"
EMPTY_GID = "0000:0000:0000:0000:0000:0000:0000:0000"


def put(root, path, text):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def port(root, device, number, rate, layer, gids, state="4: ACTIVE"):
    """Add a port; ``gids``: (gid, type, interface) by index, which need not be in a row."""
    base = "sys/class/infiniband/%s/ports/%d" % (device, number)
    put(root, base + "/state", state + "\n")
    put(root, base + "/rate", rate + "\n")
    put(root, base + "/link_layer", layer + "\n")
    for index, (gid, kind, interface) in gids.items():
        put(root, "%s/gids/%d" % (base, index), gid + "\n")
        if kind:
            put(root, "%s/gid_attrs/types/%d" % (base, index), kind + "\n")
        if interface:
            put(root, "%s/gid_attrs/ndevs/%d" % (base, index), interface + "\n")


def interface(root, name, device=None, **files):
    directory = root / "sys/class/net" / name
    directory.mkdir(parents=True)
    for key, value in files.items():
        (directory / key).write_text("%s\n" % value)
    if device:
        (directory / "device").symlink_to(root / device)
        put(root, "%s/net/%s/ifindex" % (device, name), "3\n")


@pytest.fixture
def node(tmp_path):
    """A node with an InfiniBand HCA (whose kernel does not say the speed of IPoIB) and a RoCE card."""
    put(tmp_path, HCA + "/numa_node", "1\n")
    put(tmp_path, NIC + "/numa_node", "-1\n")
    for device, where in (("mlx5_0", HCA), ("mlx5_1", NIC)):
        (tmp_path / "sys/class/infiniband" / device).mkdir(parents=True)
        (tmp_path / "sys/class/infiniband" / device / "device").symlink_to(tmp_path / where)
    gid = "fe80:0000:0000:0000:ec0d:9a03:0078:645e"
    port(tmp_path, "mlx5_0", 1, "100 Gb/sec (4X EDR)", "InfiniBand", {0: (gid, "IB/RoCE v1", None)})
    roce = {
        0: ("fe80:0000:0000:0000:0000:0000:0000:0001", "IB/RoCE v1", "ens1"),
        3: ("0000:0000:0000:0000:0000:ffff:0a00:0001", "RoCE v2", "ens1"),
        10: (EMPTY_GID, None, None),
    }
    port(tmp_path, "mlx5_1", 1, "10 Gb/sec (1X QDR)", "Ethernet", roce)
    interface(tmp_path, "ib0", HCA)
    interface(tmp_path, "ens1", NIC, speed=25000)
    interface(tmp_path, "lo")
    interface(tmp_path, "virbr0", speed=-1)
    put(tmp_path, "sys/bus/pci/drivers/mlx5_core/bind", "")
    (tmp_path / HCA / "driver").symlink_to(tmp_path / "sys/bus/pci/drivers/mlx5_core")
    return tmp_path


def test_rdma(node):
    infiniband, roce = _links.rdma(Tree(str(node)))
    assert infiniband == {
        "device": "mlx5_0",
        "port": 1,
        "state": "active",
        "rate_mbit": 100000,
        "link_layer": "InfiniBand",
        "interfaces": ["ib0"],
        "gids": [
            {
                "index": 0,
                "gid": "fe80:0000:0000:0000:ec0d:9a03:0078:645e",
                "type": "IB/RoCE v1",
                "interface": None,
            }
        ],
        "pci_id": "0000:81:00.0",
        "numa_node": 1,
    }
    assert [(gid["index"], gid["type"]) for gid in roce["gids"]] == [(0, "IB/RoCE v1"), (3, "RoCE v2")]
    assert (roce["interfaces"], roce["link_layer"], roce["numa_node"]) == (["ens1"], "Ethernet", None)


def test_a_node_without_rdma(tmp_path):
    assert _links.rdma(Tree(str(tmp_path))) == []


def test_two_ports_of_one_function(tmp_path):
    (tmp_path / HCA).mkdir(parents=True)
    (tmp_path / "sys/class/infiniband/mlx4_0").mkdir(parents=True)
    (tmp_path / "sys/class/infiniband/mlx4_0/device").symlink_to(tmp_path / HCA)
    port(tmp_path, "mlx4_0", 1, "56 Gb/sec (4X FDR)", "InfiniBand", {})
    port(tmp_path, "mlx4_0", 2, "2.5 Gb/sec (1X SDR)", "InfiniBand", {}, state="1: DOWN")
    interface(tmp_path, "ib0", HCA, dev_port="0x0")
    interface(tmp_path, "ib1", HCA, dev_port="1")
    one, other = _links.rdma(Tree(str(tmp_path)))
    assert (one["interfaces"], one["rate_mbit"], one["state"]) == (["ib0"], 56000, "active")
    assert (other["interfaces"], other["rate_mbit"], other["state"]) == (["ib1"], 2500, "down")


def test_speeds(node):
    tree = Tree(str(node))
    assert _links.speeds(tree, _links.rdma(tree)) == {"ib0": 100000, "ens1": 25000, "lo": None, "virbr0": None}


def test_rates_that_say_nothing():
    assert _links.rate_mbit("") is None
    assert _links.rate_mbit("unknown") is None


def test_links(node):
    text = json.dumps(
        [
            {
                "ifname": "ib0",
                "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
                "mtu": 2044,
                "link_type": "infiniband",
                "addr_info": [
                    {"family": "inet", "local": "10.100.0.31", "prefixlen": 24, "scope": "global"},
                    {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
                ],
            },
            {
                "ifname": "ens1",
                "flags": ["NO-CARRIER", "BROADCAST", "UP"],
                "mtu": 9000,
                "link_type": "ether",
                "master": "bond0",
                "addr_info": [],
            },
            {},
        ]
    )
    tree = Tree(str(node))
    ethernet, infiniband = _links.links(text, tree, _links.rdma(tree))
    assert infiniband == {
        "interface": "ib0",
        "kind": "infiniband",
        "up": True,
        "mtu": 2044,
        "speed_mbit": 100000,
        "addresses": ["10.100.0.31/24"],
        "master": None,
        "driver": "mlx5_core",
        "pci_id": "0000:81:00.0",
        "numa_node": 1,
        "rdma": "mlx5_0",
    }
    assert (ethernet["up"], ethernet["master"], ethernet["rdma"]) == (False, "bond0", "mlx5_1")
