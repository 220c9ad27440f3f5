# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The part of the page that shows the nodes: a card each, with the memory of every device drawn and written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._page_bar import (
    PARTS,
    extent_of,
    memory_bar,
    parts_of,
    total_of,
    used_of,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._page_html import (
    UNKNOWN,
    Markup,
    count,
    gib,
    mib,
    mib_free,
    tag,
)

# Words of the plan for what an instance does on a device.
HOST = "cpu"


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts node2 before node10."""
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in re.split(r"(\d+)", name) if word]


def nodes_section(plan: Mapping[str, Any], numbers: Mapping[str, int]) -> Markup:
    """Return the section of all nodes: cards for those that something is planned on, a list of the others."""
    names = sorted(plan["nodes"], key=natural)
    busy = [name for name in names if plan["nodes"][name]["units"] or _used(plan, name)]
    idle = [name for name in names if name not in busy]
    cards = [_card(plan, name, numbers) for name in busy]
    return tag(
        "section",
        tag("h2", "Memory"),
        _legend() if cards else None,
        tag("div", *cards, class_="cards") if cards else None,
        _idle(plan, idle, only=not busy) if idle else None,
        id="memory",
    )


def _used(plan: Mapping[str, Any], node: str) -> bool:
    return any(device["uses"] for device in plan["devices"].get(node, []))


def _legend() -> Markup:
    meanings = {
        "model": "weights",
        "context": "KV cache and recurrent state of all slots",
        "compute": "buffers of the computation graph",
        "overhead": "what driver, backend and a projector take",
        "margin": "stays free on purpose",
        "free": "left when all instances run",
    }
    items = [
        tag("li", tag("i", class_="swatch " + part), tag("b", part), " ", tag("span", meaning, class_="quiet"))
        for part, meaning in meanings.items()
    ]
    return tag("ul", *items, class_="legend", aria_label="Legend")


def _card(plan: Mapping[str, Any], name: str, numbers: Mapping[str, int]) -> Markup:
    node = plan["nodes"][name]
    found = plan["devices"].get(name, [])
    # Host memory beside GPUs is worth a bar where something is planned in it.
    devices = [device for device in found if device["uses"] or device["kind"] != HOST or device is found[0]]
    # A terabyte of host memory would make every GPU beside it a hairline: it has a scale of its own.
    scales = {
        host: max([extent_of(device) for device in devices if (device["kind"] == HOST) == host], default=0)
        for host in (False, True)
    }
    words = [name, *sorted({use["instance"] for device in devices for use in device["uses"]})]
    words += sorted({str(device["name"]) for device in devices})
    bodies = [_device(device, scales[device["kind"] == HOST], numbers) for device in devices]
    table = tag(
        "table",
        tag("caption", "Memory of %s in MiB" % name, class_="unseen"),
        tag(
            "thead",
            tag(
                "tr",
                tag("th", "MiB", scope="col"),
                *(tag("th", tag("i", class_="swatch " + part), part, scope="col") for part in PARTS),
                tag("th", "total", scope="col"),
            ),
        ),
        *bodies,
        class_="memory",
    )
    return tag(
        "article",
        tag("h3", name, tag("span", node.get("fabric_address"), class_="quiet address")),
        table if devices else tag("p", "Nothing is known of its devices.", class_="quiet"),
        _ports(node["firewall"]),
        class_="card",
        data_find=" ".join(words).lower(),
    )


def _device(device: Mapping[str, Any], scale: int, numbers: Mapping[str, int]) -> Markup:
    head = tag(
        "tr",
        tag(
            "th",
            tag(
                "div",
                tag("b", device["device"]),
                tag("span", device["name"], class_="quiet hardware"),
                tag("span", *_balance(device), class_="balance"),
                class_="line",
            ),
            memory_bar(device, scale, numbers) if device["memory_bytes"] else None,
            colspan=len(PARTS) + 2,
            scope="rowgroup",
        ),
        class_="device",
    )
    rows = [
        tag(
            "tr",
            tag("th", chip(use["instance"], numbers), tag("span", use["role"], class_="quiet role"), scope="row"),
            *(tag("td", mib(size), data_label=part) for part, size in parts_of(use).items()),
            tag("td", mib(total_of(use)), data_label="total", class_="sum"),
            class_="use",
        )
        for use in device["uses"]
    ]
    return tag("tbody", head, *rows)


def _balance(device: Mapping[str, Any]) -> list[Markup | str]:
    """Return what is taken and what is left of a device, for the right end of its line."""
    memory, used, free = device["memory_bytes"], used_of(device), device.get("free_bytes")
    if not memory:
        return ["size unknown"]
    if used is None or free is None:
        return ["%s, taken: %s" % (gib(memory), UNKNOWN)]
    if free < 0:
        return [tag("strong", "%s MiB too much" % mib(-free), class_="over"), " of %s" % gib(memory)]
    margin = device.get("margin_bytes")
    kept = " \u00b7 %s MiB margin" % mib(margin) if margin else ""
    return [tag("b", "%s MiB free" % mib_free(free)), "%s \u00b7 of %s" % (kept, gib(memory))]


def chip(instance: str, numbers: Mapping[str, int]) -> Markup:
    """Return an instance's number and name, linked to its description."""
    number = numbers[instance]
    return tag("a", tag("span", str(number), class_="index"), instance, href="#instance-%d" % number, class_="chip")


def _ports(openings: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Return which ports the node opens, and for whom."""
    if not openings:
        return None
    items = [
        tag(
            "li",
            tag("b", str(opening["port"])),
            " %s of %s, %s"
            % (
                opening["purpose"],
                opening["instance"],
                "for " + ", ".join(map(str, opening["sources"])) if opening["sources"] else "for everyone",
            ),
        )
        for opening in openings
    ]
    return tag("div", tag("h4", "Open ports"), tag("ul", *items), class_="ports")


def _idle(plan: Mapping[str, Any], names: Sequence[str], only: bool) -> Markup:
    """Return the nodes that nothing is planned on, a line each."""
    items = []
    for name in names:
        devices = plan["devices"].get(name, [])
        kinds = Counter((str(device["name"]), device["memory_bytes"]) for device in devices)
        hardware = [
            "%s%s, %s" % ("%d \u00d7 " % number if number > 1 else "", model, gib(memory or None))
            for (model, memory), number in kinds.items()
        ]
        text = "; ".join(hardware) or "nothing is known of its devices"
        items.append(
            tag(
                "li", tag("b", name), " ", tag("span", text, class_="quiet"), data_find=("%s %s" % (name, text)).lower()
            )
        )
    summary = "%s with nothing planned" % count(len(names), "node")
    return tag("details", tag("summary", summary), tag("ul", *items, class_="idle"), class_="card wide", open=only)


class Totals(NamedTuple):
    """The devices of all nodes in sum, in bytes; host memory beside GPUs does not count."""

    number: int
    memory: int
    used: int | None
    # Where the least is left of what something is planned on, and how much; None where nobody can tell.
    fullest: tuple[str, int] | None


def totals(plan: Mapping[str, Any]) -> Totals:
    """Add the devices up."""
    number = memory = 0
    used: list[int | None] = []
    tight: list[tuple[int, str]] = []
    for node in sorted(plan["devices"], key=natural):
        devices = plan["devices"][node]
        for device in [device for device in devices if device["kind"] != HOST] or devices:
            number += 1
            memory += device["memory_bytes"] or 0
            used.append(used_of(device))
            if device["uses"] and device.get("free_bytes") is not None:
                tight.append((device["free_bytes"], "%s of %s" % (device["device"], node)))
    least = min(tight, key=lambda item: item[0], default=None)
    known = [size for size in used if size is not None]
    whole = sum(known) if len(known) == len(used) else None
    return Totals(number, memory, whole, (least[1], least[0]) if least else None)


def placed_on(instance: Mapping[str, Any]) -> str:
    """Return the devices of an instance as its head calls them, by node: ``node1 (CUDA0, CUDA1), node2 (RPC0)``."""
    places: dict[str, list[str]] = {}
    for device in instance["devices"]:
        places.setdefault(device["node"], []).append(device["device"])
    return ", ".join("%s (%s)" % (node, listing(names)) for node, names in places.items())


def listing(names: Sequence[str]) -> str:
    """Return names of devices; three or more that follow each other as the first and the last of them."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(", ".join(run) if len(run) < 3 else "%s \u2013 %s" % (run[0], run[-1]) for run in runs)


def _follows(name: str, other: str) -> bool:
    """Whether ``other`` is the device after ``name``: CUDA1 after CUDA0."""
    one, two = (re.fullmatch(r"(.*?)([0-9]+)", text) for text in (name, other))
    return bool(one and two and one[1] == two[1] and int(one[2]) + 1 == int(two[2]))
