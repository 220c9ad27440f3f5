# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An estimate in a sentence or two: what fits, what is fullest, what is missing and what takes the most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate, Usage
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Settings

if TYPE_CHECKING:
    from ansible_collections.llamacpp.cluster.plugins.module_utils._vram_fit import Room

GIB = 1 << 30
MIB = 1 << 20


def gib(size: int) -> str:
    """Return a size for people: GiB, or MiB where it is small."""
    return "%.1f GiB" % (size / GIB) if abs(size) >= GIB else "%.0f MiB" % (size / MIB)


def explain(rooms: Sequence[Room], found: Estimate, settings: Settings, margin: int) -> str:
    """Say whether it fits and why. ``rooms``: every device, and the host."""
    holding = [room for room in rooms if room.usage.total]
    known = [room for room in holding if room.free is not None]
    missing = [room for room in known if not room.fits]
    context = "%d tokens of context" % found.n_ctx_slot
    if settings.parallel not in (0, 1):
        context += " for each of %d slots" % (settings.parallel if settings.parallel > 0 else 4)
    words = ""
    if missing:
        words = "It does not fit with %s: " % context
        words += "; ".join(_lacks(room, margin) for room in missing) + "."
        biggest = max(missing, key=lambda room: room.usage.total)
        words += " " + _remedy(biggest.usage, settings)
    elif known:
        fullest = max(known, key=lambda room: room.usage.total / max(room.free or 1, 1))
        words = "It fits with %s: %s is the fullest, with %s of %s taken (%s) and %s left." % (
            context,
            fullest.usage.name,
            gib(fullest.usage.total),
            gib(fullest.free or 0),
            _parts(fullest.usage),
            gib(fullest.left or 0),
        )
    else:
        whole = sum(room.usage.total for room in holding)
        words = "It takes %s in all with %s; no device says how much memory it has." % (gib(whole), context)
    if not found.exact:
        words += " This is an estimate on the safe side%s." % (
            ": %s" % found.notes[0] if found.notes else ", not llama.cpp's own figure"
        )
    return words


def _lacks(room: Room, margin: int) -> str:
    short = room.margin - (room.left or 0)
    return "%s lacks %s (it needs %s and a margin of %d MiB, and has %s free)" % (
        room.usage.name,
        gib(short),
        gib(room.usage.total),
        margin,
        gib(room.free or 0),
    )


def _parts(usage: Usage) -> str:
    named = (
        ("weights", usage.model),
        ("context", usage.context),
        ("compute buffers", usage.compute),
        ("the process itself", usage.overhead),
    )
    return ", ".join("%s %s" % (name, gib(size)) for name, size in named if size)


def _remedy(usage: Usage, settings: Settings) -> str:
    """Name what takes the most and what makes it smaller."""
    largest = max(usage.model, usage.context, usage.compute)
    if largest == usage.model:
        return "Most of it is weights, %s: take a smaller quantisation, more devices, or fewer gpu_layers." % gib(
            usage.model
        )
    if largest == usage.context:
        return "Most of it is context, %s: take a smaller ctx_size, fewer slots, or cache types of 8 bits." % gib(
            usage.context
        )
    return "Most of it is compute buffers, %s: take a smaller ubatch_size than %d%s." % (
        gib(usage.compute),
        settings.ubatch_size,
        ", or flash attention" if settings.flash_attn == "off" else "",
    )
