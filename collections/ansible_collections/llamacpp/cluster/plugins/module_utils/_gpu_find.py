# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find the NVIDIA GPUs of a node: through NVML, else through nvidia-smi; and say why when neither works."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu, _gpu_nvml, _gpu_smi
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

_NVIDIA = 0x10DE
_DISPLAY_CLASS = 0x03  # Base class of the PCI code and ID assignment specification: VGA and 3D controllers.


class Output(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


# Runs a command; None when there is no such program.
Run = Callable[..., Optional[Output]]


class GpuError(Exception):
    """NVIDIA's driver does not work, though there are GPUs; the message says what to do."""


def runner(find_program: Callable[[str], str | None], execute: Callable[[list[str]], tuple[int, str, str]]) -> Run:
    """Make a :data:`Run` of AnsibleModule's ``get_bin_path`` and ``run_command``."""

    def run(*command: str) -> Output | None:
        path = find_program(command[0])
        return Output(*execute([path, *command[1:]])) if path else None

    return run


def cards(tree: Tree) -> list[str]:
    """Return the PCI ids of NVIDIA's GPUs, whatever driver they have."""
    found = []
    for pci_id in tree.names("/sys/bus/pci/devices"):
        base = "/sys/bus/pci/devices/" + pci_id
        if tree.number(base + "/vendor") == _NVIDIA and (tree.number(base + "/class") or 0) >> 16 == _DISPLAY_CLASS:
            found.append(pci_id)
    return found


def find(run: Run, tree: Tree, pynvml_path: str | None) -> dict[str, Any]:
    """Return the result of :func:`_gpu.describe` with ``source`` (V(nvml), V(nvidia-smi) or V(none)) and ``notes``.

    No GPU is no error. Raises :class:`GpuError`.
    """
    pynvml = _gpu_nvml.load_pynvml(pynvml_path)
    if pynvml is not None:
        try:
            with _gpu_nvml.Live(pynvml) as nvml:
                found = _gpu.describe(nvml, lambda pci_id: tree.numa_node("/sys/bus/pci/devices/" + pci_id))
                return dict(found, source="nvml", notes=[])
        except _gpu_nvml.NvmlError as error:
            if error.code == _gpu_nvml.DRIVER_NOT_LOADED and not cards(tree):
                return nothing([])
            raise GpuError(_explain(error, tree)) from error
    return _ask_smi(run, tree)


def nothing(notes: list[str]) -> dict[str, Any]:
    """Return the answer of a node without (working) NVIDIA GPUs."""
    return {
        "source": "none",
        "notes": notes,
        "driver_version": None,
        "cuda_version": None,
        "gpus": [],
        "problems": [],
        "nvlink_matrix": [],
        "topology": [],
    }


def _explain(error: _gpu_nvml.NvmlError, tree: Tree) -> str:
    if error.code == _gpu_nvml.DRIVER_NOT_LOADED and tree.exists("/proc/driver/nvidia/version"):
        return (
            "the NVIDIA kernel module is loaded, but NVML cannot use it: the device files /dev/nvidia* are missing or "
            "may not be used; run nvidia-modprobe, or give them to the container that this node is"
        )
    loaded = tree.read("/proc/driver/nvidia/version").partition("\n")[0]
    return _gpu.error_text(error) + (" (%s)" % loaded if loaded else "")


def _ask_smi(run: Run, tree: Tree) -> dict[str, Any]:
    columns: tuple[str, ...] = _gpu_smi.COLUMNS
    output = run("nvidia-smi", "--query-gpu=" + ",".join(columns), _gpu_smi.FORMAT)
    if output is not None and output.code:
        error = _gpu_nvml.NvmlError("nvidia-smi", output.code)  # It exits with NVML's code.
        if "mismatch" in output.out + output.err:
            error = _gpu_nvml.NvmlError("nvidia-smi", _gpu_nvml.VERSION_MISMATCH)
        if error.code == _gpu_nvml.VERSION_MISMATCH or (error.code == _gpu_nvml.DRIVER_NOT_LOADED and cards(tree)):
            raise GpuError(_explain(error, tree))
        columns = _gpu_smi.OLD_COLUMNS
        output = run("nvidia-smi", "--query-gpu=" + ",".join(columns), _gpu_smi.FORMAT)
    if output is None or output.code:
        return nothing(_why_none(tree))
    try:
        gpus, driver = _gpu_smi.gpus(output.out, columns)
    except ValueError as error:
        raise GpuError("nvidia-smi gives no figures for a GPU (%s): %s" % (error, output.out.strip())) from error
    return _complete_smi(run, gpus, driver)


def _complete_smi(run: Run, gpus: list[dict[str, Any]], driver: str | None) -> dict[str, Any]:
    """Return the answer with processes and links, which nvidia-smi says in other calls."""
    apps = run("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_memory", _gpu_smi.FORMAT)
    users = _gpu_smi.processes(apps.out) if apps is not None and not apps.code else {}
    topology = run("nvidia-smi", "topo", "-m") if len(gpus) > 1 else None
    links, ways = _gpu_smi.matrices(topology.out) if topology is not None and not topology.code else ([], [])
    if len(links) != len(gpus):
        links, ways = [[0] * len(gpus) for _row in gpus], [[None] * len(gpus) for _row in gpus]
    for gpu, row in zip(gpus, links):
        gpu["processes"] = users.get(gpu["uuid"], [])
        gpu["nvlink"]["peers"] = [peer["index"] for peer, count in zip(gpus, row) if count]
    return dict(
        nothing(["asked nvidia-smi, which says less than NVML: pynvml (package nvidia-ml-py) is not on this node"]),
        source="nvidia-smi",
        driver_version=driver,
        gpus=gpus,
        nvlink_matrix=links,
        topology=ways,
    )


def _why_none(tree: Tree) -> list[str]:
    there = cards(tree)
    if tree.exists("/proc/driver/nvidia/version"):
        return ["the NVIDIA driver is loaded, but neither NVML nor nvidia-smi works: GPUs are left out"]
    if there:
        return ["NVIDIA GPUs are on the PCI bus (%s), but their driver is not installed" % ", ".join(there)]
    return []


def devices(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what of :func:`find`'s answer a plan places models on: GPUs, and MIG instances in place of their GPU.

    ``kind`` (always V(cuda)), ``name``, ``index``, ``memory_bytes`` (that CUDA can give), ``free_bytes``,
    ``compute_capability``, ``uuid`` (for CUDA_VISIBLE_DEVICES), ``pci_id``, ``numa_node``, ``nvlink`` (indices of the
    devices that NVLinks join it to), ``nvlinks`` (how many to each), ``mig`` (index of the GPU that it is a part of,
    or None).

    Raises :class:`GpuError` for a GPU that does not work or that no model may use.
    """
    for problem in found["problems"]:
        raise GpuError(problem["message"])
    listed: list[dict[str, Any]] = []
    position: dict[int, int] = {}
    for gpu in found["gpus"]:
        _check_usable(gpu, found["source"])
        parts = gpu["mig"]["instances"] if gpu["mig"]["mode"] else [gpu]
        if not gpu["mig"]["mode"]:
            position[gpu["index"]] = len(listed)
        for part in parts:
            listed.append(_device(gpu, part, len(listed)))
    # Neighbours by their place in this list: with MIG it is not NVML's index.
    for row, gpu in zip(found["nvlink_matrix"], found["gpus"]):
        if gpu["index"] in position:
            device = listed[position[gpu["index"]]]
            for peer, links in zip(found["gpus"], row):
                if links and peer["index"] in position:
                    device["nvlink"].append(position[peer["index"]])
                    device["nvlinks"].append(links)
    return listed


def _device(gpu: dict[str, Any], part: dict[str, Any], index: int) -> dict[str, Any]:
    return {
        "kind": "cuda",
        "name": part["name"],
        "index": index,
        # What CUDA, and so llama.cpp, calls the total is without the driver's own part (seen on an H200, 580.159.04).
        "memory_bytes": part["memory"]["total"] - (part["memory"]["reserved"] or 0),
        "free_bytes": part["memory"]["free"],
        "compute_capability": gpu["compute_capability"],
        "uuid": part["uuid"],
        "pci_id": gpu["pci_id"],
        "numa_node": gpu.get("numa_node"),
        "nvlink": [],
        "nvlinks": [],
        "mig": None if part is gpu else gpu["index"],
    }


def _check_usable(gpu: dict[str, Any], source: str) -> None:
    if gpu.get("compute_mode") == "prohibited":
        raise GpuError("GPU %(index)d (%(name)s) lets no program compute: run nvidia-smi -i %(index)d -c DEFAULT" % gpu)
    fabric = gpu.get("fabric")
    if fabric and (fabric["state"] != "completed" or fabric["status"]):
        raise GpuError(
            "GPU %d (%s) is not ready for CUDA: its NVSwitch fabric is %s (status %d); look at "
            "systemctl status nvidia-fabricmanager, whose version must be the driver's"
            % (gpu["index"], gpu["name"], fabric["state"].replace("_", " "), fabric["status"])
        )
    if gpu["mig"]["mode"] and not gpu["mig"]["instances"]:
        raise GpuError(
            "GPU %d (%s) is in MIG mode, and %s; nothing can run on it"
            % (
                gpu["index"],
                gpu["name"],
                "has no instance: make some (nvidia-smi mig -cgi PROFILE -C), or turn MIG off (nvidia-smi -i %d -mig 0)"
                % gpu["index"]
                if source == "nvml"
                else "nvidia-smi does not say the memory of its instances: install nvidia-ml-py on the control node",
            )
        )
