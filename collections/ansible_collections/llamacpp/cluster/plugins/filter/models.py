# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which model is read where."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import role_of
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import piece


def models_from(
    instances: Iterable[Mapping[str, Any]],
    place: str,
    kind: str = "file",
    nodes: Sequence[str] = (),
    fetcher: str = "auto",
) -> list[dict[str, Any]]:
    """Select what is read of models on ``place``: controller, or node.

    ``kind``: file for files, one item a quantisation; hub for repositories. ``nodes``: all nodes, of which a single one
    is the head where the declaration names none. ``fetcher``: who fetches what does not say, and so looks at it.
    Only ``name``, ``model``, ``quant`` and ``head``, the node that looks, are passed on, so that no API key ends up in
    a task's result. What is converted has no header to read. A projector among the paths beside a model is an item of
    its own, behind that of the model, with ``projector``.
    """
    found = []
    for instance in instances:
        for quant, model in _sources(instance["model"], kind):
            head = _head(instance, nodes)
            if model.get("shared"):
                # Any node sees it.
                head = head or (nodes[0] if nodes else None)
            elif "path" not in model and fetcher not in ("auto", "controller"):
                head = fetcher
            # Before the plan nobody knows the head of an instance that goes anywhere.
            if (_reader(model, fetcher) if head else "controller") == place:
                found.append({"name": instance["name"], "quant": quant, "model": _readable(model), "head": head})
                found += [dict(found[-1], model={"path": path}, projector=True) for path in _projectors(model)]
    return found


def _projectors(model: Mapping[str, Any]) -> list[str]:
    """Return the path of the projector beside a file; of several, the plan takes none."""
    if "path" not in model:
        return []
    found = [path for path in model.get("beside") or [] if role_of(posixpath.basename(str(path))) == "mmproj"]
    return found if len(found) == 1 else []


def _reader(model: Mapping[str, Any], fetcher: str) -> str:
    """Return who reads a model: controller or node."""
    if model.get("shared"):
        return "node"
    default = "controller" if "path" in model or fetcher == "controller" else "node"
    return str(model.get("from", default))


def _readable(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model with one checksum, that of the file that is named, instead of several."""
    if piece(posixpath.basename(str(model.get("path", "")))):
        # It is that of the file that the pieces become, which nobody has yet.
        return {key: value for key, value in model.items() if key != "sha256"}
    checksums = model.get("sha256")
    if not isinstance(checksums, Mapping):
        return dict(model)
    own = checksums.get(posixpath.basename(str(model.get("path", ""))))
    return {**{key: value for key, value in model.items() if key != "sha256"}, **({"sha256": own} if own else {})}


def _sources(model: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "convert" in model:
        return
    if kind == "hub":
        if "repo" in model:
            yield "", dict(model, quants=_names(model.get("quant")))
    elif "quants" in model:
        wanted = _names(model.get("quant"))
        for name, source in model["quants"].items():
            if not wanted or name in wanted:
                yield name, {**({"from": model["from"]} if "from" in model else {}), **source}
    elif "repo" not in model:
        yield "", model


def _names(quant: Any) -> list[str]:
    """Return the names of wanted quantisations; none for any."""
    if quant in (None, "auto"):
        return []
    return list(quant) if isinstance(quant, (list, tuple)) else [quant]


def _head(instance: Mapping[str, Any], known: Sequence[str]) -> str | None:
    """Return the head that the declaration names, if it names one."""
    if len(known) == 1:
        return known[0]
    if instance.get("replicas"):
        return None
    head = instance.get("head")
    if head and head != "auto":
        return str(head)
    nodes = instance.get("nodes")
    return str(nodes[0]) if nodes and nodes != "auto" else None


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return name -> function."""
        return {"models_from": models_from}
