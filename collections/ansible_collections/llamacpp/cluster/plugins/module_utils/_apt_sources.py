# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read apt's sources, one-line or deb822, and say what to add so that a component of the archive is there, too.

Whatever mirror, key or suite the administrator chose stays chosen: an added entry is one of theirs with another
component. Formats: sources.list(5). Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_ONE_LINE = re.compile(r"^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)")
# Options that say who may be trusted and which machine it is for; the rest is about how to fetch.
_KEPT = ("signed-by", "trusted", "architectures")
_ONE_LINE_NAMES = {"arch": "architectures"}
_TITLES = {"signed-by": "Signed-By", "trusted": "Trusted", "architectures": "Architectures"}


@dataclass(frozen=True)
class Entry:
    """An entry for binary packages. ``options``: names in lower case, as deb822 has them."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)


def one_line(text: str) -> list[Entry]:
    """Read ``sources.list``."""
    found = []
    for line in text.splitlines():
        match = _ONE_LINE.match(line.strip())
        if match is None:
            continue
        options, uri, suite, components = match.groups()
        pairs = (word.partition("=") for word in (options or "").split())
        named = {_ONE_LINE_NAMES.get(name.lower(), name.lower()): value for name, _equals, value in pairs}
        kept = {name: value.replace(",", " ") for name, value in named.items() if name in _KEPT}
        found.append(Entry((uri,), (suite,), tuple(components.split()), kept))
    return found


def deb822(text: str) -> list[Entry]:
    """Read a ``.sources`` file."""
    found = []
    for stanza in re.split(r"\n[ \t]*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        words = {name: tuple(fields.get(name, "").split()) for name in ("uris", "suites", "components")}
        options = {name: fields[name] for name in _KEPT if name in fields}
        found.append(Entry(words["uris"], words["suites"], words["components"], options))
    return found


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in (" ", "\t") and name:
            fields[name] += "\n" + line
        elif ":" in line:
            name, _colon, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def added(entries: Sequence[Entry], codename: str, components: Iterable[str]) -> str:
    """Return the deb822 text that adds ``components`` wherever ``main`` of this release of the distribution comes from.

    Empty when they are there already. Raises :class:`ValueError` when there is no such entry at all.
    """
    base = [entry for entry in entries if "main" in entry.components and _suites(entry, codename)]
    if not base:
        raise ValueError(
            "no entry of apt's sources has the component main of %s, so that nobody knows where %s is; add it to "
            "/etc/apt/sources.list.d" % (codename, ", ".join(components))
        )
    there = {
        (uri.rstrip("/"), suite, component)
        for entry in entries
        for uri in entry.uris
        for suite in entry.suites
        for component in entry.components
    }
    stanzas = []
    for entry in base:
        suites = _suites(entry, codename)
        lacking = [
            component
            for component in components
            if any((uri.rstrip("/"), suite, component) not in there for uri in entry.uris for suite in suites)
        ]
        if lacking:
            lines = ["Types: deb", "URIs: " + " ".join(entry.uris), "Suites: " + " ".join(suites)]
            lines += ["Components: " + " ".join(lacking)]
            lines += ["%s: %s" % (_TITLES[name], entry.options[name]) for name in _KEPT if name in entry.options]
            stanzas.append("\n".join(lines) + "\n")
    return "\n".join(stanzas)


def _suites(entry: Entry, codename: str) -> list[str]:
    """Return the entry's suites of the release: ``bookworm``, ``bookworm-updates``, ``bookworm/updates``."""
    return [suite for suite in entry.suites if re.split(r"[-/]", suite)[0] == codename and "backports" not in suite]
