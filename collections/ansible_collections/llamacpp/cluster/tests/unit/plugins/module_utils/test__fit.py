# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether what is planned fits into memory."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device
from ansible_collections.llamacpp.cluster.plugins.module_utils._fit import check_memory
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import CUDA_PROCESS_BYTES, Demand
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import Placement, Share, Slot
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, MIB, accept, instance, node

MARGIN = 256 * MIB


def on(name, device, weights, context=0, compute=0):
    """Return an instance that takes so many MiB on a device of node1."""
    parsed = accept(instance(name, nodes=["node1"])).instances[0]
    share = Share(Slot("node1", "X", device), (0, 1), 2, Demand(weights * MIB, context * MIB, compute * MIB))
    return parsed, Placement((), (), 0, (share,))


def messages(*placements, units=None):
    found = {"node1": NodeFacts.from_dict(node(units=units or {}))}
    return [str(problem) for problem in check_memory(placements, found, MARGIN)]


def cpu(total, free=None):
    return Device("cpu", "Xeon", 0, int(total * GIB), None if free is None else int(free * GIB))


def running(name):
    return {"llamacpp-%s.service" % name: {"role": "head", "instance": name, "port": 1, "active": True, "release": ""}}


def test_it_fits():
    assert messages(on("a", cpu(1, 1), 1024 - 256)) == []


def test_one_mib_too_many():
    assert messages(on("a", cpu(1), 700, 60, 9)) == [
        "memory of CPU of node1 = 1024 MiB: a takes 769 MiB (weights 700, context 60, compute 9) "
        "and 256 MiB stay free: "
        "lower llamacpp_instances[0].context (4096) or parallel (1), choose a smaller quantisation, or add nodes"
    ]


def test_instances_on_one_device_add_up():
    (message,) = messages(on("a", cpu(1), 500), on("b", cpu(1), 500))
    assert "a takes 500 MiB" in message
    assert "b takes 500 MiB" in message


def test_what_is_free_counts_where_nothing_of_ours_runs():
    (message,) = messages(on("a", cpu(8, 1), 1000))
    assert message.startswith("free memory of CPU of node1 = 1024 MiB: a takes 1000 MiB")


def test_what_runs_already_is_not_counted_twice():
    assert messages(on("a", cpu(8, 1), 1000), units=running("a")) == []


def test_a_service_that_is_to_go_does_not_stand_in_the_way():
    assert messages(on("new", cpu(8, 1), 5000), units=running("old")) == []


def test_a_second_instance_beside_one_that_runs():
    assert messages(on("a", cpu(8, 3), 4000), on("b", cpu(8, 3), 1000), units=running("a")) == []
    (message,) = messages(on("a", cpu(8, 1), 4000), on("b", cpu(8, 1), 4000), units=running("a"))
    assert message.startswith("memory of CPU of node1 = 8192 MiB: a takes 4000 MiB")


def test_a_process_takes_memory_of_its_own_on_a_gpu():
    device = Device("cuda", "V100S", 0, GIB)
    fits = (GIB - MARGIN - CUDA_PROCESS_BYTES) // MIB
    assert messages(on("a", device, fits)) == []
    (message,) = messages(on("a", device, fits + 1))
    assert message.startswith("memory of CUDA0 of node1 (V100S) = 1024 MiB")


def test_nothing_is_known_of_some_devices():
    assert messages(on("a", cpu(0), 1000)) == []
