# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A placement that was tried, and what makes one better than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ansible_collections.llamacpp.cluster.plugins.module_utils._architectures import NO_TENSOR_SPLIT
from ansible_collections.llamacpp.cluster.plugins.module_utils._costs import dequantises
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import layer_costs
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import Knobs, Placement, Slot, place
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import CPU, natural

ONE_DEVICE, TENSOR, LAYER, RPC, PARTIAL, ON_CPU = (
    "one-device",
    "tensor-split",
    "layer-split",
    "rpc",
    "partial-offload",
    "cpu",
)
# DESIGN, decision 4: one node beats a split, a tensor split over NVLink a layer split, RPC is for capacity.
PREFERENCE = (ONE_DEVICE, TENSOR, LAYER, RPC, PARTIAL, ON_CPU)


@dataclass(frozen=True)
class Option:
    """A placement that was tried.

    ``ms``: milliseconds a token, roughly. ``sticky``: it is where the instance runs already.
    ``crowd``: how many other instances its devices have. ``fabric``: number of its network, the
    fastest is 0.
    """

    strategy: str
    placement: Placement
    on_host: bool
    ms: float
    sticky: bool
    crowd: int
    fabric: int = 0

    @cached_property
    def step(self) -> int:
        """Return its place in the order of preference; several processors come after one."""
        on_processors = self.strategy == RPC and all(share.slot.device.kind == "cpu" for share in self.placement.shares)
        return len(PREFERENCE) if on_processors else PREFERENCE.index(self.strategy)

    @cached_property
    def fits(self) -> bool:
        """Whether every device has room for its part."""
        return not self.placement.excess

    @property
    def dequantises(self) -> bool:
        """Whether one of its GPUs is slow with Q4."""
        return any(dequantises(slot.device) for slot in self.placement.offload)

    @cached_property
    def rank(self) -> tuple[object, ...]:
        """Return what sorts options of one model: strategy, fewest nodes, where it runs, speed, room, name."""
        return (
            *self.plain_rank[:2],
            not self.sticky,
            *self.plain_rank[2:],
        )

    @cached_property
    def plain_rank(self) -> tuple[object, ...]:
        """Return :attr:`rank` without where it runs, which is the same before a start and after it."""
        placement = self.placement
        left = sum(slot.share for slot in placement.offload)
        return (
            self.step,
            len(placement.nodes),
            self.fabric,
            round(self.ms, 1),
            self.crowd,
            len(placement.offload),
            left,
            tuple(natural(node) for node in placement.nodes),
            tuple(slot.device.index for slot in placement.offload),
        )

    @property
    def cost(self) -> float:
        """Return a figure to compare placements by, lower is better.

        100,000 a step of :data:`PREFERENCE`, 10,000 a node after the first, and the milliseconds of a token.
        """
        return round(100000.0 * self.step + 10000.0 * (len(self.placement.nodes) - 1) + self.ms, 1)

    def again(self, knobs: Knobs, model: ModelFacts) -> Option:
        """Return the same devices with other settings; raises what :func:`place` does."""
        old = self.placement
        return replace(self, placement=place(old.head, old.offload, old.host, self.on_host, knobs, model))


def least(model: ModelFacts, knobs: Knobs) -> int:
    """Return bytes that all devices together take at least: weights and context of the layers that are not left out."""
    layers = layer_costs(model, knobs.settings(model.n_layers + 1, ())).layers
    if knobs.gpu_layers is None or knobs.gpu_layers == "all":
        return sum(layers)
    return sum(layers[max(len(layers) - int(knobs.gpu_layers), 0) :])


def can_split_tensors(model: ModelFacts, knobs: Knobs) -> bool:
    """Whether llama.cpp takes ``--split-mode tensor`` for this model with these settings."""
    return (
        model.architecture not in NO_TENSOR_SPLIT
        and knobs.flash_attention != "off"
        and not knobs.cpu_moe
        and not knobs.n_cpu_moe
        and knobs.gpu_layers in (None, "all")
    )


def nvlink_groups(gpus: Sequence[Device]) -> list[list[Device]]:
    """Return groups of GPUs that are all joined with each other, largest first, each GPU in one."""
    by_index = {device.index: device for device in gpus}
    left = sorted(by_index)
    groups = []
    while left:
        best: list[int] = []
        for first in left:
            group = [first]
            for other in left:
                if other not in group and all(other in by_index[item].nvlink for item in group):
                    group.append(other)
            best = max(best, group, key=len)
        groups.append([by_index[index] for index in sorted(best)])
        left = [index for index in left if index not in best]
    return [group for group in groups if len(group) > 1]


def onto(pattern: Placement, head: str, slots: Mapping[str, Slot], host: Slot | None) -> Placement:
    """Return a placement for another node; ``slots``: its own by the name in the pattern."""

    def own(slot: Slot) -> Slot:
        if slot.device_name == CPU:
            if host is None:
                raise AssertionError("a placement on the processor has a head")
            return host
        return slots[slot.device_name]

    return replace(
        pattern,
        head=head,
        host=host,
        offload=tuple(own(slot) for slot in pattern.offload),
        shares=tuple(replace(share, slot=own(share.slot)) for share in pattern.shares),
        beside=replace(pattern.beside, slot=host) if pattern.beside and host else None,
    )
