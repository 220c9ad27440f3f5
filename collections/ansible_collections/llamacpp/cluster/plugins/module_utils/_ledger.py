# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The ledger: what the plan predicts, what llama.cpp itself says, and what is really taken, side by side.

Pure. One entry for every device of an instance and one for the head's own memory. Prediction and
reality are compared as wholes; the oracle knows no more than buffers, so it is compared with these.
A GPU that takes less than predicted has drifted too: the plan counts on it. Host memory may be
less, as pages that nobody has touched yet are not there, and that of a head may be more by the
prompts that llama-server keeps, which are in no plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MIB = 1 << 20
# llama-server keeps prompts for later in host memory: its default for --cache-ram.
PROMPT_CACHE = 8192 * MIB
BUFFERS = ("model_bytes", "context_bytes", "compute_bytes")
HEADINGS = ("instance", "node", "device", "predicted", "oracle", "reality", "drift", "")


@dataclass(frozen=True)
class Entry:
    """One line, in bytes, None where nobody knows.

    ``oracle`` compares with ``predicted_buffers``, ``reality`` with ``predicted``.
    ``drift``: what is wrong, in words; empty when nothing is.
    """

    instance: str
    node: str
    device: str
    predicted: int | None
    predicted_buffers: int | None
    oracle: int | None
    reality: int | None
    drift: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return asdict(self)


def make_ledger(
    plan: Mapping[str, Any],
    nodes: Mapping[str, Mapping[str, Any]],
    reality: Mapping[str, Mapping[str, Any]],
    oracle: Mapping[str, Mapping[str, Any]],
    margin: int,
) -> list[Entry]:
    """Compare.

    ``plan``: schema 2. ``nodes``: what node_info said, by name (of it ``devices``). ``reality``:
    process_memory_info's ``memory`` by node, whose keys are units. ``oracle``: memory_oracle's
    ``devices`` (bytes of ``model``, ``context``, ``compute`` by the device's name, ``host`` for the
    head's memory) by instance. ``margin``: bytes that a figure may be off.
    """
    entries = []
    for instance in plan["instances"]:
        for device, unit, local in _processes(instance):
            said = oracle.get(instance["name"], {}).get("host" if device.get("host") else device["device"])
            taken = reality.get(device["node"], {}).get(unit)
            projector = instance.get("projector") or {}
            # Of it the plan has a bound, for the largest picture: that much may be missing.
            bound = (projector.get("compute_bytes") or 0) if projector.get("device") == device["device"] else 0
            entries.append(_entry(instance["name"], device, said, _taken(taken, local, device, nodes), margin, bound))
    return entries


def _processes(instance: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str, str]]:
    """Return every device with the unit that takes it and the device's name on its own node.

    The head's memory comes last, as a device of its own where it is none of the plan's.
    """
    workers = {worker["node"]: worker for worker in instance["workers"]}
    seen: dict[str, int] = {}
    found: list[tuple[Mapping[str, Any], str, str]] = []
    for device in instance["devices"]:
        if device.get("endpoint"):
            worker = workers[device["node"]]
            number = seen.get(device["node"], 0)
            seen[device["node"]] = number + 1
            found.append((device, worker["unit"], worker["devices"][number]))
        else:
            found.append((device, instance["unit"], "CPU" if device.get("host") else device["device"]))
    if instance.get("host_memory") and not any(device.get("host") for device in instance["devices"]):
        memory = dict(instance["host_memory"], node=instance["head"], device="host", kind="cpu", host=True)
        found.append((memory, instance["unit"], "CPU"))
    return found


def _taken(
    process: Mapping[str, Any] | None, local: str, device: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]
) -> int | None:
    """Return the bytes that a process takes of a device; None when nobody can say."""
    if not process:
        return None
    if local == "CPU":
        return _of_host(process, device.get("total_bytes"))
    known = nodes.get(device["node"], {}).get("devices", [])
    uuids = {"%s%d" % (item["kind"].upper(), item["index"]): item.get("uuid") for item in known}
    size = process.get("gpus", {}).get(uuids.get(local))
    return None if size is None else int(size)


def _of_host(process: Mapping[str, Any], predicted: int | None) -> int:
    """Return the host memory that a process holds.

    Pages of mapped files (the model) are the kernel's to take back: they count as far as the plan has room
    for them. A CPU build that repacks weights has touched them in the file, too.
    """
    held = int(process["rss_bytes"]) - int(process["file_bytes"])
    return max(held, min(int(process["rss_bytes"]), predicted or 0))


def _entry(
    instance: str,
    device: Mapping[str, Any],
    said: Mapping[str, int] | None,
    reality: int | None,
    margin: int,
    bound: int,
) -> Entry:
    predicted, parts = device.get("total_bytes"), [device.get(part) for part in BUFFERS]
    buffers = None if None in parts else sum(part for part in parts if part is not None)
    oracle = sum(said[part] for part in ("model", "context", "compute")) if said else None
    wrong = []
    if oracle is not None and buffers is not None and oracle > buffers + margin:
        wrong.append("llama.cpp asks for %d MiB more than planned" % _mib(oracle - buffers))
    if reality is not None and predicted is not None:
        if reality > predicted + margin + (PROMPT_CACHE if device.get("host") else 0):
            wrong.append("it takes %d MiB more than planned" % _mib(reality - predicted))
        elif reality < predicted - bound - margin and not device.get("host") and device.get("kind") != "cpu":
            wrong.append("it takes %d MiB less than planned" % _mib(predicted - reality))
    return Entry(instance, device["node"], device["device"], predicted, buffers, oracle, reality, "; ".join(wrong))


def ledger_table(entries: Sequence[Entry]) -> str:
    """Return the ledger as text, sizes in MiB."""
    rows = [list(HEADINGS)]
    for entry in entries:
        difference = None
        if entry.reality is not None and entry.predicted is not None:
            difference = entry.reality - entry.predicted
        said = _text(entry.oracle)
        if entry.oracle is not None:
            said += " (%s)" % _text(entry.predicted_buffers)
        rows.append(
            [
                entry.instance,
                entry.node,
                entry.device,
                _text(entry.predicted),
                said,
                _text(entry.reality),
                "?" if difference is None else "%+d" % round(difference / MIB),
                entry.drift,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 3 <= place <= 6 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, "(MiB; oracle: buffers as llama.cpp says them, in brackets as predicted)"])


def drifted(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence for each device that has drifted."""
    return [
        "%s on %s of %s: %s (predicted %s, oracle %s for buffers of %s, reality %s MiB)"
        % (
            entry.instance,
            entry.device,
            entry.node,
            entry.drift,
            _text(entry.predicted),
            _text(entry.oracle),
            _text(entry.predicted_buffers),
            _text(entry.reality),
        )
        for entry in entries
        if entry.drift
    ]


def _mib(size: int) -> int:
    return -(-size // MIB)


def _text(size: int | None) -> str:
    return "?" if size is None else str(round(size / MIB))
