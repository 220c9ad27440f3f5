#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Download Python wheels with all that they need."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_wheels
short_description: Download Python wheels with all that they need
version_added: 0.3.0
description:
  - Downloads wheels with the C(pip) of the interpreter that runs the module, from the index that it is set up for, into
    a directory that C(pip install --no-index --find-links) can use.
  - Wheels that the directory has are not downloaded again; those that nothing needs any more are removed.
options:
  requirements:
    description: What pip is asked for, for example V(ansible-core==2.19.14).
    type: list
    elements: str
    default: []
  pyproject:
    description: A C(pyproject.toml) whose dependency groups O(groups) are asked for too. Needs Python 3.11.
    type: path
  groups:
    description: Dependency groups of O(pyproject).
    type: list
    elements: str
    default: [control]
  python_versions:
    description:
      - Versions of Python to download wheels for, for example V(3.13).
      - Empty means the interpreter that runs the module.
    type: list
    elements: str
    default: []
  machine:
    description:
      - Kind of processor that O(python_versions) are on, as C(uname -m) says it, for example V(aarch64). The one that
        runs the module when it is left out.
      - What wheels need besides, pip decides for the machine that runs it.
    type: str
  dest:
    description: Directory for the wheels.
    type: path
    required: true
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.bundle
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Download what a control node needs
  llamacpp.cluster.python_wheels:
    pyproject: pyproject.toml
    dest: ~/.cache/llamacpp-cluster/wheels
  delegate_to: localhost
"""

RETURN = r"""
wheels:
  description: Names of the files.
  returned: success, not in check mode
  type: list
  elements: str
"""

import os
import platform
import shutil
import sys
import tempfile
import traceback

try:
    import tomllib
except ImportError:
    TOMLLIB_IMPORT_ERROR = traceback.format_exc()
else:
    TOMLLIB_IMPORT_ERROR = ""

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._wheels import (
    WheelError,
    download_arguments,
    group_requirements,
)

TAIL = 1500
SHOWN = ("Collecting", "Downloading", "Using cached", "Saved")


def requirements(module: AnsibleModule) -> list[str]:
    """Return what pip is asked for."""
    wanted = list(module.params["requirements"])
    if module.params["pyproject"]:
        if TOMLLIB_IMPORT_ERROR:
            module.fail_json(msg=missing_required_lib("tomllib"), exception=TOMLLIB_IMPORT_ERROR)
        with open(module.params["pyproject"], "rb") as stream:
            project = tomllib.load(stream)
        for group in module.params["groups"]:
            wanted += group_requirements(project, group)
    return wanted


def download(module: AnsibleModule, wanted: list[str], into: str, progress: Progress) -> None:
    """Download the wheels for each version of Python."""
    said: list[str] = []

    def show(line: str) -> None:
        said.append(line)
        if line.strip().startswith(SHOWN):
            progress.say(line.strip())

    machine = module.params["machine"] or platform.machine()
    own = "" if machine == platform.machine() else "%d.%d" % sys.version_info[:2]
    for version in module.params["python_versions"] or [own]:
        arguments = download_arguments(wanted, into, module.params["dest"], version, machine)
        argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
        if run_streaming(argv, os.environ, show) != 0:
            raise WheelError("%s failed:\n%s" % (" ".join(argv), "".join(said)[-TAIL:]))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "requirements": {"type": "list", "elements": "str", "default": []},
            "pyproject": {"type": "path"},
            "groups": {"type": "list", "elements": "str", "default": ["control"]},
            "python_versions": {"type": "list", "elements": "str", "default": []},
            "machine": {"type": "str"},
            "dest": {"type": "path", "required": True},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    dest: str = module.params["dest"]
    progress = Progress(module.params["progress_file"])
    try:
        wanted = requirements(module)
        if module.check_mode:
            module.exit_json(changed=True)
        os.makedirs(dest, exist_ok=True)
        before = set(os.listdir(dest))
        with tempfile.TemporaryDirectory(dir=os.path.dirname(dest.rstrip("/"))) as work:
            if wanted:
                download(module, wanted, work, progress)
            wheels = sorted(os.listdir(work))
            for name in before - set(wheels):
                os.unlink(os.path.join(dest, name))
            for name in set(wheels) - before:
                shutil.move(os.path.join(work, name), os.path.join(dest, name))
    except (WheelError, OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(changed=before != set(wheels), wheels=wheels)


if __name__ == "__main__":
    main()
