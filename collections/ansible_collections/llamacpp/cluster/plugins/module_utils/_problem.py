# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A problem with what was declared or found: the variable, its value, and what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass

VALUE_WIDTH = 80


@dataclass(frozen=True)
class Problem:
    """One problem. ``value`` is shown as given, so it must never be a secret: use :data:`HIDDEN`."""

    variable: str
    value: object
    fix: str

    def __str__(self) -> str:
        """Return the one line that an operator reads."""
        return "%s = %s: %s" % (self.variable, show(self.value), self.fix)


class _Hidden:
    """Stands for a value that must not be shown."""


HIDDEN = _Hidden()


class Rejected(ValueError):
    """A value that a check refuses; the text says what is wrong and what to write instead."""


class PlanError(ValueError):
    """No plan can be made; ``problems`` holds every reason."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def show(value: object) -> str:
    """Render a value on one line, shortened to :data:`VALUE_WIDTH` characters."""
    if value is HIDDEN:
        return "(not shown)"
    if value is None:
        return "(not set)"
    text = value if isinstance(value, str) and value.strip() == value and value else json.dumps(value, default=str)
    text = " ".join(text.split("\n"))
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known word most like ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return "; did you mean %s?" % close[0] if close else ""


def size_text(size: int) -> str:
    """Return a number of bytes as people say it: MiB, or GiB from ten of them on."""
    return "%d MiB" % (size >> 20) if size < 10 << 30 else "%.1f GiB" % (size / (1 << 30))


def listing(words: Iterable[str]) -> str:
    """Join words for a message; says ``none`` when there is none."""
    return ", ".join(words) or "none"
