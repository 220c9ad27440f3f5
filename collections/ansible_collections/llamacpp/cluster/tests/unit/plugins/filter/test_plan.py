# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters around the plan."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.filter import plan as filters
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, instance, model, nodes


def plan():
    declared = accept(instance("a"), instance("b", nodes=["node2", "node3"]))
    return make_plan(declared, nodes(), {"a": model(), "b": model()})


def test_what_belongs_to_a_node():
    (release,) = plan()["releases"]
    workers = filters.node_workers(plan(), "node3")
    assert [(item["instance"], item["release"], item["port"]) for item in workers] == [
        ("a", release, 50052),
        ("b", release, 50053),
    ]
    assert [item["name"] for item in filters.node_heads(plan(), "node2")] == ["b"]
    assert filters.node_workers(plan(), "node1") == []
    assert filters.node_heads(plan(), "node3") == []


def test_host_variables():
    hostvars = {
        "node1": {"llamacpp_fabric_address": "10.0.0.1", "llamacpp_cores": 4, "other": 1},
        "node2": {"llamacpp_devices": [{"memory": "1 GiB"}]},
    }
    assert filters.declared_nodes(["node1", "node2"], hostvars) == {
        "node1": {"fabric_address": "10.0.0.1", "cores": 4},
        "node2": {"devices": [{"memory": "1 GiB"}]},
    }


def test_nodes_that_did_not_answer_are_left_out():
    hostvars = {
        "node1": {"preflight_node": {"node": {"hostname": "n"}}},
        "node2": {"preflight_node": {"unreachable": True}},
        "node3": {},
    }
    assert filters.found_nodes(list(hostvars), hostvars) == {"node1": {"hostname": "n"}}


def test_models_by_instance():
    registered = [
        {
            "results": [
                {"item": {"name": "a", "api_keys": ["k"]}, "gguf": {"n_layers": 1}, "changed": False},
                {"item": {"name": "b"}, "skipped": True},
                {"item": {"name": "c"}, "failed": False, "msg": "/m: it is truncated"},
            ]
        },
        {"skipped": True},
    ]
    assert filters.found_models(registered) == {"a": {"gguf": {"n_layers": 1}}, "c": {"msg": "/m: it is truncated"}}


def test_models_with_several_quantisations():
    item = {"name": "a", "model": {}, "head": None}
    registered = [
        {
            "results": [
                {"item": dict(item, quant="Q8_0"), "gguf": {"n_layers": 1}},
                {"item": dict(item, quant="Q4_0"), "msg": "it is truncated"},
            ]
        },
        {"results": [{"item": dict(item, name="b", quant=""), "quantisations": {"Q8_0": {}}, "files": []}]},
    ]
    assert filters.found_models(registered) == {
        "a": {"quants": {"Q8_0": {"gguf": {"n_layers": 1}}, "Q4_0": {"msg": "it is truncated"}}},
        "b": {"quantisations": {"Q8_0": {}}},
    }


def test_the_projector_of_a_model():
    item = {"name": "a", "quant": "", "model": {}, "head": None}
    results = [
        {"item": item, "gguf": {"n_layers": 1}},
        {"item": dict(item, projector=True), "msg": "it is truncated"},
        {"item": dict(item, name="b", quant="Q8_0"), "gguf": {"n_layers": 2}},
        {"item": dict(item, name="b", quant="Q8_0", projector=True), "gguf": {"n_layers": 0}},
    ]
    assert filters.found_models([{"results": results}]) == {
        "a": {"gguf": {"n_layers": 1}, "projector": {"msg": "it is truncated"}},
        "b": {"quants": {"Q8_0": {"gguf": {"n_layers": 2}, "projector": {"gguf": {"n_layers": 0}}}}},
    }


def test_names_of_replicas():
    declared = [{"name": "a"}, {"name": "b", "replicas": 2}, {"name": "c", "replicas": "auto"}]
    names = filters.instance_names(declared)
    assert names[:3] == ["a", "b-1", "b-2"]
    assert names[3:] == ["c-%d" % number for number in range(1, 65)]


def test_instances_without_keys():
    assert filters.without_keys([{"name": "a", "api_keys": ["k"]}]) == [{"name": "a"}]


def test_every_filter_is_documented():
    import importlib.resources

    directory = importlib.resources.files(filters.__package__)
    for name in filters.FilterModule().filters():
        assert (directory / (name + ".yml")).is_file(), name
