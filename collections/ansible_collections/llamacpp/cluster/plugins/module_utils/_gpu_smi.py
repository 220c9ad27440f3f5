# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read what ``nvidia-smi`` says, for nodes where NVML cannot be asked: less than NVML, but what a plan needs."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu import MIB, normal_pci_id

# The name stands last because it may hold a comma, which nvidia-smi does not quote.
COLUMNS = (
    "index",
    "uuid",
    "pci.bus_id",
    "memory.total",
    "memory.free",
    "memory.used",
    "memory.reserved",
    "driver_version",
    "compute_cap",
    "mig.mode.current",
    "name",
)
# Columns that drivers before 510 (MIG: 450) do not know.
NEWER = ("memory.reserved", "compute_cap", "mig.mode.current")
OLD_COLUMNS = tuple(column for column in COLUMNS if column not in NEWER)
FORMAT = "--format=csv,noheader,nounits"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def gpus(text: str, columns: tuple[str, ...]) -> tuple[list[dict[str, Any]], str | None]:
    """Read ``nvidia-smi --query-gpu=COLUMNS``: GPUs in the shape of :func:`_gpu.describe`, and the driver's version.

    Raises :class:`ValueError` for a GPU without figures, as one in an error state has.
    """
    found = []
    driver = None
    for line in text.splitlines():
        values = dict(zip(columns, (word.strip() for word in line.split(",", len(columns) - 1))))
        if len(values) < len(columns):
            continue
        driver = values["driver_version"]
        mig = values.get("mig.mode.current")
        found.append(
            {
                "index": int(values["index"]),
                "uuid": values["uuid"],
                "pci_id": normal_pci_id(values["pci.bus_id"]),
                "name": values["name"],
                "compute_capability": values.get("compute_cap"),
                "memory": {
                    part: int(values["memory." + part]) * MIB if "memory." + part in values else None
                    for part in ("total", "free", "used", "reserved")
                },
                "processes": [],
                "mig": {"mode": mig == "Enabled" if mig in ("Enabled", "Disabled") else None, "instances": []},
                "nvlink": {"peers": []},
            }
        )
    return found, driver


def processes(text: str) -> dict[str, list[dict[str, Any]]]:
    """Read ``--query-compute-apps=gpu_uuid,pid,used_memory``: processes by UUID of the GPU."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 3 and words[1].isdigit():
            used = int(words[2]) * MIB if words[2].isdigit() else None
            found.setdefault(words[0], []).append({"pid": int(words[1]), "used": used, "type": "compute"})
    return found


def matrices(text: str) -> tuple[list[list[int]], list[list[str | None]]]:
    """Read ``nvidia-smi topo -m``: numbers of NVLinks, and ways over PCIe, between each pair of GPUs.

    Where NVLinks join two GPUs it says nothing of their way over PCIe.
    """
    words = [_ANSI.sub("", line).split() for line in text.splitlines()]
    count = len({line[0] for line in words if line and re.fullmatch(r"GPU\d+", line[0]) and "X" in line})
    cells = [line[1 : count + 1] for line in words if line and re.fullmatch(r"GPU\d+", line[0]) and "X" in line]
    links = [[int(cell[2:]) if re.fullmatch(r"NV\d+", cell) else 0 for cell in row] for row in cells]
    ways = [[None if re.fullmatch(r"NV\d+", cell) else cell for cell in row] for row in cells]
    return links, ways
