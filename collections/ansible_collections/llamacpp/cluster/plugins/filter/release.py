# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters that name releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.llamacpp.cluster.plugins.module_utils import _release


def build_platform(node: Mapping[str, Any]) -> dict[str, str]:
    """Turn what node_info says of a builder into the platform of its builds."""
    system = node["os"]
    # Minor releases of EL are compatible with each other, those of Ubuntu and Debian have none.
    version = str(system["version"]) if system["id"] == "ubuntu" else str(system["version"]).split(".", 1)[0]
    return {"os": "%s-%s" % (system["id"], version), "machine": str(node["machine"])}


def release_inputs(
    release: str,
    source: Mapping[str, Any],
    backend: str,
    architectures: Sequence[str],
    cmake_args: Sequence[str],
    platform: Mapping[str, str],
) -> dict[str, Any]:
    """Collect everything that decides what a build contains."""
    try:
        return _release.release_inputs(str(release), source, backend, architectures, cmake_args, platform)
    except _release.ReleaseError as error:
        raise AnsibleFilterError(str(error)) from error


def release_id(inputs: Mapping[str, Any]) -> str:
    """Name the release that these inputs give."""
    return _release.release_id(inputs)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {"build_platform": build_platform, "release_inputs": release_inputs, "release_id": release_id}
