# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When nothing fits: how much is missing, and the nearest things that would fit, each tried by the planner."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ansible_collections.llamacpp.cluster.plugins.module_utils._choose import Chooser, Chosen
from ansible_collections.llamacpp.cluster.plugins.module_utils._costs import bits, main_type
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._explain import gib, place_text
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._option import LAYER, ON_CPU, Option
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import place
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import Pool, PoolNode
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, listing
from ansible_collections.llamacpp.cluster.plugins.module_utils._search import Search
from ansible_collections.llamacpp.cluster.plugins.module_utils._search_rpc import explicit, widest
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Offer

# What a quantised model would mostly be made of, largest first.
TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
SMALLEST_CONTEXT = 256
# How many nodes more are worth a thought.
MORE_NODES = 3
WAYS = 3


def shortfall(chooser: Chooser, others: Sequence[Offer]) -> Problem:
    """Return the problem of an instance that fits nowhere.

    ``others``: quantisations that there are but that the operator did not allow.
    """
    instance = chooser.instance
    offer = chooser.offers[-1]
    variable = instance.variable + ".model"
    refused = next(iter(chooser.refused.values()), None)
    if refused and len(chooser.refused) == len(chooser.offers):
        return refusal(instance, refused)
    nearest = "; ".join(
        "(%d) %s" % (number, words) for number, words in zip(range(1, WAYS + 1), _ways(chooser, offer, others))
    )
    advice = "nearest that would fit: %s" % nearest if nearest else "nothing near it would fit"
    attempt = closest(chooser, offer)
    if attempt is None:
        return Problem(variable, offer.source.where, "no node has a device for %s; %s" % (instance.name, advice))
    return Problem(variable, offer.source.where, "%s; %s" % (_missing(chooser, attempt), advice))


# Settings of llama-server -> keys of an instance.
_KEYS = {
    "ctx_size": "context",
    "flash_attn": "flash_attention",
    "batch_size": "batch",
    "ubatch_size": "ubatch",
    "devices": "nodes",
}


def refusal(instance: Instance, error: Refused) -> Problem:
    """Return the problem of settings that llama.cpp would not start with."""
    return Problem("%s.%s" % (instance.variable, _KEYS.get(error.setting, error.setting)), error.value, error.message)


def closest(chooser: Chooser, offer: Offer) -> Option | None:
    """Return the placement with the least missing."""
    search, facts = chooser.search, offer.facts
    if facts is None:
        raise AssertionError("only offers whose headers were read are tried")
    knobs = chooser.tried(offer, facts)
    found: list[Option | None] = []
    try:
        if chooser.instance.nodes is not None:
            found.append(explicit(search, facts, knobs))
        else:
            for node, _twins in search.alike(1):
                slots = search.slots(node, search.gpus(node))
                placement = place(node.name, slots, search.host(node), False, knobs, facts)
                found.append(search.option(LAYER, placement, False, facts))
            found.append(widest(search, chooser.declared, chooser.facts, facts, knobs))
            if not search.has_gpus:
                for node in search.heads:
                    placement = place(node.name, [], search.host(node), True, knobs, facts)
                    found.append(search.option(ON_CPU, placement, True, facts))
    except ValueError:
        # Fewer layers than devices somewhere; what was found before is near enough.
        pass
    return min((item for item in found if item), key=lambda item: (item.placement.excess, item.rank), default=None)


def _missing(chooser: Chooser, option: Option) -> str:
    """Say what is missing where."""
    placement = option.placement
    parts = []
    for share in placement.all_shares:
        if share.excess and share.usage:
            device = share.slot.device
            node = chooser.search.pool.nodes[share.slot.node]
            users = [use.instance for use in node.uses.get(device.local_name, ())]
            beside = ", beside %s" % listing(users) if users else ""
            parts.append(
                "%s of %s has %s for it%s, it takes %s (weights %s, context %s, compute %s, %s %s)"
                % (
                    device.local_name,
                    share.slot.node,
                    gib(max(share.slot.room, 0)),
                    beside,
                    gib(share.usage.total),
                    gib(share.usage.model),
                    gib(share.usage.context),
                    gib(share.usage.compute),
                    "process and projector" if placement.knobs.eyes else "process",
                    gib(share.usage.overhead),
                )
            )
    more = " and %d more" % (len(parts) - 3) if len(parts) > 3 else ""
    return "%s does not fit: %s are missing, at best on %s: %s%s" % (
        chooser.instance.name,
        gib(max(placement.excess, 1 << 20)),
        place_text(option),
        "; ".join(parts[:3]),
        more,
    )


def _ways(chooser: Chooser, offer: Offer, others: Sequence[Offer]) -> Iterator[str]:
    """Return what would fit, nearest first, in words."""
    yield from _smaller_quant(chooser, offer, others)
    yield from _less_context(chooser)
    yield from _fewer_slots(chooser)
    yield from _other_nodes(chooser)
    yield from _more_nodes(chooser)


def _smaller_quant(chooser: Chooser, offer: Offer, others: Sequence[Offer]) -> Iterator[str]:
    for other in sorted(others, key=lambda item: -item.size):
        chosen = _again(chooser, offers=[other])
        if chosen:
            yield "the quantisation %s (%s) on %s" % (other.label, gib(other.size), place_text(chosen.option))
            return
    if offer.facts is None:
        raise AssertionError("only offers whose headers were read are tried")
    for name in TYPES:
        if by_name(name).row_bytes(256) * 8 / 256 >= bits(main_type(offer.facts)):
            continue
        facts = requantised(offer.facts, name)
        chosen = _again(chooser, offers=[replace(offer, facts=facts)])
        if chosen:
            yield "a quantisation of about %.1f bits a weight, as %s has (%s), on %s" % (
                8.0 * facts.tensor_bytes / max(facts.parameter_count, 1),
                name,
                gib(facts.tensor_bytes),
                place_text(chosen.option),
            )
            return


def _less_context(chooser: Chooser) -> Iterator[str]:
    context = chooser.instance.context
    if context is None or context <= SMALLEST_CONTEXT:
        return
    instance = replace(chooser.instance, context=None, min_context=SMALLEST_CONTEXT)
    chosen = _again(chooser, chooser.search.derived(instance))
    if chosen and chosen.option.placement.knobs.context < context:
        yield "context: %d on %s" % (chosen.option.placement.knobs.context, place_text(chosen.option))


def _fewer_slots(chooser: Chooser) -> Iterator[str]:
    slots = chooser.instance.parallel or 1
    low, high, best = 1, slots - 1, None
    while low <= high:
        middle = (low + high) // 2
        instance = replace(chooser.instance, parallel=middle)
        chosen = _again(chooser, chooser.search.derived(instance))
        if chosen:
            best, low = (middle, chosen), middle + 1
        else:
            high = middle - 1
    if best:
        yield "parallel: %d on %s" % (best[0], place_text(best[1].option))


def _other_nodes(chooser: Chooser) -> Iterator[str]:
    if chooser.instance.nodes is None and chooser.instance.among is None:
        return
    instance = replace(chooser.instance, nodes=None, head=None, workers=(), among=None, tensor_split=None)
    chosen = _again(chooser, chooser.search.derived(instance))
    if chosen:
        yield "nodes: [%s]" % listing(chosen.option.placement.nodes)


def _more_nodes(chooser: Chooser) -> Iterator[str]:
    """Try nodes that do not exist, like the one with most memory."""
    search = chooser.search
    if not search.nodes:
        return
    model = max(search.nodes, key=lambda node: sum(device.memory_bytes for device in node.devices))
    for count in range(1, MORE_NODES + 1):
        names = ["%s+%d" % (model.name, number) for number in range(1, count + 1)]
        copies = [PoolNode(name, model.gpus, model.host, False, {}) for name in names]
        pool = Pool([*search.pool.nodes.values(), *copies])
        nodes = chooser.instance.nodes
        grown = replace(
            chooser.instance,
            nodes=nodes and (*nodes, *names),
            workers=(*chooser.instance.workers, *names) if nodes else (),
            among=chooser.instance.among and (*chooser.instance.among, *names),
            tensor_split=None,
        )
        declared = _with_copies(chooser.declared, model.name, names)
        facts = {**chooser.facts, **_copied_facts(chooser.facts.get(model.name), names)}
        try:
            other = Chooser(Search(grown, pool, search.margin, search.excluded), declared, facts, chooser.offers)
            chosen = other.choose()
        except ValueError:
            return  # Fewer layers than devices: more of them cannot help.
        if chosen:
            yield "%d more node%s like %s" % (count, "" if count == 1 else "s", model.name)
            return


def _with_copies(declared: Declared, name: str, names: Sequence[str]) -> Declared:
    own = declared.node(name)
    return replace(declared, nodes={**declared.nodes, **{copy: own for copy in names}})


def _copied_facts(facts: NodeFacts | None, names: Sequence[str]) -> Mapping[str, NodeFacts]:
    """Return facts of nodes that are like another, with addresses of their own."""
    if facts is None:
        return {}
    copies = {}
    for number, name in enumerate(names, 2):
        addresses = tuple(
            replace(item, address=str(ipaddress.IPv4Network(item.network)[-number])) if item.prefix < 30 else item
            for item in facts.addresses
        )
        copies[name] = replace(facts, addresses=addresses)
    return copies


def _again(chooser: Chooser, search: Search | None = None, offers: Sequence[Offer] | None = None) -> Chosen | None:
    other = Chooser(search or chooser.search, chooser.declared, chooser.facts, offers or chooser.offers)
    try:
        return other.choose()
    except ValueError:
        return None


def requantised(model: ModelFacts, name: str) -> ModelFacts:
    """Return a model as if its matrices were of another type, where that makes them smaller."""
    kind = by_name(name)
    groups = []
    for group in model.tensor_groups:
        rows = 1
        for size in group.shape[1:]:
            rows *= size
        if len(group.shape) > 1 and group.shape[0] % kind.block_elements == 0:
            nbytes = kind.row_bytes(group.shape[0]) * rows
            if nbytes < group.nbytes:
                group = TensorGroup(group.name, group.layers, group.shape, kind.name, nbytes)
        groups.append(group)
    total = sum(group.nbytes * len(group.layers or (0,)) for group in groups)
    mix: dict[str, int] = {}
    for group in groups:
        mix[group.type] = mix.get(group.type, 0) + group.nbytes * len(group.layers or (0,))
    return replace(
        model,
        tensor_groups=tuple(groups),
        tensor_bytes=total,
        file_size=model.file_size - model.tensor_bytes + total,
        quantisation=mix,
        file_type=name,
    )
