# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From the plan to what stands in unit files and beside them. Pure functions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._proof import served

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


def served_use(instance: Mapping[str, Any]) -> str:
    """Return what an instance serves: ``completion``, ``embedding`` or ``reranking``."""
    return served(instance["args"], instance["environment"])


def watched_files(instance: Mapping[str, Any]) -> list[str]:
    """List the files on the head that change when what llama-server reads at its start does.

    A model's manifest is written when its files are replaced; their own times may be old.
    """
    keys = [instance["api_key_file"]] if instance["api_key_file"] else []
    return [*keys, instance["model"]["manifest"]]


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
