#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Look at GPUs and what joins them, within a node and between nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Say what GPUs a node has and what joins them
version_added: 0.1.0
description:
  - Asks NVML, the NVIDIA driver's own library, for each GPU, its memory and who uses it, MIG instances, NVLinks and
    PCIe. The control node's C(pynvml) (package nvidia-ml-py) travels along for a node that has none; where NVML cannot
    be asked, C(nvidia-smi) is.
  - Lists AMD's GPUs where the driver amdgpu runs them, and Vulkan devices where C(vulkaninfo) is installed.
  - Lists RDMA ports and network links, among which the fabric is.
  - A node without a GPU has empty lists. A driver that does not work though there is a GPU is an error that says what
    to do.
options:
  pynvml:
    description: Set by the action plugin. The control node's pynvml, packed.
    type: str
  vulkan:
    description: Whether to ask C(vulkaninfo), which starts every Vulkan driver of the node and may take a second.
    type: bool
    default: true
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
notes:
  - NVIDIA, NVLink and NVSwitch were seen on real H200s; MIG, AMD and RDMA are read as their documentation says.
seealso:
  - module: llamacpp.cluster.node_info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Look at the GPUs
  llamacpp.cluster.gpu_info:
  register: found

- name: Say which GPUs NVLinks join
  ansible.builtin.debug:
    msg: "{{ item.name }} (GPU {{ item.index }}) reaches {{ item.nvlink.peers }} over NVLink"
  loop: "{{ found.gpus }}"
"""

RETURN = r"""
source:
  description: Who answered for NVIDIA's GPUs, V(nvml), V(nvidia-smi) or V(none).
  returned: success
  type: str
notes:
  description: What an operator may want to know, such as GPUs without a driver.
  returned: success
  type: list
  elements: str
driver_version:
  description: Version of the NVIDIA driver, or null.
  returned: success
  type: str
  sample: 580.159.04
cuda_version:
  description: Newest CUDA that the driver can run, or null.
  returned: success
  type: str
  sample: "13.0"
gpus:
  description: NVIDIA's GPUs that work, in the order of their PCI ids. With V(nvidia-smi) less is said of each.
  returned: success
  type: list
  elements: dict
  contains:
    index:
      description: Number of the GPU. CUDA counts like this with CUDA_DEVICE_ORDER=PCI_BUS_ID only.
      type: int
    uuid:
      description: Identity, which CUDA_VISIBLE_DEVICES takes too.
      type: str
    pci_id:
      description: PCI address as the kernel writes it.
      type: str
      sample: "0000:3b:00.0"
    name:
      description: Name of the product.
      type: str
    compute_capability:
      description: Compute capability.
      type: str
      sample: "9.0"
    memory:
      description: >-
        C(total), C(free), C(used) and C(reserved) bytes. The last is the driver's own; where it is null, it is part of
        C(used).
      type: dict
    processes:
      description: C(pid), C(used) bytes (null when unknown) and C(type), V(compute) or V(graphics), of each.
      type: list
      elements: dict
    compute_mode:
      description: V(default), V(exclusive_process), V(exclusive_thread) or V(prohibited).
      type: str
    persistence:
      description: Whether the driver stays loaded while nobody uses the GPU.
      type: bool
    ecc:
      description: Whether ECC is on; null where there is none.
      type: bool
    power_limit_watts:
      description: Power limit that is in force.
      type: int
    mig:
      description: >-
        C(mode) (null when the GPU has no MIG), C(pending) and C(instances), each with C(uuid), C(name),
        C(gpu_instance), C(compute_instance), C(memory), C(multiprocessors) and C(processes).
      type: dict
    nvlink:
      description: >-
        C(version); C(links), each with C(link), C(active), C(remote_type) (V(gpu), V(nvswitch), V(npu) or V(unknown))
        and C(remote_pci_id) (null for switches); C(peers), the indices of the GPUs that they lead to, directly or
        through switches.
      type: dict
    fabric:
      description: C(state), C(status) and C(clique) of an NVSwitch fabric; null where there is none.
      type: dict
    pcie:
      description: C(generation), C(width), C(max_generation) and C(max_width). An idle GPU lowers its generation.
      type: dict
    numa_node:
      description: NUMA node that the GPU is next to, or null.
      type: int
problems:
  description: C(index), C(error) (NVML's code) and C(message) of GPUs that do not work.
  returned: success
  type: list
  elements: dict
nvlink_matrix:
  description: Number of NVLinks between each pair of RV(gpus).
  returned: success
  type: list
  elements: list
topology:
  description: >-
    Way between each pair of RV(gpus) over PCIe and CPUs in the words of C(nvidia-smi topo -m), V(PIX), V(PXB), V(PHB),
    V(NODE) or V(SYS).
  returned: success
  type: list
  elements: list
amd:
  description: >-
    AMD's GPUs, each with C(index), C(pci_id), C(name), C(uuid), C(architecture), C(memory) (C(total), C(free) and
    C(used) bytes) and C(numa_node).
  returned: success
  type: list
  elements: dict
vulkan:
  description: >-
    Vulkan devices, each with C(index), C(name), C(type) (V(discrete), V(integrated), V(virtual), V(cpu)), C(uuid),
    C(driver), C(api_version), C(pci_id) and C(memory) (C(total) and C(free) bytes).
  returned: success
  type: list
  elements: dict
rdma:
  description: >-
    RDMA ports, each with C(device), C(port), C(state), C(rate_mbit), C(link_layer), C(interfaces), C(gids)
    (C(index), C(gid), C(type), C(interface)), C(pci_id) and C(numa_node).
  returned: success
  type: list
  elements: dict
links:
  description: >-
    Network links, each with C(interface), C(kind) (V(ethernet), V(infiniband), V(loopback), V(other)), C(up), C(mtu),
    C(speed_mbit) (null when unknown), C(addresses), C(master), C(driver), C(pci_id), C(numa_node) and C(rdma), its RDMA
    device.
  returned: success
  type: list
  elements: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_find, _gpu_other, _links
from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_nvml import unpack
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree


def look(module: AnsibleModule, tree: Tree) -> dict[str, Any]:
    """Return everything; raises GpuError."""
    run = _gpu_find.runner(module.get_bin_path, module.run_command)
    ports = _links.rdma(tree)
    addresses = run("ip", "-j", "address")
    rocm = run("rocm-smi", "--showproductname", "--showbus", "--json")
    vulkan = run("vulkaninfo") if module.params["vulkan"] else None
    return dict(
        _gpu_find.find(run, tree, unpack(module.params["pynvml"], module.tmpdir)),
        amd=_gpu_other.amd(tree, _gpu_other.rocm_names(rocm.out) if rocm else {}),
        vulkan=_gpu_other.vulkan(vulkan.out) if vulkan and not vulkan.code else [],
        rdma=ports,
        links=_links.links(addresses.out, tree, ports) if addresses and not addresses.code else [],
    )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            # Not secret, but nothing to read in logs and results either.
            "pynvml": {"type": "str", "no_log": True},
            "vulkan": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        found = look(module, Tree())
    except _gpu_find.GpuError as error:
        module.fail_json(msg=str(error))
    for problem in found["problems"]:
        module.warn(problem["message"])
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
