#!/usr/bin/env python3
"""Record what NVML and nvidia-smi answer on this machine, for tests/unit/fixtures/nvml of the collection.

Runs twice: idle, and while a child holds 1 GiB on every GPU, which says what CUDA itself sees (``cudaMemGetInfo``),
whether NVML names the child's pid, and what a CUDA context takes. UUIDs are replaced.

    PYTHONPATH=collections python3 tests/gpu/record_nvml.py --out h200_x1.json --machine "a virtual machine with 1 H200"
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu, _gpu_nvml, _gpu_smi

HELD_BYTES = 1 << 30
SMI = {
    "gpus": f"--query-gpu={','.join(_gpu_smi.COLUMNS)} {_gpu_smi.FORMAT}",
    "processes": f"--query-compute-apps=gpu_uuid,pid,used_memory {_gpu_smi.FORMAT}",
    "list": "-L",
    "topology": "topo -m",
    "nvlink": "nvlink -s",
}


class Cuda:
    """The few calls of libcuda that say what a CUDA program sees."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver API; raises :class:`OSError` when it fails."""
        code = getattr(self.library, name)(*arguments)
        if code:
            raise OSError(f"{name}: CUDA error {code}")

    def count(self) -> int:
        """Return the number of devices."""
        number = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(number))
        return number.value

    def memory(self) -> dict[str, int]:
        """Return what cudaMemGetInfo says of the current device."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return {"free": free.value, "total": total.value}

    def hold(self, ordinal: int, size: int) -> dict[str, Any]:
        """Make a context on a device, take ``size`` bytes, and say what CUDA saw before and after."""
        pci = ctypes.create_string_buffer(32)
        self.call("cuDeviceGetPCIBusId", pci, 32, ordinal)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal)
        self.call("cuCtxSetCurrent", context)
        before = self.memory()
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        self.call("cuMemsetD8_v2", pointer, ctypes.c_ubyte(1), ctypes.c_size_t(size))
        self.call("cuCtxSynchronize")
        peers = []
        for other in range(self.count()):
            can = ctypes.c_int()
            if other != ordinal:
                self.call("cuDeviceCanAccessPeer", ctypes.byref(can), ordinal, other)
                peers.append({"ordinal": other, "access": bool(can.value)})
        return {
            "ordinal": ordinal,
            "pci_id": pci.value.decode().lower(),
            "before": before,
            "after": self.memory(),
            "peers": peers,
        }


def child() -> None:
    """Hold memory on every GPU until standard input ends."""
    cuda = Cuda()
    devices = [cuda.hold(ordinal, HELD_BYTES) for ordinal in range(cuda.count())]
    print(json.dumps({"pid": os.getpid(), "held": HELD_BYTES, "devices": devices}), flush=True)
    sys.stdin.read()


def say(*command: str) -> str | None:
    """Return a command's output; None when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def numa_node(pci_id: str) -> int | None:
    """Return what the kernel says of a PCI device."""
    try:
        with open(f"/sys/bus/pci/devices/{pci_id}/numa_node", encoding="ascii") as stream:
            number = int(stream.read())
    except OSError:
        return None
    return number if number >= 0 else None


class Recording(NamedTuple):
    """What was asked at one moment."""

    answers: dict[str, Any]
    nvidia_smi: dict[str, str | None]
    result: dict[str, Any]
    seconds: float


def record(pynvml: Any) -> Recording:
    """Return the answers, what the collection makes of them and how long that took, and what nvidia-smi says."""
    with _gpu_nvml.Live(pynvml) as nvml:
        recorder = _gpu_nvml.Recorder(nvml)
        started = time.perf_counter()
        result = _gpu.describe(recorder, numa_node)
        seconds = time.perf_counter() - started
    smi = {name: say("nvidia-smi", *words.split()) for name, words in SMI.items()}
    return Recording(recorder.answers, smi, result, seconds)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="file to write")
    parser.add_argument("--machine", default="", help="what this machine is, in words")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child()
        return
    started = time.perf_counter()
    pynvml = _gpu_nvml.load_pynvml()
    if pynvml is None:
        sys.exit("no NVML library, or no pynvml: nothing to record")
    import_seconds = time.perf_counter() - started
    moments = {"idle": record(pynvml)}
    with subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        cuda = json.loads(process.stdout.readline())
        moments["busy"] = record(pynvml)
    kept = {
        "composed": False,
        "machine": arguments.machine,
        "from": "recorded by tests/gpu/record_nvml.py",
        "seconds": {"import": import_seconds, **{name: moment.seconds for name, moment in moments.items()}},
        "cuda": cuda,
        "columns": _gpu_smi.COLUMNS,
        "nodes": {name: moment.answers for name, moment in moments.items()},
        "nvidia_smi": {name: moment.nvidia_smi for name, moment in moments.items()},
    }
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as stream:
            json.dump(_gpu_nvml.anonymous(kept), stream, indent=1)
            stream.write("\n")
    print(json.dumps({"result": moments["busy"].result, "cuda": cuda, "seconds": kept["seconds"]}, indent=1))


if __name__ == "__main__":
    main()
