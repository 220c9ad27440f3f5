# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the workers of a head's instances need in their caches: hashed once from the files in the head's store.

<store>/tensors/<sha256>.json remembers the hashes of a file: they follow from its bytes, which its name stands for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import describe, tensor_list
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import read_headers
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import Hasher, Range
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring
from ansible_collections.llamacpp.cluster.plugins.module_utils._worker_tensors import Tensor, worker_tensors

SCHEMA = 1


@dataclass
class Listing:
    """What was found.

    ``workers``: node -> entries (``hash``, ``bytes``, ``sha256``, ``offset``). ``files``: sha256 -> path on this node.
    ``hashed``: bytes that were read for it. ``warnings``: instances that cannot be seeded, and why.
    """

    workers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    hashed: int = 0
    warnings: list[str] = field(default_factory=list)


def list_entries(root: str, instances: Sequence[Mapping[str, Any]], hasher: Hasher, write: bool = True) -> Listing:
    """List the entries of planned instances whose head is this node. ``root``: of the store.

    Raises :class:`RpcCacheError` for a file that cannot be read, :class:`OSError`.
    """
    store = Store(root)
    found = Listing()
    for instance in instances:
        try:
            needed = _needed(instance)
            sha256 = _sums(store, instance, {tensor.file for tensors in needed.values() for tensor in tensors})
        except (ValueError, StoreError) as error:
            found.warnings.append("instance %s: its workers are not seeded: %s" % (instance["name"], error))
            continue
        directory = os.path.dirname(instance["model"]["path"])
        for name in dict.fromkeys(tensor.file for tensors in needed.values() for tensor in tensors):
            ranges = {
                Range(tensor.offset, tensor.bytes): None
                for tensors in needed.values()
                for tensor in tensors
                if tensor.file == name
            }
            path = os.path.join(directory, name)
            hashes = _hashes(store, sha256[name], path, list(ranges), hasher, found, write)
            blob = store.blob(sha256[name])
            # Under the name of the blob, as two models may have files of the same name.
            found.files[sha256[name]] = blob if os.path.exists(blob) else os.path.realpath(path)
            for node, tensors in needed.items():
                _add(found, node, [tensor for tensor in tensors if tensor.file == name], sha256[name], hashes)
    return found


def _needed(instance: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """Return what the workers are asked for. Raises :class:`ValueError` for a model that cannot be read."""
    try:
        model = read_headers(instance["model"]["path"])
        facts = describe(model.headers, model.names)
        return worker_tensors(facts, tensor_list(model.headers, model.names), instance)
    except (GgufError, Refused, OSError) as error:
        raise ValueError("%s: %s" % (instance["model"]["path"], error)) from error


def _sums(store: Store, instance: Mapping[str, Any], files: Set[str]) -> dict[str, str]:
    """Return file name -> sha256. Raises :class:`ValueError` for a model that is not in the store with these files."""
    names = os.path.join(store.root, "names") + os.sep
    path = str(instance["model"]["path"])
    manifest = store.manifest(os.path.dirname(path)[len(names) :]) if path.startswith(names) else None
    if manifest is None:
        raise ValueError("%s is no model of the store %s" % (path, store.root))
    found = {file.name: file.sha256 for file in manifest.files}
    absent = sorted(files - set(found))
    if absent:
        raise ValueError("the manifest of %s does not name %s: bring the model again" % (manifest.name, absent[0]))
    return found


def _hashes(
    store: Store, sha256: str, path: str, ranges: Sequence[Range], hasher: Hasher, found: Listing, write: bool
) -> dict[Range, str]:
    """Return the hashes of ranges of a file, from memory as far as that goes."""
    memory = os.path.join(store.root, "tensors", sha256 + ".json")
    known = _remembered(memory)
    missing = [item for item in ranges if item not in known]
    if missing:
        known.update(zip(missing, hasher.hash(path, missing)))
        found.hashed += sum(item.bytes for item in missing)
        if write:
            data = {"%d:%d" % item: value for item, value in sorted(known.items())}
            bring(memory, json.dumps({"schema": SCHEMA, "hashes": data}, indent=1) + "\n")
    return known


def _remembered(path: str) -> dict[Range, str]:
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
        if data["schema"] != SCHEMA:
            return {}
        return {Range(*map(int, key.split(":"))): str(value) for key, value in data["hashes"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        # Not there, or not written by us: it is hashed again.
        return {}


def _add(found: Listing, node: str, tensors: Sequence[Tensor], sha256: str, hashes: Mapping[Range, str]) -> None:
    entries = found.workers.setdefault(node, [])
    seen = {entry["hash"] for entry in entries}
    for tensor in tensors:
        name = hashes[Range(tensor.offset, tensor.bytes)]
        if name not in seen:
            seen.add(name)
            entries.append({"hash": name, "bytes": tensor.bytes, "sha256": sha256, "offset": tensor.offset})
