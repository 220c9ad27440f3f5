# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say what running services really take, of host memory and of every GPU. Sizes in bytes.

Host memory is the kernel's count (Linux, Documentation/filesystems/proc.rst): ``rss_bytes`` is what is resident, of
which ``anon_bytes`` is the process's own (weights that were not mapped, KV cache, compute buffers), ``file_bytes``
mapped files (a model that is mapped, shared with the page cache) and ``shmem_bytes`` shared memory. Memory of a GPU
is NVML's count for the pids of the service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

_STATUS = {"VmRSS": "rss_bytes", "RssAnon": "anon_bytes", "RssFile": "file_bytes", "RssShmem": "shmem_bytes"}
# Properties of `systemctl show`.
PROPERTIES = ("MainPID", "ControlGroup")
_CGROUP_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")


def units(text: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read ``systemctl show -p MainPID,ControlGroup -- NAMES``, a block a name in their order: properties by name."""
    blocks = text.strip().split("\n\n")
    return {name: dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE)) for name, block in zip(names, blocks)}


def unit_pids(unit: Mapping[str, str], tree: Tree) -> list[int]:
    """Return the processes of a unit: all of its control group, the main one first; empty when it does not run."""
    main = int(unit.get("MainPID") or 0)
    group = unit.get("ControlGroup") or ""
    pids: set[int] = set()
    for root in _CGROUP_ROOTS if group else ():
        text = tree.read("%s%s/cgroup.procs" % (root, group))
        # A process of another pid namespace reads as 0.
        pids.update(int(word) for word in text.split() if word != "0")
    pids.discard(main)
    return ([main] if main else []) + sorted(pids)


def process(status: str, smaps_rollup: str) -> dict[str, int | None]:
    """Read /proc/PID/status and /proc/PID/smaps_rollup. The latter, which may be empty, says ``pss_bytes``.

    ``pss_bytes`` counts a page that several processes map in parts: the sum over processes is what they take together.
    """
    sizes = _sizes(status)
    rollup = _sizes(smaps_rollup)
    found: dict[str, int | None] = {name: sizes.get(key, 0) for key, name in _STATUS.items()}
    found["pss_bytes"] = rollup.get("Pss")
    found["swap_bytes"] = rollup.get("Swap", sizes.get("VmSwap"))
    return found


def _sizes(text: str) -> dict[str, int]:
    return {key: int(value) * 1024 for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def read_process(pid: int, tree: Tree) -> dict[str, int | None] | None:
    """Return :func:`process` of a pid; None when it is gone."""
    status = tree.read("/proc/%d/status" % pid)
    return process(status, tree.read("/proc/%d/smaps_rollup" % pid)) if status else None


def memory(pids: Sequence[int], gpus: Sequence[Mapping[str, Any]], tree: Tree) -> dict[str, Any] | None:
    """Return what processes take together; None when none of them is there.

    ``gpus``: NVML's, as :func:`_gpu.describe` returns them. The result has :func:`process`'s sums, ``pid`` (the
    first), ``pids``, and ``gpus``: bytes by UUID of the GPU (or MIG instance) for those that a process is seen on,
    None where the driver names the process but not its bytes.
    """
    parts = {pid: found for pid in pids for found in [read_process(pid, tree)] if found is not None}
    if not parts:
        return None
    result: dict[str, Any] = {"pid": next(iter(parts)), "pids": list(parts)}
    for key in next(iter(parts.values())):
        result[key] = _total(part[key] for part in parts.values())
    result["gpus"] = {
        part["uuid"]: _total(used)
        for part in _parts(gpus)
        for used in [[item["used"] for item in part["processes"] if item["pid"] in parts]]
        if used
    }
    return result


def _total(values: Iterable[int | None]) -> int | None:
    """Return a sum that is unknown when a part of it is."""
    known = list(values)
    return None if None in known else sum(value or 0 for value in known)


def _parts(gpus: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return GPUs, or the MIG instances in place of theirs."""
    return [part for gpu in gpus for part in (gpu["mig"]["instances"] if gpu["mig"]["mode"] else [gpu])]


def devices(gpus: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is used of every GPU (or MIG instance), whoever uses it, and whose pids are seen there.

    ``reserved`` is the driver's own part, in no process's count; None where it is part of ``used``.
    """
    return [
        {
            "uuid": part["uuid"],
            "name": part["name"],
            "total_bytes": part["memory"]["total"],
            "free_bytes": part["memory"]["free"],
            "used_bytes": part["memory"]["used"],
            "reserved_bytes": part["memory"]["reserved"],
            "pids": [item["pid"] for item in part["processes"]],
        }
        for part in _parts(gpus)
    ]
