# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which workers' caches are seeded, and when they need not be."""

from __future__ import annotations

import copy
import hashlib

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _model_seeds
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, instance, model, nodes


@pytest.fixture
def plan():
    pair = [
        instance("a", nodes=["node1", "node2"]),
        instance("b", nodes=["node3", "node2"], model={"path": "/srv/other.gguf"}),
    ]
    return make_plan(accept(*pair), nodes(3), {"a": model(8), "b": model(8)})


def kept(plan, node):
    """Return the checksum of the stamp that a seeded node has."""
    return hashlib.sha256((_model_seeds.stamp(plan, node) + "\n").encode()).hexdigest()


def test_a_new_worker_is_seeded_by_all_its_heads(plan):
    assert _model_seeds.to_seed(plan, dict.fromkeys(["node1", "node2", "node3"]), []) == {"node2": ["node1", "node3"]}


def test_a_seeded_worker_is_left_alone(plan):
    assert _model_seeds.to_seed(plan, {"node2": kept(plan, "node2")}, []) == {}


def test_a_model_that_was_brought_is_seeded_again(plan):
    seeded = {"node2": kept(plan, "node2")}
    assert list(_model_seeds.to_seed(plan, seeded, [{"name": "toy"}])) == ["node2"]
    assert _model_seeds.to_seed(plan, seeded, [{"name": "of-nobody-here"}]) == {}


@pytest.mark.parametrize("change", ["devices", "files", "quota", "release"])
def test_another_plan_is_seeded(plan, change):
    before = kept(plan, "node2")
    after = copy.deepcopy(plan)
    if change == "devices":
        after["instances"][0]["devices"][0]["layers"] = [0, 1]
    elif change == "quota":
        after["rpc_cache"]["quota"] = 1 << 40
    elif change == "release":
        after["instances"][0]["workers"][0]["release"] = "b11435-cpu-1a2b3c4d"
    else:
        after["models"]["toy"]["files"][0]["sha256"] = "ab" * 32
    assert list(_model_seeds.to_seed(after, {"node2": before}, [])) == ["node2"]


def test_more_slots_are_no_other_weights(plan):
    before = kept(plan, "node2")
    after = copy.deepcopy(plan)
    after["instances"][0]["args"] += ["--parallel", "2"]
    for device in after["instances"][0]["devices"]:
        device["context_bytes"] += 1 << 20
    assert _model_seeds.to_seed(after, {"node2": before}, []) == {}


@pytest.mark.parametrize(
    "change",
    [{"args": ["-ot", "ffn=CPU"]}, {"args": ["--n-cpu-ffn", "2"]}, {"environment": {"LLAMA_ARG_N_CPU_FFN": "2"}}],
)
def test_what_moves_single_tensors_is_seeded(plan, change):
    before = kept(plan, "node2")
    after = copy.deepcopy(plan)
    after["instances"][0]["args"] += change.get("args", [])
    after["instances"][0]["environment"].update(change.get("environment", {}))
    assert list(_model_seeds.to_seed(after, {"node2": before}, [])) == ["node2"]


def test_a_worker_without_a_cache_is_not_seeded(plan):
    for item in plan["instances"]:
        for worker in item["workers"]:
            worker["cache"] = False
    assert _model_seeds.stamp(plan, "node2") == ""
    assert _model_seeds.to_seed(plan, {"node2": None}, []) == {}


def test_a_head_lists_what_its_workers_need(plan):
    todo = {"node2": ["node1", "node3"]}
    assert [item["name"] for item in _model_seeds.headed(plan, "node1", todo)] == ["a"]
    assert _model_seeds.headed(plan, "node2", todo) == []
    assert _model_seeds.headed(plan, "node1", {}) == []


def test_entries_of_several_heads_are_there_once():
    one, two = ({"hash": name * 16, "bytes": 1, "sha256": "x", "offset": 0} for name in "ab")
    listed = {"node1": {"workers": {"node2": [two, one]}}, "node3": {"workers": {"node2": [one], "node4": [two]}}}
    assert _model_seeds.entries(listed, "node2") == [one, two]
    assert _model_seeds.entries({"node1": {"skipped": True}}, "node2") == []
