# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From the plan to what stands in unit files and beside them. Pure functions."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# systemd.syntax(7): these need quotes; % and $ mean something to systemd and are doubled.
_PLAIN = re.compile(r"^[A-Za-z0-9_@+=:,./\[\]-]+$")
_WILDCARDS = ("0.0.0.0", "::", "")


def unit_arguments(arguments: Sequence[Any]) -> str:
    """Return command-line arguments as they stand in ``ExecStart=``, an option a line.

    Each line continues the one before it, so that a diff of two units shows which option changed.
    """
    lines: list[str] = []
    for argument in arguments:
        word = quote(str(argument))
        if str(argument).startswith("--") or not lines:
            lines.append(word)
        else:
            lines[-1] += " " + word
    return "".join(" \\\n  %s" % line for line in lines)


def quote(word: str) -> str:
    """Quote one word for a systemd unit file."""
    if _PLAIN.match(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"%s"' % escaped.replace("%", "%%").replace("$", "$$")


def digest(value: Any) -> str:
    """Return 12 hexadecimal digits that change when the value does."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def local_endpoint(instance: Mapping[str, Any]) -> str:
    """Return the base address of an instance as its own head reaches it."""
    host = str(instance["host"])
    if host in _WILDCARDS:
        host = "127.0.0.1"
    return "http://%s:%d" % ("[%s]" % host if ":" in host else host, instance["port"])


def watched_files(instance: Mapping[str, Any]) -> list[str]:
    """List the files on the head that change when what llama-server reads at its start does.

    A model's record is written when the model is replaced; the model's own time may be old.
    """
    keys = [instance["api_key_file"]] if instance["api_key_file"] else []
    return keys + ["%s.json" % path for path in instance["model"]["files"]]


def retired_units(plan: Mapping[str, Any], node: str, found: Mapping[str, Mapping[str, Any]], role: str) -> list[str]:
    """List the units of ``role`` (head, worker) that are on a node and no longer in the plan.

    ``found``: node_info's ``units``, which holds units of this collection only.
    """
    planned = plan["nodes"].get(node, {}).get("units", [])
    return sorted(unit for unit, facts in found.items() if facts["role"] == role and unit not in planned)


def api_keys(instances: Iterable[Mapping[str, Any]], name: str) -> str:
    """Return the content of the key file of an instance: a key a line.

    llama-server switches authentication off when the file is empty, so an instance
    without keys has no file at all.
    """
    for instance in instances:
        # Replicas have a number behind the name that was declared.
        own = instance["name"] == name or (
            bool(instance.get("replicas")) and re.fullmatch(re.escape(instance["name"]) + "-[0-9]+", name)
        )
        if own:
            return "".join("%s\n" % key for key in instance.get("api_keys", []))
    return ""


def heads_to_key(
    heads: Iterable[Mapping[str, Any]],
    instances: Sequence[Mapping[str, Any]],
    managed: Mapping[str, Mapping[str, str] | None],
    user: str,
) -> list[Mapping[str, Any]]:
    """Select the heads whose key file is missing or has other content, mode or owner than it should.

    ``managed``: node_info's ``managed`` of the node.
    """
    return [
        head
        for head in heads
        if managed.get(head["api_key_file"])
        != {
            "sha256": hashlib.sha256(api_keys(instances, head["name"]).encode()).hexdigest(),
            "mode": "0600",
            "owner": user,
        }
    ]


def model_files(instance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the files of an instance's model: ``path`` or ``url`` to take, ``on``, ``dest``, ``sha256``.

    The shards of a split set lie beside each other under the names that llama.cpp expects.
    A declared checksum is that of the only file; a hub gives one for each.
    """
    model = instance["model"]
    source = model["source"]
    targets = list(model["files"])
    files: list[dict[str, Any]] = []
    for target in targets:
        name = os.path.basename(target)
        single = len(targets) == 1
        path, url = source.get("path"), source.get("url")
        files.append(
            {
                "path": path if single or not path else os.path.join(os.path.dirname(path), name),
                "url": url if single or not url else url.rsplit("/", 1)[0] + "/" + name,
                "from": source["from"],
                "dest": target,
                "sha256": model.get("checksums", {}).get(name) or (model.get("sha256") if single else None),
            }
        )
    return files
