# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What NVML and nvidia-smi say, for tests: kept answers, a stand-in for pynvml, texts."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures" / "nvml"

# `nvidia-smi --query-gpu` with _gpu_smi's columns.
ROW = "0, GPU-0, 00000000:3B:00.0, 32768, 32510, 1, 257, 535.183.01, 7.0, [N/A], Tesla V100S-PCIE-32GB"

# `nvidia-smi topo -m`
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV4\tSYS\tPIX\t0-15\t0\t\tN/A
GPU1\tNV4\t X \tSYS\tNODE\t0-15\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tSYS\t16-31\t1\t\tN/A
NIC0\tPIX\tNODE\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
"""


def kept(name, node):
    """Return the answers of a node (of a composed fixture), or of a moment (of a recorded one)."""
    return json.loads((FIXTURES / (name + ".json")).read_text())["nodes"][node]


class Pci(ctypes.Structure):
    _fields_ = [("busId", ctypes.c_char * 32), ("bus", ctypes.c_uint), ("free", ctypes.c_ulonglong)]


class Fabric(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint), ("clusterUuid", ctypes.c_uint8 * 2), ("state", ctypes.c_uint8)]


class FakePynvml:
    """As much of pynvml as tells its kinds of answers apart."""

    class NVMLError(Exception):
        def __init__(self, value):
            super().__init__(value)
            self.value = value

    nvmlMemory_v2 = 0x02000028
    nvmlGpuFabricInfo_v2 = 0x02000024
    c_nvmlGpuFabricInfo_v2_t = Fabric

    def __init__(self, init_error=0):
        self.init_error = init_error
        self.open = 0

    def nvmlInit(self):
        if self.init_error:
            raise self.NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return ctypes.c_void_p(index + 100)

    def nvmlDeviceGetPciInfo(self, handle):
        return Pci(b"00000000:3B:00.0", handle.value, (1 << 64) - 1)

    def nvmlDeviceGetName(self, handle):
        return "Fake %d" % handle.value

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        return Pci(b"", version or 0, 5)

    def nvmlDeviceGetGpuFabricInfoV(self, handle, reference):
        reference._obj.state = reference._obj.version & 0xFF
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle):
        class Friendly:
            def __init__(self):
                self.pid = 7
                self.usedGpuMemory = None

        return [Friendly()]

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return (9, 0)

    def nvmlDeviceGetMigMode(self, handle):
        raise self.NVMLError(3)
