# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a placement costs: about how long a token takes on these devices."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts

GB = 1e9
# Memory bandwidth in GB/s by name, from the data sheets of the makers.
_BANDWIDTH: tuple[tuple[str, float], ...] = (
    (r"\bB300|\bB200|\bGB200", 8000),
    (r"\bH200|\bGH200", 4800),
    (r"\bH100.*NVL", 3900),
    (r"\bH100.*PCIe", 2000),
    (r"\bH100|\bH800", 3350),
    (r"\bA100.*80", 2039),
    (r"\bA100|\bA800", 1555),
    (r"\bV100S", 1134),
    (r"\bV100", 900),
    (r"\bP100", 732),
    (r"\bL40|\bL20", 864),
    (r"\bL4\b", 300),
    (r"\bA40\b", 696),
    (r"\bA10\b", 600),
    (r"\bT4\b", 320),
    (r"\bA6000|\bA5500|\bA5000", 768),
    (r"6000 Ada", 960),
    (r"RTX PRO 6000", 1792),
    (r"\b5090", 1792),
    (r"\b5080", 960),
    (r"\b5070", 672),
    (r"\b4090", 1008),
    (r"\b4080", 717),
    (r"\b4070", 504),
    (r"\b4060", 272),
    (r"\b3090", 936),
    (r"\b3080", 760),
    (r"\b3060", 360),
    (r"MI300", 5300),
    (r"MI250", 1600),
)
# Where the name says nothing: a modest card of that generation, by major compute capability.
_BY_CAPABILITY = {6: 480.0, 7: 600.0, 8: 600.0, 9: 3000.0, 10: 4000.0, 12: 900.0}
_UNKNOWN_GPU = 400.0
_CPU = 60.0
# Fitted to one H200 (Llama-3.1 8B and 70B Q4_K_M, 218 and 37.9 tokens/s): the share of the bandwidth
# that is reached, and what a layer takes whatever its size. A layer of a tensor split adds its exchange
# (70B on two GPUs: 57.7 tokens/s); a device behind RPC adds its round trip (8B: 173, 70B: 35.6 tokens/s).
REACHED = 0.42
MS_A_LAYER = 0.068
MS_EXCHANGE = 0.02
MS_A_WORKER = 1.5


def bandwidth(device: Device) -> float:
    """Return the memory bandwidth of a device in GB/s; a guess where nobody knows the card."""
    if device.kind == "cpu":
        return _CPU
    for pattern, figure in _BANDWIDTH:
        if re.search(pattern, device.name, re.IGNORECASE):
            return figure
    major = (device.compute_capability or "").split(".")[0]
    return _BY_CAPABILITY.get(int(major), _UNKNOWN_GPU) if major.isdigit() else _UNKNOWN_GPU


def dequantises(device: Device) -> bool:
    """Whether a GPU turns Q4 weights into halves before it multiplies: Volta (7.0) and older.

    They lack the integer tensor cores that came with Turing (7.5).
    """
    parts = (device.compute_capability or "").split(".")
    if device.kind != "cuda" or not all(part.isdigit() for part in parts):
        return False
    return tuple(int(part) for part in parts) < (7, 5)


def active_share(model: ModelFacts) -> float:
    """Return the part of the weights that one token reads: of experts only those that it is sent to."""
    count, used = model.number("expert_count", 0), model.number("expert_used_count", 0)
    if not count or not used or used >= count:
        return 1.0
    experts = sum(group.nbytes * group.copies for group in model.tensor_groups if "_exps." in group.name)
    return 1.0 - experts / max(model.tensor_bytes, 1) * (1 - used / count)


def token_ms(loads: Sequence[tuple[Device, int, int, bool]], active: float, tensor_split: bool) -> float:
    """Return about how many milliseconds a token takes when nobody else asks.

    ``loads``: device, bytes of its weights, number of its layers, and whether it is behind RPC.
    ``active``: :func:`active_share`. Good for an order of placements, not for a promise.
    """
    times = []
    for device, weights, layers, remote in loads:
        reading = weights * active / (bandwidth(device) * GB * REACHED) * 1000
        times.append(reading + (0.0 if tensor_split else MS_A_LAYER * layers) + (MS_A_WORKER if remote else 0.0))
    if not tensor_split:
        return sum(times)
    layers = max(load[2] for load in loads)
    return max(times) + (MS_A_LAYER + MS_EXCHANGE) * layers


def bits(type_name: str) -> float:
    """Return the bits that a weight of a tensor type takes, scales included."""
    kind = by_name(type_name)
    return 8.0 * kind.block_bytes / kind.block_elements


def main_type(model: ModelFacts) -> str:
    """Return the tensor type that most bytes of a model are in."""
    return max(sorted(model.quantisation), key=lambda name: model.quantisation[name]) if model.quantisation else ""
