# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What goes into a bundle, what is read from one, and what one lacks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.filter.release import build_platform
from ansible_collections.llamacpp.cluster.plugins.module_utils import _bundle_models, _bundle_needs


def from_bundle(instances: Any, opened: Mapping[str, Any]) -> Any:
    """Let instances read their models from an opened bundle; without one they stay as they are."""
    if not opened.get("manifest"):
        return instances
    return _bundle_models.redirected(instances, opened["manifest"]["members"], opened["directory"])


def bundle_system(node: Mapping[str, Any]) -> str:
    """Name the system that a node's packages are for, as ``debian-12-x86_64``."""
    platform = build_platform(node)
    return "%s-%s" % (platform["os"], platform["machine"])


def bundle_missing(
    opened: Mapping[str, Any],
    bundle: str,
    instances: Any = (),
    nodes: Mapping[str, Mapping[str, Any]] | None = None,
    sources: Mapping[str, Sequence[str]] | None = None,
    releases: Mapping[str, Mapping[str, Any]] | None = None,
    installed: Mapping[str, Sequence[str]] | None = None,
    cache: str = "",
) -> str:
    """Say in one message everything that a run needs and an opened bundle lacks; empty when it lacks nothing."""
    members = opened["manifest"]["members"]
    paths = [place for _name, place in _bundle_models.unreachable_models(instances)]
    missing = _bundle_needs.missing_models(instances, opened, [path for path in paths if os.path.isfile(path)])
    missing += _bundle_needs.missing_sources(sources or {}, members)
    missing += _bundle_needs.missing_packages(nodes or {}, members)
    if releases:
        files = [
            "%s/%s" % (folder, name)
            for folder in ("sources", "patches", "releases")
            if os.path.isdir(os.path.join(cache, folder))
            for name in os.listdir(os.path.join(cache, folder))
        ]
        missing += _bundle_needs.missing_releases(releases, files, installed or {})
    about = dict(opened["manifest"]["about"], created_at=opened["manifest"]["created_at"])
    return _bundle_needs.message(bundle, missing, about)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {
            "from_bundle": from_bundle,
            "bundle_models": _bundle_models.planned_models,
            "bundle_system": bundle_system,
            "bundle_missing": bundle_missing,
        }
