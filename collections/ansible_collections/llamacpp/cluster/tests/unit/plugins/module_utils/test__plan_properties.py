# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What holds for every plan, whatever the cluster and the instances."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan, plan_json
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError
from ansible_collections.llamacpp.cluster.tests.unit.builders import (
    MIB,
    accept,
    device,
    gpus,
    instance,
    machine,
    model,
    node,
)

MARGIN = 256 * MIB
# Unknown to llama.cpp, so that an estimate takes microseconds; the rules are the same for every model.
MODELS = {size: model(24, layer=size * MIB) for size in (50, 200, 500, 1200, 2500)}

KINDS = st.sampled_from(
    [("RTX 3090", 24, 1, False), ("RTX 4090", 24, 2, False), ("H100", 80, 4, True), ("V100S", 32, 1, False), None]
)
CLUSTERS = st.lists(KINDS, min_size=1, max_size=4)


@st.composite
def declarations(draw):
    """Draw one to three instances that leave something open."""
    found = []
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)):
        changes = {
            "nodes": "auto",
            "context": draw(st.sampled_from([512, 4096, "auto"])),
            "parallel": draw(st.sampled_from([1, 3, "auto"])),
        }
        for key, values in (
            ("gpu_layers", [10, "all"]),
            ("ubatch", [64]),
            ("cache_type_k", ["q8_0"]),
            ("replicas", [2]),
        ):
            if draw(st.booleans()) and draw(st.booleans()):
                changes[key] = draw(st.sampled_from(values))
        found.append((instance(name, **changes), draw(st.sampled_from(sorted(MODELS)))))
    return found


def facts(kinds):
    return {
        "node%d" % number: machine(number, gpus(*kind, kind[1] - 0.1) if kind else [device("cpu", 64, 61)], 64)
        for number, kind in enumerate(kinds, 1)
    }


def planned(declared, found):
    """Return the plan, or None when nothing fits."""
    try:
        return make_plan(
            accept(*(item for item, _size in declared)),
            found,
            {item["name"]: MODELS[size] for item, size in declared},
        )
    except PlanError:
        return None


def deployed(plan, found):
    """Return the nodes after the plan was carried out: units are there, and memory is taken."""
    after = {}
    for number, (name, old) in enumerate(found.items(), 1):
        units = {}
        for item in plan["instances"]:
            entry = {"instance": item["name"], "active": True, "release": item["release"]}
            if item["head"] == name:
                units[item["unit"]] = dict(entry, role="head", port=item["port"])
            for worker in item["workers"]:
                if worker["node"] == name:
                    units[worker["unit"]] = dict(entry, role="worker", port=worker["port"])
        devices = [
            dict(
                device(own.kind, 1, index=own.index, name=own.name),
                memory_bytes=own.memory_bytes,
                free_bytes=own.free_bytes // 2 if units else own.free_bytes,
                compute_capability=own.compute_capability,
                nvlink=list(own.nvlink),
            )
            for own in old.devices
        ]
        memory = {"total_bytes": old.memory_bytes, "available_bytes": old.available_bytes}
        after[name] = NodeFacts.from_dict(
            node(
                "10.0.1.%d" % (10 + number),
                devices=devices,
                memory=memory,
                units=units,
                listening=[22] + [item["port"] for item in units.values()],
            )
        )
    return after


FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FAST
@given(CLUSTERS, declarations())
def test_no_device_has_to_hold_more_than_it_can(kinds, declared):
    plan = planned(declared, facts(kinds))
    for devices in plan["devices"].values() if plan else ():
        for entry in devices:
            parts = ("model_bytes", "context_bytes", "compute_bytes", "overhead_bytes")
            taken = sum(use[part] for use in entry["uses"] for part in parts)
            assert taken + MARGIN <= entry["memory_bytes"]
            assert entry["free_bytes"] == entry["memory_bytes"] - taken - MARGIN


@FAST
@given(CLUSTERS, declarations())
def test_every_layer_is_somewhere_once(kinds, declared):
    plan = planned(declared, facts(kinds))
    for item in plan["instances"] if plan else ():
        placed = [layer for entry in item["devices"] if entry["layers"] for layer in range(*entry["layers"])]
        last = [entry["layers"][1] for entry in item["devices"] if entry["layers"]]
        if item["settings"]["split_mode"] == "layer":
            assert sorted(placed + last) == list(range(25))
        assert len({(entry["node"], entry["local_device"]) for entry in item["devices"]}) == len(item["devices"])


@FAST
@given(CLUSTERS, declarations())
def test_what_was_declared_is_what_comes_out(kinds, declared):
    plan = planned(declared, facts(kinds))
    said = {item["name"]: item for item, _size in declared}
    for item in plan["instances"] if plan else ():
        own = said[item["declared"]]
        for key in ("context", "parallel"):
            assert own[key] in ("auto", item[key])
        assert own.get("ubatch") in (None, item["settings"]["ubatch_size"])
        assert own.get("cache_type_k") in (None, item["settings"]["cache_type_k"])
        if own.get("gpu_layers") == "all":
            assert item["gpu_layers"] == 25
        elif "gpu_layers" in own:
            assert item["gpu_layers"] == own["gpu_layers"]
        assert "--fit" in item["args"]


@FAST
@given(CLUSTERS, declarations(), st.randoms(use_true_random=False))
def test_the_same_input_gives_the_same_plan(kinds, declared, random):
    found = facts(kinds)
    shuffled = list(found.items())
    random.shuffle(shuffled)
    first, second = planned(declared, found), planned(declared, dict(shuffled))
    assert (first and plan_json(first)) == (second and plan_json(second))


@FAST
@given(CLUSTERS, declarations())
def test_a_cluster_that_runs_the_plan_gives_it_again(kinds, declared):
    found = facts(kinds)
    plan = planned(declared, found)
    if plan:
        again = planned(declared, deployed(plan, found))
        assert json.loads(plan_json(again)) == json.loads(plan_json(plan))


def where(plan):
    """Return what of each instance reaches a node."""
    return {
        item["name"]: (item["head"], item["args"], [worker["args"] for worker in item["workers"]])
        for item in plan["instances"]
    }


@FAST
@given(CLUSTERS, declarations(), st.sampled_from([("V100S", 0.5, 1, False), None]))
def test_a_node_that_is_no_better_changes_nothing(kinds, declared, kind):
    """A node that is added: with a GPU too small for anything, or without one where there are GPUs."""
    found = facts(kinds)
    plan = planned(declared, found)
    if plan is None or not any(kinds):
        return
    more = dict(found, node6=machine(6, gpus(*kind) if kind else [device("cpu", 0.2)], 1))
    assert where(planned(declared, more)) == where(plan)


SMALL = ("RTX 3090", 24, 1, False)


@FAST
@given(CLUSTERS, declarations(), KINDS)
# Over three nodes the first would have all on GPUs, and nothing would be left for the second.
@example([SMALL] * 2, [(instance("a", nodes="auto", context=512, parallel=1, replicas=2), 2500)], SMALL)
@example([SMALL] * 2, [(instance(name, nodes="auto", context=512, parallel=1), 2500) for name in "ab"], SMALL)
def test_what_runs_stays_where_it_is_when_an_equal_node_is_added(kinds, declared, kind):
    """Even one that would come first by its name."""
    found = facts(kinds)
    plan = planned(declared, found)
    if plan is None or kind not in kinds:
        return
    twin = {"node0": machine(6, gpus(*kind, kind[1] - 0.1) if kind else [device("cpu", 64, 61)], 64)}
    inventory = ["node%d" % number for number in range(7)]
    before = where(plan)
    again = make_plan(
        accept(*(item for item, _size in declared), inventory=inventory),
        {**twin, **deployed(plan, found)},
        {item["name"]: MODELS[size] for item, size in declared},
    )
    # What had to give something up to fit may get it back on the new node, and others move with it.
    whole = ("one-device", "f16", 512)
    for item in plan["instances"]:
        if (item["strategy"], item["settings"]["cache_type_k"], item["settings"]["ubatch_size"]) != whole:
            return
    assert {name: place[0] for name, place in where(again).items()} == {
        name: place[0] for name, place in before.items()
    }
