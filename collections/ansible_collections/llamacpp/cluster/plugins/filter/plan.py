# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters around the plan: what goes into it, what of it belongs to a node, how a person reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._parse import HOST_KEYS
from ansible_collections.llamacpp.cluster.plugins.module_utils._table import plan_table

MAX_REPLICAS = 64


def node_workers(plan: Mapping[str, Any], node: str) -> list[dict[str, Any]]:
    """Return the workers that a plan puts on a node, each with C(instance)."""
    return [
        dict(worker, instance=instance["name"])
        for instance in plan["instances"]
        for worker in instance["workers"]
        if worker["node"] == node
    ]


def node_heads(plan: Mapping[str, Any], node: str) -> list[dict[str, Any]]:
    """Return the instances whose head is a node."""
    return [instance for instance in plan["instances"] if instance["head"] == node]


def declared_nodes(nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what host variables say of each node."""
    return {
        node: {name: hostvars[node]["llamacpp_" + name] for name in HOST_KEYS if "llamacpp_" + name in hostvars[node]}
        for node in nodes
    }


def without_keys(instances: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return instances without their API keys, for loops: Ansible shows the item of a loop when it fails."""
    return [{key: value for key, value in instance.items() if key != "api_keys"} for instance in instances]


def found_nodes(
    nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], register: str = "preflight_node"
) -> dict[str, Any]:
    """Return what node_info found, by node; nodes that did not answer are left out."""
    return {
        node: hostvars[node][register]["node"]
        for node in nodes
        if register in hostvars[node] and "node" in hostvars[node][register]
    }


def previous_releases(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the release that was current before, by node; empty where there was none."""
    return {node: facts["previous_release"] or "" for node, facts in found.items()}


def found_models(registered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results of loops of gguf_info and hub_info over :func:`models_from`'s items, by instance.

    Those of a model with several quantisations are gathered as ``quants``. That of the projector beside a model, which
    comes after it, is its ``projector``.
    """
    found: dict[str, Any] = {}
    for loop in registered:
        for result in loop.get("results", []):
            if result.get("skipped"):
                continue
            item = result["item"]
            entry = {key: result[key] for key in ("gguf", "quantisations", "commit", "beside", "msg") if key in result}
            if item.get("projector"):
                model = found[item["name"]]
                (model["quants"][item["quant"]] if item.get("quant") else model)["projector"] = entry
            elif item.get("quant"):
                found.setdefault(item["name"], {"quants": {}})["quants"][item["quant"]] = entry
            else:
                found[item["name"]] = entry
    return found


def instance_names(instances: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names that instances may have: those with replicas have a number each."""
    names = []
    for instance in instances:
        count = instance.get("replicas")
        numbers = range(1, (MAX_REPLICAS if count == "auto" else int(count)) + 1) if count else ()
        names += ["%s-%d" % (instance["name"], number) for number in numbers] or [instance["name"]]
    return names


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {
            "declared_nodes": declared_nodes,
            "found_models": found_models,
            "found_nodes": found_nodes,
            "instance_names": instance_names,
            "node_heads": node_heads,
            "node_workers": node_workers,
            "plan_table": plan_table,
            "previous_releases": previous_releases,
            "without_keys": without_keys,
        }
