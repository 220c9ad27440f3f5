# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""GPUs that are not NVIDIA's.

The text of lavapipe is vulkaninfo 1.3.239's on Mesa 22.3.6, cut to what is read. The rest is composed: the Radeon
from vulkaninfo's source and VK_EXT_memory_budget, AMD's files from the kernel's documentation of amdgpu and amdkfd.
"""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_other
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

LAVAPIPE = """\
==========
VULKANINFO
==========

Vulkan Instance Version: 1.3.239

Device Groups:
==============
Group 0:
\tProperties:
\t\tphysicalDevices: count = 1
\t\t\tllvmpipe (LLVM 15.0.6, 256 bits) (ID: 0)

Device Properties and Extensions:
=================================
GPU0:
VkPhysicalDeviceProperties:
---------------------------
\tapiVersion        = 1.3.230 (4206822)
\tdriverVersion     = 1 (0x0001)
\tvendorID          = 0x10005
\tdeviceID          = 0x0000
\tdeviceType        = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName        = llvmpipe (LLVM 15.0.6, 256 bits)
VkPhysicalDeviceDriverPropertiesKHR:
------------------------------------
\tdriverID        = DRIVER_ID_MESA_LLVMPIPE
\tdriverName      = llvmpipe
\tdriverInfo      = Mesa 22.3.6 (LLVM 15.0.6)
VkPhysicalDeviceIDPropertiesKHR:
--------------------------------
\tdeviceUUID      = 6d657361-3232-2e33-2e36-000000000000
VkPhysicalDeviceMemoryProperties:
=================================
memoryHeaps: count = 1
\tmemoryHeaps[0]:
\t\tsize   = 2147483648 (0x80000000) (2.00 GiB)
\t\tflags: count = 1
\t\t\tMEMORY_HEAP_DEVICE_LOCAL_BIT
memoryTypes: count = 1
\tmemoryTypes[0]:
\t\theapIndex     = 0
"""
RADEON = """\
GPU1:
VkPhysicalDeviceProperties:
---------------------------
\tapiVersion        = 1.3.274 (4206866)
\tdeviceType        = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName        = AMD Radeon RX 7900 XTX (RADV NAVI31)
VkPhysicalDevicePCIBusInfoPropertiesEXT:
----------------------------------------
\tpciDomain   = 0
\tpciBus      = 10
\tpciDevice   = 0
\tpciFunction = 0
VkPhysicalDeviceMemoryProperties:
=================================
memoryHeaps: count = 2
\tmemoryHeaps[0]:
\t\tsize   = 33285996544 (0x7c0000000) (31.00 GiB)
\t\tbudget = 30000000000 (0x6fc23ac00) (27.94 GiB)
\t\tusage  = 0 (0x00000000) (0.00 B)
\t\tflags:
\t\t\tNone
\tmemoryHeaps[1]:
\t\tsize   = 25753026560 (0x5ff000000) (23.98 GiB)
\t\tbudget = 25000000000 (0x5d21dba00) (23.28 GiB)
\t\tusage  = 1000000000 (0x3b9aca00) (953.67 MiB)
\t\tflags: count = 1
\t\t\tMEMORY_HEAP_DEVICE_LOCAL_BIT
memoryTypes: count = 1
"""


def test_vulkan():
    software, radeon = _gpu_other.vulkan(LAVAPIPE + RADEON)
    assert software == {
        "index": 0,
        "name": "llvmpipe (LLVM 15.0.6, 256 bits)",
        "type": "cpu",
        "uuid": "6d657361-3232-2e33-2e36-000000000000",
        "driver": "llvmpipe Mesa 22.3.6 (LLVM 15.0.6)",
        "api_version": "1.3.230",
        "pci_id": None,
        "memory": {"total": 2 << 30, "free": None},
    }
    assert (radeon["index"], radeon["type"], radeon["pci_id"]) == (1, "discrete", "0000:0a:00.0")
    assert radeon["memory"] == {"total": 25753026560, "free": 24000000000}


@pytest.mark.parametrize("text", ["", "Cannot create Vulkan instance.\n", "Device Properties and Extensions:\n====\n"])
def test_no_vulkan(text):
    assert _gpu_other.vulkan(text) == []


def put(root, path, text):
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def node(tmp_path):
    """A node with an MI210 and a processor's own display that another driver runs."""
    device = "/sys/devices/pci0000:00/0000:c1:00.0"
    put(tmp_path, device + "/vendor", "0x1002\n")
    put(tmp_path, device + "/mem_info_vram_total", "68702699520\n")
    put(tmp_path, device + "/mem_info_vram_used", "10000000\n")
    put(tmp_path, device + "/unique_id", "e1d0c2\n")
    put(tmp_path, device + "/numa_node", "1\n")
    put(tmp_path, "/sys/devices/pci0000:00/0000:00:02.0/vendor", "0x1a03\n")
    for card, pci_id in (("card0", "0000:00:02.0"), ("card1", "0000:c1:00.0")):
        link = tmp_path / "sys/class/drm" / card / "device"
        link.parent.mkdir(parents=True)
        link.symlink_to(tmp_path / "sys/devices/pci0000:00" / pci_id)
    (tmp_path / "sys/class/drm/card1-DP-1").mkdir()
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    put(tmp_path, nodes + "/0/properties", "cpu_cores_count 64\ngfx_target_version 0\nlocation_id 0\n")
    put(tmp_path, nodes + "/1/properties", "cpu_cores_count 0\ngfx_target_version 90010\nlocation_id 49408\ndomain 0\n")
    return tmp_path


def test_amd(node):
    names = _gpu_other.rocm_names(json.dumps({"card0": {"Card Series": "Instinct MI210", "PCI Bus": "0000:C1:00.0"}}))
    assert _gpu_other.amd(Tree(str(node)), names) == [
        {
            "pci_id": "0000:c1:00.0",
            "name": "Instinct MI210",
            "uuid": "e1d0c2",
            "architecture": "gfx90a",
            "memory": {"total": 68702699520, "free": 68692699520, "used": 10000000},
            "numa_node": 1,
            "index": 0,
        }
    ]


def test_amd_without_its_tool(node):
    (gpu,) = _gpu_other.amd(Tree(str(node)), {})
    assert gpu["name"] == "AMD GPU"


def test_no_amd(tmp_path):
    assert _gpu_other.amd(Tree(str(tmp_path)), {}) == []


@pytest.mark.parametrize(("version", "name"), [("90402", "gfx942"), ("110001", "gfx1101"), ("100300", "gfx1030")])
def test_names_of_architectures(node, version, name):
    text = "gfx_target_version %s\nlocation_id 49408\n" % version
    put(node, "/sys/class/kfd/kfd/topology/nodes/1/properties", text)
    assert _gpu_other.amd(Tree(str(node)), {})[0]["architecture"] == name


@pytest.mark.parametrize("text", ["", "WARNING: no GPU\n", "[]", '{"system": "x"}', '{"card0": {"PCI Bus": "1"}}'])
def test_rocm_smi_that_says_something_else(text):
    assert _gpu_other.rocm_names(text) == {}


def test_keys_of_other_releases_of_rocm():
    text = json.dumps({"card0": {"Card series": "MI50", "PCI Bus": "0000:03:00.0"}, "system": {"Driver version": "6"}})
    assert _gpu_other.rocm_names(text) == {"0000:03:00.0": "MI50"}
