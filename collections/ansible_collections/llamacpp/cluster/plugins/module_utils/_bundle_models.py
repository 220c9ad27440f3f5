# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models of a bundle: which files go into it, and instances that read them from there instead of from a network.

A model is known by its **origin**, what the operator wrote: ``{"path": ...}``, ``{"url": ...}`` or
``{"repo": ..., "revision": ...}`` (revision empty where none is written), and by the name of its quantisation where the
origin has several. Its files lie in ``models/<key>/``, the key a hash of both.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._units import model_files


def origin_key(origin: Mapping[str, str], quant: str) -> str:
    """Return the name of a model's directory: 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps([dict(origin), quant], sort_keys=True).encode()).hexdigest()[:12]


def planned_models(plan: Mapping[str, Any], instances: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List the files of all models that a run would bring to nodes, each once.

    ``instances``: as declared. Files that lie on a node already are left out. An item has ``name`` (of the file),
    ``path`` (on the control node) or ``url``, ``sha256`` (or None), ``folder`` (the key), and ``details`` for the
    manifest: ``origin``, ``quant``, ``first`` (whether it is the file that llama.cpp is given), ``needed_by``.
    """
    declared = {instance["name"]: instance["model"] for instance in instances}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for planned in plan["instances"]:
        model = planned["model"]
        wanted = declared.get(planned["declared"] or planned["name"]) or {}
        origin, quant = _origin(model["source"], wanted, str(model.get("quant") or ""))
        if model["source"].get("path") and model["source"]["from"] == "node":
            continue
        for number, file in enumerate(model_files(planned)):
            name = posixpath.basename(file["dest"])
            item = found.setdefault(
                (origin_key(origin, quant), name),
                {
                    "name": name,
                    "path": file["path"],
                    "url": file["url"],
                    "sha256": file["sha256"],
                    "folder": origin_key(origin, quant),
                    "details": {"origin": origin, "quant": quant, "first": number == 0, "needed_by": []},
                },
            )
            if planned["name"] not in item["details"]["needed_by"]:
                item["details"]["needed_by"].append(planned["name"])
    return list(found.values())


def redirected(instances: Any, members: Iterable[Mapping[str, Any]], directory: str) -> Any:
    """Return instances whose models are read from an unpacked bundle where it has them.

    ``members``: of the manifest; ``directory``: where they lie. What is no list of instances is returned as it is, for
    the planner to refuse.
    """
    bundled = {
        (json.dumps(member["details"]["origin"], sort_keys=True), member["details"]["quant"]): {
            "path": posixpath.join(directory, member["path"]),
            "sha256": member["sha256"],
            "from": "controller",
        }
        for member in members
        if member["kind"] == "model" and member["details"]["first"]
    }
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
        for source in _files(model):
            if source.get("url"):
                found.append((name, str(source["url"])))
            elif source.get("path") and source.get("from", "controller") != "node" and source["path"] not in known:
                found.append((name, str(source["path"])))
    return found


def _files(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    quants = model.get("quants")
    sources = list(quants.values()) if isinstance(quants, Mapping) else [model]
    inherited = {"from": model["from"]} if "from" in model else {}
    return [{**inherited, **source} for source in sources if isinstance(source, Mapping)]


def _origin(source: Mapping[str, Any], declared: Mapping[str, Any], quant: str) -> tuple[dict[str, str], str]:
    """Return origin and quantisation of a planned model; a file's origin says all, so its quantisation is empty."""
    if declared.get("repo"):
        return _repo(declared), quant
    key = "path" if source.get("path") else "url"
    return {key: str(source[key])}, ""


def _repo(model: Mapping[str, Any]) -> dict[str, str]:
    return {"repo": str(model["repo"]), "revision": str(model.get("revision") or "")}


def _redirected(model: Mapping[str, Any], bundled: Mapping[tuple[str, str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a declared model with the files of the bundle in place of those that it has."""
    if model.get("repo"):
        origin = json.dumps(_repo(model), sort_keys=True)
        quants = {quant: dict(file) for (known, quant), file in bundled.items() if known == origin}
        if not quants:
            return model
        kept = {key: model[key] for key in ("quant",) if model.get(key) is not None}
        return {**kept, "quants": quants}
    if isinstance(model.get("quants"), Mapping):
        return {
            **{key: value for key, value in model.items() if key != "quants"},
            "quants": {
                name: _single({**({"from": model["from"]} if "from" in model else {}), **source}, bundled)
                if isinstance(source, Mapping)
                else source
                for name, source in model["quants"].items()
            },
        }
    return _single(model, bundled)


def _single(source: Mapping[str, Any], bundled: Mapping[tuple[str, str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return one file's declaration, redirected where the bundle has the file; its name in the store stays."""
    for key in ("path", "url"):
        file = bundled.get((json.dumps({key: str(source.get(key))}, sort_keys=True), ""))
        if source.get(key) and file and not (key == "path" and source.get("from") == "node"):
            return {**({"name": source["name"]} if source.get("name") else {}), **file}
    return source
