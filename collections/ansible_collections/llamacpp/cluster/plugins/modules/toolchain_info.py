#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Look at what a node can compile with, and say what it should compile with."""

from __future__ import annotations

DOCUMENTATION = r"""
module: toolchain_info
short_description: Say what a node can compile llama.cpp with, and with what it should
version_added: 0.1.0
description:
  - Finds the node's C and C++ compilers, its CUDA toolkits and NVIDIA's driver. Changes nothing.
  - With O(backend) it also chooses a gcc and, for V(cuda), a CUDA toolkit that fit each other, the GPUs and their
    drivers. What does not fit is refused with the row of the table that says why and what to write instead.
options:
  backend:
    description: What to choose compilers for, such as V(cuda) or V(cpu). Nothing is chosen without it.
    type: str
  architectures:
    description: Compute capabilities to compile for, without the dot.
    type: list
    elements: str
    default: []
  gcc_version:
    description: Major version of gcc, or V(0) for the one that fits best.
    type: int
    default: 0
  cuda_version:
    description:
      - Version of the CUDA toolkit. Without it the one that fits best is chosen.
      - With another backend than V(cuda), a gcc is chosen that this version takes.
    type: str
    default: ""
  cuda_provider:
    description: Where the CUDA toolkit comes from.
    type: str
    choices: [auto, package, distro, pip, existing]
    default: auto
  cuda_home:
    description: Directory of a CUDA toolkit that is there already.
    type: path
  cuda_pip_dir:
    description: Directory of toolkits that are made of NVIDIA's wheels.
    type: path
    default: /opt/llamacpp-cuda
  drivers:
    description: Versions of NVIDIA's driver on the nodes that will run what is compiled. The node's own counts, too.
    type: list
    elements: str
    default: []
  pynvml:
    description: Set by the action plugin. The control node's pynvml, packed.
    type: str
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.gpu_info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Look at the builder
  llamacpp.cluster.toolchain_info:
  register: found

- name: Choose compilers for V100 and H100
  llamacpp.cluster.toolchain_info:
    backend: cuda
    architectures: ["70", "90"]
    drivers: ["535.183.01", "550.54.15"]
  register: chosen
"""

RETURN = r"""
builder:
  description:
    - C(os_id), C(os_version), C(os_family), C(machine), C(compilers) (version of the default gcc) and C(toolkits), each
      with C(version), C(home) and C(wheels), of which it was made.
  returned: success
  type: dict
driver:
  description: C(version) of NVIDIA's driver, empty where there is none, and C(source), who said so.
  returned: success
  type: dict
  sample: {version: 535.183.01, source: nvml}
toolchain:
  description:
    - C(gcc) with C(version) (V(0) is the distribution's own), C(cc), C(cxx), C(packages), C(enable) (script of
      gcc-toolset) and C(why); C(cuda), empty or with C(provider), C(version), C(home), C(nvcc), C(packages) and
      C(why); C(environment) of the build; C(enable), scripts to source for it.
  returned: success with O(backend)
  type: dict
"""

import platform
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_find, _toolchain, _toolchain_found
from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_nvml import unpack
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain_error import ToolchainError
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree


def choose(params: dict[str, Any], builder: dict[str, Any], driver: str) -> dict[str, Any]:
    """Return the toolchain; raises ToolchainError."""
    drivers = [*params["drivers"], *([driver] if driver else [])]
    if params["backend"] != "cuda":
        return _toolchain.choose_gcc(builder, params["gcc_version"], params["cuda_version"]).as_dict()
    return _toolchain.choose(builder, "cuda", params["architectures"], params, drivers).as_dict()


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str"},
            "architectures": {"type": "list", "elements": "str", "default": []},
            "gcc_version": {"type": "int", "default": 0},
            "cuda_version": {"type": "str", "default": ""},
            "cuda_provider": {
                "type": "str",
                "choices": ["auto", "package", "distro", "pip", "existing"],
                "default": "auto",
            },
            "cuda_home": {"type": "path"},
            "cuda_pip_dir": {"type": "path", "default": "/opt/llamacpp-cuda"},
            "drivers": {"type": "list", "elements": "str", "default": []},
            # Not secret, but nothing to read in logs and results either.
            "pynvml": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    run = _gpu_find.runner(module.get_bin_path, module.run_command)
    tree = Tree()
    homes = [params["cuda_home"]] if params["cuda_home"] else []
    found: dict[str, Any] = {
        "builder": _toolchain_found.builder(run, tree, platform.machine(), homes, params["cuda_pip_dir"]),
        "driver": _toolchain_found.driver(run, tree, unpack(params["pynvml"], module.tmpdir)),
    }
    if params["backend"]:
        try:
            found["toolchain"] = choose(params, found["builder"], found["driver"]["version"])
        except ToolchainError as error:
            module.fail_json(msg=str(error))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
