# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find GPUs that are not NVIDIA's: AMD's through the kernel and rocm-smi, any through vulkaninfo. Sizes in bytes."""

from __future__ import annotations

import json
import re
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

_AMD = 0x1002
_VULKAN_TYPES = {
    "PHYSICAL_DEVICE_TYPE_DISCRETE_GPU": "discrete",
    "PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU": "integrated",
    "PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU": "virtual",
    "PHYSICAL_DEVICE_TYPE_CPU": "cpu",
}
_VULKAN_PCI = ("pciDomain", "pciBus", "pciDevice", "pciFunction")


def amd(tree: Tree, names: dict[str, str]) -> list[dict[str, Any]]:
    """Return AMD's GPUs that the driver amdgpu runs: ``index``, ``pci_id``, ``name``, ``uuid``, ``architecture``
    (``gfx942``), ``memory`` (total, free, used), ``numa_node``.

    Memory is what the driver says (Linux, Documentation/gpu/amdgpu/driver-misc.rst: mem_info_vram_*); the
    architecture is the KFD's (drivers/gpu/drm/amd/amdkfd/kfd_topology.c: gfx_target_version, location_id), without
    which ROCm does not run. ``names``: of :func:`rocm_names`, by PCI id.
    """
    architectures = _architectures(tree)
    found = []
    for card in tree.names("/sys/class/drm"):
        device = "/sys/class/drm/%s/device" % card
        total = tree.number(device + "/mem_info_vram_total")
        if not re.fullmatch(r"card\d+", card) or tree.number(device + "/vendor") != _AMD or total is None:
            continue
        pci_id = tree.pci_id(device) or card
        used = tree.number(device + "/mem_info_vram_used") or 0
        found.append(
            {
                "pci_id": pci_id,
                "name": names.get(pci_id) or tree.read(device + "/product_name") or "AMD GPU",
                "uuid": tree.read(device + "/unique_id") or None,
                "architecture": architectures.get(pci_id),
                "memory": {"total": total, "free": total - used, "used": used},
                "numa_node": tree.numa_node(device),
            }
        )
    found.sort(key=lambda item: str(item["pci_id"]))
    return [dict(item, index=index) for index, item in enumerate(found)]


def devices(gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of :func:`amd`'s GPUs that ROCm runs on, as :func:`_gpu_find.devices` says NVIDIA's.

    ``compute_capability`` is the architecture (``gfx942``). Not tried on real hardware.
    """
    usable = [gpu for gpu in gpus if gpu["architecture"]]
    return [
        {
            "kind": "rocm",
            "name": gpu["name"],
            "index": index,
            "memory_bytes": gpu["memory"]["total"],
            "free_bytes": gpu["memory"]["free"],
            "compute_capability": gpu["architecture"],
            "uuid": gpu["uuid"],
            "pci_id": gpu["pci_id"],
            "numa_node": gpu["numa_node"],
            "nvlink": [],
            "nvlinks": [],
            "mig": None,
        }
        for index, gpu in enumerate(usable)
    ]


def _architectures(tree: Tree) -> dict[str, str]:
    """Return the architecture of each of the KFD's GPUs by PCI id."""
    base = "/sys/class/kfd/kfd/topology/nodes"
    found = {}
    for node in tree.names(base):
        text = tree.read("%s/%s/properties" % (base, node))
        values = {key: int(value) for key, value in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}
        version = values.get("gfx_target_version", 0)
        if version:  # 0 is a CPU.
            where = values.get("location_id", 0)
            pci_id = "%04x:%02x:%02x.%x" % (values.get("domain", 0), where >> 8, where >> 3 & 0x1F, where & 7)
            # Major, minor and stepping of two decimal digits each, the latter hexadecimal in the name: 90010 is gfx90a.
            found[pci_id] = "gfx%d%x%x" % (version // 10000, version // 100 % 100, version % 100)
    return found


def rocm_names(text: str) -> dict[str, str]:
    """Read ``rocm-smi --showproductname --showbus --json``: names by PCI id; empty when it is something else.

    Its keys changed their capitals between releases of ROCm.
    """
    try:
        cards = json.loads(text)
    except ValueError:
        return {}
    found = {}
    for card in cards.values() if isinstance(cards, dict) else ():
        values = {str(key).lower(): str(value) for key, value in card.items()} if isinstance(card, dict) else {}
        name = values.get("card series") or values.get("card model")
        if name and values.get("pci bus"):
            found[values["pci bus"].lower()] = name
    return found


def vulkan(text: str) -> list[dict[str, Any]]:
    """Read ``vulkaninfo`` (1.2 and newer): ``index``, ``name``, ``type`` (V(discrete), V(integrated), V(virtual),
    V(cpu)), ``uuid``, ``driver``, ``api_version``, ``pci_id``, ``memory``.

    Memory is what llama.cpp counts (ggml-vulkan.cpp, ggml_backend_vk_get_device_memory, b11434): heaps that are local
    to the device; ``free`` is their budget less what is used, or None where the driver does not know.
    """
    devices = text.partition("Device Properties and Extensions:")[2]
    parts = re.split(r"^GPU(\d+):\s*$", devices, flags=re.MULTILINE)
    return [_vulkan_device(int(index), block) for index, block in zip(parts[1::2], parts[2::2])]


def _vulkan_device(index: int, block: str) -> dict[str, Any]:
    values: dict[str, str] = {}
    for key, value in re.findall(r"^\s*(\w+)\s+= (.*?)\s*$", block, re.MULTILINE):
        values.setdefault(key, value)
    pci = [int(values[key], 0) for key in _VULKAN_PCI if key in values]
    return {
        "index": index,
        "name": values.get("deviceName", ""),
        "type": _VULKAN_TYPES.get(values.get("deviceType", ""), "other"),
        "uuid": values.get("deviceUUID"),
        "driver": " ".join(values[key] for key in ("driverName", "driverInfo") if key in values),
        "api_version": values.get("apiVersion", "").split(" ")[0] or None,
        "pci_id": "%04x:%02x:%02x.%x" % tuple(pci) if len(pci) == len(_VULKAN_PCI) else None,
        "memory": _heaps(block),
    }


def _heaps(block: str) -> dict[str, int | None]:
    total = free = 0
    known = True
    text = block.partition("memoryHeaps:")[2].partition("memoryTypes:")[0]
    for heap in re.split(r"memoryHeaps\[\d+\]:", text)[1:]:
        if "MEMORY_HEAP_DEVICE_LOCAL_BIT" not in heap:
            continue
        sizes = {key: int(value) for key, value in re.findall(r"(size|budget|usage)\s+= (\d+)", heap)}
        total += sizes.get("size", 0)
        known = known and "budget" in sizes
        free += sizes.get("budget", 0) - sizes.get("usage", 0)
    return {"total": total, "free": free if known and total else None}
