# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the plan says of models: their files, who needs them, who fetches them, and how the others get them."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared
from ansible_collections.llamacpp.cluster.plugins.module_utils._distribution import (
    CONTROLLER,
    NONE,
    SWARM_FROM_BYTES,
    choose_transport,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._fabric import shared_addresses
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan_json import Decision
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Offer

# How a model gets to nodes that all have its files, or see them.
LINKED = "linked"
# Machines and versions of Python that libtorrent has wheels for (PyPI, libtorrent 2.1.1).
SWARM_MACHINES = ("x86_64", "aarch64")
SWARM_PYTHONS = ((3, 9), (3, 13))


def models_json(
    declared: Declared, decisions: Sequence[Decision], nodes: Mapping[str, NodeFacts]
) -> dict[str, dict[str, Any]]:
    """Write down the models of all decisions, by name in the store.

    ``files``: each ``name``, ``bytes``, ``sha256`` (null where nobody knows them yet) and ``role``. ``holders``: heads,
    which need the files. ``workers``: node -> instances of which it computes a part, for the tensors that it is sent.
    ``fetcher``: who gets the files from outside, null where each head has them. ``transport`` and ``why``: how the
    other holders get them. ``addresses``: of all of these nodes on the fabric, and of others that have the files.
    """
    found: dict[str, dict[str, Any]] = {}
    for decision in decisions:
        model = found.setdefault(
            decision.offer.source.name,
            {
                "files": _files(decision.offer),
                "source": decision.offer.source.as_dict,
                "holders": [],
                "workers": {},
            },
        )
        if decision.placement.head not in model["holders"]:
            model["holders"].append(decision.placement.head)
        for node in decision.instance.workers:
            model["workers"].setdefault(node, []).append(decision.instance.name)
    for decision in decisions:
        model = found[decision.offer.source.name]
        if "fetcher" not in model:
            model.update(_way(declared, decision.offer, model, nodes))
    return {name: found[name] for name in sorted(found)}


def _files(offer: Offer) -> list[dict[str, Any]]:
    sizes, checksums = offer.sizes, offer.checksums
    own = [
        {"name": name, "bytes": sizes.get(name), "sha256": checksums.get(name), "role": "model"}
        for name in offer.file_names
    ]
    extra = [
        {"name": name, "bytes": size, "sha256": sha256, "role": role} for name, size, sha256, role in offer.source.extra
    ]
    return own + extra


def _way(declared: Declared, offer: Offer, model: Mapping[str, Any], nodes: Mapping[str, NodeFacts]) -> dict[str, Any]:
    """Return ``fetcher``, ``transport``, ``why`` and ``addresses`` of a model."""
    source, holders = offer.source, model["holders"]
    known = {*holders, *model["workers"]}
    addresses = shared_addresses(declared, sorted(known), nodes)
    if source.local:
        transport, why = ("shared", "all nodes see it") if source.shared else (LINKED, "it lies on each head")
        return {"fetcher": None, "transport": transport, "why": why, "addresses": addresses}
    told = declared.settings.models_fetcher
    fetcher = CONTROLLER if source.from_ == CONTROLLER else told if told and told != CONTROLLER else holders[0]
    takers = {*holders} if fetcher == CONTROLLER else {*holders, fetcher}
    if not takers <= known:
        addresses = shared_addresses(declared, sorted(known | takers), nodes)
    transport, why = choose_transport(
        declared.settings.models_transport,
        1,
        # The control node brings it to one of them, from where it goes on.
        len(takers) - 1,
        _bytes(model["files"]),
        all(_can_swarm(nodes.get(node)) for node in takers),
        all(node in addresses for node in takers),
    )
    if transport in ("http", "swarm") and len(takers) > 1 and not takers <= set(addresses):
        transport, why = "rsync", "the nodes do not reach each other, so the control node sends it to each"
    if transport == "rsync":
        # What it sends, it has to have.
        fetcher = CONTROLLER
    others = _others(declared, offer, addresses, nodes)
    return {
        "fetcher": fetcher,
        "transport": transport,
        "why": "only %s needs it" % holders[0] if transport == NONE else why,
        # Who has the files gives them, and in a swarm would need its engine.
        "addresses": {
            node: address
            for node, address in sorted({**addresses, **others}.items())
            if node in takers or transport != "swarm" or _can_swarm(nodes.get(node))
        },
    }


def _bytes(files: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the bytes of all files; None where some are not known and the others are too few to make it large."""
    known = [item["bytes"] for item in files if item["bytes"] is not None]
    return sum(known) if len(known) == len(files) or sum(known) >= SWARM_FROM_BYTES else None


def _others(
    declared: Declared, offer: Offer, addresses: Mapping[str, str], nodes: Mapping[str, NodeFacts]
) -> dict[str, str]:
    """Return the addresses of nodes that have the files of a model without a need for them, where ``addresses`` are."""
    directory = posixpath.join(declared.settings.models_dir, "names", offer.source.name)
    sizes = offer.sizes
    found = {}
    for name in sorted(set(nodes) - set(addresses)) if addresses else ():
        there = [(file, nodes[name].files.get(posixpath.join(directory, file))) for file in offer.file_names]
        if any(size is None or size != sizes.get(file, size) for file, size in there):
            continue
        shared = shared_addresses(declared, [*sorted(addresses), name], nodes)
        if shared and all(shared[other] == address for other, address in addresses.items()):
            found[name] = shared[name]
    return found


def _can_swarm(facts: NodeFacts | None) -> bool:
    """Whether the engine of a swarm runs on a node."""
    if facts is None or facts.machine not in SWARM_MACHINES:
        return False
    version = tuple(int(part) for part in facts.python.split(".")[:2])
    return SWARM_PYTHONS[0] <= version <= SWARM_PYTHONS[1]
