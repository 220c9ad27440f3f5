# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Clusters as people have them, and where the planner puts models on them."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError
from ansible_collections.llamacpp.cluster.tests.unit.builders import (
    MIB,
    accept,
    device,
    gpus,
    instance,
    link,
    machine,
    model,
    seventy_billion,
    transformer,
)

SIZES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")


def anywhere(name="demo", **changes):
    """Return a declared instance that may go anywhere."""
    return instance(name, nodes="auto", **changes)


def several(make, kinds=SIZES):
    """Return ``model`` of a declaration with several quantisations, and what was found of them."""
    return {"quants": {kind: {"path": "/srv/m-%s.gguf" % kind} for kind in kinds}}, {
        kind: make(kind=kind) for kind in kinds
    }


def planned(*instances, found, models):
    (item, *others) = make_plan(accept(*instances), found, models)["instances"]
    return item if not others else [item, *others]


def refused(*instances, found, models):
    with pytest.raises(PlanError) as caught:
        make_plan(accept(*instances), found, models)
    return [str(problem) for problem in caught.value.problems]


def cluster(*kinds, **changes):
    """Return facts of nodes; each is (name, GiB, count) or (name, GiB, count, linked) of GPUs, or GiB of a CPU node."""
    return {
        "node%d" % number: machine(number, [device("cpu", kind)], kind)
        if isinstance(kind, int)
        else machine(number, gpus(*kind), **changes)
        for number, kind in enumerate(kinds, 1)
    }


V100S = ("V100S", 32, 1)
H100 = ("H100", 80, 8, True)


def why(item, what):
    return next(choice for choice in item["choices"] if choice["what"] == what)


class TestThreeV100S:
    """The cluster of the log: three nodes with a V100S each."""

    found = cluster(V100S, V100S, V100S)

    def test_one_device_holds_a_small_model(self):
        item = planned(anywhere(), found=self.found, models={"demo": transformer()})
        assert (item["strategy"], item["nodes"], item["gpu_layers"]) == ("one-device", ["node1"], 33)
        assert item["workers"] == []
        assert [device["device"] for device in item["devices"]] == ["CUDA0"]

    def test_seventy_billion_go_over_the_fewest_nodes(self):
        item = planned(anywhere(parallel=3), found=self.found, models={"demo": seventy_billion()})
        assert (item["strategy"], item["nodes"]) == ("rpc", ["node1", "node2"])
        assert [entry["device"] for entry in item["devices"]] == ["RPC0", "CUDA0"]
        assert sum(entry["n_layers"] for entry in item["devices"]) == 81
        assert item["workers"][0]["host"] == "10.0.1.12"

    def test_the_largest_quantisation_that_fits_and_none_of_four_bits(self):
        model, facts = several(seventy_billion)
        item = planned(anywhere(model=model, parallel=3), found=self.found, models={"demo": facts})
        assert (item["model"]["quant"], len(item["nodes"])) == ("Q8_0", 3)
        assert "Volta" in why(item, "quant")["why"]
        # With a context for which Q8_0 leaves no room, the next one; never Q4 while Q5 fits.
        item = planned(anywhere(model=model, context=98304), found=self.found, models={"demo": facts})
        assert item["model"]["quant"] == "Q6_K"

    def test_volta_prefers_five_bits_over_rpc_to_four_on_one_node(self):
        def make(kind):
            return transformer(64, 5120, 27648, 40, 8, kind=kind)

        model, facts = several(make, ("Q6_K", "Q4_K"))
        item = planned(anywhere(model=model, context=16384, parallel=2), found=self.found, models={"demo": facts})
        assert (item["model"]["quant"], item["strategy"]) == ("Q6_K", "rpc")
        # Ampere and later are quick with four bits, so there one node wins.
        item = planned(
            anywhere(model=model, context=16384, parallel=2),
            found=cluster(("RTX 4090", 32, 1), ("RTX 4090", 32, 1)),
            models={"demo": facts},
        )
        assert (item["model"]["quant"], item["strategy"]) == ("Q4_K", "one-device")

    def test_the_fastest_network_that_they_share_carries_rpc(self):
        found = {
            "node%d" % number: machine(
                number,
                gpus(*V100S),
                addresses=[
                    link("eth0", "10.0.0.%d" % (10 + number), speed=1000),
                    link("ib0", "10.100.0.%d" % (10 + number), speed=100000, kind="infiniband"),
                ],
            )
            for number in (1, 2, 3)
        }
        item = planned(anywhere(), found=found, models={"demo": seventy_billion()})
        assert [worker["host"] for worker in item["workers"]] == ["10.100.0.12"]

    def test_nodes_without_a_common_network_cannot_share_a_model(self):
        found = {
            "node%d" % number: machine(
                number, gpus(*V100S), 16, addresses=[link("eth0", "10.0.%d.1" % number, speed=1000)]
            )
            for number in (1, 2, 3)
        }
        (message,) = refused(anywhere(gpu_layers="all"), found=found, models={"demo": seventy_billion()})
        assert "are missing" in message

    def test_named_nodes_are_all_used(self):
        item = planned(instance(), found=self.found, models={"demo": transformer()})
        assert [entry["node"] for entry in item["devices"]] == ["node2", "node3", "node1"]
        assert item["why"].startswith("The layers are spread over 3 devices of the declared nodes")
        # What it could have been is told all the same.
        assert item["alternatives"][0]["strategy"] == "one-device"
        assert [entry["chosen"] for entry in item["alternatives"]].count(True) == 1


class TestEightH100:
    """One node whose GPUs an NVSwitch joins."""

    found = cluster(H100)

    def test_a_tensor_split_where_one_does_not_hold_it(self):
        item = planned(anywhere(), found=self.found, models={"demo": seventy_billion("F16")})
        assert (item["strategy"], item["settings"]["split_mode"]) == ("tensor-split", "tensor")
        assert [entry["device"] for entry in item["devices"]] == ["CUDA0", "CUDA1"]
        assert item["args"][item["args"].index("--split-mode") + 1] == "tensor"
        assert not item["exact"]

    def test_a_layer_split_where_llama_cpp_cannot_cut_tensors(self):
        model = seventy_billion("F16", architecture="olmo2")
        item = planned(anywhere(), found=self.found, models={"demo": model})
        assert item["strategy"] == "layer-split"

    def test_a_layer_split_without_nvlink(self):
        item = planned(anywhere(), found=cluster(("H100", 80, 8)), models={"demo": seventy_billion("F16")})
        assert (item["strategy"], len(item["devices"])) == ("layer-split", 2)

    def test_a_layer_split_when_somebody_says_so(self):
        models = {"demo": seventy_billion("F16")}
        item = planned(anywhere(split_mode="layer"), found=self.found, models=models)
        assert item["strategy"] == "layer-split"
        item = planned(instance(nodes=["node1"], split_mode="layer"), found=self.found, models=models)
        assert len(item["devices"]) == 8

    def test_as_much_context_as_the_model_knows(self):
        item = planned(anywhere(context="auto", parallel=2), found=self.found, models={"demo": seventy_billion()})
        assert (item["context"], item["parallel"]) == (131072, 2)
        assert why(item, "context")["why"] == "As much as the model was trained on."
        # One H100 holds the weights, but not that context.
        assert item["strategy"] == "tensor-split"

    def test_slots_and_context(self):
        item = planned(anywhere(context="auto", parallel="auto"), found=self.found, models={"demo": transformer()})
        assert (item["context"], item["parallel"], item["strategy"]) == (131072, 4, "one-device")
        assert item["settings"]["ctx_size"] == 4 * 131072

    def test_two_instances_go_to_devices_of_their_own(self):
        a, b = planned(
            anywhere("a"), anywhere("b"), found=self.found, models={"a": transformer(), "b": seventy_billion()}
        )
        assert [entry["device"] for entry in a["devices"]] == ["CUDA1"]  # the larger one was placed first
        assert [entry["device"] for entry in b["devices"]] == ["CUDA0"]

    def test_only_some_devices(self):
        item = planned(anywhere(devices=["CUDA5"]), found=self.found, models={"demo": transformer()})
        assert [entry["device"] for entry in item["devices"]] == ["CUDA5"]

    def test_only_devices_that_are_there(self):
        (message,) = refused(
            instance(nodes=["node1"], devices=["CUDA9"]), found=self.found, models={"demo": transformer()}
        )
        assert message.startswith("llamacpp_instances[0].devices = CUDA9: node1 has none of them; it has CUDA0, CUDA1")


class TestSixteenGpus:
    """More devices than llama.cpp takes."""

    def test_at_most_fifteen(self):
        found = cluster(*[("RTX 4090", 24, 8)] * 3)
        item = planned(anywhere(), found=found, models={"demo": transformer(126, 16384, 53248, 128, 8)})
        assert item["strategy"] == "rpc"
        assert len(item["devices"]) <= 15
        assert all(entry["free_bytes"] >= 0 for entry in item["devices"])


class TestMixed:
    """A node with two 3090s and one with a 4090."""

    found = cluster(("RTX 3090", 24, 2), ("RTX 4090", 24, 1))

    def test_the_faster_card_where_one_does(self):
        item = planned(anywhere(), found=self.found, models={"demo": transformer()})
        assert (item["head"], item["strategy"]) == ("node2", "one-device")
        rejected = {entry["option"]: entry["why"] for entry in why(item, "nodes")["rejected"]}
        assert rejected["node1"].startswith("slower")

    def test_two_cards_of_one_node_before_a_network(self):
        item = planned(anywhere(), found=self.found, models={"demo": seventy_billion()})
        assert (item["strategy"], item["nodes"], len(item["devices"])) == ("layer-split", ["node1"], 2)

    def test_unequal_cards_get_unequal_layers(self):
        found = {"node1": machine(1, [*gpus("RTX 3090", 24, 1), dict(device("cuda", 48, index=1), name="A6000")])}
        item = planned(instance(nodes=["node1"], split_mode="layer"), found=found, models={"demo": seventy_billion()})
        small, large = (entry["n_layers"] for entry in item["devices"])
        assert 1.8 < large / small < 2.2
        assert all(entry["free_bytes"] >= 0 for entry in item["devices"])

    def test_a_cache_of_eight_bits_before_layers_on_the_cpu(self):
        found = cluster(("RTX 3090", 24, 2))
        item = planned(anywhere(context=65536), found=found, models={"demo": seventy_billion(), "x": ""})
        assert item["strategy"] in ("layer-split", "partial-offload")
        item = planned(anywhere(context=32768), found=found, models={"demo": seventy_billion()})
        assert (item["strategy"], item["settings"]["cache_type_k"]) == ("layer-split", "q8_0")
        assert "cache of eight bits" in item["why"]
        fixed = planned(
            anywhere(context=32768, cache_type_k="f16", cache_type_v="f16"),
            found=found,
            models={"demo": seventy_billion()},
        )
        assert (fixed["strategy"], fixed["settings"]["cache_type_k"]) == ("partial-offload", "f16")


class TestWhenGpusAreTooSmall:
    def test_layers_stay_in_memory(self):
        item = planned(anywhere(), found=cluster(("RTX 3090", 24, 1)), models={"demo": seventy_billion()})
        host, card = item["devices"]
        assert (item["strategy"], host["device"], card["device"]) == ("partial-offload", "CPU", "CUDA0")
        assert host["host"] is True
        assert host["n_layers"] + card["n_layers"] == 81
        assert item["gpu_layers"] == card["n_layers"]
        # Not one layer more would fit.
        assert card["free_bytes"] < card["model_bytes"] // card["n_layers"] * 1.5

    def test_experts_stay_in_memory_before_whole_layers(self):
        mixture = transformer(48, 2048, 768, 32, 4, 151936, experts=128)
        item = planned(anywhere(), found=cluster(("RTX 4090", 12, 1)), models={"demo": mixture})
        assert item["strategy"] == "partial-offload"
        assert 0 < item["settings"]["n_cpu_moe"] < 48
        assert item["args"][item["args"].index("--n-cpu-moe") + 1] == str(item["settings"]["n_cpu_moe"])
        assert [entry["n_layers"] for entry in item["devices"]] == [49]

    def test_what_somebody_says_of_experts_is_done(self):
        mixture = transformer(48, 2048, 768, 32, 4, 151936, experts=128)
        item = planned(anywhere(cpu_moe=True), found=cluster(("H100", 80, 1)), models={"demo": mixture})
        assert "--cpu-moe" in item["args"]
        assert item["host_memory"]["model_bytes"] > 10 << 30

    def test_a_processor_at_last(self):
        found = cluster(("RTX 4090", 0.9, 1))
        item = planned(anywhere(), found=found, models={"demo": transformer()})
        assert (item["strategy"], item["gpu_layers"]) == ("cpu", 0)
        assert item["args"][item["args"].index("--device") + 1] == "none"


class TestCpuLab:
    found = cluster(32, 32, 32)

    def test_one_node_beats_three(self):
        item = planned(anywhere(), found=self.found, models={"demo": transformer()})
        assert (item["strategy"], item["nodes"], item["devices"][0]["device"]) == ("cpu", ["node1"], "CPU")

    def test_named_nodes_share_the_layers(self):
        item = planned(instance(), found=self.found, models={"demo": transformer()})
        assert [entry["device"] for entry in item["devices"]] == ["CPU", "RPC0", "RPC1"]
        assert all(entry["n_layers"] > 8 for entry in item["devices"])

    def test_a_model_for_two(self):
        item = planned(anywhere(), found=self.found, models={"demo": seventy_billion()})
        assert (item["strategy"], item["nodes"]) == ("rpc", ["node1", "node2"])


def larger(kind):
    """Return the facts of a model of 14 billion weights."""
    return transformer(40, 5120, 17408, 40, 8, 151936, kind=kind)


def running(number):
    """Return the units of a node that runs a replica."""
    name = "demo-%d" % number
    unit = {"instance": name, "role": "head", "port": 8079 + number, "active": True, "release": "b11434"}
    return {"llamacpp-server-%s.service" % name: unit}


class TestReplicas:
    found = cluster(("RTX 4090", 24, 2), ("RTX 4090", 24, 2))

    def test_each_on_a_node_of_its_own_and_then_a_device(self):
        items = planned(anywhere(replicas=3), found=self.found, models={"demo": transformer()})
        places = [(item["name"], item["head"], item["devices"][0]["device"]) for item in items]
        assert places == [
            ("demo-1", "node1", "CUDA0"),
            ("demo-2", "node2", "CUDA0"),
            ("demo-3", "node1", "CUDA1"),
        ]
        assert {item["declared"] for item in items} == {"demo"}
        assert {item["args"][item["args"].index("--alias") + 1] for item in items} == {"demo"}

    def test_as_many_as_fit(self):
        items = planned(anywhere(replicas="auto"), found=self.found, models={"demo": transformer()})
        assert [item["name"] for item in items] == ["demo-1", "demo-2", "demo-3", "demo-4"]

    def test_too_many(self):
        (message,) = refused(
            anywhere(replicas=5, split_mode="none", gpu_layers="all"), found=self.found, models={"demo": transformer()}
        )
        assert message.startswith("llamacpp_instances[0].replicas = 5: 4 of them fit; ")

    def test_none_takes_all_nodes_where_each_does_with_one(self):
        """Alone, one would go over all three nodes, and none would be left for the other."""
        found = {
            "node%d" % number: machine(number, gpus("RTX 3090", 24, 1), 64, units=units)
            for number, units in enumerate([{}, *map(running, (2, 1))], 1)
        }
        facts = model(24, layer=2500 * MIB)
        assert planned(anywhere(), found=found, models={"demo": facts})["strategy"] == "rpc"
        items = planned(anywhere(replicas=2), found=found, models={"demo": facts})
        # They stay where they run.
        assert [(item["name"], item["strategy"], item["nodes"]) for item in items] == [
            ("demo-1", "partial-offload", ["node3"]),
            ("demo-2", "partial-offload", ["node2"]),
        ]
        assert all(item["why"].endswith("so that all instances find a place.") for item in items)
        (over_nodes,) = [
            item["why"] for item in why(items[0], "strategy")["rejected"] if item["option"].endswith("(RPC)")
        ]
        assert over_nodes.startswith("possible on 3 devices of node1, node2, node3")
        assert over_nodes.endswith("but leaves too little for other instances")

    def test_none_takes_all_devices_for_a_larger_quantisation(self):
        model, facts = several(larger, ("F16", "Q8_0", "Q4_K"))
        found = cluster(("RTX 4090", 24, 2))
        alone = planned(anywhere(model=model, gpu_layers="all"), found=found, models={"demo": facts})
        assert (alone["strategy"], alone["model"]["quant"]) == ("layer-split", "F16")
        items = planned(anywhere(model=model, gpu_layers="all", replicas=2), found=found, models={"demo": facts})
        assert [(item["strategy"], item["model"]["quant"]) for item in items] == [("one-device", "Q8_0")] * 2
        assert why(items[0], "quant")["why"].startswith("The largest on the fewest devices that fits on one node ")
        assert [item["why"] for item in why(items[0], "quant")["rejected"]] == [
            "does not fit there, or leaves too little for other instances",
            "smaller than needed",
        ]

    def test_none_takes_all_devices_for_more_context(self):
        wanted = {"context": "auto", "parallel": "auto", "gpu_layers": "all"}
        found = cluster(("RTX 4090", 24, 2))
        facts = {"demo": transformer(kind="Q8_0")}
        assert planned(anywhere(**wanted), found=found, models=facts)["strategy"] == "layer-split"
        items = planned(anywhere(replicas=2, **wanted), found=found, models=facts)
        assert [item["strategy"] for item in items] == ["one-device"] * 2
        # Of its own device each still takes all that there is.
        assert {(item["context"], item["parallel"]) for item in items} == {(31744, 4)}

    def test_ports_count_up(self):
        items = planned(anywhere(replicas=2, port=9000), found=self.found, models={"demo": transformer()})
        assert [item["port"] for item in items] == [9000, 9001]


class TestUnknown:
    def test_an_architecture_that_nobody_has_seen(self):
        model = transformer(architecture="nobody-knows-it")
        item = planned(anywhere(), found=cluster(V100S), models={"demo": model})
        assert item["exact"] is False
        assert "nobody-knows-it" in " ".join(item["notes"])
        assert item["devices"][0]["model_bytes"] >= model.tensor_bytes * 0.9


class TestTogether:
    def test_one_that_took_too_much_makes_room(self):
        """Alone, a would take the largest quantisation; b has to get a place too."""
        model, facts = several(transformer, ("F16", "Q8_0", "Q4_K"))
        found = cluster(("RTX 4090", 24, 1))
        alone = planned(anywhere("a", model=model), found=found, models={"a": facts})
        assert alone["model"]["quant"] == "F16"
        b = transformer(40, 5120, 17408, 40, 8, 151936)
        items = planned(anywhere("a", model=model), anywhere("b"), found=found, models={"a": facts, "b": b})
        assert {item["name"]: (item["strategy"], item["model"]["quant"]) for item in items} == {
            "a": ("one-device", "Q8_0"),
            "b": ("one-device", "Q4_K_M"),
        }
        assert all(entry["free_bytes"] >= 0 for item in items for entry in item["devices"])

    def test_two_that_would_each_take_all_share(self):
        """Neither gives way to the other by turns; a processor is no way out, as all layers are to be on GPUs."""
        wanted = {"context": "auto", "parallel": "auto", "gpu_layers": "all"}
        found = cluster(("RTX 4090", 24, 1))
        facts = transformer(kind="Q8_0")
        assert planned(anywhere("a", **wanted), found=found, models={"a": facts})["context"] == 31744
        items = planned(
            anywhere("a", **wanted), anywhere("b", **wanted), found=found, models=dict.fromkeys("ab", facts)
        )
        assert [(item["context"], item["parallel"]) for item in items] == [(8192, 1)] * 2
        assert why(items[0], "context")["why"] == "As little as it may have."

    def test_only_those_that_are_in_the_way_give_something_up(self):
        """The replicas of a want all of three nodes; b takes two devices of a fourth for more context."""
        found = cluster(*[("RTX 3090", 24, 1)] * 3, ("RTX 4090", 24, 2), gib=64)
        a = instance("a", nodes=["node1", "node2", "node3"], replicas=2, context=512, parallel=1)
        b = instance("b", nodes=["node4"], context="auto", parallel="auto")
        models = {"a": model(24, layer=2500 * MIB), "b": transformer(kind="Q8_0")}
        items = planned(a, b, found=found, models=models)
        assert [(item["strategy"], len(item["nodes"])) for item in items[:2]] == [("partial-offload", 1)] * 2
        assert (items[2]["strategy"], items[2]["context"]) == ("layer-split", 75776)

    def test_a_plan_is_json(self):
        plan = make_plan(accept(anywhere()), cluster(H100, V100S), {"demo": seventy_billion()})
        assert json.loads(json.dumps(plan)) == plan
