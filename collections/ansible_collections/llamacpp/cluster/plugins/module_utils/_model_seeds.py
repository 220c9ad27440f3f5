# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which workers' caches are to be seeded, from which heads, with what. Pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._worker_tensors import decides


def cached_instances(plan: Mapping[str, Any], node: str) -> list[Mapping[str, Any]]:
    """Return the instances that have a worker with a cache on a node."""
    return [
        instance
        for instance in plan["instances"]
        if any(worker["node"] == node and worker["cache"] for worker in instance["workers"])
    ]


def stamp(plan: Mapping[str, Any], node: str) -> str:
    """Return what stands for everything that a node's cache is seeded with, 64 hexadecimal digits; empty for nothing.

    Kept beside the cache, so that the next run sees by one small file that nothing is to be done.
    """
    instances = cached_instances(plan, node)
    if not instances:
        return ""
    decided = [
        {
            **decides(instance),
            # Another release may have the program that seeds where this one had none.
            "releases": [worker["release"] for worker in instance["workers"]],
            "files": plan["models"][instance["model"]["name"]]["files"],
        }
        for instance in instances
    ]
    whole = {"quota": plan["rpc_cache"]["quota"], "instances": decided}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def to_seed(
    plan: Mapping[str, Any], seeded: Mapping[str, str | None], work: Sequence[Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Return the nodes whose caches are to be seeded, each with the heads that know with what.

    ``seeded``: by node, the sha256 of the file that has its :func:`stamp` with a newline, None where there is none.
    ``work``: models that this run brings; their files may have changed where the plan does not know checksums.
    """
    brought = {item["name"] for item in work}
    found = {}
    for node, checksum in seeded.items():
        instances = cached_instances(plan, node)
        wanted = stamp(plan, node) + "\n"
        fresh = checksum == hashlib.sha256(wanted.encode()).hexdigest()
        if instances and (not fresh or brought & {instance["model"]["name"] for instance in instances}):
            found[node] = sorted({instance["head"] for instance in instances})
    return found


def headed(plan: Mapping[str, Any], node: str, todo: Mapping[str, Sequence[str]]) -> list[Mapping[str, Any]]:
    """Return the instances of a head whose workers are to be seeded. ``todo``: of :func:`to_seed`."""
    return [
        instance
        for instance in plan["instances"]
        if instance["head"] == node and any(worker["node"] in todo for worker in instance["workers"])
    ]


def entries(listed: Mapping[str, Mapping[str, Any]], node: str) -> list[Mapping[str, Any]]:
    """Return the entries that a node's cache needs, each once. ``listed``: by head, what rpc_cache says there."""
    found = {
        entry["hash"]: entry for result in listed.values() for entry in (result.get("workers") or {}).get(node, ())
    }
    return [found[name] for name in sorted(found)]
