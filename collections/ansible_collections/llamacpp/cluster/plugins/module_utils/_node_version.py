# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which versions of Node.js npm's packages can be built with.

Ranges as npm writes them: node-semver 7, README, "Ranges" and "Advanced Range Syntax"; without pre-releases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Version = tuple[int, int, int]

_FOREVER: Version = (1 << 30, 0, 0)
_TOKEN = re.compile(r"^(>=|<=|>|<|=|\^|~>?)?v?(\d+|[xX*])(?:\.(\d+|[xX*]))?(?:\.(\d+|[xX*]))?(?:[-+][\w.+-]*)?$")
_SPACE_AFTER_SIGN = re.compile(r"(>=|<=|>|<|=|\^|~>?)\s+")
_HYPHEN = re.compile(r"^\s*(\S+)\s+-\s+(\S+)\s*$")


def parse_version(text: str) -> Version:
    """Read what ``node --version`` says (``v20.19.2``). Raises :class:`ValueError`."""
    match = re.match(r"^v?(\d+)\.(\d+)\.(\d+)", text.strip())
    if not match:
        raise ValueError("%r is no version of Node.js" % text)
    return int(match.group(1)), int(match.group(2)), int(match.group(3))


def satisfies(version: Version, wanted: str) -> bool:
    """Whether a version is in a range. A range that this does not understand contains all: npm will judge."""
    try:
        return any(_in_all(version, alternative) for alternative in wanted.split("||"))
    except ValueError:
        return True


def _in_all(version: Version, alternative: str) -> bool:
    hyphen = _HYPHEN.match(alternative)
    if hyphen:
        tokens = [">=" + hyphen.group(1), "<=" + hyphen.group(2)]
    else:
        tokens = _SPACE_AFTER_SIGN.sub(r"\1", alternative.replace(",", " ")).split()
    return all(low <= version < high for low, high in map(_bounds, tokens))


def _bounds(token: str) -> tuple[Version, Version]:
    """Return the first version that a comparator contains, and the first after that it does not."""
    match = _TOKEN.match(token)
    if not match:
        raise ValueError(token)
    sign, *parts = match.groups()
    numbers: list[int] = []
    for part in parts:
        if part is None or not part.isdigit():
            break
        numbers.append(int(part))
    if not numbers:
        return (0, 0, 0), _FOREVER
    start = _filled(numbers)
    # The first version that does not begin with what was written: 20 -> 21.0.0, 20.19 -> 20.20.0, 20.19.1 -> 20.19.2
    after = _filled([*numbers[:-1], numbers[-1] + 1])
    if sign == ">=":
        return start, _FOREVER
    if sign == ">":
        return after, _FOREVER
    if sign == "<":
        return (0, 0, 0), start
    if sign == "<=":
        return (0, 0, 0), after
    if sign == "^":
        # Up to the next change of the first number that is not zero.
        keep = next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)
        return start, _filled([*numbers[:keep], numbers[keep] + 1])
    if sign and sign.startswith("~"):
        return start, _filled([numbers[0], numbers[1] + 1]) if len(numbers) > 1 else after
    return start, after


def _filled(numbers: list[int]) -> Version:
    first, second, third = [*numbers, 0, 0][:3]
    return first, second, third


def refusals(version: Version, package: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    """List what does not work with a version of Node.js, as ``vite 7.3.6 needs ^20.19.0 || >=22.12.0``.

    ``package``: package.json. ``lock``: package-lock.json, version 2 or 3. Packages that npm may leave out are not
    looked at.
    """
    wanted = [("the web UI", package.get("engines"))]
    for place, entry in (lock.get("packages") or {}).items():
        if place and not entry.get("optional"):
            name = place.rsplit("node_modules/", 1)[-1]
            wanted.append(("%s %s" % (name, entry.get("version", "")), entry.get("engines")))
    found = []
    for name, engines in wanted:
        needed = engines.get("node") if isinstance(engines, dict) else None
        if isinstance(needed, str) and not satisfies(version, needed):
            found.append("%s needs %s" % (name, needed))
    return found
