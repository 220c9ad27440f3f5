# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a projector (``--mmproj``) takes beside the model whose eyes and ears it is.

Source: tools/mtmd/clip.cpp (b11434). Its weights are exact. Its compute buffers depend on the
pictures that come; what is returned is a bound for the largest that it was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._context import padded_tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Refused

# set_warmup_n_tokens in clip.cpp: the most patches that a projector without a picture size of its own starts with.
_MOST_PATCHES = 46 * 46
# Seconds of sound that are encoded at a time make this many frames (whisper's window).
_AUDIO_FRAMES = 3000


class Projector(NamedTuple):
    """``device``: number of the device that has it, or :data:`HOST`. Bytes."""

    device: int
    model: int
    compute: int


def projector(model: ModelFacts, devices: Sequence[MemoryDevice]) -> Projector:
    """Return what a projector takes and where; raises :class:`Refused` for another kind of file.

    clip.cpp takes the first GPU that ggml knows: those of the machine come before those of workers.
    """
    if model.architecture != "clip":
        raise Refused("mmproj", "it is a model of its own (%s), not a projector" % (model.architecture or "no name"))
    local = [index for index, device in enumerate(devices) if device.kind not in ("cpu", "rpc")]
    remote = [index for index, device in enumerate(devices) if device.kind == "rpc"]
    index = (local or remote or [HOST])[0]
    kind = "host" if index == HOST else devices[index].hardware
    weights = sum(
        padded_tensor(kind, group.type, group.shape[0], group.nbytes) * group.copies for group in model.tensor_groups
    )
    return Projector(index, weights, max(_side(model, "vision"), _side(model, "audio")))


def _side(model: ModelFacts, side: str) -> int:
    """Bound the buffers of one encoder: its widest layer for every patch, attention without flash included."""
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
    scores = 2 * 4 * patches * patches
    return rows + scores + 2 * pixels
