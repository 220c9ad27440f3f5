# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models of a bundle: which files go into it, and instances that read them from there instead of from a network.

A model is known by its **origin**, the part of what the operator wrote that says which files are meant, and by the name
of its quantisation where the origin has several. Its files lie in ``models/<key>/``, the key a hash of both.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

# What of a declared model says which files are meant; from where they are read, and their name, does not.
ORIGIN = ("path", "url", "urls", "repo", "revision", "folder", "file", "beside", "convert")

Origin = dict[str, Any]


def origin_key(origin: Mapping[str, Any], quant: str) -> str:
    """Return the name of a model's directory: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps([dict(origin), quant], sort_keys=True).encode()).hexdigest()[:12]


def planned_models(plan: Mapping[str, Any], instances: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List the models that a run would bring to nodes, each once; those that lie on nodes already are left out.

    ``instances``: as declared. An item has ``name`` and ``source`` of the plan's model, its ``files`` and
    ``checksums`` (sha256 by file), the ``folder`` (key) and, for the manifest, ``details``: ``origin``, ``quant``,
    ``model`` (its name in the store) and ``needed_by``.
    """
    declared = {instance["name"]: instance["model"] for instance in instances}
    found: dict[str, dict[str, Any]] = {}
    for planned in plan["instances"]:
        name = planned["model"]["name"]
        model = plan["models"][name]
        if not model["fetcher"]:
            continue
        if name not in found:
            wanted = declared.get(planned["declared"] or planned["name"]) or {}
            origin, quant = _planned_origin(wanted, model["source"], str(planned["model"].get("quant") or ""))
            found[name] = {
                "name": name,
                "source": model["source"],
                "files": [file["name"] for file in model["files"] if file["role"] == "model"],
                "checksums": {file["name"]: file["sha256"] for file in model["files"] if file["sha256"]},
                "folder": origin_key(origin, quant),
                "details": {"origin": origin, "quant": quant, "model": name, "needed_by": []},
            }
        found[name]["details"]["needed_by"].append(planned["name"])
    return list(found.values())


def packed_files(item: Mapping[str, Any], manifest: Mapping[str, Any], store: str) -> list[dict[str, Any]]:
    """Return what of a model that lies in a store goes into a bundle, for the option C(files) of bundle.

    ``item``: of :func:`planned_models`; ``manifest``: what the store has under its name. Details of each file say
    what it is for (``role``), and whether it is the one that llama.cpp is given (``first``).
    """
    models = [file["name"] for file in manifest["files"] if file["role"] == "model"]
    return [
        {
            "kind": "model",
            "file": posixpath.join(store, "names", manifest["name"], file["name"]),
            "folder": item["folder"],
            "name": file["name"],
            "sha256": file["sha256"],
            "details": {**item["details"], "role": file["role"], "first": file["name"] == models[0]},
        }
        for file in manifest["files"]
    ]


def redirected(instances: Any, members: Iterable[Mapping[str, Any]], directory: str) -> Any:
    """Return instances whose models are read from an unpacked bundle where it has them.

    ``members``: of the manifest; ``directory``: where they lie. What is no list of instances is returned as it is, for
    the planner to refuse.
    """
    sets: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for member in members:
        if member["kind"] == "model":
            key = (json.dumps(member["details"]["origin"], sort_keys=True), member["details"]["quant"])
            sets.setdefault(key, []).append(member)
    bundled = {key: _files(files, directory) for key, files in sets.items()}
    if not bundled or not isinstance(instances, list):
        return instances
    return [
        dict(instance, model=_redirected(instance["model"], bundled))
        if isinstance(instance, Mapping) and isinstance(instance.get("model"), Mapping)
        else instance
        for instance in instances
    ]


def unreachable_models(instances: Any, there: Iterable[str] = ()) -> list[tuple[str, str]]:
    """List what :func:`redirected` instances would still fetch, as pairs of instance and place.

    ``there``: paths on the control node that exist.
    """
    found = []
    known = set(there)
    for instance in instances if isinstance(instances, list) else []:
        model = instance.get("model") if isinstance(instance, Mapping) else None
        if not isinstance(model, Mapping):
            continue
        name = str(instance.get("name"))
        if model.get("repo"):
            found.append((name, str(model["repo"])))
        for source in _sources(model):
            addresses = source.get("urls") or [source.get("url")]
            if isinstance(addresses, list) and addresses[0]:
                found.append((name, str(addresses[0])))
            elif source.get("path") and not _on_nodes(source) and source["path"] not in known:
                found.append((name, str(source["path"])))
    return found


def _on_nodes(source: Mapping[str, Any]) -> bool:
    """Whether a path is one of the nodes."""
    return bool(source.get("shared")) or source.get("from", "controller") == "node"


def _sources(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    quants = model.get("quants")
    sources = list(quants.values()) if isinstance(quants, Mapping) else [model]
    inherited = {"from": model["from"]} if "from" in model else {}
    return [{**inherited, **source} for source in sources if isinstance(source, Mapping)]


def _origin(model: Mapping[str, Any]) -> Origin:
    """Return the origin of a declared model or quantisation."""
    return {key: model[key] for key in ORIGIN if model.get(key) is not None}


def _planned_origin(declared: Mapping[str, Any], source: Mapping[str, Any], quant: str) -> tuple[Origin, str]:
    """Return origin and quantisation of a planned model; where the origin says all, its quantisation is empty."""
    if isinstance(declared.get("quants"), Mapping):
        for item in declared["quants"].values():
            places = [item.get("path"), item.get("url"), *(item.get("urls") or ())]
            if (source.get("path") or source["urls"][0]) in places:
                return _origin(item), ""
    origin = _origin(declared)
    several = "repo" in origin and not {"folder", "file", "convert"} & set(origin)
    return origin, quant if several else ""


def _files(members: list[Mapping[str, Any]], directory: str) -> dict[str, Any]:
    """Return the declaration of a model whose files are members of an unpacked bundle."""
    paths = {member["name"]: posixpath.join(directory, member["path"]) for member in members}
    first = next(member for member in members if member["details"]["first"])
    beside = [paths[member["name"]] for member in members if member["details"]["role"] != "model"]
    return {
        "path": paths[first["name"]],
        "sha256": {member["name"]: member["sha256"] for member in members},
        "name": first["details"]["model"],
        "from": "controller",
        **({"beside": beside} if beside else {}),
    }


def _redirected(model: Mapping[str, Any], bundled: Mapping[tuple[str, str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a declared model with the files of the bundle in place of those that it has."""
    if isinstance(model.get("quants"), Mapping):
        inherited = {"from": model["from"]} if "from" in model else {}
        return {
            **{key: value for key, value in model.items() if key != "quants"},
            "quants": {
                name: _single({**inherited, **source}, bundled) if isinstance(source, Mapping) else source
                for name, source in model["quants"].items()
            },
        }
    origin = json.dumps(_origin(model), sort_keys=True)
    quants = {quant: dict(files) for (known, quant), files in bundled.items() if known == origin and quant}
    if quants:
        kept = {key: model[key] for key in ("quant",) if model.get(key) is not None}
        return {**kept, "quants": quants}
    return _single(model, bundled)


def _single(source: Mapping[str, Any], bundled: Mapping[tuple[str, str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the declaration of one set of files, redirected where the bundle has it; a declared name stays."""
    files = bundled.get((json.dumps(_origin(source), sort_keys=True), ""))
    if not files or (source.get("path") and _on_nodes(source)):
        return source
    return {**files, **({"name": source["name"]} if source.get("name") else {})}
