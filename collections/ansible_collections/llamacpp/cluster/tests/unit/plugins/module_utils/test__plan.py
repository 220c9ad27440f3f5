# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The whole plan: its contract, its stability, and the problems that it reports together."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._flags import RPC_CACHE_FROM
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import Shard
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan, plan_json
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError
from ansible_collections.llamacpp.cluster.tests.unit.builders import (
    GIB,
    MIB,
    accept,
    device,
    instance,
    model,
    node,
    nodes,
)


def plan_for(*instances, found=None, models=None, **changes):
    declared = accept(*instances, **changes)
    if models is None:
        models = {item.name: model() for item in declared.instances}
    return make_plan(declared, nodes() if found is None else found, models)


def problems_for(*instances, **changes):
    with pytest.raises(PlanError) as caught:
        plan_for(*instances, **changes)
    return [str(problem) for problem in caught.value.problems]


def value(arguments, flag):
    return arguments[arguments.index(flag) + 1]


def what_runs(plan):
    """Return what of each instance ends up on nodes: everything but sizes, reasons and alternatives."""
    told = {"devices", "why", "choices", "alternatives"}
    return [{key: value for key, value in item.items() if key not in told} for item in plan["instances"]]


def deployed(plan):
    """Return facts of the nodes after this plan was carried out: everything runs and holds memory."""
    found = {}
    for number, name in enumerate(sorted(plan["nodes"]), 1):
        units = {}
        for item in plan["instances"]:
            entry = {"instance": item["name"], "active": True, "release": item["release"]}
            if item["head"] == name:
                units[item["unit"]] = dict(entry, role="head", port=item["port"])
            for worker in item["workers"]:
                if worker["node"] == name:
                    units[worker["unit"]] = dict(entry, role="worker", port=worker["port"])
        found[name] = NodeFacts.from_dict(
            node(
                "10.0.1.%d" % (10 + number),
                units=units,
                listening=[22] + [item["port"] for item in units.values()],
                devices=[device("cpu", 32, 1)],
            )
        )
    return found


def test_the_lab():
    plan = plan_for(instance(parallel=2, api_keys=["s3cret"]))
    (item,) = plan["instances"]
    assert (plan["schema"], plan["release"]) == (4, "b11434")
    assert (item["name"], item["unit"], item["head"]) == ("demo", "llamacpp-demo.service", "node1")
    assert item["model"] == {
        "name": "toy",
        "file": "toy.gguf",
        "path": "/var/lib/llamacpp/models/names/toy/toy.gguf",
        "manifest": "/var/lib/llamacpp/models/manifests/toy.json",
        "files": ["/var/lib/llamacpp/models/names/toy/toy.gguf"],
        "bytes": 2600 * MIB,
        "sha256": None,
        "architecture": "toy",
        "quant": "F16",
        "n_layers": 24,
        "n_ctx_train": 8192,
    }
    assert item["args"] == [
        "--model", "/var/lib/llamacpp/models/names/toy/toy.gguf",
        "--alias", "demo",
        "--rpc", "10.0.1.12:50052,10.0.1.13:50052",
        "--device", "RPC0,RPC1",
        "--split-mode", "layer",
        "--tensor-split", "8,9",
        "--n-gpu-layers", "17",
        "--fit", "off",
        "--ctx-size", "8192",
        "--parallel", "2",
        "--no-kv-unified",
        "--batch-size", "2048",
        "--ubatch-size", "512",
        "--cache-type-k", "f16",
        "--cache-type-v", "f16",
        "--flash-attn", "auto",
        "--load-mode", "auto",
        "--threads", "4",
        "--threads-batch", "4",
        "--host", "0.0.0.0",
        "--port", "8080",
        "--api-key-file", "/etc/llamacpp/keys/demo",
        "--metrics",
        "--verbosity", "4",
    ]  # fmt: skip
    assert item["workers"][0] == {
        "node": "node2",
        "host": "10.0.1.12",
        "port": 50052,
        "unit": "llamacpp-rpc-demo.service",
        "devices": ["CPU"],
        "cache": True,
        "args": ["--host", "10.0.1.12", "--port", "50052", "--device", "CPU", "--threads", "4", "--cache"],
        "release": item["release"],
    }
    middle = item["devices"][1]
    taken = [middle[part + "_bytes"] for part in ("model", "context", "compute", "overhead")]
    assert middle == {
        "node": "node2",
        "device": "RPC0",
        "local_device": "CPU",
        "kind": "cpu",
        "name": "Xeon",
        "compute_capability": None,
        "host": False,
        "endpoint": "10.0.1.12:50052",
        "layers": [8, 15],
        "n_layers": 8,
        "model_bytes": 800 * MIB,
        "context_bytes": 8 * 2 * 4096 * 2 * 8 * 64 * 2,
        "compute_bytes": middle["compute_bytes"],
        "overhead_bytes": 0,
        "total_bytes": sum(taken),
        "memory_bytes": 32 * GIB,
        "free_bytes": 32 * GIB - sum(taken) - 256 * MIB,
    }
    assert item["host_memory"]["model_bytes"] == item["devices"][0]["model_bytes"] == 900 * MIB
    assert item["settings"] == {
        "ctx_size": 8192, "parallel": 2, "kv_unified": False, "cache_type_k": "f16", "cache_type_v": "f16",
        "flash_attn": "auto", "batch_size": 2048, "ubatch_size": 512, "gpu_layers": 17, "tensor_split": [8, 9],
        "split_mode": "layer", "cpu_moe": False, "n_cpu_moe": 0, "swa_full": False, "no_kv_offload": False,
    }  # fmt: skip
    assert (item["strategy"], item["exact"], item["declared"]) == ("rpc", False, "demo")
    (use,) = plan["devices"]["node2"][0]["uses"]
    assert (use["instance"], use["role"], use["model_bytes"]) == ("demo", "worker", 800 * MIB)
    assert plan["devices"]["node2"][0]["free_bytes"] == middle["free_bytes"]
    assert item["devices"][0]["endpoint"] is None
    assert item["start_timeout"] == 300 + 3 * 20
    assert item["api_key_file"] == "/etc/llamacpp/keys/demo"
    assert plan["nodes"]["node1"] == {
        "release": item["release"],
        "devices": [],
        "fabric_address": "10.0.1.11",
        "units": ["llamacpp-demo.service"],
        "firewall": [{"port": 8080, "sources": [], "purpose": "http", "instance": "demo"}],
    }
    assert plan["nodes"]["node2"] == {
        "release": item["release"],
        "devices": [],
        "fabric_address": "10.0.1.12",
        "units": ["llamacpp-rpc-demo.service"],
        "firewall": [{"port": 50052, "sources": ["10.0.1.11"], "purpose": "rpc", "instance": "demo"}],
    }
    # Nodes without an instance are in the plan too: that is how their old units are found.
    idle = {"release": None, "devices": [], "fabric_address": None, "units": [], "firewall": []}
    assert plan["nodes"]["node6"] == idle
    assert "s3cret" not in json.dumps(plan)


def test_the_same_input_gives_the_same_bytes():
    instances = [instance("a"), instance("b", nodes=["node3", "node2"])]
    found = nodes()
    backwards = dict(reversed(list(found.items())))
    assert plan_json(plan_for(*instances, found=found)) == plan_json(plan_for(*instances, found=backwards))


def test_a_cluster_that_runs_the_plan_gives_it_again():
    instances = [instance("a", port=8000), instance("b", nodes=["node3", "node2"]), instance("c", nodes=["node1"])]
    plan = plan_for(*instances, found=nodes(6))
    assert plan_json(plan_for(*instances, found=deployed(plan))) == plan_json(plan)


def test_changing_slots_touches_one_head_only():
    before = plan_for(instance("a"), instance("b", nodes=["node2"]), found=nodes(6))
    after = plan_for(instance("a", parallel=2), instance("b", nodes=["node2"]), found=deployed(before))
    assert after["nodes"] == before["nodes"]
    assert what_runs(after)[1] == what_runs(before)[1]
    assert after["instances"][0]["workers"] == before["instances"][0]["workers"]
    pairs = zip(before["instances"][0]["args"], after["instances"][0]["args"])
    assert [pair for pair in pairs if pair[0] != pair[1]] == [("4096", "8192"), ("1", "2")]


def test_removing_an_instance_leaves_the_other_as_it_was():
    before = plan_for(instance("a"), instance("b"))
    after = plan_for(instance("b"), found=deployed(before))
    assert what_runs(after) == what_runs(before)[1:]


def test_gpu_nodes():
    found = {
        "node1": NodeFacts.from_dict(node("10.0.1.11", devices=[device("cuda", 32)])),
        "node2": NodeFacts.from_dict(node("10.0.1.12", devices=[device("cuda", 32), device("cuda", 32, index=1)])),
    }
    (item,) = plan_for(instance(nodes=["node1", "node2"]), found=found)["instances"]
    assert value(item["args"], "--device") == "RPC0,RPC1,CUDA0"
    assert value(item["args"], "--n-gpu-layers") == "25"
    assert item["workers"][0]["devices"] == ["CUDA0", "CUDA1"]
    assert value(item["workers"][0]["args"], "--device") == "CUDA0,CUDA1"
    assert [entry["endpoint"] for entry in item["devices"]] == ["10.0.1.12:50052", "10.0.1.12:50052", None]


def test_a_declared_tensor_split_is_called_one():
    gpus = [dict(device("cuda", 32, index=index), nvlink=[1 - index]) for index in range(2)]
    found = {"node1": NodeFacts.from_dict(node("10.0.1.11", devices=gpus))}
    (item,) = plan_for(instance(nodes=["node1"], split_mode="tensor"), found=found)["instances"]
    assert item["strategy"] == "tensor-split"
    assert value(item["args"], "--split-mode") == "tensor"


def test_one_cpu_node():
    plan = plan_for(instance(nodes=["node1"], host="127.0.0.1"))
    (item,) = plan["instances"]
    assert value(item["args"], "--device") == "none"
    assert value(item["args"], "--n-gpu-layers") == "0"
    assert "--rpc" not in item["args"]
    assert "--tensor-split" not in item["args"]
    # Nobody else reaches the loopback address, so the firewall stays shut.
    assert plan["nodes"]["node1"] == {
        "release": item["release"],
        "devices": [],
        "fabric_address": None,
        "units": ["llamacpp-demo.service"],
        "firewall": [],
    }
    assert plan["releases"][item["release"]]["nodes"] == list(nodes())


@pytest.mark.parametrize(
    ("release", "settings", "cache"),
    [
        ("b%d" % RPC_CACHE_FROM, {}, True),
        # Its workers would fill their disks.
        ("b%d" % (RPC_CACHE_FROM - 1), {}, False),
        ("c0ffee" + "0" * 34, {}, False),
        ("b11434", {"rpc_cache": False}, False),
    ],
)
def test_workers_keep_weights_where_they_do_it_well(release, settings, cache):
    declared = accept(instance(), release=release, settings=settings)
    (item,) = make_plan(declared, nodes(), {"demo": model()})["instances"]
    assert [worker["cache"] for worker in item["workers"]] == [cache, cache]
    assert all(("--cache" in worker["args"]) is cache for worker in item["workers"])


def test_a_model_from_an_address_keeps_its_checksum():
    source = {"url": "https://models.example.org/m.gguf", "sha256": "ab" * 32}
    plan = plan_for(instance(model=source), models={"demo": model()})
    assert plan["instances"][0]["model"]["sha256"] == "ab" * 32
    assert plan["models"]["m"]["source"] == {"urls": ["https://models.example.org/m.gguf"], "from": "node"}


def test_a_split_model_keeps_its_names():
    names = ("toy-00001-of-00002.gguf", "toy-00002-of-00002.gguf")
    shards = tuple(Shard(name, GIB, 1) for name in names)
    source = {"path": "/srv/models/" + names[0]}
    (item,) = plan_for(instance(model=source), models={"demo": model(shards=shards)})["instances"]
    directory = "/var/lib/llamacpp/models/names/toy/"
    assert item["model"]["files"] == [directory + name for name in names]
    assert value(item["args"], "--model") == directory + names[0]
    plan = plan_for(instance(model=dict(source, name="x.gguf")), models={"demo": model(shards=shards)})
    assert [item["name"] for item in plan["models"]["x"]["files"]] == list(names)


def test_only_another_shard_is_named():
    source = {"path": "/srv/toy-00002-of-00002.gguf"}
    (message,) = problems_for(instance(model=source), models={"demo": model()})
    assert "name the first, toy-00001-of-00002.gguf" in message


# The three nodes that were set up by hand: no node is asked, no header read.
V100S = {
    "cores": 40,
    "devices": [{"kind": "cuda", "name": "Tesla V100S", "memory": "32 GiB", "compute_capability": "7.0"}],
}


def test_a_cluster_that_cannot_be_reached():
    plan = plan_for(
        instance(
            "behemoth", model={"path": "/opt/models/OR1-Behemoth.Q4_K_M.gguf", "from": "node"}, parallel=3, port=8000
        ),
        nodes={"node%d" % n: dict(V100S, fabric_address="10.100.0.3%d" % n) for n in (1, 2, 3)},
        found={},
        models={},
        static=True,
    )
    (item,) = plan["instances"]
    assert value(item["args"], "--rpc") == "10.100.0.32:50052,10.100.0.33:50052"
    assert value(item["args"], "--device") == "RPC0,RPC1,CUDA0"
    assert value(item["args"], "--tensor-split") == "32,32,32"
    assert value(item["args"], "--n-gpu-layers") == "999"
    assert value(item["args"], "--ctx-size") == "12288"
    assert value(item["args"], "--threads") == "40"
    assert (item["port"], item["start_timeout"]) == (8000, 300 + 96 * 20)
    assert item["devices"][0]["layers"] is None
    assert item["model"]["bytes"] is None


def test_a_static_plan_with_a_header_knows_layers():
    declared = {"node1": dict(V100S), "node2": dict(V100S, fabric_address="10.100.0.32")}
    declared["node1"]["fabric_address"] = "10.100.0.31"
    plan = plan_for(instance(nodes=["node1", "node2"]), nodes=declared, found={}, static=True)
    assert [entry["n_layers"] for entry in plan["instances"][0]["devices"]] == [12, 13]


def test_a_static_plan_needs_devices():
    messages = problems_for(instance(nodes=["node1"]), found={}, models={}, static=True)
    assert messages == [
        "llamacpp_devices of node1 = (not set): list what it has, e.g. [{kind: cuda, name: V100S, memory: 32 GiB}]"
    ]


def test_declared_devices_win_over_found_ones():
    declared = {
        "node1": {"devices": [{"kind": "cuda", "name": "H100", "memory": "80 GiB", "compute_capability": "9.0"}]}
    }
    (item,) = plan_for(instance(nodes=["node1"]), nodes=declared)["instances"]
    assert [entry["device"] for entry in item["devices"]] == ["CUDA0"]


def test_a_model_that_was_refused():
    models = {"demo": "/srv/models/toy.gguf: it is not a GGUF file, which begins with the letters GGUF"}
    assert problems_for(instance(), models=models) == [
        "llamacpp_instances[0].model = /srv/models/toy.gguf: it is not a GGUF file, which begins with the letters GGUF"
    ]


def test_a_model_that_nobody_looked_at():
    (message,) = problems_for(instance(), models={})
    assert "its header was not read" in message


def test_a_model_that_does_not_fit():
    (message,) = problems_for(instance(nodes=["node1"]), models={"demo": model(layer=2 * GIB)})
    assert message.startswith("llamacpp_instances[0].model = /srv/models/toy.gguf: demo does not fit: ")
    assert plan_for(instance(nodes=["node1"]), models={"demo": model(layer=2 * GIB)}, settings={"memory_check": False})[
        "instances"
    ]


def test_all_problems_together():
    found = nodes()
    del found["node3"]
    found["node1"] = NodeFacts.from_dict(
        node(
            python="3.6.8",
            listening=[8000],
            os={"id": "rhel", "family": "redhat", "version": "7.9", "name": "RHEL 7.9"},
            disks={"/var/lib/llamacpp/models": {"free_bytes": GIB, "total_bytes": GIB}},
        )
    )
    messages = problems_for(
        instance("a", port=8000),
        instance("b", nodes=["node1"], model={"path": "/srv/broken.gguf"}),
        found=found,
        models={"a": model(), "b": "it is truncated"},
        nodes={"node2": {"fabric_address": "10.9.9.9"}},
    )
    assert [message.split(" = ")[0] for message in messages] == [
        "operating system of node1",
        "Python of node1",
        "llamacpp_fabric_address of node2",
        "llamacpp_instances[0].nodes",
        "llamacpp_instances[0].port",
        "free disk of node1 for /var/lib/llamacpp/models",
        "llamacpp_instances[1].model",
    ]


def test_no_instances():
    assert plan_for()["instances"] == []
