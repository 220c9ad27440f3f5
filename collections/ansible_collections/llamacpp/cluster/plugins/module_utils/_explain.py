# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say in words what was chosen for an instance, why, and what was not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._choose import (
    FAST_BITS_ON_VOLTA,
    FEWEST,
    LEAST,
    LIKED,
    MANY_NODES,
    Chooser,
    Chosen,
    quality,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._costs import bits, main_type
from ansible_collections.llamacpp.cluster.plugins.module_utils._option import (
    LAYER,
    ON_CPU,
    ONE_DEVICE,
    PARTIAL,
    RPC,
    TENSOR,
    Option,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import MAX_DEVICES, Placement
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import CPU, PoolNode
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import listing
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Offer

GIB = 1 << 30
MIB = 1 << 20
# More placements than these are shown by one of each kind.
MAX_ALTERNATIVES = 20
MAX_REJECTED_NODES = 8
# Why one that has to be sparing, so that all instances find a place, did not get what is better for itself.
_LEFT = "leaves too little for other instances"
_STRATEGIES = {
    ONE_DEVICE: "one device",
    TENSOR: "tensor split over NVLink",
    LAYER: "layer split on one node",
    RPC: "layer split over nodes (RPC)",
    PARTIAL: "partial offload",
    ON_CPU: "CPU only",
}


def gib(size: int) -> str:
    """Return bytes as GiB with one decimal."""
    return "%.1f GiB" % (size / GIB)


def place_text(option: Option) -> str:
    """Say where a placement is, e.g. ``CUDA0 of node1``."""
    placement = option.placement
    if len(placement.nodes) > 1:
        return "%d devices of %s" % (len(placement.shares), listing(placement.nodes))
    names = [slot.device_name for slot in placement.offload]
    return "%s of %s" % (listing(names) if names else "the processor", placement.head)


def why(chosen: Chosen) -> str:
    """Say in one sentence why an instance is where it is, and what was given up for it."""
    option = chosen.option
    placement = option.placement
    where = place_text(option)
    text = {
        ONE_DEVICE: "The whole model fits on %s, and one device beats any split." % where,
        TENSOR: "No device holds it alone; %s are joined by NVLink, so each holds a slice of every layer." % where,
        LAYER: "No device holds it alone; its layers are spread over %s in proportion to memory." % where,
        RPC: "No node holds it alone; its layers are spread over %s in proportion to memory." % where,
        PARTIAL: "The devices do not hold all of it: %s, the rest is on %s." % (_kept(placement), where),
        ON_CPU: "No GPU is there for it, or none holds a part of it; it runs on %s." % where,
    }[option.strategy]
    if chosen.rung.words:
        text += " To make it fit it has %s." % chosen.rung.words
    if chosen.thrift:
        text += " It takes no more than it needs, so that all instances find a place."
    return text


def named_why(chosen: Chosen) -> str:
    """Say it of an instance whose nodes were named."""
    placement = chosen.option.placement
    how = "as tensor_split says" if placement.knobs.tensor_split else "in proportion to memory"
    if chosen.option.strategy == PARTIAL:
        return why(chosen)
    text = "The layers are spread over %d devices of the declared nodes (%s) %s." % (
        len(placement.shares),
        listing(placement.nodes),
        how,
    )
    if chosen.rung.words:
        text += " To make it fit it has %s." % chosen.rung.words
    return text


def _kept(placement: Placement) -> str:
    knobs = placement.knobs
    if knobs.n_cpu_moe:
        return "the experts of %d layers stay in the memory of %s" % (knobs.n_cpu_moe, placement.head)
    return "%d layers stay in the memory of %s" % (placement.on_host, placement.head)


def choices(chooser: Chooser, chosen: Chosen, alternatives: Sequence[Option], reason: str) -> list[dict[str, Any]]:
    """Return the choices that were the planner's, each with its reason and what was rejected.

    ``alternatives``: other placements. ``reason``: of the placement, in a sentence.
    """
    instance = chooser.instance
    found = []
    if len(chooser.offers) > 1 or not instance.model.source:
        found.append(_quant(chooser, chosen))
    found.append(_strategy(chooser, chosen, alternatives, reason))
    if instance.nodes is None:
        found.append(_nodes(chooser, chosen, alternatives))
    knobs = chosen.option.placement.knobs
    if instance.context is None:
        trained = chosen.offer.facts.n_ctx_train if chosen.offer.facts else 0
        most = "as little as it may have" if chosen.thrift == LEAST else "the most that fits there"
        words = "as much as the model was trained on" if knobs.context >= trained else most
        found.append(_choice("context", "%d tokens a slot" % knobs.context, words + ".", []))
    if instance.parallel is None:
        words = "the fewest that there are" if chosen.thrift == LEAST else "the most of 4, 2 and 1 that fit"
        found.append(_choice("parallel", "%d slots" % knobs.parallel, words + ".", []))
    if chosen.rung.words:
        rejected = [{"option": "f16 caches and batches of 512", "why": "does not fit anywhere with this context"}]
        found.append(_choice("memory", chosen.rung.words, "without it nothing fits.", rejected))
    return found


def _quant(chooser: Chooser, chosen: Chosen) -> dict[str, Any]:
    offer = chosen.offer
    rejected = []
    for other in chooser.offers:
        if other.quant == offer.quant:
            continue
        label = "%s (%s)" % (other.label, gib(other.size))
        rejected.append({"option": label, "why": _quant_reason(chooser, chosen, other)})
    reason = "the %s that fits %s with %d tokens a slot" % (
        {LIKED: "largest", FEWEST: "largest on the fewest devices", LEAST: "smallest on the fewest devices"}[
            chosen.thrift
        ],
        "over RPC" if chosen.where == MANY_NODES else "on one node",
        chosen.option.placement.knobs.context,
    )
    if offer.facts and chosen.option.dequantises and bits(main_type(offer.facts)) >= FAST_BITS_ON_VOLTA:
        reason += (
            "; these GPUs are of the Volta generation or older, which turn Q4 into halves first and are slow with it"
        )
    return _choice("quant", "%s (%s)" % (offer.label, gib(offer.size)), reason + ".", rejected)


def _quant_reason(chooser: Chooser, chosen: Chosen, other: Offer) -> str:
    if other.quant in chooser.refused:
        return "llama.cpp refuses it: %s" % chooser.refused[other.quant].message
    if other.size < chosen.offer.size:
        if quality(other, chosen.option.dequantises) == 1:
            return "smaller than needed, and slow on these GPUs"
        return "smaller than needed"
    if quality(other, chosen.option.dequantises) > quality(chosen.offer, chosen.option.dequantises):
        return "slow on these GPUs"
    if chosen.thrift:
        return "does not fit there, or %s" % _LEFT
    if chosen.where == MANY_NODES:
        return "does not fit, not even over RPC"
    return "does not fit on one node, which beats RPC"


def _strategy(chooser: Chooser, chosen: Chosen, alternatives: Sequence[Option], reason: str) -> dict[str, Any]:
    option = chosen.option
    rejected = []
    for strategy, words in _STRATEGIES.items():
        if strategy == option.strategy:
            continue
        other = next((item for item in alternatives if item.strategy == strategy), None)
        rejected.append({"option": words, "why": _strategy_reason(chooser, chosen, strategy, other)})
    return _choice("strategy", _STRATEGIES[option.strategy], reason, rejected)


def _strategy_reason(chooser: Chooser, chosen: Chosen, strategy: str, other: Option | None) -> str:
    option = chosen.option
    if other is not None:
        order = "comes after %s" % _STRATEGIES[option.strategy]
        if other.step < option.step:
            order = _LEFT if chosen.thrift else "the instance was declared otherwise"
        return "possible on %s (about %.1f ms a token, here %.1f), but %s" % (
            place_text(other),
            other.ms,
            option.ms,
            order,
        )
    if strategy != ON_CPU and not any(node.gpus for node in chooser.search.pool.nodes.values()):
        return "no nodes have room and share a network" if strategy == RPC else "there is no GPU"
    return {
        ONE_DEVICE: "no device has room for all of it",
        TENSOR: "no GPUs with room are joined by NVLink, or llama.cpp cannot split this model so",
        LAYER: "no node has several GPUs with room for it",
        RPC: "no nodes have room and share a network, with %d devices at most" % MAX_DEVICES,
        PARTIAL: "no node has both a GPU and memory with room, or layers were declared",
        ON_CPU: "no node has memory for it, or layers were declared",
    }[strategy]


def _nodes(chooser: Chooser, chosen: Chosen, alternatives: Sequence[Option]) -> dict[str, Any]:
    option = chosen.option
    same = [
        item
        for item in alternatives
        if item.strategy == option.strategy and item.placement.head != option.placement.head
    ]
    rejected = []
    for other in same[:MAX_REJECTED_NODES]:
        if round(other.ms, 1) > round(option.ms, 1):
            reason = "slower: about %.1f ms a token instead of %.1f" % (other.ms, option.ms)
        elif round(other.ms, 1) < round(option.ms, 1):
            reason = "faster, about %.1f ms a token instead of %.1f, but it runs here; name nodes to move it" % (
                other.ms,
                option.ms,
            )
        elif other.crowd > option.crowd:
            reason = "its devices have other instances"
        else:
            reason = "as good"
        rejected.append({"option": listing(other.placement.nodes), "why": reason})
    seen = {name for other in same for name in other.placement.nodes} | set(option.placement.nodes)
    for node in chooser.search.nodes:
        if node.name not in seen and len(rejected) < MAX_REJECTED_NODES:
            rejected.append({"option": node.name, "why": _no_room(chooser, node)})
    reason = "the fastest with room; among equals where it runs, else the first by name"
    if len(option.placement.nodes) > 1:
        reason = "the fewest that hold it, largest first, on the fastest network that they share"
    elif not same:
        reason = "the only one with room"
    return _choice("nodes", listing(option.placement.nodes), reason + ".", rejected)


def _no_room(chooser: Chooser, node: PoolNode) -> str:
    search = chooser.search.derived(chooser.instance, whole=True)
    if any(name == node.name for name, _device in search.excluded):
        return "another replica is there"
    if not search.has_gpus:
        return "too little memory, or it is not needed"
    gpus = search.gpus(node)
    if not gpus:
        return "it has no GPU that may be used"
    return "not needed, or too small: %s on its GPUs together, %s on one" % (
        gib(search.room(node, gpus)),
        gib(max(search.room(node, [gpu]) for gpu in gpus)),
    )


def _choice(what: str, chosen: str, reason: str, rejected: list[dict[str, str]]) -> dict[str, Any]:
    return {"what": what, "chosen": chosen, "why": reason[:1].upper() + reason[1:], "rejected": rejected}


def previews(chosen: Chosen, options: Sequence[Option]) -> list[dict[str, Any]]:
    """Return the placements that fit, best first: all of them, or one of each kind when there are many."""
    shown = sorted(options, key=lambda option: (option.cost, option.plain_rank))
    alike: dict[tuple[object, ...], list[Option]] = {}
    for option in shown:
        alike.setdefault((option.strategy, round(option.ms, 1), len(option.placement.shares)), []).append(option)
    if len(shown) > MAX_ALTERNATIVES:
        shown = [group[0] for group in alike.values()][:MAX_ALTERNATIVES]
    return [_preview(number, chosen, option, shown) for number, option in enumerate(shown, 1)]


def _preview(rank: int, chosen: Chosen, option: Option, shown: Sequence[Option]) -> dict[str, Any]:
    placement = option.placement
    used = sum(share.usage.total for share in placement.shares if share.usage)
    best = shown[0]
    if option is best:
        reason = "best: %s" % _STRATEGIES[option.strategy]
    elif option.strategy == best.strategy:
        reason = "the same on another place" if round(option.ms, 1) == round(best.ms, 1) else "slower devices"
    else:
        reason = "%s comes after %s" % (_STRATEGIES[option.strategy], _STRATEGIES[best.strategy])
    own = chosen.option.placement
    return {
        "rank": rank,
        "strategy": option.strategy,
        "nodes": list(placement.nodes),
        "quant": chosen.offer.label,
        "fits": option.fits,
        "chosen": placement.offload == own.offload
        and placement.head == own.head
        and option.strategy == chosen.option.strategy,
        "devices": len(placement.shares),
        "device_names": [
            share.slot.device.local_name if share.slot.device_name != CPU else CPU for share in placement.shares
        ],
        "tensor_split": [int(part) if part == int(part) else part for part in placement.tensor_split],
        "gpu_layers": placement.gpu_layers,
        "ctx_size": placement.knobs.context * placement.knobs.parallel,
        "cost": option.cost,
        "token_ms": round(option.ms, 1),
        "why": "%s; about %.0f ms a token" % (reason[:1].upper() + reason[1:], option.ms),
        "total_bytes": used,
        "headroom_bytes": min(
            (share.slot.share - share.usage.total for share in placement.shares if share.usage), default=0
        ),
    }
