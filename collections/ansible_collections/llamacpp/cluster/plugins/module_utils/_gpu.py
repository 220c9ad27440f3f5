# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say what the NVIDIA GPUs of a node are, from NVML's answers. Sizes in bytes.

Numbers behind NVML's names are from nvml.h (CUDA 13): nvmlGpuTopologyLevel_t, nvmlIntNvLinkDeviceType_t,
nvmlComputeMode_t, nvmlGpuP2PCapsIndex_t, NVML_GPU_FABRIC_STATE_*.
"""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_nvml import (
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    INVALID_ARGUMENT,
    NO_PERMISSION,
    RESET_REQUIRED,
    VERSION_MISMATCH,
    Handle,
    Nvml,
    NvmlError,
    maybe,
)

MIB = 1 << 20
# NVML_NVLINK_MAX_LINKS: 18 up to Hopper, 36 since the header knows Rubin. A GPU without a link of that number says so.
MAX_LINKS = 36
# The names of `nvidia-smi topo -m`, closest first.
TOPOLOGY = {0: "INTERNAL", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
FABRIC_STATES = {1: "not_started", 2: "in_progress", 3: "completed"}
# nvmlNvlinkVersion_enum; seen: 6 on an H200.
NVLINK_VERSIONS = {1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0"}
REMOTES = {0: "gpu", 1: "npu", 2: "nvswitch"}
P2P_NVLINK = 2
P2P_OK = 0

# What an operator does about it. A GPU in such a state is none to plan with.
_ADVICE = {
    NO_PERMISSION: "may not be used by this user or container: look at the permissions of /dev/nvidia*",
    8: "has no external power: plug its power cables in",
    11: "cannot get interrupts: look for other errors in the kernel's log, and reboot",
    14: "has a corrupt infoROM: replace it",
    GPU_IS_LOST: "has fallen off the bus or cannot be reached: look for Xid messages in the kernel's log, and reboot; "
    "replace it if that does not help",
    RESET_REQUIRED: "needs a reset: stop what uses it and run nvidia-smi --gpu-reset, or reboot",
}


def error_text(error: NvmlError) -> str:
    """Return what an error of NVML as a whole means, and what to do about it."""
    if error.code == VERSION_MISMATCH:
        return (
            "the loaded NVIDIA kernel module and the NVML library are of different driver versions, as after an update "
            "of the driver: reboot, or stop what uses the GPUs and reload the modules nvidia_uvm, nvidia_drm, "
            "nvidia_modeset and nvidia"
        )
    if error.code == DRIVER_NOT_LOADED:
        return (
            "the NVIDIA kernel module is not loaded: run modprobe nvidia, and look into the kernel's log "
            "if that fails (no module built for this kernel, secure boot, nouveau in its place)"
        )
    return "NVML does not work (%s)" % error


def normal_pci_id(bus_id: str) -> str:
    """Return NVML's ``00000000:3B:00.0`` as the kernel and ``lspci -D`` write it: ``0000:3b:00.0``."""
    domain, rest = bus_id.lower().split(":", 1)
    return "%04x:%s" % (int(domain, 16), rest)


def cuda_version(number: int | None) -> str | None:
    """Return ``12.4`` for 12040."""
    return None if number is None else "%d.%d" % (number // 1000, number % 1000 // 10)


def describe(nvml: Nvml, numa_node: Callable[[str], int | None]) -> dict[str, Any]:
    """Return everything that NVML says of this machine's GPUs.

    ``numa_node(pci_id)``: what the kernel says of a PCI device. The result: ``driver_version``, ``cuda_version``
    (newest that the driver can run), ``gpus``, ``problems`` (GPUs that do not work: ``index``, ``error``, ``message``),
    ``nvlink_matrix`` and ``topology`` (a row and a column a GPU of ``gpus``).

    Raises :class:`NvmlError` when NVML as a whole does not work.
    """
    gpus: list[dict[str, Any]] = []
    handles: list[Handle] = []
    problems: list[dict[str, Any]] = []
    for index in range(nvml.ask("nvmlDeviceGetCount")):
        try:
            handle = nvml.ask("nvmlDeviceGetHandleByIndex", index)
            gpus.append(_gpu(nvml, handle, index, numa_node))
            handles.append(handle)
        except NvmlError as error:
            text = _ADVICE.get(error.code, "does not answer (%s)" % error)
            problems.append({"index": index, "error": error.code, "message": "GPU %d %s" % (index, text)})
    matrix = _nvlink_matrix(nvml, gpus, handles)
    for gpu, row in zip(gpus, matrix):
        gpu["nvlink"]["peers"] = [peer["index"] for peer, links in zip(gpus, row) if links]
    return {
        "driver_version": maybe(nvml, "nvmlSystemGetDriverVersion"),
        "cuda_version": cuda_version(maybe(nvml, "nvmlSystemGetCudaDriverVersion_v2")),
        "gpus": gpus,
        "problems": problems,
        "nvlink_matrix": matrix,
        "topology": _topology(nvml, handles),
    }


def _gpu(nvml: Nvml, handle: Handle, index: int, numa_node: Callable[[str], int | None]) -> dict[str, Any]:
    pci_id = normal_pci_id(nvml.ask("nvmlDeviceGetPciInfo", handle)["busId"])
    capability = maybe(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    power = maybe(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
    ecc = maybe(nvml, "nvmlDeviceGetEccMode", handle)
    return {
        "index": index,
        "uuid": nvml.ask("nvmlDeviceGetUUID", handle),
        "pci_id": pci_id,
        "name": nvml.ask("nvmlDeviceGetName", handle),
        "compute_capability": "%d.%d" % tuple(capability) if capability else None,
        "memory": _memory(nvml, handle),
        "processes": _processes(nvml, handle),
        "compute_mode": COMPUTE_MODES.get(maybe(nvml, "nvmlDeviceGetComputeMode", handle)),
        "persistence": _on(maybe(nvml, "nvmlDeviceGetPersistenceMode", handle)),
        "ecc": _on(ecc[0]) if ecc else None,
        "power_limit_watts": power // 1000 if power is not None else None,
        "mig": _mig(nvml, handle),
        "nvlink": _nvlink(nvml, handle),
        "fabric": _fabric(nvml, handle),
        "pcie": {
            "generation": maybe(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", handle),
            "width": maybe(nvml, "nvmlDeviceGetCurrPcieLinkWidth", handle),
            "max_generation": maybe(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
            "max_width": maybe(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        },
        "numa_node": numa_node(pci_id),
    }


def _on(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _memory(nvml: Nvml, handle: Handle) -> dict[str, int | None]:
    """Return ``total``, ``free``, ``used`` and ``reserved`` bytes; the last, the driver's own, is part of the total."""
    found = maybe(nvml, "nvmlDeviceGetMemoryInfo_v2", handle)
    if found is None:
        found = dict(nvml.ask("nvmlDeviceGetMemoryInfo", handle), reserved=None)
    return {key: found[key] for key in ("total", "free", "used", "reserved")}


def _processes(nvml: Nvml, handle: Handle) -> list[dict[str, Any]]:
    """Return who uses a GPU, by pid. ``used`` is None where the driver does not say."""
    found: dict[int, dict[str, Any]] = {}
    for kind, function in (
        ("compute", "nvmlDeviceGetComputeRunningProcesses"),
        ("graphics", "nvmlDeviceGetGraphicsRunningProcesses"),
    ):
        answer = maybe(nvml, function + "_v3", handle)
        if answer is None:
            answer = maybe(nvml, function + "_v2", handle) or []  # Drivers before 510.
        for item in answer:
            entry = {"pid": item["pid"], "used": item["usedGpuMemory"], "type": kind}
            found.setdefault(item["pid"], entry)
    return [found[pid] for pid in sorted(found)]


def _mig(nvml: Nvml, handle: Handle) -> dict[str, Any]:
    """Return ``mode`` (None: the GPU cannot), ``pending`` (mode after a reset) and the ``instances``."""
    mode = maybe(nvml, "nvmlDeviceGetMigMode", handle)
    if mode is None:
        return {"mode": None, "pending": None, "instances": []}
    instances = []
    if mode[0]:
        for number in range(maybe(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            instance = maybe(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if instance is not None:
                instances.append(_mig_instance(nvml, instance))
    return {"mode": bool(mode[0]), "pending": bool(mode[1]), "instances": instances}


def _mig_instance(nvml: Nvml, handle: Handle) -> dict[str, Any]:
    attributes = maybe(nvml, "nvmlDeviceGetAttributes_v2", handle)
    return {
        "uuid": nvml.ask("nvmlDeviceGetUUID", handle),
        "name": nvml.ask("nvmlDeviceGetName", handle),
        "gpu_instance": nvml.ask("nvmlDeviceGetGpuInstanceId", handle),
        "compute_instance": nvml.ask("nvmlDeviceGetComputeInstanceId", handle),
        "memory": _memory(nvml, handle),
        "multiprocessors": attributes["multiprocessorCount"] if attributes else None,
        "processes": _processes(nvml, handle),
    }


def _nvlink(nvml: Nvml, handle: Handle) -> dict[str, Any]:
    """Return the NVLinks: ``links``, and their ``version`` (V(2.0) on V100, V(4.0) on H100)."""
    links: list[dict[str, Any]] = []
    version = None
    for link in range(MAX_LINKS):
        try:
            active = bool(nvml.ask("nvmlDeviceGetNvLinkState", handle, link))
        except NvmlError as error:
            if error.code in (GPU_IS_LOST, RESET_REQUIRED):
                raise
            if link == 0 or error.code == INVALID_ARGUMENT:
                break  # No NVLink at all, or one past the last link.
            continue
        if active and version is None:
            version = NVLINK_VERSIONS.get(maybe(nvml, "nvmlDeviceGetNvLinkVersion", handle, link))
        links.append({"link": link, "active": active, **_remote(nvml, handle, link, active)})
    return {"version": version, "links": links}


def _remote(nvml: Nvml, handle: Handle, link: int, active: bool) -> dict[str, str | None]:
    """Return what is at the other end of a link. A virtual machine does not see the PCI id of what it does not have."""
    if not active:
        return {"remote_type": None, "remote_pci_id": None}
    kind = REMOTES.get(maybe(nvml, "nvmlDeviceGetNvLinkRemoteDeviceType", handle, link), "unknown")
    pci = maybe(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link) if kind != "nvswitch" else None
    bus_id = pci["busId"].lower() if pci else ""
    known = bus_id and not bus_id.startswith("ffffffff")
    return {"remote_type": kind, "remote_pci_id": normal_pci_id(bus_id) if known else None}


def _fabric(nvml: Nvml, handle: Handle) -> dict[str, Any] | None:
    """Return how far NVSwitch's fabric manager is with a GPU; None where there is no such fabric.

    CUDA does not start on a GPU of an NVSwitch machine before ``state`` is ``completed`` with ``status`` 0.
    """
    found = maybe(nvml, "nvmlDeviceGetGpuFabricInfoV", handle)
    if found is None or found["state"] not in FABRIC_STATES:
        return None
    return {"state": FABRIC_STATES[found["state"]], "status": found["status"], "clique": found["cliqueId"]}


def _nvlink_matrix(nvml: Nvml, gpus: list[dict[str, Any]], handles: list[Handle]) -> list[list[int]]:
    """Return the number of NVLinks that join each pair of GPUs, directly or through NVSwitch.

    Through a switch every GPU reaches every other with all of its links at once, as ``nvidia-smi topo -m`` counts.
    """
    matrix = [[0] * len(gpus) for _row in gpus]
    for row, gpu in enumerate(gpus):
        for column, peer in enumerate(gpus):
            if row == column:
                continue
            active = [link for link in gpu["nvlink"]["links"] if link["active"]]
            direct = [link for link in active if link["remote_pci_id"] == peer["pci_id"]]
            if direct:
                matrix[row][column] = len(direct)
                continue
            # The rest ends in a switch, or in something that a virtual machine does not show.
            shared = min(_hidden(gpu), _hidden(peer))
            if shared and _joined(nvml, handles[row], handles[column]):
                matrix[row][column] = shared
    return matrix


def _hidden(gpu: dict[str, Any]) -> int:
    """Return the number of active links that end in a switch or somewhere unknown."""
    return sum(link["active"] and link["remote_type"] in ("nvswitch", "unknown") for link in gpu["nvlink"]["links"])


def _joined(nvml: Nvml, one: Handle, other: Handle) -> bool:
    """Whether the driver says that two GPUs reach each other's memory over NVLink."""
    return bool(_of_pair(nvml, "nvmlDeviceGetP2PStatus", one, other, P2P_NVLINK) == P2P_OK)


def _of_pair(nvml: Nvml, function: str, *arguments: Handle | int) -> Any:
    """Return what NVML says of two GPUs; None when it fails, as that is about neither of them alone."""
    try:
        return nvml.ask(function, *arguments)
    except NvmlError:
        return None


def _topology(nvml: Nvml, handles: list[Handle]) -> list[list[str | None]]:
    """Return the way between each pair of GPUs over PCIe and CPUs, in the words of ``nvidia-smi topo -m``."""
    rows: list[list[str | None]] = [[None] * len(handles) for _row in handles]
    for row, one in enumerate(handles):
        for column, other in enumerate(handles):
            if row == column:
                rows[row][column] = "X"
            elif column > row:
                level = _of_pair(nvml, "nvmlDeviceGetTopologyCommonAncestor", one, other)
                rows[row][column] = rows[column][row] = TOPOLOGY.get(level)
    return rows
