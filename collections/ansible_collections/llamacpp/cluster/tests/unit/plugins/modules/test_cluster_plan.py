# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module around the plan: arguments in, file and messages out."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._model import Shard
from ansible_collections.llamacpp.cluster.plugins.modules import cluster_plan
from ansible_collections.llamacpp.cluster.tests.unit.builders import instance, model, node

NODES = ["node1", "node2", "node3"]
KEY = "s3cret-of-the-operator"


@pytest.fixture
def plan(run_module):
    def run(*instances, check=False, **changes):
        arguments = {
            "release": "b11434",
            "instances": list(instances),
            "inventory_nodes": NODES,
            "builders": ["node1"],
            "nodes": {name: node("10.0.1.1%d" % number) for number, name in enumerate(NODES, 1)},
            "models": {item["name"]: {"gguf": model().as_dict()} for item in instances},
        }
        arguments.update(changes)
        return run_module(cluster_plan, check=check, diff=True, **arguments)

    return run


def test_a_plan_in_a_file(plan, tmp_path):
    dest = tmp_path / "deep" / "plan.json"
    result = plan(instance(), dest=str(dest))
    assert result["changed"] is True
    assert json.loads(dest.read_text()) == result["plan"]
    assert [item["inputs"]["backend"] for item in result["plan"]["releases"].values()] == ["cpu"]
    assert result["diff"]["before"] == ""
    assert result["diff"]["after"] == dest.read_text()


def test_the_second_run_changes_nothing(plan, tmp_path):
    dest = tmp_path / "plan.json"
    plan(instance(), dest=str(dest))
    before = dest.stat().st_mtime_ns
    assert plan(instance(), dest=str(dest))["changed"] is False
    assert dest.stat().st_mtime_ns == before


def test_check_mode_says_what_would_change(plan, tmp_path):
    dest = tmp_path / "plan.json"
    result = plan(instance(), check=True, dest=str(dest))
    assert result["changed"] is True
    assert result["plan"]["instances"]
    assert not dest.exists()


def test_a_difference(plan, tmp_path):
    dest = tmp_path / "plan.json"
    plan(instance(), dest=str(dest))
    result = plan(instance(parallel=2), dest=str(dest))
    assert result["changed"] is True
    assert '"parallel": 1' in result["diff"]["before"]
    assert '"parallel": 2' in result["diff"]["after"]


def test_a_place_that_cannot_be_written(plan, tmp_path):
    (tmp_path / "file").write_text("")
    result = plan(instance(), dest=str(tmp_path / "file" / "plan.json"))
    assert result["failed"]
    assert result["msg"].startswith("dest = %s: the plan cannot be written" % (tmp_path / "file" / "plan.json"))


def test_without_dest_nothing_changes(plan):
    assert plan(instance())["changed"] is False


def test_problems_of_both_kinds_in_one_message(plan):
    result = plan(
        instance("a", context=0), instance("b"), models={"b": {"msg": "/srv/models/toy.gguf: it is truncated"}}
    )
    assert result["failed"]
    assert result["msg"].splitlines() == [
        "2 problems with what is declared or found:",
        "  llamacpp_instances[0].context = 0: must be at least 1 token; write e.g. 4096, or auto",
        "  llamacpp_instances[1].model = /srv/models/toy.gguf: it is truncated",
    ]


def test_checking_only_needs_no_node(plan):
    assert "plan" not in plan(instance(), check_only=True, nodes={}, models={})
    assert plan(instance(context=-1), check_only=True, nodes={}, models={})["failed"]


@pytest.mark.parametrize("change", [{}, {"context": 0}, {"api_key": KEY}, {"api_keys": KEY}, {"api_keys": [KEY, ""]}])
def test_api_keys_never_come_out(plan, change, tmp_path):
    dest = tmp_path / "plan.json"
    result = plan(instance(**dict({"api_keys": [KEY]}, **change)), dest=str(dest))
    assert bool(result.get("failed")) is bool(change)
    # With the arguments, which Ansible shows under -vvv.
    assert "invocation" in result
    assert KEY not in json.dumps(result)
    assert not dest.exists() or KEY not in dest.read_text()


def test_instances_of_the_wrong_kind_are_reported(plan, run_module):
    result = plan(instances="demo", models={})
    assert result["msg"].splitlines()[1].startswith("  llamacpp_instances = demo: must be a list")


def test_static(plan):
    result = plan(instance(nodes=["node1"]), static=True, nodes={}, models={})
    assert "llamacpp_devices of node1" in result["msg"]


def quantisation(names, sums, facts, pieces=1):
    """Return a quantisation as hub_info says it."""
    parts = [[name] if pieces == 1 else ["%s.part%dof2" % (name, number) for number in (1, 2)] for name in names]
    return {"files": names, "sizes": [1 << 30] * len(names), "sha256": sums, "parts": parts, "gguf": facts.as_dict()}


def hub(found, beside=()):
    return {"demo": {"quantisations": found, "commit": "c0ffee", "beside": list(beside)}}


def test_a_repository(plan):
    names = ["m-Q8_0-0000%d-of-00002.gguf" % number for number in (1, 2)]
    shards = tuple(Shard(name, 1 << 30, 13) for name in names)
    found = {
        "Q8_0": quantisation(["Q8/" + name for name in names], ["a" * 64, "b" * 64], model(shards=shards)),
        "Q4_0": quantisation(["m.gguf"], [None], model()),
    }
    beside = [{"name": "tokenizer.json", "size": 7, "sha256": None, "role": "tokenizer"}]
    declared = {"repo": "o/n", "quant": "auto", "beside": ["tokenizer"], "revision": "v1"}
    plan_made = plan(instance(nodes=["node1"], model=declared), models=hub(found, beside))["plan"]
    planned = plan_made["instances"][0]["model"]
    assert (planned["quant"], planned["name"], planned["sha256"]) == ("Q8_0", "o/n/Q8_0", "a" * 64)
    assert planned["files"] == ["/var/lib/llamacpp/models/names/o/n/Q8_0/" + name for name in names]
    assert plan_made["models"]["o/n/Q8_0"]["source"] == {
        "repo": "o/n",
        "revision": "v1",
        "commit": "c0ffee",
        "quant": "Q8_0",
        "beside": ["tokenizer"],
        "from": "node",
    }
    assert plan_made["models"]["o/n/Q8_0"]["files"] == [
        {"name": names[0], "bytes": 1 << 30, "sha256": "a" * 64, "role": "model"},
        {"name": names[1], "bytes": 1 << 30, "sha256": "b" * 64, "role": "model"},
        {"name": "tokenizer.json", "bytes": 7, "sha256": None, "role": "tokenizer"},
    ]


def test_pieces_of_a_hub_have_checksums_of_their_own(plan):
    found = {"Q8_0": quantisation(["m-Q8_0.gguf"], [None], model(), pieces=2)}
    result = plan(instance(nodes=["node1"], model={"repo": "o/n"}), models=hub(found))
    assert result["plan"]["models"]["o/n/Q8_0"]["files"][0]["sha256"] is None


@pytest.mark.parametrize(
    ("declared", "key", "name", "selection"),
    [
        ({"folder": "UD/Q2"}, "UD-Q2_K_XL", "o/n/UD-Q2", {"folder": "UD/Q2"}),
        ({"file": "*Q2*"}, "UD-Q2_K_XL", "o/n/m", {"file": "*Q2*"}),
        ({"file": "*Q2*", "name": "mine"}, "UD-Q2_K_XL", "mine", {"file": "*Q2*"}),
        ({"quant": "q2_k_xl", "name": "mine"}, "Q2_K_XL", "mine", {"quant": "Q2_K_XL"}),
        ({"name": "mine"}, "Q2_K_XL", "mine/Q2_K_XL", {"quant": "Q2_K_XL"}),
        # No quantisation is spoken of.
        ({}, "m", "o/n/m", {"file": "UD/m.gguf"}),
    ],
)
def test_which_files_of_a_repository_and_their_name(plan, declared, key, name, selection):
    found = {key: quantisation(["UD/m.gguf"], ["a" * 64], model())}
    result = plan(instance(nodes=["node1"], model={"repo": "o/n", **declared}), models=hub(found))
    (planned,) = result["plan"]["models"]
    assert planned == name
    assert selection.items() <= result["plan"]["models"][name]["source"].items()


def test_a_repository_that_cannot_be_read(plan):
    declared = instance(nodes=["node1"], model={"repo": "o/n"})
    result = plan(declared, models={"demo": {"msg": "hf://o/n: it has no GGUF model"}})
    assert "llamacpp_instances[0].model = o/n: hf://o/n: it has no GGUF model" in result["msg"]


def test_quantisations_of_which_one_cannot_be_read(plan):
    quants = {"Q8_0": {"path": "/srv/q8.gguf"}, "Q4_0": {"path": "/srv/q4.gguf"}}
    found = {"Q8_0": {"msg": "/srv/q8.gguf: it is truncated"}, "Q4_0": {"gguf": model().as_dict()}}
    declared = instance(nodes=["node1"], model={"quants": quants, "quant": "auto"})
    result = plan(declared, models={"demo": {"quants": found}})
    assert result["plan"]["instances"][0]["model"]["quant"] == "Q4_0"
    result = plan(declared, models={"demo": {"quants": {name: found["Q8_0"] for name in quants}}})
    assert "llamacpp_instances[0].model.quants.Q8_0 = /srv/q8.gguf: it is truncated" in result["msg"]
