"""Plans that the planner makes, shown: the page and the table know every key that it writes, and no other."""

from __future__ import annotations

from typing import Any

import pytest
from test_html import Structure

from ansible_collections.llamacpp.cluster.plugins.module_utils._page import plan_page
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.plugins.module_utils._table import plan_table
from ansible_collections.llamacpp.cluster.tests.unit import builders

GPUS = [builders.device("cuda", 32, 31, index=index) for index in range(2)]
DECLARED_GPU = {"devices": [{"kind": "cuda", "name": "V100S", "memory": "32 GiB"}]}


def spread() -> dict[str, Any]:
    """Three CPU nodes."""
    return make_plan(builders.accept(builders.instance()), builders.nodes(), {"demo": builders.model()})


def shared() -> dict[str, Any]:
    """Two instances that find a place by themselves, on one node with two GPUs."""
    declared = builders.accept(builders.instance("one", nodes=None), builders.instance("two", nodes=None))
    nodes = builders.nodes(1, devices=GPUS)
    return make_plan(declared, nodes, {"one": builders.model(), "two": builders.model()})


def static() -> dict[str, Any]:
    """Nodes that nobody asks, a model whose header nobody reads."""
    nodes = {f"node{number}": DECLARED_GPU | {"fabric_address": f"10.0.0.{number}"} for number in (1, 2, 3)}
    return make_plan(builders.accept(builders.instance(), nodes=nodes, static=True), {}, {})


def nothing() -> dict[str, Any]:
    """No instance."""
    return make_plan(builders.accept(), builders.nodes(), {})


@pytest.mark.parametrize("make", [spread, shared, static, nothing])
def test_both_show_it(make: Any) -> None:
    plan = make()
    words = "".join(Structure(plan_page(plan)).text)
    table = plan_table(plan)
    assert "None" not in words + table
    for instance in plan["instances"]:
        for told in (instance["name"], instance["why"], *(choice["chosen"] for choice in instance["choices"])):
            assert told in words
            # Lines of the table are broken at spaces, and indented.
            assert told in " ".join(table.split())


@pytest.mark.parametrize("make", [spread, shared, static])
def test_every_device_of_an_instance_has_its_use(make: Any) -> None:
    plan = make()
    placed = {
        (instance["name"], device["node"], device["local_device"], device["model_bytes"])
        for instance in plan["instances"]
        for device in instance["devices"]
    }
    used = {
        (use["instance"], node, device["device"], use["model_bytes"])
        for node, devices in plan["devices"].items()
        for device in devices
        for use in device["uses"]
    }
    assert placed <= used
