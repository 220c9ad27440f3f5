# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which model is read where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable


def models_from(instances: Iterable[Mapping[str, Any]], place: str) -> list[dict[str, Any]]:
    """Select the instances whose model is read on ``place``: controller, or node (its head).

    Only ``name``, ``model`` and ``head`` are passed on, so that no API key ends up in a task's result.
    """
    selected = []
    for instance in instances:
        model = instance["model"]
        if model.get("from", "controller" if "path" in model else "node") == place:
            nodes = instance.get("nodes") or [None]
            selected.append({"name": instance["name"], "model": model, "head": instance.get("head", nodes[0])})
    return selected


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {"models_from": models_from}
