# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Show a plan to a person, as one HTML file that needs nothing else: no network, no fonts, no script to be read.

The parts are made one module each: :mod:`_page_nodes`, :mod:`_page_instances`; drawings in :mod:`_page_bar`, looks in
:mod:`_page_style`. All text goes through :func:`_page_html.tag`, which escapes it. The same plan gives the same page,
byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._page_html import Markup, gib, join, tag
from ansible_collections.llamacpp.cluster.plugins.module_utils._page_instances import instances_section, overview
from ansible_collections.llamacpp.cluster.plugins.module_utils._page_nodes import nodes_section, totals
from ansible_collections.llamacpp.cluster.plugins.module_utils._page_style import SCRIPT, STYLE
from ansible_collections.llamacpp.cluster.plugins.module_utils._table import made

SCHEMA = 4
# Fewer things are found quicker by eye.
FILTER_FROM = 9


class PageError(ValueError):
    """The plan cannot be shown; the text says why."""


def plan_page(plan: Mapping[str, Any], addresses: Mapping[str, str] | None = None) -> str:
    """Return the page of a plan.

    ``addresses``: how people reach each node; the node's name where it is missing.
    Raises :class:`PageError` when the plan is of another schema.
    """
    if plan.get("schema") != SCHEMA:
        raise PageError("the plan has schema %s, the page shows %d; make the plan again" % (plan.get("schema"), SCHEMA))
    known = addresses or {}
    numbers = {instance["name"]: number for number, instance in enumerate(plan["instances"], 1)}
    sections = [
        overview(plan, numbers, known) if numbers else None,
        nodes_section(plan, numbers),
        instances_section(plan, numbers, known) if numbers else None,
    ]
    body = tag(
        "body",
        tag("a", "Skip to the plan", href="#plan", class_="skip"),
        _hatch(),
        _masthead(plan),
        _navigation(plan, len(numbers)),
        tag("main", *sections, id="plan"),
        _colophon(),
        tag("script", Markup(SCRIPT)),
    )
    return "<!DOCTYPE html>\n%s\n" % tag("html", _head(plan), body, lang="en")


def _head(plan: Mapping[str, Any]) -> Markup:
    policy = "default-src 'none'; style-src %s; script-src %s; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy % (_source(STYLE), _source(SCRIPT))),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", "Plan: %s, release %s" % (_served(plan), plan["release"])),
        tag("style", Markup(STYLE)),
    )


def _source(text: str) -> str:
    """Return what the policy says of an inline style or script: its hash."""
    return "'sha256-%s'" % base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _served(plan: Mapping[str, Any]) -> str:
    names = [str(instance["name"]) for instance in plan["instances"]]
    if not names:
        return "nothing placed"
    return ", ".join(names) if len(names) <= 3 else "%s, %s and %d more" % (names[0], names[1], len(names) - 2)


def _hatch() -> Markup:
    """Return the pattern of the margin; an svg that is not displayed could not lend it."""
    lines = [tag("rect", width=6, height=6, class_="hatch-ground"), tag("path", d="M-1 7L7 -1", class_="hatch-line")]
    pattern = tag("pattern", *lines, id="hatch", width=6, height=6, patternUnits="userSpaceOnUse")
    return tag("svg", tag("defs", pattern), width=0, height=0, class_="unseen", aria_hidden="true")


def _masthead(plan: Mapping[str, Any]) -> Markup:
    total = totals(plan)
    busy = [node for node, found in plan["devices"].items() if any(device["uses"] for device in found)]
    known = total.used is not None and total.memory
    share = "%.0f %% of all devices" % (100 * (total.used or 0) / total.memory) if known else ""
    tiles = [
        ("instances", str(len(plan["instances"])), _served(plan)),
        ("nodes", "%d of %d" % (len(busy), len(plan["nodes"])), "have something planned"),
        ("devices", format(total.number, ","), gib(total.memory)),
        ("planned memory", gib(total.used), share),
    ]
    if total.fullest:
        device, free = total.fullest
        tiles.append(("fullest device", "%s %s" % (gib(abs(free)), "free" if free >= 0 else "too much"), device))
    nothing = "No instances are declared: nothing is placed." if not plan["instances"] else None
    return tag(
        "header",
        tag("h1", "Cluster plan"),
        tag("p", "llama.cpp release ", tag("code", str(plan["release"]))),
        *(
            tag("p", tag("code", item["id"]), " on %s, %s" % (", ".join(item["nodes"]), made(item)), class_="release")
            for item in plan.get("releases", {}).values()
        ),
        tag(
            "dl",
            *(tag("div", tag("dt", word), tag("dd", value), tag("dd", more)) for word, value, more in tiles),
            class_="tiles",
        ),
        tag("p", nothing, class_="nothing") if nothing else None,
        class_="masthead",
    )


def _navigation(plan: Mapping[str, Any], instances: int) -> Markup:
    names = ["overview", "memory", "instances"] if instances else ["memory"]
    links = [tag("a", name.capitalize(), href="#" + name) for name in names]
    box = None
    if instances + len(plan["nodes"]) >= FILTER_FROM:
        field = tag("input", type="search", id="filter", autocomplete="off", spellcheck="false")
        box = join([tag("label", "Filter", field, hidden=True), tag("output", id="found", for_="filter")])
    return tag("nav", tag("div", *links, box), aria_label="Sections")


def _colophon() -> Markup:
    text = "What is taken is rounded up to whole MiB, what is free is rounded down. Point at a bar for bytes."
    return tag("footer", text, class_="colophon")
