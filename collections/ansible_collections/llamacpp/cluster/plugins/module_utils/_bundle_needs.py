# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run without a network lacks: everything at once, each with its kind, its name and who needs it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle import REMEDY
from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle_models import redirected, unreachable_models

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


def missing_models(instances: Any, opened: Mapping[str, Any], there: Iterable[str]) -> list[str]:
    """List the models that are neither in the bundle nor on the machines; ``there``: paths on the control node."""
    read_from = redirected(instances, opened["manifest"]["members"], opened["directory"])
    inside = [entry["path"] for entry in opened["manifest"]["members"] if entry["kind"] == "model"]
    known = {"%s/%s" % (opened["directory"], path) for path in inside} | set(there)
    return ["model %s for instance %s" % (place, name) for name, place in unreachable_models(read_from, known)]


def missing_packages(nodes: Mapping[str, Mapping[str, Any]], members: Sequence[Mapping[str, Any]]) -> list[str]:
    """List packages that nodes lack and the bundle does not have.

    ``nodes``: by name, ``system`` (as ``debian-12-x86_64``) and ``packages``, the names that are not installed there.
    """
    repositories = {
        member["name"]: member["details"].get("versions", {}) for member in members if member["kind"] == "packages"
    }
    gaps: dict[tuple[str, str], list[str]] = {}
    for node, needs in nodes.items():
        versions = repositories.get(needs["system"], {})
        absent = [name for name in needs["packages"] if name not in versions]
        if absent:
            gaps.setdefault((needs["system"], ", ".join(absent)), []).append(node)
    return ["packages of %s (%s) for %s" % (system, names, ", ".join(who)) for (system, names), who in gaps.items()]


def missing_releases(
    releases: Mapping[str, Mapping[str, Any]], files: Iterable[str], installed: Mapping[str, Sequence[str]]
) -> list[str]:
    """List releases that can neither be installed from the cache nor compiled from what is in it.

    ``releases``: of the plan. ``files``: names in the cache's ``sources``, ``patches`` and ``releases``, with these
    directories. ``installed``: node -> ids of releases that it has.
    """
    there = set(files)
    found = []
    for name, release in releases.items():
        lacking = [node for node in release["nodes"] if name not in installed.get(node, ())]
        if not lacking or "releases/%s.tar.gz.sha256" % name in there:
            continue
        inputs = release["inputs"]
        parts = []
        if not _has_source(inputs, there):
            parts.append("source of %s" % inputs["release"])
        parts += [
            "patch %s" % patch["name"]
            for patch in inputs.get("patches") or []
            if "patches/%s.patch" % patch["sha256"] not in there
        ]
        found += ["%s for release %s of %s" % (part, name, ", ".join(lacking)) for part in parts]
    return found


def missing_sources(wanted: Mapping[str, Sequence[str]], members: Sequence[Mapping[str, Any]]) -> list[str]:
    """List versions of llama.cpp of which the bundle has neither source nor a release.

    ``wanted``: version -> nodes that shall run it.
    """
    there = {str(member["details"].get("release")) for member in members if member["kind"] in ("source", "release")}
    return [
        "source of llama.cpp %s for %s" % (release, ", ".join(nodes))
        for release, nodes in wanted.items()
        if release not in there
    ]


def message(bundle: str, missing: Sequence[str], about: Mapping[str, Any]) -> str:
    """Return the one message about everything that is missing; empty when nothing is."""
    if not missing:
        return ""
    return (
        "llamacpp_bundle = %s lacks %d thing%s that this run needs:\n%s\nIt was made on %s for %s. What to do: %s"
        % (
            bundle,
            len(missing),
            "" if len(missing) == 1 else "s",
            "\n".join("- %s" % phrase for phrase in missing),
            about.get("created_at", "an unknown day"),
            about.get("for", "an unknown inventory"),
            REMEDY,
        )
    )


def _has_source(inputs: Mapping[str, Any], there: Iterable[str]) -> bool:
    """Whether the cache has the source, by the names that llama_source gives."""
    head = "sources/llama.cpp-%s-%s" % (inputs["source"]["kind"], _NOT_IN_NAMES.sub("_", inputs["release"]))
    return any(name == head + ".tar.gz" or (name.startswith(head + "-") and name.endswith(".tar.gz")) for name in there)
