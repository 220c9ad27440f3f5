# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters around releases: which ones are missing where, and who hands them on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._cmake import definition

# Cases of packages, and the option of CMake that brings each about.
_OPTIONS = {"rdma": "GGML_RPC_RDMA", "nccl": "GGML_CUDA_NCCL"}


def missing_releases(
    plan: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], cache: str
) -> list[dict[str, Any]]:
    """Return the plan's releases that a node lacks.

    ``found``: what node_info said, by node. ``cache``: directory of built releases on the control
    node. Each release also says ``lacking`` (nodes), ``archive`` (where the control node keeps it),
    ``cached`` (whether it does) and ``label`` for people.
    """
    todo = []
    for item in plan["releases"].values():
        lacking = [node for node in item["nodes"] if node in found and item["id"] not in found[node]["releases"]]
        if not lacking:
            continue
        archive = os.path.join(cache, "releases", item["id"] + ".tar.gz")
        todo.append(
            dict(
                item,
                lacking=lacking,
                archive=archive,
                cached=os.path.isfile(archive + ".sha256") and os.path.isfile(archive),
                label="%s for %s" % (item["id"], ", ".join(item["nodes"])),
            )
        )
    return todo


def release_source(todo: Sequence[Mapping[str, Any]], nodes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what has to be fetched to compile: one entry a source, by name.

    ``todo``: of :func:`missing_releases`. ``nodes``: what the inventory says of nodes
    (:func:`declared_nodes`). Releases of one source and one list of patches share it.
    """
    found: dict[str, dict[str, Any]] = {}
    for item in todo:
        if item["cached"] or not item["builder"]:
            continue
        name = source_name(item)
        declared = nodes[item["nodes"][0]].get("source") or item["inputs"]["source"]
        entry = {
            "name": name,
            "release": item["inputs"]["release"],
            "source": declared,
            "patches": item["patches"],
            "web_ui": item["inputs"]["web_ui"],
        }
        found.setdefault(name, entry)
    return found


def source_name(release: Mapping[str, Any]) -> str:
    """Return what a release is compiled from, as a word: the same for releases that share it."""
    source = release["inputs"]["source"]
    patches = [patch["sha256"][:12] for patch in release["inputs"]["patches"]]
    pages = ["pages"] if release["inputs"]["web_ui"] else []
    words = [release["inputs"]["release"], *(str(source[key]) for key in sorted(source)), *patches, *pages]
    return " ".join(words)


def by_item(registered: Mapping[str, Any], key: str = "name") -> dict[str, Any]:
    """Return the results of a loop by ``item[key]``; those that were skipped are left out."""
    return {result["item"][key]: result for result in registered.get("results", []) if not result.get("skipped", False)}


def build_packages(todo: Sequence[Mapping[str, Any]], names: Mapping[str, Sequence[str]], purpose: str) -> list[str]:
    """Return the packages that some releases need, to be built or to run.

    ``names``: of packages by ``purpose`` (``build``, ``runtime``), and by ``build_vulkan``,
    ``build_rdma`` and so on for what is needed only then.
    """
    found: list[str] = []
    for item in todo:
        inputs = item["inputs"]
        arguments = inputs.get("cmake_args", ())
        cases = [str(inputs["backend"])]
        cases += [case for case, option in _OPTIONS.items() if definition(arguments, option) == "ON"]
        for key in (purpose, *("%s_%s" % (purpose, case) for case in cases)):
            found += names.get(key, ())
    return list(dict.fromkeys(found))


def build_files(todo: Sequence[Mapping[str, Any]], fetched: Mapping[str, Any], pages: Mapping[str, Any]) -> list[str]:
    """Return the files of the control node that a builder needs for some releases: sources, patches, pages.

    ``fetched`` and ``pages``: results of loops over :func:`release_source`'s entries.
    """
    found: list[str] = []
    sources, built = by_item(fetched), by_item(pages)
    for item in todo:
        name = source_name(item)
        found += [sources[name]["archive"], *(patch["path"] for patch in sources[name]["patches"])]
        if item["inputs"]["web_ui"] and name in built:
            found.append(built[name]["archive"])
    return list(dict.fromkeys(found))


def built_releases(plan: Mapping[str, Any], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the ids of the releases that a builder has compiled in this run; their archives are still there."""
    found = []
    for builder in sorted({item["builder"] for item in plan["releases"].values() if item["builder"]}):
        results = (hostvars[builder].get("llama_cpp_built") or {}).get("results", [])
        found += [item["item"]["id"] for item in results if item.get("archive")]
    return found


def handing_on(todo: Sequence[Mapping[str, Any]], built: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return for each release who hands it on to the other nodes: ``node``, ``peers``, ``built`` (whether it has it).

    ``built``: ids of releases that their builder has just compiled. A builder that lacks the release
    as well, else the first node that lacks it, gets it first; the others fetch it from there over the
    fabric. Where nodes share no network, or a single node lacks it, there is nobody (``node`` is empty).
    """
    found = {}
    for item in todo:
        addresses = item["addresses"]
        compiled = item["id"] in built and item["builder"] in item["lacking"]
        node = item["builder"] if compiled else item["lacking"][0]
        peers = [name for name in item["lacking"] if name != node and name in addresses]
        useful = bool(peers) and node in addresses
        found[item["id"]] = {
            "node": node if useful else "",
            "address": addresses.get(node, ""),
            "peers": peers if useful else [],
            "peer_addresses": [addresses[name] for name in peers] if useful else [],
            "built": useful and compiled,
        }
    return found


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {
            "build_files": build_files,
            "build_packages": build_packages,
            "built_releases": built_releases,
            "by_item": by_item,
            "handing_on": handing_on,
            "missing_releases": missing_releases,
            "release_source": release_source,
            "source_name": source_name,
        }
