# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters that gather from nodes what the ledger compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {"found_memory": found_memory, "found_oracle": found_oracle}


def found_memory(nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], register: str) -> dict[str, Any]:
    """Return process_memory_info's ``memory`` by node; nodes that were not asked are left out."""
    return {node: hostvars[node][register]["memory"] for node in nodes if "memory" in hostvars[node].get(register, {})}


def found_oracle(nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], register: str) -> dict[str, Any]:
    """Return memory_oracle's ``devices`` by instance, from loops over the names of instances."""
    return {
        result["item"]: result["devices"]
        for node in nodes
        for result in hostvars[node].get(register, {}).get("results", [])
        if "devices" in result
    }
