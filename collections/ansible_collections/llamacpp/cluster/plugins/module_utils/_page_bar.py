# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Draw memory and layers as SVG. Widths are shares of a scale in bytes (or layers), so that the eye may compare them.

Geometry stands in attributes, never in ``style``: the page's policy forbids inline styles, and printers
that leave out backgrounds still draw SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._page_html import (
    Markup,
    count,
    gib,
    join,
    mib,
    mib_free,
    tag,
)

# What memory is taken for, in the order in which it is drawn and written everywhere.
PARTS = ("model", "context", "compute", "overhead")
# Instances whose model is narrower than this share of a bar get no number inside of it.
NUMBERED_SHARE = 0.05
BAND_HEIGHT = 26


def parts_of(use: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the bytes of each part; None where nobody knows."""
    return {part: use.get(part + "_bytes") for part in PARTS}


def total_of(use: Mapping[str, Any]) -> int | None:
    """Return the bytes of all parts; None when one of them is not known."""
    total = 0
    for size in parts_of(use).values():
        if size is None:
            return None
        total += size
    return total


def used_of(device: Mapping[str, Any]) -> int | None:
    """Return the bytes that all instances take of a device; None when one of them is not known."""
    totals = [total_of(use) for use in device["uses"]]
    return None if None in totals else sum(total for total in totals if total is not None)


def extent_of(device: Mapping[str, Any]) -> int:
    """Return the bytes that a device's bar has to reach: its memory, or more where more is planned."""
    return max(device["memory_bytes"] or 0, used_of(device) or 0)


def memory_bar(device: Mapping[str, Any], scale: int, numbers: Mapping[str, int]) -> Markup:
    """Draw the memory of a device: a group an instance, a rectangle a part, then margin, then what is free.

    ``scale``: bytes that the full width stands for. ``numbers``: the number of every instance.
    """
    memory, used = device["memory_bytes"], used_of(device)
    track = _rect("track", 0, memory, scale, "")
    if used is None:
        return tag("svg", track, class_="bar", role="img", aria_label=_spoken(device))
    rects: list[Markup] = []
    marks: list[Markup] = []
    at = 0
    for use in device["uses"]:
        if at:
            marks.append(_mark("cut", at, scale))
        if use["model_bytes"] >= scale * NUMBERED_SHARE:
            middle = "%s%%" % _percent(at + use["model_bytes"] / 2, scale)
            marks.append(tag("text", str(numbers[use["instance"]]), x=middle, y="50%"))
        for part, size in parts_of(use).items():
            if size:
                title = "%s, %s: %s MiB (%s bytes)" % (use["instance"], part, mib(size), format(size, ","))
                rects.append(_rect(part, at, size, scale, title))
                at += size
    margin = min(device["margin_bytes"], max(memory - used, 0))
    if margin:
        rects.append(_rect("margin", used, margin, scale, "margin that stays free: %s MiB" % mib(margin)))
    free = memory - used - margin
    if free > 0:
        rects.append(_rect("free", used + margin, free, scale, "free: %s MiB" % mib_free(free)))
    if used > memory:
        marks.append(_mark("limit", memory, scale))
    # Drawn in this order: the outline over the edges of what is in it, the marks over all.
    return tag("svg", *rects, track, *marks, class_="bar", role="img", aria_label=_spoken(device))


def _rect(kind: str, start: int, size: int, scale: int, title: str) -> Markup:
    return tag(
        "rect",
        tag("title", title) if title else None,
        class_=kind,
        x="%s%%" % _percent(start, scale),
        width="%s%%" % _percent(size, scale),
        height="100%",
        data_bytes=size,
    )


def _mark(kind: str, at: int, scale: int) -> Markup:
    x = "%s%%" % _percent(at, scale)
    return tag("line", class_=kind, x1=x, x2=x, y1="-3", y2="100%")


def _percent(size: float, scale: int) -> str:
    return ("%.4f" % (100 * size / scale)).rstrip("0").rstrip(".")


def _spoken(device: Mapping[str, Any]) -> str:
    """Say the bar to people who do not see it; the numbers stand in the table below it."""
    free = device["free_bytes"]
    parts = ["%s %s MiB" % (use["instance"], mib(total_of(use))) for use in device["uses"]]
    if free is None:
        parts.append("free: ?")
    else:
        parts.append("margin %s MiB" % mib(device["margin_bytes"]))
        parts.append("%s MiB free" % mib_free(free) if free >= 0 else "%s MiB too much" % mib(-free))
    return "%s, %s: %s" % (device["device"], gib(device["memory_bytes"]), ", ".join(parts))


def layer_strip(devices: Sequence[Mapping[str, Any]], tensor: bool) -> Markup | None:
    """Draw which device computes which layers, in the order in which a token passes them.

    ``devices``: of one instance. ``tensor``: every device holds a slice of every layer, so that the cuts
    lie across. None when nobody has counted the layers, or one device has them all.
    """
    holders = [device for device in devices if device["n_layers"]]
    if len(holders) < 2 or any(device["n_layers"] is None for device in devices):
        return None
    bands = _across(holders) if tensor else _along(holders)
    height = max(BAND_HEIGHT, 6 * len(holders)) if tensor else BAND_HEIGHT
    spoken = "; ".join("%s %s: %s" % (item["node"], item["device"], layers_text(item)) for item in holders)
    return tag("svg", join(bands), class_="strip", role="img", height=height, aria_label="Layers: " + spoken)


def _along(holders: Sequence[Mapping[str, Any]]) -> list[Markup]:
    whole = sum(device["n_layers"] for device in holders)
    bands = []
    at = 0
    for device, tone in zip(holders, _tones(holders)):
        number = device["n_layers"]
        band = [
            tag("rect", _band_title(device), width="100%", height="100%", data_layers=number),
            # Written only where it has room; a nested svg cuts off what sticks out on a narrow screen.
            tag("text", layers_text(device), x="50%", y="50%") if number >= 0.08 * whole else None,
        ]
        x, width = "%s%%" % _percent(at, whole), "%s%%" % _percent(number, whole)
        bands.append(tag("svg", *band, x=x, width=width, height="100%", class_=tone))
        at += number
    return bands


def _across(holders: Sequence[Mapping[str, Any]]) -> list[Markup]:
    share = 100 / len(holders)
    return [
        tag(
            "svg",
            tag("rect", _band_title(device), width="100%", height="100%", data_layers=device["n_layers"]),
            y="%.4f%%" % (index * share),
            width="100%",
            height="%.4f%%" % share,
            class_=tone,
        )
        for index, (device, tone) in enumerate(zip(holders, _tones(holders)))
    ]


def _tones(holders: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a tone a device; it changes with the node, where layers leave the machine."""
    nodes = list(dict.fromkeys(device["node"] for device in holders))
    return ["tone%d" % (nodes.index(device["node"]) % 2) for device in holders]


def _band_title(device: Mapping[str, Any]) -> Markup:
    text = "%s %s: layers %s (%s)" % (
        device["node"],
        device["device"],
        layers_text(device),
        count(device["n_layers"], "layer"),
    )
    return tag("title", text)


def layers_text(device: Mapping[str, Any]) -> str:
    """Return the first and the last layer; ``none``; ``?`` when nobody has counted."""
    if device["n_layers"] is None:
        return "?"
    if not device["layers"]:
        return "none"
    first, last = device["layers"]
    return str(first) if first == last else "%d\u2013%d" % (first, last)
