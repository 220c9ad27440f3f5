# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which models have to go so that another one fits. Pure functions."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class Held(NamedTuple):
    """A named model: the sha256 of its blobs, and when it was last wanted (seconds since the epoch)."""

    name: str
    blobs: frozenset[str]
    last_used: float


class Blob(NamedTuple):
    """What a blob takes of the quota, and what its removal gives back to the disk (less where others link to it)."""

    stored: int
    freed: int


class Space(NamedTuple):
    """What there is. ``free``: on the disk, for this user. ``stored``: what the store holds. ``quota``: 0 for none."""

    free: int
    stored: int
    quota: int

    def short(self, needed: int, gone: Sequence[Blob]) -> int:
        """Return how many bytes are lacking for ``needed`` more when some blobs are gone; 0 when it fits."""
        lacking = [needed - self.free - sum(blob.freed for blob in gone)]
        if self.quota:
            lacking.append(self.stored - sum(blob.stored for blob in gone) + needed - self.quota)
        return max(0, *lacking)


def choose(
    needed: int, space: Space, held: Sequence[Held], blobs: Mapping[str, Blob], fixed: Container[str]
) -> list[str] | None:
    """Choose the names that go, least recently used first, so that ``needed`` bytes fit; None when they never would.

    ``held``: all names. ``fixed``: those that stay in any case. None is chosen that could as well have stayed.
    """
    if not space.short(needed, []):
        return []
    candidates = sorted(
        (model for model in held if model.name not in fixed), key=lambda model: (model.last_used, model.name)
    )
    chosen: list[Held] = []
    for model in candidates:
        chosen.append(model)
        if not space.short(needed, _gone(chosen, held, blobs)):
            break
    else:
        return None
    # Some of the first may have given nothing, because their blobs are others' as well, or too little to matter.
    for model in reversed(chosen[:-1]):
        others = [other for other in chosen if other is not model]
        if not space.short(needed, _gone(others, held, blobs)):
            chosen = others
    return [model.name for model in chosen]


def refusal(needed: int, space: Space, held: Sequence[Held], blobs: Mapping[str, Blob], fixed: Container[str]) -> str:
    """Tell why ``needed`` bytes do not fit, with figures, and what can be done."""
    candidates = [model for model in held if model.name not in fixed]
    gone = _gone(candidates, held, blobs)
    figures = ["%s are free on its disk" % amount(space.free)]
    if space.quota:
        figures.append("%s of its quota of %s are taken" % (amount(space.stored), amount(space.quota)))
    if candidates:
        names = ", ".join(sorted(model.name for model in candidates))
        figures.append("what nobody uses (%s) has %s" % (names, amount(sum(blob.stored for blob in gone))))
    else:
        figures.append("every model in it is used or declared")
    remedy = "free its disk, or take a larger one"
    if space.quota and needed > space.quota:
        remedy = "the quota is smaller than the model, raise llamacpp_models_quota"
    elif space.quota and not Space(space.free, 0, 0).short(needed, gone):
        remedy = "raise llamacpp_models_quota, or stop declaring a model"
    nameless = space.stored - sum(blob.stored for blob in blobs_of(held, blobs))
    if nameless:
        figures.append("%s have no name yet, which go by themselves when nobody brings the rest" % amount(nameless))
    lacking = amount(space.short(needed, gone))
    return "needs %s more: %s: %s too few; %s" % (amount(needed), ", ".join(figures), lacking, remedy)


def amount(count: int) -> str:
    """Return bytes for people: ``512 bytes``, ``4.4 GiB``."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return "%d bytes" % count if not unit else "%.1f %s" % (value, _UNITS[unit])


def blobs_of(held: Sequence[Held], blobs: Mapping[str, Blob]) -> list[Blob]:
    """Return the blobs of some models, each once."""
    named = frozenset[str]().union(*(model.blobs for model in held))
    return [blobs[sha256] for sha256 in sorted(named) if sha256 in blobs]


def _gone(chosen: Sequence[Held], held: Sequence[Held], blobs: Mapping[str, Blob]) -> list[Blob]:
    """Return the blobs that nobody names any more when the chosen names are gone."""
    names = {model.name for model in chosen}
    stays = frozenset[str]().union(*(model.blobs for model in held if model.name not in names))
    goes = frozenset[str]().union(*(model.blobs for model in chosen)) - stays
    return [blobs[sha256] for sha256 in sorted(goes) if sha256 in blobs]
