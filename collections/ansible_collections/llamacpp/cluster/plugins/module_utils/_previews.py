# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every placement in which the chosen quantisation would fit, with the settings that it got."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.llamacpp.cluster.plugins.module_utils._choose import (
    ALL,
    IN_PART,
    MANY_NODES,
    ONE_NODE,
    PROCESSOR,
    Chooser,
    Chosen,
    Rung,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._option import PARTIAL, Option


def alternatives(chooser: Chooser, chosen: Chosen) -> list[Option]:
    """Return placements on any nodes, not only those that were named, best first; the chosen one is among them.

    They are what the whole memory of each device would hold beside the instances that were placed
    before: what is free at the moment, and where the instance runs, would change with its own start.
    """
    instance, search = chooser.instance, chooser.search
    knobs = chosen.option.placement.knobs
    if chosen.option.strategy == PARTIAL:
        knobs = replace(knobs, gpu_layers=instance.gpu_layers, n_cpu_moe=instance.n_cpu_moe or 0)
    free = replace(
        instance,
        nodes=None,
        head=None,
        workers=(),
        among=instance.among,
        tensor_split=None,
        context=knobs.context,
        parallel=knobs.parallel,
        split_mode=instance.split_mode if instance.nodes is None else None,
    )
    # A tensor split is tried as such; everything else is cut by layers.
    rung = Rung(replace(knobs, tensor_split=None, split_mode="layer"), "")
    other = Chooser(search.derived(free, whole=True), chooser.declared, chooser.facts, [chosen.offer])
    found = [chosen.option]
    found += other.options(chosen.offer, rung, ONE_NODE, ALL)
    found += other.options(chosen.offer, rung, MANY_NODES, ALL)
    # Where all of it fits, nobody would leave a part in memory.
    heads = {option.placement.head for option in found}
    alike = [twins for _node, twins in other.search.alike(1) if not heads & {node.name for node in twins}]
    if alike:
        names = tuple(node.name for twins in alike for node in twins)
        rest = Chooser(
            search.derived(replace(free, among=names), whole=True), chooser.declared, chooser.facts, [chosen.offer]
        )
        found += rest.options(chosen.offer, rung, IN_PART, ALL)
    if search.has_gpus:
        found += other.options(chosen.offer, rung, PROCESSOR, ALL)
    unique: dict[tuple[object, ...], Option] = {}
    for option in found:
        devices = tuple((share.slot.node, share.slot.device.local_name) for share in option.placement.shares)
        unique.setdefault((option.strategy, devices), option)
    return sorted(unique.values(), key=lambda option: option.plain_rank)
