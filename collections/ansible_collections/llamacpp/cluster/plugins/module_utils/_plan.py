# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make the plan: a pure function of what is declared, what was found, and the models' headers.

``make_plan`` gathers; the decisions are made one module each: :mod:`_sources` (which files there
are), :mod:`_search` and :mod:`_choose` (where an instance goes, and with which settings),
:mod:`_shortfall` (what would fit when nothing does), :mod:`_ports`, :mod:`_fabric`, :mod:`_flags`.
The same input gives the same plan, byte for byte, and a cluster that runs the plan gives it again.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

from ansible_collections.llamacpp.cluster.plugins.module_utils._builds import Releases, decide_releases
from ansible_collections.llamacpp.cluster.plugins.module_utils._choose import (
    FEWEST,
    LEAST,
    LIKED,
    MANY_NODES,
    Chooser,
    Chosen,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._clashes import model_clashes, place_clashes
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._explain import choices, named_why, previews, why
from ansible_collections.llamacpp.cluster.plugins.module_utils._fabric import fabric_addresses, shared_addresses
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import (
    NodeFacts,
    check_model_disk,
    check_nodes,
    check_reachable,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import Knobs
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan_json import (
    Decision,
    devices_json,
    instance_json,
    node_json,
    release_json,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan_models import models_json
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import Pool, Use
from ansible_collections.llamacpp.cluster.plugins.module_utils._ports import Ports, assign_ports
from ansible_collections.llamacpp.cluster.plugins.module_utils._previews import alternatives
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError, Problem, listing
from ansible_collections.llamacpp.cluster.plugins.module_utils._search import Search
from ansible_collections.llamacpp.cluster.plugins.module_utils._search_rpc import explicit
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused
from ansible_collections.llamacpp.cluster.plugins.module_utils._shortfall import refusal, shortfall
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Found, Looked, Offer, offers

SCHEMA = 4
# As many replicas as one ever wants, for those that say auto.
MAX_REPLICAS = 64

Plan = dict[str, Any]
# What was found of an instance's model: the facts of one file, of several by quantisation, or what was wrong.
Given = Mapping[str, Union[ModelFacts, str, Mapping[str, Union[ModelFacts, str, Found]]]]


@dataclass
class _Draft:
    """A plan in the making. ``failed``: names of declared instances that found no place.

    ``first``: those that were placed before others. ``thrift``: those that have to be sparing, and how much.
    ``explain``: say what would fit instead, which takes longer than the plan itself. ``hopeless``: one found
    no place even while all were free.
    """

    pool: Pool
    first: tuple[str, ...]
    thrift: Mapping[str, int]
    explain: bool
    hopeless: bool = False
    decisions: dict[str, Decision] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def make_plan(
    declared: Declared,
    nodes: Mapping[str, NodeFacts],
    models: Given,
    builders: Mapping[str, NodeFacts] | None = None,
) -> Plan:
    """Make the plan.

    ``nodes``: facts by node; a node that did not answer is absent. ``models``: what was found by
    instance. Static planning needs neither. ``builders``: facts of the nodes that compile, where they
    are not among ``nodes``. Returns JSON-able data (schema 4). Raises
    :class:`PlanError` with all problems.
    """
    problems = check_nodes(declared, nodes)
    if not declared.static:
        problems += check_reachable(declared, nodes)
    offered: dict[str, list[Offer]] = {}
    others: dict[str, list[Offer]] = {}
    found: dict[str, list[Problem]] = {}
    for instance in declared.instances:
        looked = _looked(models.get(instance.name))
        offered[instance.name], found[instance.name] = offers(declared, instance, looked)
        every, _unread = offers(declared, replace(instance, model=replace(instance.model, wanted=())), looked)
        allowed = {offer.quant for offer in offered[instance.name]}
        others[instance.name] = [offer for offer in every if offer.quant not in allowed]
    draft = _drafted(declared, nodes, offered, others)
    resolved = _resolved(declared, draft)
    ports, port_problems = assign_ports(declared.settings, resolved, nodes)
    problems += port_problems + _late_clashes(declared, resolved)
    for instance in declared.instances:
        problems += found[instance.name] + _disks(declared, nodes, instance, draft, offered[instance.name])
        problems += draft.problems.get(instance.name, [])
    releases, unbuilt = decide_releases(declared, nodes, {**nodes, **(builders or {})})
    planned, heads, late = _written(declared, nodes, draft, ports, releases)
    problems += unbuilt + late
    if problems:
        raise PlanError(problems)
    return {
        "schema": SCHEMA,
        "release": declared.release,
        "releases": {
            item.id: release_json(item, shared_addresses(declared, item.nodes, nodes))
            for item in sorted(releases.by_id.values(), key=lambda item: item.id)
        },
        "nodes": {node: node_json(node, declared, planned, heads, releases) for node in sorted(declared.inventory)},
        "devices": devices_json(draft.pool, declared, planned),
        "store": {"path": declared.settings.models_dir, "quota": declared.settings.models_quota},
        "rpc_cache": {"quota": declared.settings.rpc_cache_quota},
        "models": models_json(declared, _in_order(declared, draft), nodes),
        "instances": planned,
    }


def plan_json(plan: Plan) -> str:
    """Return the plan as it is written to a file."""
    return json.dumps(plan, sort_keys=True, indent=2) + "\n"


def _looked(given: ModelFacts | str | Mapping[str, ModelFacts | str | Found] | None) -> Looked | str | None:
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, ModelFacts):
        return {"": Found(given)}
    return {
        name: item if isinstance(item, Found) else Found(None, item) if isinstance(item, str) else Found(item)
        for name, item in given.items()
    }


def _drafted(
    declared: Declared,
    nodes: Mapping[str, NodeFacts],
    offered: Mapping[str, Sequence[Offer]],
    others: Mapping[str, Sequence[Offer]],
) -> _Draft:
    """Place all instances: as they like it, else sparingly those that found no place, then all, ever more.

    What one likes may be what another, or a replica of its own, cannot do without.
    """

    def attempt(first: tuple[str, ...], thrift: Mapping[str, int], explain: bool = False) -> _Draft:
        draft = _Draft(Pool.of(declared, nodes), first, thrift, explain)
        for instance in _order(declared, draft.pool, offered, first):
            _place_all(declared, nodes, draft, instance, offered[instance.name], others[instance.name])
        return draft

    def in_turn(thrift: Mapping[str, int]) -> _Draft:
        """One that finds no place is tried again before those that took what they liked."""
        draft = attempt((), thrift)
        while len(declared.instances) > 1:
            late = [name for name in draft.failed if name not in draft.first]
            if not late:
                break
            draft = attempt((*draft.first, late[0]), thrift)
        return draft

    every = [instance.name for instance in declared.instances]
    liked = nearest = in_turn({})
    for names, level in (({*liked.first, *liked.failed}, FEWEST), (every, FEWEST), (every, LEAST)):
        if not nearest.failed or liked.hopeless:
            break
        draft = in_turn(dict.fromkeys(names, level))
        nearest = min(nearest, draft, key=lambda item: (len(item.failed), -len(item.decisions)))
    return attempt(nearest.first, nearest.thrift, explain=True) if nearest.failed else nearest


def _order(
    declared: Declared, pool: Pool, offered: Mapping[str, Sequence[Offer]], first: Sequence[str]
) -> list[Instance]:
    """Return the instances in the order in which they are placed.

    Those with named nodes, those that ``first`` names, those that run already, the largest; those
    that want as many replicas as fit come last.
    """

    def key(instance: Instance) -> tuple[object, ...]:
        smallest = min((offer.size for offer in offered[instance.name]), default=0)
        runs = pool.deployment(instance.name) or pool.deployment(instance.name + "-1")
        early = first.index(instance.name) if instance.name in first else len(first)
        return (instance.nodes is None, early, instance.replicas == 0, runs is None, -smallest, instance.name)

    return sorted(declared.instances, key=key)


def _place_all(
    declared: Declared,
    nodes: Mapping[str, NodeFacts],
    draft: _Draft,
    instance: Instance,
    offered: Sequence[Offer],
    others: Sequence[Offer],
) -> None:
    """Place an instance, or all of its replicas."""
    missing = [node for node in instance.nodes or () if node not in draft.pool.nodes]
    if not offered or missing:
        return
    taken: set[tuple[str, str]] = set()
    wanted = [instance] if instance.replicas is None else _replicas(instance)
    for number, item in enumerate(wanted):
        decision, problems = _decide(declared, nodes, draft, item, offered, others, frozenset(taken))
        if instance.replicas == 0 and number and (decision is None or not _as_good(draft, wanted[0], decision)):
            return
        if decision is None:
            if number and problems:
                fix = "%d of them fit; %s" % (number, problems[0].fix)
                problems = [Problem(instance.variable + ".replicas", instance.replicas, fix)]
            draft.problems[instance.name] = problems
            draft.failed.append(instance.name)
            draft.hopeless = draft.hopeless or not draft.decisions
            return
        draft.decisions[item.name] = decision
        for share in decision.placement.all_shares:
            usage, slot = share.usage, share.slot
            if usage is None:
                continue
            role = "head" if slot.node == decision.placement.head else "worker"
            use = Use(item.name, instance.name, role, usage.model, usage.context, usage.compute, usage.overhead)
            draft.pool.reserve(slot.node, slot.device.local_name, use)
            if share.n_layers:
                taken.add((slot.node, slot.device.local_name))


def _replicas(instance: Instance) -> list[Instance]:
    """Return the replicas of an instance: numbered names, and ports that count up from a declared one."""
    count = instance.replicas or MAX_REPLICAS
    return [
        replace(
            instance,
            name="%s-%d" % (instance.name, number),
            port=instance.port + number - 1 if instance.port else None,
            rpc_port=instance.rpc_port + number - 1 if instance.rpc_port else None,
        )
        for number in range(1, count + 1)
    ]


def _as_good(draft: _Draft, first: Instance, decision: Decision) -> bool:
    """Whether a further replica is served the way the first one is."""
    return draft.decisions[first.name].option.strategy == decision.option.strategy


def _decide(
    declared: Declared,
    nodes: Mapping[str, NodeFacts],
    draft: _Draft,
    instance: Instance,
    offered: Sequence[Offer],
    others: Sequence[Offer],
    taken: frozenset[tuple[str, str]],
) -> tuple[Decision | None, list[Problem]]:
    """Decide where an instance goes and how."""
    pool = draft.pool
    margin = declared.settings.memory_margin_mib << 20 if declared.settings.memory_check else -1
    search = Search(instance, pool, margin, taken)
    problems = _without_devices(instance, search)
    if problems:
        return None, problems
    chooser = Chooser(search, declared, nodes, offered, draft.thrift.get(instance.declared, LIKED))
    try:
        chosen = _blind(chooser) if offered[0].facts is None else chooser.choose()
        if chosen is None and offered[0].facts is None:
            return None, [_unplanned(chooser)]
        if chosen is None:
            return None, [shortfall(chooser, others)] if draft.explain else []
        shown = alternatives(chooser, chosen) if offered[0].facts else []
    except Refused as error:
        return None, [refusal(instance, error)]
    except ValueError as error:
        fix = "%s (the output counts as one): use fewer nodes, or another gpu_layers" % error
        return None, [Problem(instance.variable + ".nodes", list(instance.nodes or ()), fix)]
    return _decision(declared, chooser, chosen, shown), []


def _decision(declared: Declared, chooser: Chooser, chosen: Chosen, shown: Sequence[Any]) -> Decision:
    instance, placement = chooser.instance, chosen.option.placement
    source = chosen.offer.source
    placed = replace(
        instance,
        model=replace(instance.model, source=source),
        nodes=placement.nodes,
        head=placement.head,
        workers=placement.nodes[1:],
    )
    named = instance.nodes is not None and len(instance.nodes) > 1
    if named:
        placed = replace(placed, nodes=instance.nodes, workers=instance.workers)
    text = named_why(chosen) if named or chosen.offer.facts is None else why(chosen)
    if chosen.offer.facts is None:
        text = text[:-1] + "; llama.cpp counts them, as the model's header was not read."
    return Decision(
        instance=placed,
        offer=chosen.offer,
        option=chosen.option,
        files=_files(declared, chosen.offer),
        why=text,
        choices=choices(chooser, chosen, shown, text) if chosen.offer.facts else [],
        alternatives=previews(chosen, shown),
    )


def _blind(chooser: Chooser) -> Chosen | None:
    """Place an instance whose header nobody read: on all devices of its nodes, in proportion to memory."""
    instance = chooser.instance
    if instance.nodes is None:
        return None
    rung = next(iter(chooser.rungs()))
    option = explicit(chooser.search, None, replace(rung.knobs, eyes=chooser.offers[0].eyes))
    return Chosen(chooser.offers[0], option, rung, MANY_NODES, (option,)) if option else None


def _unplanned(chooser: Chooser) -> Problem:
    instance = chooser.instance
    return Problem(
        instance.variable + ".nodes",
        "auto",
        "to choose nodes the model's header has to be read; list nodes, or plan with nodes that answer",
    )


def _without_devices(instance: Instance, search: Search) -> list[Problem]:
    """Return what is wrong with the devices of named nodes, and with what is declared for them."""
    problems = []
    for name in instance.nodes or ():
        node = search.pool.nodes[name]
        known = [device.local_name for device in node.devices]
        if not known:
            fix = "list what it has, e.g. [{kind: cuda, name: V100S, memory: 32 GiB}]"
            problems.append(Problem("llamacpp_devices of %s" % name, None, fix))
        elif instance.devices is not None and not set(known) & set(instance.devices):
            fix = "%s has none of them; it has %s" % (name, listing(known))
            problems.append(Problem(instance.variable + ".devices", listing(instance.devices), fix))
    if problems or instance.nodes is None:
        return problems
    head, workers = instance.nodes[0], instance.nodes[1:]
    gpus = search.gpus(search.pool.nodes[head])

    def problem(key: str, value: object, fix: str) -> list[Problem]:
        return [Problem("%s.%s" % (instance.variable, key), value, fix)]

    if workers and instance.gpu_layers == 0:
        return problem("gpu_layers", 0, "the workers would get no layer; leave it out, or serve it from one node")
    if instance.split_mode == "tensor" and len(gpus) < 2:
        return problem("split_mode", "tensor", "%s has fewer than two GPUs; write layer" % head)
    if instance.tensor_split is not None:
        option = explicit(search, None, replace(Knobs.of(instance), tensor_split=None))
        slots = option.placement.offload if option else ()
        if len(slots) != len(instance.tensor_split):
            order = listing("%s of %s" % (slot.device_name, slot.node) for slot in slots)
            fix = "needs a number for each of %d devices, in this order: %s" % (len(slots), order)
            return problem("tensor_split", list(instance.tensor_split), fix)
    return []


def _resolved(declared: Declared, draft: _Draft) -> list[Instance]:
    """Return the instances whose nodes are known, placed or not, in order of declaration."""
    found = []
    for instance in declared.instances:
        placed = [item.instance for item in draft.decisions.values() if item.instance.declared == instance.declared]
        if placed:
            found += placed
        elif instance.nodes is not None:
            found.append(instance)
    return found


def _late_clashes(declared: Declared, resolved: Sequence[Instance]) -> list[Problem]:
    """Return clashes that show only now that the nodes of all instances are known."""
    if all(instance.nodes is not None and instance.model.source for instance in declared.instances):
        return []
    known = {str(problem) for problem in place_clashes(declared.instances) + model_clashes(declared.instances)}
    return [problem for problem in place_clashes(resolved) + model_clashes(resolved) if str(problem) not in known]


def _disks(
    declared: Declared, nodes: Mapping[str, NodeFacts], instance: Instance, draft: _Draft, offered: Sequence[Offer]
) -> list[Problem]:
    """Check the disks of the heads: of where the instance was placed, else of the head that was named."""
    where = [
        (item.instance, item.offer, item.files)
        for item in draft.decisions.values()
        if item.instance.declared == instance.declared
    ]
    if not where and instance.nodes is not None and len(offered) == 1:
        placed = replace(instance, model=replace(instance.model, source=offered[0].source))
        where = [(placed, offered[0], _files(declared, offered[0]))]
    planned = {file for item in draft.decisions.values() for file in item.files}
    problems = []
    for item, offer, files in where:
        head = nodes.get(item.head or "")
        if head is not None and offer.facts is not None:
            problems += check_model_disk(declared, item, head, files, offer.facts.file_size, planned)
    return problems


def _files(declared: Declared, offer: Offer) -> tuple[str, ...]:
    """Return where the files of a model have their names in the store."""
    directory = posixpath.join(declared.settings.models_dir, "names", offer.source.name)
    return tuple(posixpath.join(directory, name) for name in offer.file_names)


def _in_order(declared: Declared, draft: _Draft) -> list[Decision]:
    """Return the decisions in order of declaration."""
    return [
        decision
        for instance in declared.instances
        for decision in draft.decisions.values()
        if decision.instance.declared == instance.declared
    ]


def _written(
    declared: Declared,
    nodes: Mapping[str, NodeFacts],
    draft: _Draft,
    ports: Mapping[str, Ports],
    releases: Releases,
) -> tuple[list[dict[str, Any]], dict[str, str | None], list[Problem]]:
    """Write all decisions down, in order of declaration; return them, the heads' addresses, and problems."""
    planned: list[dict[str, Any]] = []
    heads: dict[str, str | None] = {}
    problems: list[Problem] = []
    for decision in _in_order(declared, draft):
        own = decision.instance
        addresses, missing = fabric_addresses(declared, own, nodes)
        problems += missing
        if not missing:
            heads[own.name] = addresses.get(decision.placement.head)
            planned.append(instance_json(declared, decision, ports[own.name], addresses, nodes, draft.pool, releases))
    return planned, heads, problems
