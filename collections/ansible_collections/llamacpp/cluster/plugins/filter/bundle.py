# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What goes into a bundle, what is read from one, and what one lacks."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils import _bundle_models, _bundle_needs

# So many names of one kind are shown; wheels are dozens.
NAMES_SHOWN = 4


def from_bundle(instances: Any, opened: Mapping[str, Any]) -> Any:
    """Let instances read their models from an opened bundle; without one they stay as they are."""
    if not opened.get("manifest"):
        return instances
    return _bundle_models.redirected(instances, opened["manifest"]["members"], opened["directory"])


def bundle_system(node: Mapping[str, Any]) -> str:
    """Name the system that a node's packages are for, as ``debian-12-x86_64``."""
    system = node["os"]
    # Minor releases of Debian and EL install each other's packages; those of Ubuntu are systems of their own.
    version = str(system["version"]) if system["id"] == "ubuntu" else str(system["version"]).split(".", 1)[0]
    return "%s-%s-%s" % (system["id"], version, node["machine"])


def bundle_toolchain(toolchains: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the packages of the distribution that compilers consist of; a CUDA toolkit of wheels consists of none."""
    found: list[str] = []
    for toolchain in toolchains:
        gcc, cuda = toolchain.get("gcc") or {}, toolchain.get("cuda") or {}
        found += gcc.get("packages") or []
        if cuda.get("provider") != "pip":
            found += cuda.get("packages") or []
    return list(dict.fromkeys(found))


def bundle_files(
    sources: Mapping[str, Any],
    pages: Mapping[str, Any],
    toolkits: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    packages: Sequence[Mapping[str, Any]],
    releases: Mapping[str, Mapping[str, Any]],
    cache: str,
) -> list[dict[str, Any]]:
    """List what is packed, for the option C(files) of bundle.

    ``sources``, ``pages`` and ``toolkits``: results of loops of llama_source, llama_ui and cuda_wheels. ``models``: of
    :func:`bundle_manifests`, in the control node's store. ``packages``: what nodes collected, each ``system``,
    ``nodes``, ``packages`` (asked for) and ``versions``. ``releases``: of the plan.
    """
    found: list[dict[str, Any]] = []
    for result in _done(sources):
        details = {"release": result["item"]["release"]}
        found.append({"kind": "source", "file": result["archive"], "details": details})
        found += [{"kind": "patch", "file": patch["path"], "name": patch["name"]} for patch in result["patches"]]
    for result in _done(pages):
        found.append({"kind": "ui", "file": result["archive"], "details": {"release": result["item"]["release"]}})
    wheels = [file for result in _done(toolkits) for file in result["files"]]
    # Keys of package repositories that cuda_toolkit keeps there, too.
    keys = sorted(glob.glob(os.path.join(glob.escape(cache), "cuda", "*.pub")))
    found += [{"kind": "cuda", "file": file} for file in dict.fromkeys([*wheels, *keys])]
    for entry in models:
        found += _bundle_models.packed_files(entry["item"], entry["manifest"], os.path.join(cache, "models"))
    for entry in packages:
        details = {"needed_by": entry["nodes"], "requested": entry["packages"], "versions": entry["versions"]}
        file = os.path.join(cache, "bundle", entry["system"] + ".tar")
        found.append({"kind": "packages", "file": file, "name": entry["system"], "details": details})
    for name, release in releases.items():
        archive = os.path.join(cache, "releases", name + ".tar.gz")
        if os.path.isfile(archive) and os.path.isfile(archive + ".sha256"):
            details = {"needed_by": release["nodes"], "release": release["inputs"].get("release", "")}
            found.append({"kind": "release", "file": archive, "name": name, "details": details})
    return found


def bundle_manifests(
    models: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]], fetched: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return ``item`` and ``manifest`` of each model that is packed.

    ``models``: of :func:`planned_models`. ``known``: manifests by name, of what the control node's store had already.
    ``fetched``: result of a loop of model over the others.
    """
    manifests = {result["item"]["name"]: result["manifest"] for result in _done(fetched)}
    manifests.update(known)
    return [{"item": item, "manifest": manifests[item["name"]]} for item in models]


def _done(registered: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the results of a loop that were not skipped."""
    return [result for result in registered.get("results", []) if not result.get("skipped")]


def bundle_missing(
    opened: Mapping[str, Any],
    bundle: str,
    instances: Any = (),
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
    sources: Mapping[str, Sequence[str]] | None = None,
    todo: Sequence[Mapping[str, Any]] = (),
    cache: str = "",
) -> str:
    """Say in one message everything that a run needs and an opened bundle lacks; empty when it lacks nothing."""
    members = opened["manifest"]["members"]
    paths = [place for _name, place in _bundle_models.unreachable_models(instances)]
    missing = _bundle_needs.missing_models(instances, opened, [path for path in paths if os.path.isfile(path)])
    missing += _bundle_needs.missing_sources(sources or {}, members)
    missing += _bundle_needs.missing_packages(nodes or {}, members)
    kept = [
        "%s/%s" % (folder, name)
        for folder in ("sources", "patches", "ui", "cuda")
        if os.path.isdir(os.path.join(cache, folder))
        for name in os.listdir(os.path.join(cache, folder))
    ]
    kept += ["npm"] if os.path.isdir(os.path.join(cache, "npm")) else []
    missing += _bundle_needs.missing_builds(todo, kept)
    about = dict(opened["manifest"]["about"], created_at=opened["manifest"]["created_at"])
    return _bundle_needs.message(bundle, missing, about)


def bundle_table(manifest: Mapping[str, Any], bundle: str) -> str:
    """Say what is in a bundle: files and MiB of each kind, for people."""
    rows = []
    for kind in sorted({member["kind"] for member in manifest["members"]}):
        members = [member for member in manifest["members"] if member["kind"] == kind]
        size = sum(member["bytes"] for member in members)
        names = ", ".join(sorted(member["name"] for member in members)) if len(members) <= NAMES_SHOWN else ""
        rows.append("%-9s %4d files %9.1f MiB  %s" % (kind, len(members), size / (1 << 20), names))
    return "\n".join([bundle, *(row.rstrip() for row in rows)])


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {
            "from_bundle": from_bundle,
            "bundle_manifests": bundle_manifests,
            "bundle_models": _bundle_models.planned_models,
            "bundle_system": bundle_system,
            "bundle_toolchain": bundle_toolchain,
            "bundle_files": bundle_files,
            "bundle_missing": bundle_missing,
            "bundle_table": bundle_table,
        }
