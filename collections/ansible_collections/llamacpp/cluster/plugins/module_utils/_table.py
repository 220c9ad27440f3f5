# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show a plan to a person, as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MIB = 1 << 20
HEADINGS = ("instance", "node", "device", "layers", "model", "context", "compute", "total", "of MiB", "hardware")
# Numbers are easier to compare on the right.
RIGHT = frozenset(("layers", "model", "context", "compute", "total", "of MiB"))
UNKNOWN = "?"


def plan_table(plan: Mapping[str, Any], addresses: Mapping[str, str] | None = None) -> str:
    """Return the plan as a table, a line a device, then endpoint and reason of every instance.

    ``addresses``: how people reach each node; the node's name where it is missing. Sizes in MiB.
    """
    rows = [list(HEADINGS)]
    for instance in plan["instances"]:
        name = str(instance["name"])
        for device in instance["devices"]:
            rows.append([name, *_cells(device)])
            name = ""
    if len(rows) == 1:
        return "No instances are declared."
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for instance in plan["instances"]:
        lines += ["", *_footer(instance, addresses or {})]
    return "\n".join(lines)


def _cells(device: Mapping[str, Any]) -> list[str]:
    sizes = [device["model_bytes"], device["context_bytes"], device["compute_bytes"]]
    total = None if None in sizes else sum(sizes)
    return [
        str(device["node"]),
        str(device["device"]),
        _layers(device),
        *(_mib(size) for size in [*sizes, total]),
        _mib(device["memory_bytes"] or None),
        str(device["name"]),
    ]


def _layers(device: Mapping[str, Any]) -> str:
    if device["n_layers"] is None:
        return UNKNOWN
    if not device["layers"]:
        return "none"
    return "%d-%d (%d)" % (device["layers"][0], device["layers"][1], device["n_layers"])


def _mib(size: int | None) -> str:
    return UNKNOWN if size is None else str(-(-size // MIB))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if heading in RIGHT else cell.ljust(width)
        for cell, width, heading in zip(row, widths, HEADINGS)
    ]
    return "  ".join(cells).rstrip()


def _footer(instance: Mapping[str, Any], addresses: Mapping[str, str]) -> list[str]:
    host = str(instance["host"])
    if host in ("0.0.0.0", "::"):
        host = addresses.get(instance["head"], instance["head"])
    endpoint = "http://%s:%d/v1" % ("[%s]" % host if ":" in host else host, instance["port"])
    return [
        "%s: %s%s" % (instance["name"], endpoint, " (with an API key)" if instance["api_key_file"] else ""),
        "  %d slot%s of %d tokens. %s"
        % (instance["parallel"], "" if instance["parallel"] == 1 else "s", instance["context"], instance["why"]),
    ]
