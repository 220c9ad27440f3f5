#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say what services and processes really take of host memory and GPUs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: process_memory_info
short_description: Say what running services take of host memory and of GPUs
version_added: 0.1.0
description:
  - Reads the kernel's count of host memory and NVML's count of every GPU's for systemd services or processes. This is
    the reality that the ledger compares with the plan. Changes nothing.
  - A service counts with all processes of its control group.
options:
  units:
    description: Services. One that does not run has null in RV(memory).
    type: list
    elements: str
    default: []
  pids:
    description: Processes, as this node counts them. One that is gone has null in RV(memory).
    type: list
    elements: int
    default: []
  pynvml:
    description: Set by the action plugin. The control node's pynvml, packed.
    type: str
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
notes:
  - NVML names processes as the machine counts them that the driver runs on. On a node that is a container with process
    ids of its own it names none of them, and RV(memory)'s C(gpus) is empty though the service uses a GPU. Then take
    C(used_bytes) of RV(devices) less what it was before the service started.
seealso:
  - module: llamacpp.cluster.gpu_info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Ask what an instance takes
  llamacpp.cluster.process_memory_info:
    units: [llamacpp-qwen3-14b.service]
  register: reality

- name: Say it
  ansible.builtin.debug:
    msg: "{{ reality.memory['llamacpp-qwen3-14b.service'].gpus }}"
"""

RETURN = r"""
memory:
  description: >-
    What each of O(units) and O(pids) (as text) takes, or null when it does not run. C(pid) is the main process, C(pids)
    are all of them. C(rss_bytes) is C(anon_bytes) (its own), C(file_bytes) (mapped files, shared with the page cache)
    and C(shmem_bytes). C(pss_bytes) counts shared pages in parts (null when it may not be read). C(gpus) is bytes by
    UUID of the GPU or MIG instance, null where the driver does not say how many.
  returned: success
  type: dict
  sample:
    llamacpp-qwen3-14b.service:
      pid: 4711
      pids: [4711]
      rss_bytes: 1073741824
      anon_bytes: 805306368
      file_bytes: 268435456
      shmem_bytes: 0
      pss_bytes: 1072693248
      swap_bytes: 0
      gpus:
        GPU-00000000-0000-0000-0000-000000000000: 10737418240
devices:
  description: >-
    C(uuid), C(name), C(total_bytes), C(free_bytes), C(used_bytes), C(reserved_bytes) and C(pids) of each NVIDIA GPU or
    MIG instance.
  returned: success
  type: list
  elements: dict
source:
  description: Who answered for the GPUs, V(nvml), V(nvidia-smi) or V(none).
  returned: success
  type: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_find, _reality
from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_nvml import unpack
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree


def look(module: AnsibleModule, tree: Tree) -> dict[str, Any]:
    """Return everything; raises GpuError."""
    run = _gpu_find.runner(module.get_bin_path, module.run_command)
    found = _gpu_find.find(run, tree, unpack(module.params["pynvml"], module.tmpdir))
    units: dict[str, dict[str, str]] = {}
    if module.params["units"]:
        output = run("systemctl", "show", "--property", ",".join(_reality.PROPERTIES), "--", *module.params["units"])
        if output is None or output.code:
            module.fail_json(msg="systemctl show does not work: %s" % (output.err.strip() if output else "not there"))
        units = _reality.units(output.out, module.params["units"])
    wanted = {name: _reality.unit_pids(units.get(name, {}), tree) for name in module.params["units"]}
    wanted.update({str(pid): [pid] for pid in module.params["pids"]})
    return {
        "memory": {name: _reality.memory(pids, found["gpus"], tree) for name, pids in wanted.items()},
        "devices": _reality.devices(found["gpus"]),
        "source": found["source"],
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "default": []},
            "pids": {"type": "list", "elements": "int", "default": []},
            # Not secret, but nothing to read in logs and results either.
            "pynvml": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    try:
        found = look(module, Tree())
    except _gpu_find.GpuError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
