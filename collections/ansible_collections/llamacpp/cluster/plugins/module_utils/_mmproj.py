# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a projector (``--mmproj``) takes beside the model whose eyes and ears it is.

Source: tools/mtmd/clip.cpp (b11434). Its weights are exact. Its compute buffers depend on the
pictures that come; what is returned is a bound for the largest that it was made for.
Where it goes is said with ``--mmproj-device``: left out, it is the first of ``--device``, a worker's as a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._context import padded_tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate, Usage
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Refused

# set_warmup_n_tokens in clip.cpp: the most patches that a projector without a picture size of its own starts with.
_MOST_PATCHES = 46 * 46
# What most have, for one that does not say.
_HEADS = 16
# Seconds of sound that are encoded at a time make this many frames (whisper's window).
_AUDIO_FRAMES = 3000


class Projector(NamedTuple):
    """``device``: number of the device that has it, or :data:`HOST`. Bytes."""

    device: int
    model: int
    compute: int


@dataclass(frozen=True)
class Eyes:
    """The projector that an instance is served with.

    ``file``: its name beside the model. ``facts``: its header; None where it was not read, ``error`` says why.
    ``size``: bytes of the file, where they are known. ``device``: the one that the operator's own words name, ``none``
    for the head's memory; None leaves it to the plan.
    """

    file: str
    facts: ModelFacts | None = field(default=None, compare=False)
    size: int | None = None
    error: str = ""
    device: str | None = None

    def seat(self, devices: Sequence[MemoryDevice]) -> int | None:
        """Return the number of the device that has it, or :data:`HOST`; None where it is none of ``devices``."""
        if self.device is None:
            return seat(devices)
        names = [device.name for device in devices]
        return HOST if self.device == "none" else names.index(self.device) if self.device in names else None

    def takes(self, devices: Sequence[MemoryDevice], flash: bool) -> Projector | None:
        """Return what it takes and where; without a header the file's size stands for its weights.

        ``flash``: whether it computes with flash attention, which llama-server does unless it is told not to.
        """
        index = self.seat(devices)
        if index is None:
            return None
        if self.facts is None:
            return Projector(index, self.size or 0, 0)
        return Projector(index, _weights(self.facts, _hardware(index, devices)), _buffers(self.facts, flash))

    def added(self, found: Estimate, devices: Sequence[MemoryDevice], flash: bool) -> Estimate:
        """Return an estimate with it: as what the process takes beside the model, whose layers it must not move."""
        more = self.takes(devices, flash)
        if more is None:
            note = "%s is no device of this instance: what the projector takes there is not planned" % self.device
            return replace(found, exact=False, notes=(*found.notes, note))
        size = more.model + more.compute
        usages = [_with(item, size) if number == more.device else item for number, item in enumerate(found.devices)]
        host = _with(found.host, size) if more.device == HOST else found.host
        return replace(found, devices=tuple(usages), host=host, exact=False, notes=(*found.notes, self._note(more)))

    def _note(self, more: Projector) -> str:
        if self.facts is None:
            planned = "the %d MiB of the file are" % (more.model >> 20) if self.size else "nothing is"
            why = self.error or "nobody looked at it"
            return "the header of the projector %s was not read: %s planned for it (%s)" % (self.file, planned, why)
        return "the projector %s takes %d MiB of weights and at most %d MiB to compute, counted as overhead" % (
            self.file,
            more.model >> 20,
            more.compute >> 20,
        )


def projector(model: ModelFacts, devices: Sequence[MemoryDevice], flash: bool = True) -> Projector:
    """Return what a projector takes and where; raises :class:`Refused` for another kind of file."""
    if not is_projector(model):
        raise Refused("mmproj", "it is a model of its own (%s), not a projector" % (model.architecture or "no name"))
    index = seat(devices)
    return Projector(index, _weights(model, _hardware(index, devices)), _buffers(model, flash))


def is_projector(model: ModelFacts) -> bool:
    """Whether llama-server takes a file for ``--mmproj``."""
    return model.architecture == "clip"


def seat(devices: Sequence[MemoryDevice]) -> int:
    """Return the number of the device for a projector: the head's first GPU, else a worker's, else :data:`HOST`."""
    local = [index for index, device in enumerate(devices) if device.kind not in ("cpu", "rpc")]
    remote = [index for index, device in enumerate(devices) if device.kind == "rpc" and device.hardware != "cpu"]
    return (local or remote or [HOST])[0]


def _hardware(index: int, devices: Sequence[MemoryDevice]) -> str:
    return "host" if index == HOST else devices[index].hardware


def _with(usage: Usage, size: int) -> Usage:
    return replace(usage, overhead=usage.overhead + size)


@per_model
def _known(model: ModelFacts) -> dict[str, int]:
    return {}


def _weights(model: ModelFacts, kind: str) -> int:
    known = _known(model)
    if kind not in known:
        known[kind] = sum(
            padded_tensor(kind, group.type, group.shape[0], group.nbytes) * group.copies
            for group in model.tensor_groups
        )
    return known[kind]


def _buffers(model: ModelFacts, flash: bool) -> int:
    # Each has buffers of its own, which are there from the start.
    return _side(model, "vision", flash) + _side(model, "audio", flash)


def _side(model: ModelFacts, side: str, flash: bool) -> int:
    """Bound the buffers of one encoder: its widest layer for every patch."""
    prefix = "clip.%s." % side

    def number(key: str) -> int:
        value = model.metadata.get(prefix + key, 0)
        return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0

    width = number("embedding_length")
    if not width:
        return 0
    if side == "vision":
        patch = max(number("patch_size"), 1)
        patches = (number("image_size") // patch) ** 2
        merged = max(number("spatial_merge_size"), 1)
        if merged > 1 or not patches:
            patches = max(patches, _MOST_PATCHES * merged * merged)
        pixels = 4 * patches * 3 * patch * patch
    else:
        patches, pixels = _AUDIO_FRAMES // 2, 4 * _AUDIO_FRAMES * max(number("num_mel_bins"), 1)
    # Residual, normed, query, key, value, attention's result and its sum; gate and up of the widest layer.
    rows = 4 * patches * (7 * width + 2 * max(number("feed_forward_length"), 4 * width))
    # The mask twice; without flash attention the scores of every head, too.
    heads = 0 if flash else number("attention.head_count") or _HEADS
    scores = (2 + heads) * 4 * patches * patches
    return rows + scores + 2 * pixels
