# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which builds of llama.cpp a source has that are newer than one of them; and the table of a cluster's releases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import build_number

MIB = 1 << 20
SHOWN = 5
HEADINGS = ("node", "release", "build", "backend", "state", "used by", "MiB", "own MiB", "installed")
_RIGHT = frozenset(("build", "MiB", "own MiB"))
_TAG = re.compile(r"refs/tags/(b[0-9]+)(?:\^\{\})?$", re.MULTILINE)
_VERSION = re.compile(r"\b([0-9]+)\.0\.0\b")


def tags(listed: str) -> list[str]:
    """Return the builds in the output of ``git ls-remote --tags``, oldest first."""
    return _in_order(_TAG.findall(listed))


def versions(listed: str) -> list[str]:
    """Return the builds in the output of ``pip index versions``; version N.0.0 carries build bN. Oldest first."""
    return _in_order("b%s" % number for number in _VERSION.findall(listed))


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(set(names), key=lambda name: build_number(name) or 0)


def newer(release: str, builds: Sequence[str]) -> list[str]:
    """Return the builds that are newer than ``release``, newest last; none when that is no build (a commit, a tag)."""
    number = build_number(release)
    return [name for name in builds if number is not None and (build_number(name) or 0) > number]


def updates_table(
    nodes: Mapping[str, Sequence[Mapping[str, Any]]],
    release: str,
    source: str,
    builds: Sequence[str] | None,
) -> str:
    """Return what is installed on every node, a line a release, and below it what is newer and what to write.

    ``nodes``: node -> ``releases`` of module release_info. ``release``: what is declared. ``source``: where was
    looked, for people. ``builds``: what is newer there, newest last; None where nobody can tell.
    """
    rows = [list(HEADINGS)]
    for node, releases in sorted(nodes.items()):
        name = node
        for facts in releases:
            rows.append([name, *_cells(facts)])
            name = ""
        if not releases:
            rows.append([node, "none", *[""] * (len(HEADINGS) - 2)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *_footer(nodes, release, source, builds)])


def _cells(facts: Mapping[str, Any]) -> list[str]:
    state = "current" if facts["current"] else "previous" if facts["previous"] else ""
    return [
        str(facts["id"]),
        str(facts["build_number"] or "?"),
        " ".join([str(facts["backend"]), *("sm_%s" % architecture for architecture in facts["architectures"])]),
        state if facts["complete"] else "incomplete",
        ", ".join(facts["used_by"]),
        str(-(-facts["bytes"] // MIB)),
        str(-(-facts["own_bytes"] // MIB)),
        str(facts["installed_at"])[:10],
    ]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if heading in _RIGHT else cell.ljust(width)
        for cell, width, heading in zip(row, widths, HEADINGS)
    ]
    return "  ".join(cells).rstrip()


def _footer(
    nodes: Mapping[str, Sequence[Mapping[str, Any]]], release: str, source: str, builds: Sequence[str] | None
) -> list[str]:
    stale = [
        node
        for node, releases in sorted(nodes.items())
        if not any(facts["current"] and facts["release"] == release for facts in releases)
    ]
    lines = ["llamacpp_release = %s is declared." % release]
    if stale:
        lines.append("Not current on %s: run playbooks/site.yml." % ", ".join(stale))
    if builds is None:
        return [*lines, "%s cannot be asked for newer builds; look there yourself." % source]
    if not builds:
        return [*lines, "Nothing newer at %s." % source]
    shown = list(builds[-SHOWN:])
    more = ", and %d more" % (len(builds) - SHOWN) if len(builds) > SHOWN else ""
    lines.append("Newer at %s: %s%s." % (source, ", ".join(reversed(shown)), more))
    lines.append(
        "To go there, write llamacpp_release: %s (and in llamacpp_source its sha256, where there is one), "
        "and run playbooks/site.yml." % builds[-1]
    )
    return lines
