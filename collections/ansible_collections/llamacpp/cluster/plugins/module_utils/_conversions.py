# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Declared conversions: what is to be made of safetensors before there is a plan, and instances that use the result.

The planner reads a model's header, so a model that is yet to be made has to be made first. It is made on the control
node, and is a file of its store from then on.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Source
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import is_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse_model import parse_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem

_COMMIT = re.compile(r"[0-9a-f]{40}")
_STRANGE = re.compile(r"[^A-Za-z0-9._+-]+")


def conversions(instances: Any) -> list[dict[str, Any]]:
    """List the conversions that instances declare, each once.

    A model with a problem is left for preflight to report, and so are different conversions of one name.

    An item has ``name`` (of the result in the store), ``file``, ``path`` or ``repo`` and ``revision``, ``source`` (that
    path, or the name in the store of what is fetched of the repository), ``outtype``, ``quant``, and the ``variable``
    that declares it.
    """
    found: dict[str, dict[str, Any]] = {}
    clashing = set()
    for index, instance in enumerate(instances if isinstance(instances, list) else []):
        variable = "llamacpp_instances[%d]" % index
        source = _source(variable, instance)
        if source and source.convert:
            item = {
                "name": source.name,
                "file": source.file,
                "path": source.path,
                "repo": source.repo,
                "revision": source.revision,
                "source": source.path or _stored(str(source.repo), source.revision),
                "outtype": source.convert.outtype,
                "quant": source.convert.quant,
                "variable": variable + ".model",
            }
            other = found.setdefault(source.name, item)
            if dict(other, variable="") != dict(item, variable=""):
                clashing.add(source.name)
    return [item for name, item in found.items() if name not in clashing]


def _stored(repo: str, revision: str | None) -> str:
    """Return the name in the store of the safetensors of a repository, another one for each revision."""
    if not revision:
        return repo
    name = "%s/%s" % (repo, revision)
    if "/" not in revision and is_name(name):
        return name
    digest = hashlib.sha256(revision.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return "%s/%s" % (repo, ("%s-%s" % (_STRANGE.sub("-", revision)[:64], digest)).lstrip("-.+"))


def _source(variable: str, instance: Any) -> Source | None:
    """Return the source of an instance that is converted; None for any other, and for one with a problem."""
    model = instance.get("model") if isinstance(instance, Mapping) else None
    if not isinstance(model, Mapping) or "convert" not in model:
        return None
    problems: list[Problem] = []
    source = parse_model(problems, variable, model).source
    return None if problems else source


def converted(wanted: Iterable[Mapping[str, Any]], store: Mapping[str, Any]) -> list[str]:
    """Return the names of conversions whose result is in a store; ``store``: what model_info says of it.

    Another version of llama.cpp does not make it anew; other settings, another place of the source or another revision
    do. To know whether a branch or tag has moved, the hub would have to be asked.
    """
    found = []
    for item in wanted:
        for model in store.get("models", ()):
            made = model["source"].get("convert") or {}
            same = [made.get(key) for key in ("outtype", "quant")] == [item["outtype"], item["quant"]]
            if model["name"] == item["name"] and model["complete"] and same and _of(item, model["source"]):
                found.append(item["name"])
    return found


def _of(item: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    """Whether a result was made of what a conversion means; ``source``: that of the result's manifest."""
    origin = source["convert"].get("from")
    if origin == item["source"]:
        return True
    # Earlier versions noted the repository alone, from which only a commit can be told.
    commit = (source.get("of") or {}).get("commit")
    return bool(origin == item["repo"] and item["revision"] == commit and _COMMIT.fullmatch(commit or ""))


def with_results(instances: Any, names: Iterable[str], store: str) -> Any:
    """Return instances that use the results of conversions ``names``, which lie in ``store`` on the control node."""
    done = set(names)
    if not done or not isinstance(instances, list):
        return instances
    results = []
    for index, instance in enumerate(instances):
        source = _source("llamacpp_instances[%d]" % index, instance)
        if source is None or source.name not in done:
            results.append(instance)
            continue
        path = posixpath.join(store, "names", source.name, source.file)
        results.append(dict(instance, model={"path": path, "name": source.name, "from": "controller"}))
    return results
