# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which layer lies on which device: llama.cpp's own rule, and how we steer it."""

from __future__ import annotations

import bisect
import struct
from collections.abc import Sequence

HOST = -1


def _float32(value: float) -> float:
    """Round to the single precision that llama.cpp computes in."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def assign_layers(n_layers: int, gpu_layers: int, split: Sequence[float]) -> list[int]:
    """Say where llama.cpp puts every layer (llama_model_base::load_tensors, b11434).

    ``n_layers``: the model's layers without the output. ``gpu_layers``: ``--n-gpu-layers``.
    ``split``: ``--tensor-split``, one share a device in ``--device`` order; empty without devices.
    Returns ``n_layers + 1`` device indices, the last being the output's; :data:`HOST` is the
    head's own memory. Single precision matters: an index that lands on a boundary in floats
    belongs to the device behind it.
    """
    on_devices = min(gpu_layers, n_layers + 1) if split else 0
    start = max(n_layers + 1 - gpu_layers, 0)
    total = 0.0
    ends = []
    for share in split:
        total = _float32(total + _float32(share))
        ends.append(total)
    ends = [_float32(end / total) for end in ends]
    placed = []
    for layer in range(n_layers + 1):
        if layer < start or layer - start >= on_devices:
            placed.append(HOST)
        else:
            # llama.cpp indexes its devices without a check; rounding never passes the last one.
            placed.append(bisect.bisect_right(ends, _float32((layer - start) / on_devices)))
    return placed


def distribute(costs: Sequence[int], capacities: Sequence[float]) -> list[int]:
    """Cut consecutive layers into one run a device, in proportion to capacity.

    ``costs``: bytes of every layer, the output last. ``capacities``: of the devices, in order,
    in any unit. Returns the number of layers of each device; they add up to ``len(costs)``.
    Every device gets at least one layer, as a device without one would only be in the way.
    Raises :class:`ValueError` when there are fewer layers than devices.

    This is the one place that decides how a model is spread. It knows sizes only; speed of
    devices and links is what it has to learn next.
    """
    devices = len(capacities)
    if len(costs) < devices:
        raise ValueError("%d layers cannot be spread over %d devices" % (len(costs), devices))
    whole, weight = sum(costs), sum(capacities)
    counts = []
    layer = 0
    spent = target = 0.0
    for device, capacity in enumerate(capacities):
        target += whole * capacity / weight
        first = layer
        last = len(costs) - (devices - device - 1)
        while layer < last and (layer == first or device == devices - 1 or spent + costs[layer] / 2 <= target):
            spent += costs[layer]
            layer += 1
        counts.append(layer - first)
    return counts


def fill(costs: Sequence[int], rooms: Sequence[int]) -> list[int]:
    """Cut consecutive layers into one run a device so that the fullest device is as empty as can be.

    ``costs``: bytes of every layer, the output last. ``rooms``: bytes that each device has for
    layers, in order; a device without room gets none. Returns the number of layers of each; when
    they do not fit, the last device that has room gets what is left. Full means in proportion to
    the room, so twice the room holds twice the layers.
    """
    usable = [max(room, 0) for room in rooms]
    whole = sum(costs)
    if not sum(usable):
        return [0] * (len(rooms) - 1) + [len(costs)]
    low, high = 0.0, max(1.0, whole / max(min(room for room in usable if room), 1))
    best = _greedy(costs, usable, high)
    # Halving: 40 steps bring the fullest device within a billionth of the optimum.
    for _step in range(40):
        middle = (low + high) / 2
        counts = _greedy(costs, usable, middle)
        if sum(counts) == len(costs):
            best, high = counts, middle
        else:
            low = middle
    left = len(costs) - sum(best)
    if left:
        best[max(index for index, room in enumerate(usable) if room)] += left
    return best


def _greedy(costs: Sequence[int], rooms: Sequence[int], load: float) -> list[int]:
    """Fill one device after the other up to ``load`` of its room; return the layers of each."""
    counts = []
    layer = 0
    for room in rooms:
        spent, first = 0.0, layer
        while layer < len(costs) and spent + costs[layer] <= room * load:
            spent += costs[layer]
            layer += 1
        counts.append(layer - first)
    return counts
