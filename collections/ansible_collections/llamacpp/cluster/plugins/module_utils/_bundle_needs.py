# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run without a network lacks: everything at once, each with its kind, its name and who needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle import REMEDY
from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle_models import redirected, unreachable_models
from ansible_collections.llamacpp.cluster.plugins.module_utils._llama_source import archive_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._ui import archive_name as pages_name


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


def missing_builds(todo: Sequence[Mapping[str, Any]], files: Iterable[str]) -> list[str]:
    """List releases that can neither be installed from the cache nor compiled from what is in it.

    ``todo``: the plan's releases that nodes lack, with ``cached`` and ``lacking``. ``files``: what is in the cache, as
    paths below it.
    """
    there = {_stem(file) for file in files}
    found = []
    for release in todo:
        if release["cached"]:
            continue
        users = "for release %s of %s" % (release["id"], ", ".join(release["lacking"]))
        if not release["builder"]:
            found.append("built archive %s" % users)
            continue
        inputs = release["inputs"]
        if _stem(_source_file(inputs)) not in there:
            found.append("source of llama.cpp %s %s" % (inputs["release"], users))
        found += [
            "patch %s %s" % (patch["name"], users)
            for patch in inputs["patches"]
            if "patches/%s.patch" % patch["sha256"] not in there
        ]
        if inputs["web_ui"] and not _has_pages(inputs["release"], there):
            found.append("pages of the web UI of %s %s" % (inputs["release"], users))
        cuda = release["toolchain"].get("cuda") or {}
        if cuda.get("provider") == "pip" and not _has_toolkit(cuda["version"], there):
            found.append("wheels of CUDA %s %s" % (cuda["version"], users))
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


def _source_file(inputs: Mapping[str, Any]) -> str:
    """Return where llama_source keeps the source of a release in the cache."""
    source = inputs["source"]
    sha256 = str(source.get("sha256") or "").lower()
    return "sources/" + archive_name(source["kind"], inputs["release"], sha256, str(source.get("url") or ""))


def _has_pages(release: str, there: Iterable[str]) -> bool:
    """Whether the cache has pages of that release, or the packages to build them from (llama_ui)."""
    pages = _stem(pages_name("", release))
    return any(name == "npm" or (name.startswith("ui/") and name.endswith(pages)) for name in there)


def _has_toolkit(version: str, there: Iterable[str]) -> bool:
    """Whether the cache has the compiler of a CUDA toolkit of wheels; the others come with it."""
    return any(name.startswith("cuda/nvidia_cuda_nvcc-%s." % version) for name in there)


def _stem(file: str) -> str:
    """Return a file's name without what says how it is compressed; a plan does not know that."""
    return file.partition(".tar")[0]
