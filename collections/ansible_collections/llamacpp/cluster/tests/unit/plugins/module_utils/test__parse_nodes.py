# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Settings and what the inventory declares of nodes, and every message about them."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, accept, declare


def only(**changes):
    """Return the only message."""
    _declared, problems = declare(**changes)
    assert len(problems) == 1, problems
    return str(problems[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models_dir": "models"}, "llamacpp_models_dir = models: must be an absolute path"),
        ({"http_port_base": 80}, "llamacpp_http_port_base = 80: must be at least 1024"),
        ({"memory_check": "no"}, "llamacpp_memory_check = no: write true or false, without quotes"),
        ({"modelsdir": "/x"}, "llamacpp_modelsdir = (not shown): there is no such key; did you mean models_dir?"),
    ],
)
def test_settings(settings, message):
    assert only(settings=settings).startswith(message)


def test_declared_devices():
    declared = accept(
        nodes={
            "node1": {
                "fabric_address": "10.100.0.31",
                "cores": 40,
                "devices": [
                    {"kind": "cuda", "name": "V100S", "memory": "32 GiB", "compute_capability": 7.0},
                    {"memory_bytes": GIB},
                ],
            }
        }
    )
    node = declared.node("node1")
    assert (node.fabric_address, node.cores) == ("10.100.0.31", 40)
    assert [(device.local_name, device.memory_bytes) for device in node.devices] == [
        ("CUDA0", 32 * GIB),
        ("CUDA1", GIB),
    ]
    assert node.devices[0].compute_capability == "7.0"
    assert declared.node("node2").devices is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"fabric_address": "fe80::1"}, "llamacpp_fabric_address of node1 = fe80::1: must be an IPv4 address"),
        ({"fabric_address": "ib0"}, "llamacpp_fabric_address of node1 = ib0: must be an IPv4 address"),
        (
            {"fabric_address": "0.0.0.0"},
            "llamacpp_fabric_address of node1 = 0.0.0.0: must be an address that the other",
        ),
        ({"devices": []}, "llamacpp_devices of node1 = []: must be a list"),
        ({"devices": ["V100"]}, "llamacpp_devices[0].kind of node1 = V100: a device is a mapping"),
        ({"devices": [{"kind": "cuda"}]}, "llamacpp_devices[0].memory of node1 = (not set): say how much memory"),
        ({"devices": [{"memory": "big"}]}, "llamacpp_devices[0].memory of node1 = big: must be a size, e.g. 32 GiB"),
        ({"devices": [{"memory_bytes": 0}]}, "llamacpp_devices[0].memory_bytes of node1 = 0: must be a size"),
        ({"devices": [{"kind": "tpu", "memory": "1 GiB"}]}, "llamacpp_devices[0].kind of node1 = tpu: must be one of"),
        (
            {"devices": [{"memory": "1 GiB"}, {"kind": "cpu", "memory": "1 GiB"}]},
            "llamacpp_devices of node1 = [",
        ),
        ({"core": 4}, "llamacpp_core of node1 = (not shown): there is no such key; did you mean cores?"),
    ],
)
def test_declared_nodes(data, message):
    assert only(nodes={"node1": data}).startswith(message)
