# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters that show to a person what a search found, what is in the stores, and what a scrub found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils import _model_tables


def stores_table(hostvars: Mapping[str, Mapping[str, Any]], nodes: list[str], register: str = "model_info") -> str:
    """Return the table; nodes that did not answer are left out."""
    return _model_tables.stores_table(
        {
            node: hostvars[node][register]
            for node in nodes
            if register in hostvars[node] and "models" in hostvars[node][register]
        }
    )


def scrub_report(
    hostvars: Mapping[str, Mapping[str, Any]], nodes: list[str], store: str = "model_store", cache: str = "rpc_cache"
) -> str:
    """Return the report; nodes that did not answer are left out."""
    results = {node: (_result(hostvars[node], store), _result(hostvars[node], cache)) for node in nodes}
    return _model_tables.scrub_report({node: found for node, found in results.items() if any(found)})


def _result(variables: Mapping[str, Any], register: str) -> Mapping[str, Any]:
    """Return the result of a module that ran, whether it failed or not; empty for one that did not."""
    result: Mapping[str, Any] = variables.get(register) or {}
    return result if "findings" in result or result.get("failed") else {}


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {
            "scrub_report": scrub_report,
            "search_table": _model_tables.search_table,
            "stores_table": stores_table,
        }
