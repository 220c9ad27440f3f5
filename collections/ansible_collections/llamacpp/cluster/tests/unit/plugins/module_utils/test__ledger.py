# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prediction, oracle and reality side by side."""

from __future__ import annotations

from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._ledger import drifted, ledger_table, make_ledger

MIB = 1 << 20
MARGIN = 100 * MIB
UUID = "GPU-00000000-0000-0000-0000-000000000001"


def use(node: str, device: str, kind: str = "cuda", **changes: Any) -> dict[str, Any]:
    """Return a device of a plan: 1,000 MiB of buffers and 600 MiB of overhead."""
    sizes = {"model_bytes": 700, "context_bytes": 200, "compute_bytes": 100, "overhead_bytes": 600, "total_bytes": 1600}
    found = {"node": node, "device": device, "kind": kind, "endpoint": None}
    return {**found, **{key: size * MIB for key, size in sizes.items()}, **changes}


def plan(**changes: Any) -> dict[str, Any]:
    """Return a plan: GPUs of two workers (one with two) and of the head, and the head's memory."""
    worker = {"unit": "llamacpp-rpc-demo.service"}
    instance = {
        "name": "demo",
        "unit": "llamacpp-demo.service",
        "head": "node1",
        "devices": [
            use("node2", "RPC0", endpoint="10.0.0.2:50052"),
            use("node3", "RPC1", kind="cpu", endpoint="10.0.0.3:50052"),
            use("node1", "CUDA0"),
        ],
        "workers": [
            dict(worker, node="node2", devices=["CUDA1"]),
            dict(worker, node="node3", devices=["CPU"]),
        ],
        "host_memory": use("node1", "", host=True),
    }
    return {"instances": [{**instance, **changes}]}


NODES = {
    "node1": {"devices": [{"kind": "cuda", "index": 0, "uuid": UUID}]},
    "node2": {"devices": [{"kind": "cuda", "index": 0, "uuid": "other"}, {"kind": "cuda", "index": 1, "uuid": UUID}]},
    "node3": {"devices": [{"kind": "cpu", "index": 0}]},
}


def taken(mib: int, host: int = 1500, mapped: int = 0) -> dict[str, Any]:
    sizes = {"rss_bytes": (host + mapped) * MIB, "file_bytes": mapped * MIB}
    return {**sizes, "gpus": {UUID: mib * MIB, "other": 5 * MIB}}


def reality(head: int = 1600, host: int = 1500, gpu: int = 1600, cpu: int = 1500) -> dict[str, Any]:
    return {
        "node1": {"llamacpp-demo.service": taken(head, host)},
        "node2": {"llamacpp-rpc-demo.service": taken(gpu)},
        "node3": {"llamacpp-rpc-demo.service": taken(0, cpu)},
    }


def said(mib: int) -> dict[str, int]:
    return {"model": (mib - 300) * MIB, "context": 200 * MIB, "compute": 100 * MIB}


def ledger(oracle: dict[str, Any] | None = None, **changes: int) -> list[Any]:
    return make_ledger(plan(), NODES, reality(**changes), oracle or {}, MARGIN)


def test_each_device_with_what_its_own_process_takes():
    entries = ledger(head=1590, host=900, gpu=1610, cpu=1400)
    assert [(item.node, item.device, item.reality // MIB) for item in entries] == [
        ("node2", "RPC0", 1610),
        ("node3", "RPC1", 1400),
        ("node1", "CUDA0", 1590),
        ("node1", "host", 900),
    ]
    assert drifted(entries) == []


def test_more_than_planned_is_drift_on_every_kind_of_device():
    for changes, device in (({"gpu": 1701}, "RPC0"), ({"cpu": 1701}, "RPC1"), ({"head": 1701}, "CUDA0")):
        entries = ledger(**changes)
        assert [item.device for item in entries if item.drift] == [device]
        assert "takes 101 MiB more than planned" in drifted(entries)[0]
        assert "predicted 1600" in drifted(entries)[0]
        assert "reality 1701 MiB" in drifted(entries)[0]
    # A head may keep 8 GiB of prompts.
    assert drifted(ledger(host=1700 + 8192)) == []
    assert [item.device for item in ledger(host=1701 + 8192) if item.drift] == ["host"]


def test_less_than_planned_is_drift_on_a_gpu_alone():
    entries = ledger(gpu=1499, cpu=10, host=10)
    assert [item.device for item in entries if item.drift] == ["RPC0"]
    assert "takes 101 MiB less than planned" in drifted(entries)[0]


def test_the_bound_for_a_projector_may_be_missing():
    planned = plan()
    planned["instances"][0]["projector"] = {"device": "CUDA0", "model_bytes": 50 * MIB, "compute_bytes": 300 * MIB}
    found = {head: make_ledger(planned, NODES, reality(head=head, gpu=head), {}, MARGIN) for head in (1200, 1199)}
    # On its device alone.
    assert [item.device for item in found[1200] if item.drift] == ["RPC0"]
    assert [item.device for item in found[1199] if item.drift] == ["RPC0", "CUDA0"]


def test_mapped_pages_are_the_kernels_to_take_back():
    services = reality()
    services["node1"]["llamacpp-demo.service"] = taken(1600, host=400, mapped=700)
    assert make_ledger(plan(), NODES, services, {}, MARGIN)[3].reality == 1100 * MIB
    services["node1"]["llamacpp-demo.service"] = taken(1600, host=1200, mapped=1500)
    assert make_ledger(plan(), NODES, services, {}, 0)[3].drift == ""
    services["node1"]["llamacpp-demo.service"] = taken(1600, host=1701 + 8192, mapped=1500)
    assert "takes 8293 MiB more" in make_ledger(plan(), NODES, services, {}, MARGIN)[3].drift


def test_the_oracle_is_compared_with_buffers():
    entries = ledger({"demo": {"RPC0": said(1100), "CUDA0": said(1101), "host": said(500)}})
    assert [item.device for item in entries if item.drift] == ["CUDA0"]
    assert "llama.cpp asks for 101 MiB more than planned" in drifted(entries)[0]
    assert entries[3].oracle == 500 * MIB


def test_what_nobody_knows_is_no_drift():
    unknown = make_ledger(plan(), {}, {"node1": {"llamacpp-demo.service": None}}, {}, MARGIN)
    assert [item.reality for item in unknown] == [None] * 4
    assert drifted(unknown) == []
    entries = make_ledger(plan(host_memory=None, devices=[use("node1", "CUDA0", total_bytes=None)]), NODES, {}, {}, 0)
    assert drifted(entries) == []


def test_a_head_without_a_gpu_has_its_memory_once():
    devices = [use("node1", "CPU", kind="cpu", host=True)]
    entries = make_ledger(plan(devices=devices, workers=[]), NODES, reality(), {"demo": {"host": said(1000)}}, 0)
    assert [(item.device, item.reality // MIB, item.oracle // MIB) for item in entries] == [("CPU", 1500, 1000)]


def test_the_table_has_every_figure():
    lines = ledger_table(ledger({"demo": {"RPC0": said(990)}}, gpu=1610)).splitlines()
    assert lines[0].split() == ["instance", "node", "device", "predicted", "oracle", "reality", "drift"]
    assert lines[1].split() == ["demo", "node2", "RPC0", "1600", "990", "(1000)", "1610", "+10"]
    assert "takes" in ledger_table(ledger(gpu=1800)).splitlines()[1]
