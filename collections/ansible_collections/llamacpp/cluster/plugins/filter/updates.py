# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter that shows installed and newer releases to a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils import _newer


def updates_table(
    hostvars: Mapping[str, Mapping[str, Any]],
    nodes: list[str],
    found: Mapping[str, Any],
    release: str,
    register: str = "release_info",
) -> str:
    """Return the table; ``found``: what release_info found at the source."""
    installed = {
        node: hostvars[node][register]["releases"]
        for node in nodes
        if register in hostvars[node] and "releases" in hostvars[node][register]
    }
    return _newer.updates_table(installed, str(release), found["source"], found["newer"])


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {"updates_table": updates_table}
