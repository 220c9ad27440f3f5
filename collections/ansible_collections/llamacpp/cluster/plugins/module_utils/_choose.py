# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Choose for one instance: the quantisation, the devices and how to use them, context, slots, batches, caches.

The order of preference, best first; docs/decisions/0008 says why:

1. weights of at least four bits before smaller ones;
2. f16 caches and the usual batches, then small batches, then q8_0 caches;
3. on Volta and older, weights of at least five bits;
4. one node, then several over RPC;
5. the largest quantisation;
6. one device, a tensor split over NVLink, a layer split; fewest nodes; where it runs already; the fastest.

A part in the head's memory, or all of it, comes when nothing else fits. An instance that has to be sparing,
so that all find a place, prefers the fewest nodes and then the fewest devices to 3 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ansible_collections.llamacpp.cluster.plugins.module_utils._costs import bits, main_type
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._option import PARTIAL, Option
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import Knobs
from ansible_collections.llamacpp.cluster.plugins.module_utils._search import Search
from ansible_collections.llamacpp.cluster.plugins.module_utils._search_rpc import (
    MAX_KINDS,
    best_part,
    explicit,
    over_nodes,
    partly,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Offer

# What a slot should at least hold where context is left to the planner, and what slots are tried.
AUTO_CONTEXT = 8192
AUTO_SLOTS = (4, 2, 1)
CONTEXT_STEP = 1024
# A batch that still keeps a GPU busy, for when every MiB counts.
SMALL_UBATCH = 128
SMALL_CACHE = "q8_0"
# Bits a weight: below, quality suffers visibly; on Volta and older the types below are slow.
GOOD_BITS, FAST_BITS_ON_VOLTA = 4.0, 5.0
# How far to look: until the best is known, at all ways, or at all ways with more devices than needed, too.
ENOUGH, ALL, WIDER = 0, 1, 2
ONE_NODE, MANY_NODES, IN_PART, PROCESSOR = "one node", "RPC", "partial offload", "CPU only"
# What an instance takes: what it likes best, the fewest devices, or of those the least memory, too.
LIKED, FEWEST, LEAST = 0, 1, 2
# A group is tried when nothing of those before it fits. Who is sparing rather leaves a part in the head's
# memory than takes a second node.
GROUPS = ((ONE_NODE, MANY_NODES), (IN_PART, PROCESSOR))
SPARING_GROUPS = ((ONE_NODE,), (IN_PART,), (MANY_NODES, PROCESSOR))


@dataclass(frozen=True)
class Rung:
    """Settings to try; ``words``: what was given up for them, empty for nothing."""

    knobs: Knobs
    words: str


@dataclass(frozen=True)
class Chosen:
    """What was chosen for an instance, and what was considered.

    ``options``: placements of the chosen quantisation that fit, of the class that won, best first.
    ``thrift``: :data:`LIKED`, :data:`FEWEST` or :data:`LEAST`.
    """

    offer: Offer
    option: Option
    rung: Rung
    where: str
    options: tuple[Option, ...]
    thrift: int = LIKED


class Chooser:
    """Chooses for one instance."""

    def __init__(
        self,
        search: Search,
        declared: Declared,
        facts: Mapping[str, NodeFacts],
        offers: Sequence[Offer],
        thrift: int = LIKED,
    ) -> None:
        self.search = search
        self.thrift = thrift
        self.instance = search.instance
        self.declared = declared
        self.facts = facts
        self.offers = offers
        #: settings that llama.cpp refuses, by the name of the offer
        self.refused: dict[str, Refused] = {}

    def choose(self) -> Chosen | None:
        """Return what is best; None when nothing fits."""
        rungs = list(self.rungs())
        found: dict[tuple[int, str], dict[int, Chosen]] = {}
        for wheres in SPARING_GROUPS if self.thrift else GROUPS:
            for tier, number in _steps(len(rungs)):
                for where in wheres:
                    key = (number, where)
                    if key not in found:
                        found[key] = self._best(rungs[number], where)
                    if tier in found[key]:
                        return self._enlarged(found[key][tier])
        return None

    def rungs(self) -> Iterator[Rung]:
        """Return the settings to try, what is given up growing."""
        instance = self.instance
        base = Knobs.of(instance)
        yield Rung(base, "")
        small = replace(base, ubatch=min(SMALL_UBATCH, base.batch))
        can_shrink = instance.ubatch is None and small.ubatch < base.ubatch
        if can_shrink:
            yield Rung(small, "smaller batches (prompts are read slower)")
        keys = SMALL_CACHE if instance.cache_type_k is None else base.cache_type_k
        # A quantised V cache needs flash attention.
        can_v = instance.cache_type_v is None and base.flash_attention != "off"
        values = SMALL_CACHE if can_v else base.cache_type_v
        if (keys, values) != (base.cache_type_k, base.cache_type_v):
            yield Rung(
                replace(base, cache_type_k=keys, cache_type_v=values), "a cache of eight bits instead of sixteen"
            )
            if can_shrink:
                yield Rung(
                    replace(small, cache_type_k=keys, cache_type_v=values), "a cache of eight bits and smaller batches"
                )

    def options(self, offer: Offer, rung: Rung, where: str, extent: int = ENOUGH) -> list[Option]:
        """Return the placements of an offer that fit, best first; ``extent`` says how far to look."""
        facts = offer.facts
        if facts is None or (len(self.offers) > 1 and offer.quant in self.refused):
            return []
        try:
            return self._options(facts, self._with_context(replace(rung.knobs, eyes=offer.eyes), facts), where, extent)
        except Refused as error:
            self.refused.setdefault(offer.quant, error)
            return []

    def _options(self, facts: ModelFacts, knobs: Knobs, where: str, extent: int) -> list[Option]:
        search, instance = self.search, self.instance
        if instance.nodes is not None and len(instance.nodes) > 1:
            return self._named(facts, knobs, where)
        if where == MANY_NODES:
            return self._over_nodes(facts, knobs, search.has_gpus, extent == WIDER)
        if where == IN_PART:
            return (
                partly(search, facts, knobs, 1 if extent == ALL else MAX_KINDS)
                if instance.split_mode != "tensor"
                else []
            )
        if where == PROCESSOR or not search.has_gpus or instance.gpu_layers == 0:
            return self._on_processors(facts, knobs, where)
        return self._on_one_node(facts, knobs, extent)

    def _over_nodes(self, facts: ModelFacts, knobs: Knobs, gpus: bool, every: bool = False) -> list[Option]:
        """Try several nodes, all with GPUs or all without, where that was left open."""
        instance = self.instance
        if instance.nodes is not None or instance.split_mode not in (None, "layer") or instance.gpu_layers == 0:
            return []
        return over_nodes(self.search, self.declared, self.facts, facts, knobs, gpus, every)

    def _on_processors(self, facts: ModelFacts, knobs: Knobs, where: str) -> list[Option]:
        """Try one processor and, beside GPUs that do not hold it, several."""
        found = self.search.on_cpu(facts, knobs) if where in (PROCESSOR, ONE_NODE) else []
        if where == PROCESSOR and self.search.has_gpus and not found:
            found = self._over_nodes(facts, knobs, False)
        return found

    def _on_one_node(self, facts: ModelFacts, knobs: Knobs, extent: int) -> list[Option]:
        """Try one node in the ways that the operator left open, best first."""
        search, instance = self.search, self.instance
        if instance.tensor_split is not None or (instance.nodes and instance.split_mode in ("layer", "tensor")):
            option = explicit(search, facts, knobs)
            return [option] if option and option.fits else []
        found: list[Option] = []
        if instance.split_mode in (None, "none", "layer"):
            found += search.one_device(facts, knobs)
        if instance.split_mode in (None, "tensor") and not _enough(found, extent):
            found += search.tensor_split(facts, knobs, extent == WIDER)
        if instance.split_mode in (None, "layer") and not _enough(found, extent):
            found += search.layer_split(facts, knobs, extent == WIDER)
        return sorted(found, key=lambda item: item.rank)

    def _named(self, facts: ModelFacts, knobs: Knobs, where: str) -> list[Option]:
        """Try the nodes that were named: all of them, and all of their devices."""
        if where not in (MANY_NODES, IN_PART):
            return []
        option = explicit(self.search, facts, knobs)
        if option is None:
            return []
        if where == IN_PART:
            placement = option.placement
            possible = placement.host and not option.on_host and knobs.gpu_layers is None and option.placement.offload
            if not possible or not placement.host:
                return []
            part = best_part(self.search, placement.head, placement.offload, placement.host, facts, knobs)
            return [part] if part else []
        return [option] if option.fits else []

    def _best(self, rung: Rung, where: str) -> dict[int, Chosen]:
        """Return the best of each quality: of the largest quantisation that fits, or of the one that takes least."""
        best: dict[int, Chosen] = {}
        for offer in self.offers:
            options = self.options(offer, rung, where)
            for tier in sorted({self._quality(offer, option) for option in options}):
                same = tuple(option for option in options if self._quality(offer, option) == tier)
                chosen = Chosen(offer, same[0], rung, where, same, self.thrift)
                if tier not in best or (self.thrift and _footprint(chosen) < _footprint(best[tier])):
                    best[tier] = chosen
            if 0 in best and not self.thrift:
                break
        return best

    def _quality(self, offer: Offer, option: Option) -> int:
        return quality(offer, option.dequantises) if len(self.offers) > 1 else 0

    def tried(self, offer: Offer, facts: ModelFacts) -> Knobs:
        """Return the settings that take least."""
        return self._with_context(replace(list(self.rungs())[-1].knobs, eyes=offer.eyes), facts)

    def _with_context(self, knobs: Knobs, facts: ModelFacts) -> Knobs:
        """Fill in what is tried first where context is left to the planner."""
        if self.instance.context is not None:
            return knobs
        wish = self.instance.min_context or AUTO_CONTEXT
        trained = facts.n_ctx_train or wish
        return replace(knobs, context=min(wish, trained))

    def _enlarged(self, chosen: Chosen) -> Chosen:
        """Return it with as many slots and as much context as fit, where they are left to the planner."""
        instance, facts = self.instance, chosen.offer.facts
        given = instance.context is not None and instance.parallel is not None
        if facts is None or given or self.thrift == LEAST:
            return chosen
        if instance.context is not None:
            option = _with_slots(chosen.option, facts)
            return replace(chosen, option=option)
        if self.thrift:
            # On more devices than it needs there may be more context, but others want them.
            in_part = chosen.option.strategy == PARTIAL
            return chosen if in_part else replace(chosen, option=_grown(chosen.option, facts, instance))
        best = None
        tried: set[tuple[object, ...]] = set()
        # The fewest devices that give all the context there is; others may want the rest.
        for extent in (ENOUGH, WIDER):
            for option in sorted(self.options(chosen.offer, chosen.rung, chosen.where, extent), key=_economy):
                key = (option.strategy, len(option.placement.offload), len(option.placement.nodes))
                # Of a part in memory, more context would only push more layers there.
                if option.strategy == PARTIAL or key in tried:
                    continue
                tried.add(key)
                grown = _grown(option, facts, instance)
                if best is None or _context(grown) > _context(best):
                    best = grown
                if _context(best)[1] >= facts.n_ctx_train:
                    return replace(chosen, option=best)
        return replace(chosen, option=best or chosen.option)


def _footprint(chosen: Chosen) -> tuple[int, int, int]:
    """Return what others cannot have: nodes, devices and, where memory counts, the size of the file."""
    placement = chosen.option.placement
    return len(placement.nodes), len(placement.offload), chosen.offer.size if chosen.thrift == LEAST else 0


def _economy(option: Option) -> tuple[object, ...]:
    placement = option.placement
    return option.step, len(placement.nodes), len(placement.offload), option.rank


def _enough(found: Sequence[Option], extent: int) -> bool:
    """Whether nothing better can come; on Volta a later way may be better, as other GPUs are quick with Q4."""
    return extent == ENOUGH and any(not option.dequantises for option in found)


def _steps(rungs: int) -> list[tuple[int, int]]:
    """Return pairs of quality and rung in the order in which they are wanted."""
    usual = [(tier, 0) for tier in (0, 1)]
    reduced = [(tier, rung) for rung in range(1, rungs) for tier in (0, 1)]
    return usual + reduced + [(2, rung) for rung in range(rungs)]


def _context(option: Option) -> tuple[int, int]:
    knobs = option.placement.knobs
    return min(knobs.context, AUTO_CONTEXT) * knobs.parallel, knobs.context


def _with_slots(option: Option, facts: ModelFacts) -> Option:
    """Return it with the most slots that fit."""
    for slots in AUTO_SLOTS:
        more = option.again(replace(option.placement.knobs, parallel=slots), facts)
        if more.fits:
            return more
    return option


def _grown(option: Option, facts: ModelFacts, instance: Instance) -> Option:
    """Return it with the largest context that fits, for the most slots that get a useful one."""
    if instance.parallel is not None:
        return _longest(option, facts)
    for slots in AUTO_SLOTS:
        start = option.again(replace(option.placement.knobs, parallel=slots), facts)
        if start.fits:
            return _longest(start, facts)
    return option


def _longest(option: Option, facts: ModelFacts) -> Option:
    """Return it with the largest context that fits, up to what the model was trained on."""
    knobs = option.placement.knobs
    most = facts.n_ctx_train or knobs.context
    if most <= knobs.context:
        return option
    whole = option.again(replace(knobs, context=most), facts)
    if whole.fits:
        return whole
    best = option
    low, high = knobs.context // CONTEXT_STEP, -(-most // CONTEXT_STEP)
    left, excess = _slack(option), -_slack(whole)
    # What a token takes is nearly the same everywhere, so the guess is good; halving would ask twice as often.
    while high - low > 1:
        guess = low + int((high - low) * max(left, 0) / max(left + excess, 1))
        middle = min(max(guess, low + 1), high - 1)
        more = option.again(replace(knobs, context=middle * CONTEXT_STEP), facts)
        if more.fits:
            best, low, left = more, middle, _slack(more)
        else:
            high, excess = middle, -_slack(more)
    return best


def _slack(option: Option) -> int:
    """Return what is left on the fullest device; below 0 when it lacks something."""
    shares = option.placement.all_shares
    return min((share.slot.room - share.usage.total for share in shares if share.usage), default=0)


def quality(offer: Offer, on_volta: bool) -> int:
    """Return 0 for a quantisation that is good on such devices, 1 for one that is slow there, 2 for one that loses."""
    size = _bits(main_type(offer.facts)) if offer.facts and offer.facts.quantisation else 16.0
    if size < GOOD_BITS:
        return 2
    return 1 if on_volta and size < FAST_BITS_ON_VOLTA else 0


@lru_cache(maxsize=64)
def _bits(type_name: str) -> float:
    return bits(type_name)
