#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make a CUDA toolkit of NVIDIA's wheels."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_from_wheels
short_description: Make a CUDA toolkit of NVIDIA's wheels
version_added: 0.1.0
description:
  - Unpacks wheels of CUDA 13.x into one directory that C(nvcc), CMake and linkers take for an installed toolkit, with
    C(bin/nvcc), C(nvvm), C(include), C(lib64), and C(lib64/stubs/libcuda.so) to link against where there is no driver.
  - The directory is there when it is whole, and not before. Needs no root where the user may write to O(dest).
options:
  version:
    description: Version of the toolkit, such as V(13.0); what C(nvcc) says is compared with it.
    type: str
    required: true
  pins:
    description: The wheels as V(NAME==VERSION). A toolkit made of the same ones is left alone.
    type: list
    elements: str
    required: true
  wheels:
    description: The wheels' files on the node.
    type: list
    elements: path
    required: true
  dest:
    description: Directory of the toolkit.
    type: path
    required: true
  cc:
    description: C compiler, which makes the stub of the driver's library.
    type: str
    default: cc
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.cuda_wheels
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Make a toolkit
  llamacpp.cluster.cuda_from_wheels:
    version: "13.0"
    pins: [nvidia-cuda-nvcc==13.0.88, nvidia-cuda-runtime==13.0.96]
    wheels:
      - /var/cache/wheels/nvidia_cuda_nvcc-13.0.88-py3-none-manylinux_2_17_x86_64.whl
      - /var/cache/wheels/nvidia_cuda_runtime-13.0.96-py3-none-manylinux_2_17_x86_64.whl
    dest: /opt/llamacpp-cuda/13.0
"""

RETURN = r"""
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _cuda_wheels
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain_found import WHEELS_FILE, nvcc_version


def make(module: AnsibleModule, target: str, progress: Progress) -> None:
    """Make the toolkit in ``target``; raises WheelError and OSError."""
    params = module.params

    def compile_stub(source: str, path: str) -> None:
        progress.say("compiling the stub of libcuda.so", now=True)
        command = [params["cc"], "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o", path, "-x", "c", "-"]
        rc, out, err = module.run_command(command, data=source)
        if rc != 0:
            raise _cuda_wheels.WheelError("%s does not compile the stub of libcuda.so: %s" % (params["cc"], err or out))

    _cuda_wheels.unpack(params["wheels"], target, lambda line: progress.say(line, now=True))
    _cuda_wheels.complete(target, compile_stub)
    _rc, out, err = module.run_command([os.path.join(target, "bin", "nvcc"), "--version"])
    if not nvcc_version(out).startswith(params["version"] + "."):
        raise _cuda_wheels.WheelError(
            "nvcc of the wheels is not CUDA %s: %s" % (params["version"], (out or err)[-300:])
        )
    with open(os.path.join(target, WHEELS_FILE), "w", encoding="utf-8") as stream:
        stream.write("\n".join(params["pins"]) + "\n")


def put(staged: str, dest: str) -> None:
    """Move the new toolkit to its place; what was there is removed."""
    old = dest + ".old"
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(dest):
        os.rename(dest, old)
    os.rename(staged, dest)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "required": True},
            "pins": {"type": "list", "elements": "str", "required": True},
            "wheels": {"type": "list", "elements": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "cc": {"type": "str", "default": "cc"},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    dest = os.path.normpath(params["dest"])
    if _cuda_wheels.installed(dest, params["pins"]):
        module.exit_json(changed=False)
    if module.check_mode:
        module.exit_json(changed=True)
    progress = Progress(params["progress_file"])
    staged = dest + ".new"
    try:
        # What a run that died has left.
        shutil.rmtree(staged, ignore_errors=True)
        os.makedirs(os.path.dirname(dest), mode=0o755, exist_ok=True)
        make(module, staged, progress)
        put(staged, dest)
    except (_cuda_wheels.WheelError, OSError) as error:
        shutil.rmtree(staged, ignore_errors=True)
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
