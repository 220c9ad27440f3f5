# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is to be done for the models of a plan: filters of role models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils import _conversions, _model_seeds, _model_work
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import utc

# As module model does when it finds everything in its place.
NOTE_SECONDS = 24 * 3600


def found_stores(nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], register: str) -> dict[str, Any]:
    """Return what model_info said, by node; nodes that were not asked are left out."""
    # Each look into hostvars puts all variables of a node together anew.
    found = {node: hostvars[node].get(register) or {} for node in nodes}
    return {node: store for node, store in found.items() if "models" in store}


def models_to_note(store: Mapping[str, Any], names: Sequence[str], now: float) -> list[str]:
    """Return the models that a node's store has, that are declared or in use, and that were noted as such long ago.

    ``store``: of model_info. ``names``: declared ones. ``now``: seconds since the epoch.
    """
    due = utc(now - NOTE_SECONDS)
    return [
        model["name"]
        for model in store.get("models", ())
        if model["last_used"] < due and (model["name"] in names or model["used_by"])
    ]


def fetched_models(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifests that loops of model have brought, by name."""
    return {
        result["manifest"]["name"]: _model_work.portable(result["manifest"])
        for loop in results
        for result in loop.get("results", ())
        if result.get("manifest")
    }


def share_sources(
    plan: Mapping[str, Any],
    work: Sequence[Mapping[str, Any]],
    node: str,
    known: Mapping[str, Mapping[str, Any]],
    hostvars: Mapping[str, Mapping[str, Any]],
    register: str,
) -> dict[str, list[dict[str, str]]]:
    """Return, by model, where a node can take its files; ``register``: of loops of fabric_share over addresses."""
    seeds = {seed for item in work for seed in item["seeds"]}
    urls = {seed: [url for result in _results(hostvars[seed], register) for url in result["urls"]] for seed in seeds}
    return _model_work.share_sources(plan, work, node, known, urls)


def _results(variables: Mapping[str, Any], register: str) -> list[Mapping[str, Any]]:
    """Return the results of a loop of fabric_share whose shares run."""
    return [result for result in (variables.get(register) or {}).get("results", ()) if result.get("urls")]


def seed_shares(plan: Mapping[str, Any], node: str, todo: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return what a head gives files to its workers at, by address; ``todo``: of :func:`model_seeding`.

    A share has ``address``, which the head speaks RPC from, ``nodes`` and the addresses of these ``peers``: instances
    may speak RPC on different networks.
    """
    found: dict[str, dict[str, str]] = {}
    for instance in _model_seeds.headed(plan, node, todo):
        for worker in instance["workers"]:
            if worker["node"] not in todo:
                continue
            for opening in plan["nodes"][worker["node"]]["firewall"]:
                if opening["purpose"] == "rpc" and opening["instance"] == instance["name"]:
                    found.setdefault(opening["sources"][0], {})[worker["node"]] = worker["host"]
    return [
        {"address": address, "nodes": sorted(found[address]), "peers": sorted(set(found[address].values()))}
        for address in sorted(found)
    ]


def model_seeding(
    plan: Mapping[str, Any], nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], ending: str, work: Any
) -> dict[str, list[str]]:
    """Return which nodes' caches are to be seeded, with the heads that know with what.

    ``ending``: of the paths of their stamps, which need not lie in the same directory everywhere.
    """
    seeded = {}
    for node in nodes:
        looked = hostvars[node].get("preflight_node", {})
        if "node" in looked:
            managed = looked["node"]["managed"]
            stamps = [facts["sha256"] for path, facts in managed.items() if path.endswith(ending) and facts]
            seeded[node] = stamps[0] if stamps else None
    return _model_seeds.to_seed(plan, seeded, work)


def seed_entries(
    nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], register: str, node: str
) -> list[Mapping[str, Any]]:
    """Return the entries that a node's cache needs; ``nodes``: heads that listed them, as ``register`` has it."""
    found = {head: hostvars[head].get(register) for head in nodes}
    listed = {head: said for head, said in found.items() if said is not None}
    return _model_seeds.entries(listed, node)


def seed_sources(
    heads: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], listed: str, shared: str, node: str
) -> list[dict[str, str]]:
    """Return what heads offer to a node: for each, addresses by sha256.

    ``listed``: registered of rpc_cache. ``shared``: of a loop of fabric_share over :func:`seed_shares`.
    """
    found = []
    for head in heads:
        files = (hostvars[head].get(listed) or {}).get("files") or {}
        for result in _results(hostvars[head], shared):
            if node in result["item"]["nodes"]:
                found.append(dict(zip(files, result["urls"])))
    return [source for source in found if source]


def swarm_torrents(nodes: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]], register: str) -> dict[str, str]:
    """Return the torrents of models, by name; ``register``: of loops of swarm on the nodes that have them."""
    results = [result for node in nodes for result in (hostvars[node].get(register) or {}).get("results", ())]
    return {result["item"]["model"]: result["torrent"] for result in results if result.get("torrent")}


def words(work: Sequence[Mapping[str, Any]], node: str) -> list[str]:
    """Return what a run does on a node, a sentence each."""
    return [word for item in work for word in _model_work.work_words(item, node)]


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {
            "conversions": _conversions.conversions,
            "converted": _conversions.converted,
            "fetched_models": fetched_models,
            "found_stores": found_stores,
            "from_conversion": _conversions.with_results,
            "model_fetches": _model_work.fetch_items,
            "model_known": _model_work.known_manifests,
            "model_locals": _model_work.local_models,
            "model_manifests": _model_work.manifests,
            "model_seeding": model_seeding,
            "model_shares": _model_work.shared_files,
            "model_source": _model_work.source_options,
            "model_sources": share_sources,
            "model_swarms": _model_work.swarms,
            "model_words": words,
            "models_to_note": models_to_note,
            "model_work": _model_work.model_work,
            "seed_entries": seed_entries,
            "seed_instances": _model_seeds.headed,
            "seed_shares": seed_shares,
            "seed_sources": seed_sources,
            "seed_stamp": _model_seeds.stamp,
            "swarm_torrents": swarm_torrents,
        }
