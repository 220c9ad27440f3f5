# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Devices in order, layers on them, and what they take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device
from ansible_collections.llamacpp.cluster.plugins.module_utils._layers import assign_layers
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import Knobs
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import Pool, PoolNode, Use
from ansible_collections.llamacpp.cluster.plugins.module_utils._search import Search
from ansible_collections.llamacpp.cluster.plugins.module_utils._search_rpc import explicit
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, MIB, accept, instance, model

HOST = Device("cpu", "Xeon", 0, 376 * GIB)


def cpu(gib=32.0):
    return [Device("cpu", "Xeon", 0, int(gib * GIB))]


def gpus(*gib):
    return [Device("cuda", "V100S", index, int(size * GIB)) for index, size in enumerate(gib)]


def pool(devices):
    """Return the nodes of ``devices`` (by node); those with GPUs have a large host."""
    return Pool(
        PoolNode(
            name,
            tuple(item for item in listed if item.kind != "cpu"),
            next((item for item in listed if item.kind == "cpu"), HOST),
            False,
            {},
        )
        for name, listed in devices.items()
    )


def placed(devices, facts="toy", use=None, margin=0, **changes):
    """Place an instance on all ``devices`` (by node) and return the placement; ``use``: of (node, device)."""
    parsed = accept(instance(nodes=list(devices), **changes)).instances[0]
    cluster = pool(devices)
    if use:
        cluster.reserve(*use)
    option = explicit(Search(parsed, cluster, margin), model() if facts == "toy" else facts, Knobs.of(parsed))
    return option.placement


def names(placement):
    return tuple(slot.device_name for slot in placement.offload)


def counts(placement):
    return [(share.slot.device_name, share.n_layers) for share in placement.shares]


THREE = {"node1": cpu(), "node2": cpu(), "node3": cpu()}


def test_cpu_heads_keep_the_first_layers():
    placement = placed(THREE)
    assert names(placement) == ("RPC0", "RPC1")
    # 24 layers and the output, the embedding counted to the head: 8, 8 and 9.
    assert counts(placement) == [("CPU", 8), ("RPC0", 8), ("RPC1", 9)]
    assert [share.layers for share in placement.shares] == [(0, 7), (8, 15), (16, 24)]
    assert (placement.gpu_layers, placement.tensor_split) == (17, (8.0, 9.0))


def test_gpu_heads_come_last_and_hold_the_output():
    placement = placed({"node1": gpus(32), "node2": gpus(32), "node3": gpus(32)})
    assert names(placement) == ("RPC0", "RPC1", "CUDA0")
    assert placement.gpu_layers == 25
    last = placement.shares[-1]
    assert (last.slot.node, last.slot.device_name, last.layers[1]) == ("node1", "CUDA0", 24)
    assert sum(share.n_layers for share in placement.shares) == 25


def test_several_gpus_of_a_worker_in_their_order():
    placement = placed({"node1": gpus(32), "node2": gpus(16, 32)})
    assert [(share.slot.node, share.slot.device_name, share.slot.device.index) for share in placement.shares] == [
        ("node2", "RPC0", 0),
        ("node2", "RPC1", 1),
        ("node1", "CUDA0", 0),
    ]
    assert counts(placement) == [("RPC0", 5), ("RPC1", 10), ("CUDA0", 10)]


def test_one_cpu_node():
    placement = placed({"node1": cpu()})
    assert (placement.offload, placement.gpu_layers, placement.tensor_split) == ((), 0, ())
    assert counts(placement) == [("CPU", 25)]


def test_one_node_with_gpus():
    placement = placed({"node1": gpus(24, 48)})
    assert names(placement) == ("CUDA0", "CUDA1")
    assert counts(placement) == [("CUDA0", 8), ("CUDA1", 17)]


def test_weights_go_where_layers_go():
    placement = placed(THREE, facts=model(24, layer=100 * MIB, embed_bytes=7 * MIB, output_bytes=50 * MIB))
    sizes = [(share.n_layers, share.usage.model // MIB) for share in placement.shares]
    (head, head_size), (middle, middle_size), (last, last_size) = sizes
    assert head_size == head * 100 + 7  # the embedding stays with the head
    assert middle_size == middle * 100
    assert last_size == (last - 1) * 100 + 50  # the last of its layers is the output
    assert head + middle + last == 25


def test_total_memory_decides_in_whole_gib():
    few_mib_more = {"node1": cpu(32.2), "node2": cpu(31.9), "node3": cpu(32)}
    assert counts(placed(few_mib_more)) == counts(placed(THREE))


def test_free_memory_does_not_move_layers():
    def with_free(free):
        return {node: [Device("cpu", "Xeon", 0, 32 * GIB, free[node] * GIB)] for node in free}

    before = placed(with_free({"node1": 31, "node2": 31, "node3": 31}))
    after = placed(with_free({"node1": 20, "node2": 3, "node3": 29}))
    assert counts(before) == counts(after)


def test_declared_split_and_layers():
    placement = placed(THREE, tensor_split=[3, 1], gpu_layers=20)
    assert (placement.gpu_layers, placement.tensor_split) == (20, (3.0, 1.0))
    assert counts(placement) == [("CPU", 5), ("RPC0", 15), ("RPC1", 5)]


def test_all_layers_to_the_workers_leaves_the_head_the_embedding():
    placement = placed(THREE, gpu_layers="all")
    assert counts(placement) == [("CPU", 0), ("RPC0", 12), ("RPC1", 13)]
    assert placement.shares[0].layers is None
    assert placement.shares[0].usage.model == 100 * MIB


def test_a_gpu_head_that_does_not_take_all_keeps_the_rest_in_memory():
    placement = placed({"node1": gpus(32)}, gpu_layers=10)
    assert counts(placement) == [("CPU", 15), ("CUDA0", 10)]
    assert placement.shares[0].slot.device.memory_bytes == 376 * GIB


def test_no_layers_on_gpus_means_no_device():
    placement = placed({"node1": gpus(32, 32)}, gpu_layers=0)
    assert names(placement) == ()
    assert counts(placement) == [("CPU", 25)]


def test_more_layers_than_the_model_has():
    assert placed({"node1": gpus(32)}, gpu_layers=999).gpu_layers == 25


def test_one_gpu_only():
    placement = placed({"node1": gpus(32, 32)}, split_mode="none")
    assert names(placement) == ("CUDA0",)


def test_slices():
    placement = placed({"node1": gpus(32, 96)}, split_mode="tensor")
    assert placement.tensor_split == (32.0, 96.0)
    small, large = placement.shares
    assert (small.n_layers, large.n_layers) == (25, 25)
    assert small.usage.model * 3 == large.usage.model
    assert small.usage.model + large.usage.model == 2500 * MIB
    assert not placement.estimate.exact


def test_without_a_header_llama_cpp_counts():
    placement = placed({"node1": gpus(32), "node2": gpus(16)}, facts=None)
    assert (placement.gpu_layers, placement.tensor_split) == (999, (16.0, 32.0))
    assert [(share.n_layers, share.layers, share.usage) for share in placement.shares] == [(None, None, None)] * 2


def test_without_a_header_on_one_cpu():
    placement = placed({"node1": cpu()}, facts=None)
    assert (placement.offload, placement.gpu_layers) == ((), 0)
    assert counts(placement) == [("CPU", None)]


def test_more_devices_than_llama_cpp_takes_are_left_out():
    placement = placed({"node1": gpus(32), "node2": gpus(*[16] * 15)})
    assert len(placement.offload) == 15
    assert (placement.offload[-1].node, placement.offload[-2].device.index) == ("node1", 13)


def test_fewer_layers_than_devices():
    for changes in ({"facts": model(1)}, {"gpu_layers": 1}):
        with pytest.raises(ValueError, match="layers cannot be spread over"):
            placed(THREE, **changes)


def test_a_device_that_would_overflow_gives_layers_away():
    # In proportion to whole GiB both get about the same, and CUDA0 lacks what another instance takes.
    whole = placed({"node1": gpus(16, 16)}, facts=model(24, layer=GIB))
    assert not whole.excess
    other = Use("other", "other", "head", 5 * GIB, 0, 0, 0)
    rest = placed({"node1": gpus(16, 16)}, facts=model(22, layer=GIB), use=("node1", "CUDA0", other))
    assert not rest.excess
    assert counts(rest)[0][1] < counts(rest)[1][1]


def test_what_is_missing_is_counted_by_device():
    placement = placed({"node1": gpus(8, 8)}, facts=model(24, layer=GIB))
    assert placement.excess == sum(share.usage.total - share.slot.room for share in placement.shares)


def test_as_many_devices_as_llama_cpp_takes():
    assert len(placed({"node1": gpus(32), "node2": gpus(*[16] * 14)}).offload) == 15


MACHINES = st.lists(
    st.one_of(st.just(cpu()), st.lists(st.integers(1, 96), min_size=1, max_size=4)), min_size=1, max_size=5
)


@given(MACHINES, st.integers(20, 100))
def test_what_we_report_is_what_llama_cpp_does(machines, n_layers):
    devices = {
        "node%d" % number: (gpus(*machine) if isinstance(machine[0], int) else machine)
        for number, machine in enumerate(machines, 1)
    }
    placement = placed(devices, facts=model(n_layers))
    rule = assign_layers(n_layers, placement.gpu_layers, placement.tensor_split)
    offload = list(names(placement))
    for share in placement.shares:
        index = offload.index(share.slot.device_name) if share.slot.device_name != "CPU" else -1
        layers = [layer for layer, device in enumerate(rule) if device == index]
        assert share.n_layers == len(layers) >= 1
        assert share.layers == (layers[0], layers[-1])
    assert sum(share.n_layers for share in placement.shares) == n_layers + 1
