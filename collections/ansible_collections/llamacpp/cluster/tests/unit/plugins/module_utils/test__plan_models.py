# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the plan says of models: who needs them, who fetches them, and how the others get them."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, accept, instance, link, model, node, nodes

SHA = "ab" * 32
ADDRESS = {"url": "https://models.example.org/m.gguf", "sha256": SHA}


def planned(*instances, facts=None, size=model, **settings):
    """Return the plan's models."""
    declared = accept(*instances, settings=settings)
    found = {item["name"]: size() for item in instances}
    return make_plan(declared, nodes(6) if facts is None else facts, found)["models"]


def on(*names, **changes):
    """Return instances of one model, each on a node of its own."""
    return [instance(name.replace("node", "i"), nodes=[name], model=dict(ADDRESS, **changes)) for name in names]


def test_heads_hold_files_and_workers_compute_parts():
    (found,) = planned(instance()).values()
    assert found["holders"] == ["node1"]
    assert found["workers"] == {"node2": ["demo"], "node3": ["demo"]}
    assert found["addresses"] == {"node1": "10.0.1.11", "node2": "10.0.1.12", "node3": "10.0.1.13"}
    assert found["files"] == [{"name": "toy.gguf", "bytes": 2600 << 20, "sha256": None, "role": "model"}]


def test_one_model_of_two_instances_is_fetched_once():
    (found,) = planned(*on("node2", "node1")).values()
    assert found["holders"] == ["node2", "node1"]
    assert (found["fetcher"], found["transport"]) == ("node2", "http")
    assert found["files"][0]["sha256"] == SHA


def test_nobody_else_needs_it():
    (found,) = planned(*on("node2")).values()
    assert (found["fetcher"], found["transport"], found["why"]) == ("node2", "none", "only node2 needs it")


@pytest.mark.parametrize(
    ("changes", "settings", "fetcher"),
    [
        ({}, {}, "node1"),
        ({"from": "controller"}, {}, "controller"),
        ({}, {"models_fetcher": "controller"}, "controller"),
        ({}, {"models_fetcher": "node5"}, "node5"),
        ({"from": "controller"}, {"models_fetcher": "node5"}, "controller"),
        ({"from": "node"}, {"models_fetcher": "controller"}, "node1"),
    ],
)
def test_who_fetches(changes, settings, fetcher):
    (found,) = planned(*on("node1", "node2", **changes), **settings).values()
    assert found["fetcher"] == fetcher
    assert (found["transport"] == "swarm") is (fetcher == "node5"), "the one that fetches needs nothing from the others"
    assert ("node5" in found["addresses"]) is (fetcher == "node5")


def test_many_get_it_from_each_other():
    (found,) = planned(*on("node1", "node2", "node3", "node4")).values()
    assert found["transport"] == "swarm"
    assert found["why"] == "3 receivers, one sender: they give it to each other"


@pytest.mark.parametrize("version", ["3.8.10", "3.14.0"])
def test_one_without_an_engine_gets_no_swarm(version):
    facts = {**nodes(4), "node4": NodeFacts.from_dict(node("10.0.1.14", python=version))}
    (found,) = planned(*on("node1", "node2", "node3", "node4"), facts=facts, os_check=False).values()
    assert found["transport"] == "http"
    assert "does not run on all" in found["why"]


def test_a_size_that_is_not_known_is_not_called_small():
    declared = accept(*on("node1", "node2", "node3"), static=True)
    (found,) = make_plan(declared, nodes(3), {})["models"].values()
    assert found["files"][0]["bytes"] is None
    assert (found["transport"], found["why"]) == ("http", "its size is not known, and a swarm is for large models")


STORED = {"/var/lib/llamacpp/models/names/m/m.gguf": 2600 << 20}


def with_it(*names, **changes):
    """Return the facts of six nodes, of which these have the model's file."""
    facts = nodes(6)
    for name in names:
        facts[name] = NodeFacts.from_dict(node("10.0.1.1" + name[-1], **{"files": STORED, **changes}))
    return facts


def test_who_has_it_and_needs_it_no_more_can_give_it():
    (found,) = planned(*on("node1"), facts=with_it("node4")).values()
    assert found["addresses"] == {"node1": "10.0.1.11", "node4": "10.0.1.14"}
    assert (found["holders"], found["transport"]) == (["node1"], "none")


@pytest.mark.parametrize(
    "changes",
    [
        {"files": dict.fromkeys(STORED, 1)},
        {"files": dict.fromkeys(STORED)},
        {"addresses": [link("fab0", "10.0.2.14")]},
    ],
)
def test_who_has_another_file_or_no_way_gives_nothing(changes):
    (found,) = planned(*on("node1"), facts=with_it("node4", **changes)).values()
    assert found["addresses"] == {"node1": "10.0.1.11"}


def test_without_an_engine_it_is_in_no_swarm():
    for version, expected in (("3.11.2", True), ("3.14.0", False)):
        facts = with_it("node5", python=version)
        (found,) = planned(*on("node1", "node2", "node3"), facts=facts, os_check=False).values()
        assert found["transport"] == "swarm"
        assert ("node5" in found["addresses"]) is expected
        (found,) = planned(*on("node1", "node2"), facts=facts, os_check=False).values()
        assert (found["transport"], "node5" in found["addresses"]) == ("http", True)


def test_what_is_declared_is_obeyed():
    (found,) = planned(*on("node1", "node2", "node3"), models_transport="http").values()
    assert (found["transport"], found["why"]) == ("http", "declared")


def test_nodes_that_do_not_reach_each_other_are_served_by_the_control_node():
    facts = nodes(2)
    facts["node2"] = NodeFacts.from_dict(node("192.168.9.12"))
    for declared in ("auto", "http", "swarm"):
        (found,) = planned(*on("node1", "node2"), facts=facts, models_transport=declared).values()
        assert (found["transport"], found["addresses"], found["fetcher"]) == ("rsync", {}, "controller")


@pytest.mark.parametrize(
    ("source", "transport", "why"),
    [
        ({"path": "/srv/m.gguf", "from": "node"}, "linked", "it lies on each head"),
        ({"path": "/nfs/m.gguf", "shared": True}, "shared", "all nodes see it"),
    ],
)
def test_what_lies_there_is_not_brought(source, transport, why):
    pair = [instance(name, nodes=[node_], model=source) for name, node_ in (("a", "node1"), ("b", "node2"))]
    (found,) = planned(*pair).values()
    assert (found["fetcher"], found["transport"], found["why"]) == (None, transport, why)
    assert found["holders"] == ["node1", "node2"]


def test_two_models_have_a_name_each_and_the_plan_lists_them_by_it():
    pair = [
        instance("a", nodes=["node1"], model=dict(ADDRESS, name="z")),
        instance("b", nodes=["node2"], model=dict(ADDRESS, name="b/c")),
    ]
    assert list(planned(*pair)) == ["b/c", "z"]


FULL = {
    "/var/lib/llamacpp/models": {"free_bytes": GIB, "total_bytes": GIB},
    "/var/cache/llamacpp/build": {"free_bytes": 500 * GIB, "total_bytes": 500 * GIB},
}


def test_a_model_needs_room():
    facts = {"node1": NodeFacts.from_dict(node("10.0.1.11", disks=FULL))}
    with pytest.raises(PlanError, match="free disk of node1 for /var/lib/llamacpp/models = 1024 MiB"):
        planned(*on("node1"), facts=facts)


def test_a_model_that_is_there_needs_no_room():
    facts = {"node1": NodeFacts.from_dict(node("10.0.1.11", disks=FULL, files=STORED))}
    assert list(planned(*on("node1"), facts=facts)) == ["m"]


def test_what_is_on_its_way_or_may_go_is_room():
    """The store decides what really goes; a plan must not refuse a disk that is full of what makes place."""
    store = "/var/lib/llamacpp/models"
    for path in ("/incoming/%s.part" % SHA, "/names/old/old.gguf"):
        facts = {"node1": NodeFacts.from_dict(node("10.0.1.11", disks=FULL, files={store + path: 2 * GIB}))}
        assert list(planned(*on("node1"), facts=facts)) == ["m"]


def test_a_model_of_the_same_plan_is_no_room():
    there = {"/var/lib/llamacpp/models/names/b/m.gguf": 2600 << 20}
    pair = [*on("node1"), instance("b", nodes=["node1"], model=dict(ADDRESS, name="b"))]
    facts = {"node1": NodeFacts.from_dict(node("10.0.1.11", disks=FULL, files=there))}
    with pytest.raises(PlanError, match="free disk of node1 for /var/lib/llamacpp/models = 1024 MiB"):
        planned(*pair, facts=facts)
