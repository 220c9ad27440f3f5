# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show a plan to a person, as plain text for a terminal of 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

MIB = 1 << 20
WIDTH = 110
PARTS = ("model", "context", "compute", "overhead")
HEADINGS = ("instance", "node", "device", "layers", *PARTS, "free", "split", "port")
# Numbers are easier to compare on the right.
RIGHT = frozenset(("layers", *PARTS, "free", "split", "port"))
UNKNOWN = "?"
# Options that a choice rejected and that are told here; the page tells all of them.
REJECTED = 3


def plan_table(plan: Mapping[str, Any], addresses: Mapping[str, str] | None = None) -> str:
    """Return the plan as a table, a line a device, then endpoint and reasons of every instance.

    ``addresses``: how people reach each node; the node's name where it is missing. Sizes in MiB, what is taken
    rounded up, what is free rounded down. ``host``: the head's own memory, beside that of its devices.
    """
    rows = [list(HEADINGS)]
    for instance in plan["instances"]:
        rows += _rows(instance, host_free(plan, instance))
    if len(rows) == 1:
        return "\n".join(["No instances are declared.", *releases(plan)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append("(sizes in MiB)")
    for instance in plan["instances"]:
        lines += ["", *_footer(instance, addresses or {})]
    lines += ["", *models(plan), *releases(plan)]
    return "\n".join(lines)


def releases(plan: Mapping[str, Any]) -> list[str]:
    """Return the lines that say which release runs where, and who compiles it with what."""
    lines = []
    for release in plan.get("releases", {}).values():
        text = "release %s on %s" % (release["id"], ", ".join(release["nodes"]))
        lines += _wrapped("%s: %s" % (text, made(release)), 0)
    return lines


def models(plan: Mapping[str, Any]) -> list[str]:
    """Return the lines that say which model goes where, and how."""
    lines = []
    for name, model in plan.get("models", {}).items():
        lines += _wrapped("model %s on %s: %s" % (name, ", ".join(model["holders"]), brought(model)), 0)
    return lines


def brought(model: Mapping[str, Any]) -> str:
    """Return how a model gets to its nodes, in words."""
    source = model["source"]
    if not model["fetcher"]:
        return "%s of %s, nothing is copied" % (source["path"], "all nodes" if source.get("shared") else "each node")
    where = source.get("path") or source.get("repo") or source["urls"][0]
    if source.get("commit"):
        where += "@%s" % source["commit"][:12]
    who = "the control node" if model["fetcher"] == "controller" else model["fetcher"]
    way = "" if model["transport"] == "none" else "%s: " % model["transport"]
    return "%s gets %s; %s%s" % (who, where, way, model["why"])


def made(release: Mapping[str, Any]) -> str:
    """Return how a release comes about, in words."""
    if not release["builder"]:
        return "is installed" if release["inputs"].get("cmake_args") else "comes built"
    toolchain = release["toolchain"]
    with_ = ["gcc %d" % toolchain["gcc"]["version"] if toolchain["gcc"]["version"] else "the system's gcc"]
    if toolchain["cuda"]:
        with_.append("CUDA %s (%s)" % (toolchain["cuda"]["version"], toolchain["cuda"]["provider"]))
    return "compiled on %s with %s" % (release["builder"], " and ".join(with_))


def _rows(instance: Mapping[str, Any], left: int | None) -> list[list[str]]:
    """Return the lines of an instance; its name and the ports of its services stand once. ``left``: see host_free."""
    ports = {worker["node"]: str(worker["port"]) for worker in instance["workers"]}
    ports[instance["head"]] = str(instance["port"])
    offloaded = [device for device in instance["devices"] if not device["host"]]
    split = [format(part, "g") for part in instance["tensor_split"]] if len(offloaded) > 1 else []
    name = str(instance["name"])
    rows = []
    for device in instance["devices"]:
        part = split.pop(0) if split and not device["host"] else ""
        cells = [name, str(device["node"]), str(device["device"]), _layers(device), *_sizes(device)]
        rows.append([*cells, _free(device["free_bytes"]), part, ports.pop(device["node"], "")])
        name = ""
    if instance["host_memory"] and len(offloaded) == len(instance["devices"]):
        # None of its devices is the head's own memory, which llama-server takes nevertheless.
        sizes = _sizes(instance["host_memory"])
        rows.append([name, str(instance["head"]), "host", "", *sizes, _free(left), "", ports.pop(instance["head"], "")])
    return rows


def _sizes(use: Mapping[str, Any]) -> list[str]:
    return [UNKNOWN if (size := use[part + "_bytes"]) is None else str(-(-size // MIB)) for part in PARTS]


def _free(size: int | None) -> str:
    return UNKNOWN if size is None else str(size // MIB)


def _layers(device: Mapping[str, Any]) -> str:
    if device["n_layers"] is None:
        return UNKNOWN
    if not device["layers"]:
        return "none"
    return "%d-%d (%d)" % (device["layers"][0], device["layers"][1], device["n_layers"])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if heading in RIGHT else cell.ljust(width)
        for cell, width, heading in zip(row, widths, HEADINGS)
    ]
    return "  ".join(cells).rstrip()


def _footer(instance: Mapping[str, Any], addresses: Mapping[str, str]) -> list[str]:
    slots = "%d slot%s of %d tokens" % (
        instance["parallel"],
        "" if instance["parallel"] == 1 else "s",
        instance["context"],
    )
    key = " (with an API key)" if instance["api_key_file"] else ""
    lines = ["%s: %s%s" % (instance["name"], endpoint(instance, addresses), key)]
    lines += _wrapped("%s. %s" % (slots, instance["why"]), 2)
    for note in instance["notes"]:
        lines += _wrapped("note: %s" % note, 2)
    for choice in instance["choices"]:
        # The most important reason is the instance's own and stands above.
        why = ": %s" % choice["why"] if choice["why"] != instance["why"] else ""
        lines += _wrapped("%s %s%s" % (choice["what"], choice["chosen"], why), 2)
        for option in choice["rejected"][:REJECTED]:
            lines += _wrapped("not %s: %s" % (option["option"], option["why"]), 4)
        more = len(choice["rejected"]) - REJECTED
        if more > 0:
            lines.append("    nor %d more, which the page tells" % more)
    return lines


def _wrapped(text: str, indent: int) -> list[str]:
    """Return text as lines; a line that goes on is indented by two more."""
    first, other = " " * indent, " " * (indent + 2)
    # Names of files and nodes stay whole, so that they can be copied.
    wrapper = textwrap.TextWrapper(
        WIDTH, initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(text)


def host_free(plan: Mapping[str, Any], instance: Mapping[str, Any]) -> int | None:
    """Return the bytes that are left of the memory of an instance's head; None where nobody knows."""
    for device in plan["devices"].get(instance["head"], []):
        if device["kind"] == "cpu":
            free: int | None = device["free_bytes"]
            return free
    return None


def endpoint(instance: Mapping[str, Any], addresses: Mapping[str, str]) -> str:
    """Return the address at which people reach an instance; ``addresses``: of nodes, where the name is not enough."""
    host = str(instance["host"])
    if host in ("0.0.0.0", "::"):
        host = addresses.get(instance["head"], instance["head"])
    return "http://%s:%d/v1" % ("[%s]" % host if ":" in host else host, instance["port"])
