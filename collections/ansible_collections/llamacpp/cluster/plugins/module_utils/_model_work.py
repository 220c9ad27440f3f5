# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is to be done for the models of a plan, given what is in the stores of its nodes. Pure functions.

The same on every node: each looks up in the list what is its own part.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._distribution import CONTROLLER, NONE
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import size_text

HTTP, SWARM, RSYNC, SHARED = "http", "swarm", "rsync", "shared"
# Ports from which each run takes a few, so that two runs at once do not want the same.
SWARM_PORTS = 1000

Stores = Mapping[str, Mapping[str, Any]]


def model_work(plan: Mapping[str, Any], stores: Stores, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the models of a plan that a node lacks, by name; empty when everything is in its place.

    ``stores``: by node, what model_info says there. ``known``: manifests by name, of files of the control node, whose
    checksums the plan does not know. An item has

    * ``name`` and ``source`` of the model, ``files`` (names of its own), ``checksums`` (sha256 by file, where they are
      known) and ``bytes``,
    * ``fetch``: who gets it from outside (``controller``, a node), or empty: ``seeds`` has it, or there is no need,
    * ``land``: nodes that the control node brings it to,
    * ``link``: nodes that only link what lies there,
    * ``seeds``: nodes that have it by then and ``receivers``: nodes that get it from them, by ``transport``,
    * ``see``: nodes that see what others put into the store, as all nodes share it.
    """
    work = []
    for name, model in plan["models"].items():
        wanted = _expected(model, known.get(name))
        have = [node for node, store in stores.items() if _has(store, name, wanted)]
        giving = [node for node in have if _holds(stores[node], name)]
        missing = [node for node in model["holders"] if node in stores and node not in have]
        if missing:
            item = {
                "name": name,
                "source": model["source"],
                "files": _own(wanted),
                "bytes": sum(file["bytes"] or 0 for file in wanted),
                "checksums": {file["name"]: file["sha256"] for file in wanted if file["sha256"]},
                **_way(model, missing, giving),
            }
            work.append(item)
    return work


def _way(model: Mapping[str, Any], missing: list[str], have: Sequence[str]) -> dict[str, Any]:
    """Return the part of an item that says who does what."""
    lists: dict[str, list[str]] = {key: [] for key in ("land", "link", "seeds", "receivers", "see")}
    found: dict[str, Any] = {"fetch": "", **lists, "transport": NONE}
    if not model["fetcher"]:
        return {**found, "link": missing}
    transport = HTTP if model["transport"] == NONE else model["transport"]
    reached = [node for node in have if node in model["addresses"]]
    if transport == SHARED and have:
        return {**found, "see": missing}
    if reached and transport != RSYNC and all(node in model["addresses"] for node in missing):
        return {**found, "seeds": reached, "receivers": missing, "transport": transport}
    found["fetch"] = model["fetcher"]
    if found["fetch"] == CONTROLLER:
        found["land"] = missing if transport == RSYNC else missing[:1]
        rest = [node for node in missing if node not in found["land"]]
        seeds = list(found["land"])
    else:
        rest = [node for node in missing if node != found["fetch"]]
        seeds = [found["fetch"]]
    if transport == SHARED:
        found["see"] = rest
    elif rest:
        found.update(seeds=seeds, receivers=rest, transport=transport)
    return found


def _expected(model: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the files that a model has: those of its manifest, where somebody knows it, else as the plan has them."""
    return list(manifest["files"]) if manifest else list(model["files"])


def _has(store: Mapping[str, Any], name: str, wanted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a store has a model with these files; a size or checksum that nobody knows is not compared."""
    for model in store["models"]:
        if model["name"] != name or not model["complete"]:
            continue
        there = {file["name"]: file for file in model["files"]}
        return all(
            file["name"] in there and all(file[key] in (None, there[file["name"]][key]) for key in ("bytes", "sha256"))
            for file in wanted
        )
    return False


def _holds(store: Mapping[str, Any], name: str) -> bool:
    """Whether a store has all bytes of a model itself, and does not only link to them."""
    return any(model["name"] == name and not model.get("external") for model in store["models"])


def source_options(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what module ``model`` is told of where an item of :func:`model_work` comes from, as its options."""
    source, checksums = item["source"], dict(item["checksums"])
    if source.get("repo"):
        kept = {key: source[key] for key in ("quant", "folder", "file", "beside") if source.get(key)}
        # The commit, so that all nodes and runs mean the same bytes. The hub says the checksums itself.
        return {"repo": source["repo"], "revision": source.get("commit") or source.get("revision"), **kept}
    if source.get("urls"):
        return {"urls": list(source["urls"]), "sha256": checksums}
    directory = posixpath.dirname(source["path"])
    own = source.get("pieces") or item["files"]
    paths = [*(posixpath.join(directory, name) for name in own), *source.get("beside", ())]
    # Pieces are joined, so their places cannot be the only ones.
    return {"paths": paths, "external": not source.get("pieces"), **({"sha256": checksums} if checksums else {})}


def work_words(item: Mapping[str, Any], node: str) -> list[str]:
    """Return what a run does on ``node`` for an item of :func:`model_work`, a sentence each."""
    size = size_text(item["bytes"]) if item["bytes"] else "a size that nobody knows"
    source = item["source"]
    where = source.get("path") or source.get("repo") or (source.get("urls") or [""])[0]
    words = []
    if item["fetch"] == node:
        words.append("fetch %s (%s) from %s" % (item["name"], size, where))
    if node in item["land"]:
        # Its own files it has; whatever else it fetches first.
        first = "" if source.get("path") else ", which fetches it from %s" % where
        words.append("get %s (%s) from the control node%s" % (item["name"], size, first))
    if node in item["link"]:
        words.append("link %s to %s" % (item["name"], where))
    if node in item["receivers"]:
        words.append("get %s (%s) from %s by %s" % (item["name"], size, ", ".join(item["seeds"]), item["transport"]))
    if node in item["see"]:
        words.append("find %s in the store that all nodes share" % item["name"])
    return words


def known_manifests(plan: Mapping[str, Any], store: Mapping[str, Any], root: str) -> dict[str, dict[str, Any]]:
    """Return what a store has of the plan's models under their names, unchanged since it was verified, by name.

    ``store``: what model_info says of the control node's, at ``root``, for files that lie there; of these alone, nobody
    knows the checksums beforehand. What was converted lies in the store itself.
    """
    found = {}
    for name in local_models(plan):
        model = plan["models"][name]
        paths = source_options({**model, "checksums": {}, "files": _own(model["files"])})["paths"]
        inside = [posixpath.join(root, "names", name, posixpath.basename(path)) for path in paths]
        for known in store.get("models", ()):
            mine = paths == inside or known["source"].get("paths") == paths
            if mine and _has({"models": [known]}, name, model["files"]):
                found[name] = portable(known)
    return found


def local_models(plan: Mapping[str, Any]) -> list[str]:
    """Return the names of models whose files lie on the control node."""
    return [
        name for name, model in plan["models"].items() if model["fetcher"] == CONTROLLER and "path" in model["source"]
    ]


def fetch_items(plan: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return what :func:`source_options` needs of models of a plan."""
    return [
        {
            "name": name,
            "source": plan["models"][name]["source"],
            "files": _own(plan["models"][name]["files"]),
            "checksums": {file["name"]: file["sha256"] for file in plan["models"][name]["files"] if file["sha256"]},
        }
        for name in names
    ]


def portable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest as another node takes it: with all files in its own store."""
    return {
        "name": manifest["name"],
        "files": [{key: file[key] for key in ("name", "sha256", "bytes", "role")} for file in manifest["files"]],
        "source": dict(manifest["source"]),
        "created": manifest["created"],
        "external": {},
    }


def manifests(
    work: Sequence[Mapping[str, Any]], fetched: Mapping[str, Mapping[str, Any]], stores: Stores
) -> dict[str, dict[str, Any]]:
    """Return the manifests of all items that somebody has by now, by name.

    ``fetched``: by name, those that this run fetched. ``stores``: as for :func:`model_work`.
    """
    found = {}
    for item in work:
        name = item["name"]
        if name in fetched:
            found[name] = portable(fetched[name])
            continue
        for node in item["seeds"]:
            for model in stores.get(node, {"models": ()})["models"]:
                if model["name"] == name:
                    found.setdefault(name, portable(model))
    return found


def shared_files(
    plan: Mapping[str, Any], work: Sequence[Mapping[str, Any]], node: str, known: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the files that a node gives to others over HTTP, each once.

    ``known``: manifests by name. A file has its ``sha256`` and ``path``, the node's own ``address`` on the network that
    it shares with its ``peers``, and theirs: for another model, that may be another network. Sorted by address.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for item in work:
        if node not in item["seeds"] or item["transport"] != HTTP:
            continue
        addresses = plan["models"][item["name"]]["addresses"]
        for file in known[item["name"]]["files"]:
            path = posixpath.join(plan["store"]["path"], "blobs", file["sha256"])
            offer = {"sha256": file["sha256"], "path": path, "address": addresses[node], "peers": []}
            offer = found.setdefault((addresses[node], file["sha256"]), offer)
            offer["peers"] = sorted({*offer["peers"], *(addresses[peer] for peer in item["receivers"])})
    return [found[key] for key in sorted(found)]


def share_sources(
    plan: Mapping[str, Any],
    work: Sequence[Mapping[str, Any]],
    node: str,
    known: Mapping[str, Mapping[str, Any]],
    urls: Mapping[str, Sequence[str]],
) -> dict[str, list[dict[str, str]]]:
    """Return, by model, where a node that lacks it can take its files: for each holder, addresses by sha256.

    ``urls``: by holder, the addresses of its :func:`shared_files`, in their order.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for item in work:
        if node in item["receivers"]:
            addresses = plan["models"][item["name"]]["addresses"]
            offers = [
                {
                    file["sha256"]: url
                    for file, url in zip(shared_files(plan, work, seed, known), urls.get(seed, ()))
                    if file["address"] == addresses[seed]
                }
                for seed in item["seeds"]
            ]
            found[item["name"]] = [offer for offer in offers if offer]
    return found


def swarms(
    plan: Mapping[str, Any], work: Sequence[Mapping[str, Any]], node: str, run: int, base: int
) -> list[dict[str, Any]]:
    """Return the swarms that a node takes part in, for module swarm.

    ``run``: a number that other runs do not have, by which units have names and ports of their own. ``base``: the first
    of :data:`SWARM_PORTS` ports, as far as there are so many. A swarm has ``model``, ``name``, ``seed`` (whether the
    node has the model), ``address``, ``port`` and ``peers``.
    """
    found = []
    ports = max(1, min(SWARM_PORTS, 65536 - base))
    for number, item in enumerate(item for item in work if item["transport"] == SWARM and item["receivers"]):
        members = [*item["seeds"], *item["receivers"]]
        if node not in members:
            continue
        addresses = plan["models"][item["name"]]["addresses"]
        port = base + (run + number) % ports
        found.append(
            {
                "model": item["name"],
                "name": "%d-%d" % (run, number),
                "seed": node in item["seeds"],
                "address": addresses[node],
                "port": port,
                "peers": ["%s:%d" % (addresses[member], port) for member in members if member != node],
            }
        )
    return found


def _own(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of a model's own files, without what lies beside them."""
    return [file["name"] for file in files if file["role"] == "model"]
