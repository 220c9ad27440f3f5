#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fetch NVIDIA's wheels of a CUDA toolkit into a cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_wheels
short_description: Fetch NVIDIA's wheels of a CUDA toolkit
version_added: 0.1.0
description:
  - Fetches wheels with pip from the package index that pip is set up for, each with its sha256, for a machine that need
    not be this one. Runs on the control node, so that nodes need no way out. For what is in the cache nobody is asked.
options:
  wheels:
    description: The wheels, of one version each.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the package.
        type: str
        required: true
      version:
        description: Version.
        type: str
        required: true
      sha256:
        description: sha256 of the wheel by machine, V(x86_64) or V(aarch64).
        type: dict
        required: true
  machine:
    description: Machine that they are for.
    type: str
    choices: [x86_64, aarch64]
    required: true
  cache:
    description: Directory for the wheels.
    type: path
    required: true
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.cuda_from_wheels
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Fetch a CUDA runtime
  llamacpp.cluster.cuda_wheels:
    wheels:
      - name: nvidia-cuda-runtime
        version: 13.0.96
        sha256: {x86_64: 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548}
    machine: x86_64
    cache: ~/.cache/llamacpp-cluster/cuda
  delegate_to: localhost
"""

RETURN = r"""
files:
  description: The wheels' files, in the order of O(wheels). Empty in check mode while one is missing.
  returned: success
  type: list
  elements: str
"""

import glob
import os
import shutil
import sys
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _cuda_wheels
from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import file_sha256

TAIL_LINES = 15


def cached(wheel: dict[str, Any], machine: str, cache: str) -> str | None:
    """Return the file of a wheel in the cache; None when it is not there, or not it."""
    for path in sorted(glob.glob(os.path.join(cache, _cuda_wheels.file_pattern(wheel, machine)))):
        if file_sha256(path) == wheel["sha256"].get(machine):
            return path
    return None


def fetch(wheels: list[dict[str, Any]], machine: str, cache: str, progress: Progress) -> None:
    """Let pip fetch wheels; raises WheelError with pip's last words."""
    os.makedirs(cache, mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=cache) as directory:
        requirements = os.path.join(directory, "requirements.txt")
        with open(requirements, "w", encoding="utf-8") as stream:
            stream.write(_cuda_wheels.requirements(wheels, machine))
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += ["--platform=" + platform for platform in _cuda_wheels.platforms(machine)]
        command += ["--progress-bar=off", "--dest=" + directory, "--requirement=" + requirements]
        lines: list[str] = []

        def show(line: str) -> None:
            lines.append(line)
            if line.strip().startswith(("Downloading", "Collecting")):
                progress.say(line.strip())

        if run_streaming(command, dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1"), show) != 0:
            raise _cuda_wheels.WheelError("pip did not fetch the wheels:\n" + "".join(lines[-TAIL_LINES:]))
        for path in glob.glob(os.path.join(directory, "*.whl")):
            os.rename(path, os.path.join(cache, os.path.basename(path)))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "wheels": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "version": {"type": "str", "required": True},
                    "sha256": {"type": "dict", "required": True},
                },
            },
            "machine": {"type": "str", "choices": ["x86_64", "aarch64"], "required": True},
            "cache": {"type": "path", "required": True},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    wheels, machine, cache = (module.params[name] for name in ("wheels", "machine", "cache"))
    progress = Progress(module.params["progress_file"])
    try:
        missing = [wheel for wheel in wheels if not cached(wheel, machine, cache)]
        if missing and not module.check_mode:
            fetch(missing, machine, cache, progress)
        files = [] if missing and module.check_mode else [cached(wheel, machine, cache) for wheel in wheels]
    except (_cuda_wheels.WheelError, OSError, shutil.Error) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(changed=bool(missing), files=files)


if __name__ == "__main__":
    main()
