#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make a virtual environment of wheels that lie on the machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_environment
short_description: Make a Python virtual environment of wheels that are here
version_added: 0.4.0
description:
  - Makes a virtual environment for the version of Python that runs the module, of wheels that
    M(llamacpp.cluster.python_wheels) downloaded elsewhere. The machine needs no package index, no C(pip), and on Debian
    not the package C(python3-venv) either.
  - It is made beside the one that is there, and put in its place in one step; a run that is interrupted leaves the old
    one. What has changed is told by O(requirements), the wheels' names and sizes, and the version of Python.
options:
  dest:
    description: Where the environment is. It will be a link to a directory beside it that is named after its content.
    type: path
    required: true
  wheels:
    description: Directory that has the wheels of O(requirements), of all that they need, and of C(pip).
    type: path
    required: true
  requirements:
    description: What it has, each with its version, for example V(huggingface_hub==2.4.0).
    type: list
    elements: str
    required: true
  lock_wait:
    description: Seconds to wait for another run that makes it.
    type: int
    default: 600
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.python_wheels
  - module: llamacpp.cluster.model
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Download the wheels to the control node
  llamacpp.cluster.python_wheels:
    requirements: [pip==26.0.1, huggingface_hub==2.4.0]
    python_versions: ["3.13"]
    dest: ~/.cache/llamacpp-cluster/hub-3.13
  delegate_to: localhost

- name: Bring them to the node
  ansible.builtin.copy:
    src: ~/.cache/llamacpp-cluster/hub-3.13/
    dest: /opt/llamacpp/python/hub.wheels/
    mode: "0644"

- name: Make the environment
  llamacpp.cluster.python_environment:
    dest: /opt/llamacpp/python/hub
    wheels: /opt/llamacpp/python/hub.wheels
    requirements: [huggingface_hub==2.4.0]
"""

RETURN = r"""
python:
  description: Its interpreter.
  returned: success
  type: str
packages:
  description: What it has, name and version.
  returned: success, not in check mode
  type: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._environment import (
    Environment,
    EnvironmentFailedError,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import locked
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "wheels": {"type": "path", "required": True},
            "requirements": {"type": "list", "elements": "str", "required": True},
            "lock_wait": {"type": "int", "default": 600},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    progress = Progress(params["progress_file"])
    try:
        environment = Environment(params["dest"], params["requirements"], params["wheels"])
        changed = not environment.is_made()
        if module.check_mode:
            module.exit_json(changed=changed, python=environment.python)
        if changed:
            os.makedirs(os.path.dirname(environment.dest), mode=0o755, exist_ok=True)
            lock = environment.dest + ".lock"
            with locked(lock, "a run that makes an environment", params["lock_wait"], progress.say):
                # The run that this one waited for may have made it.
                changed = not environment.is_made()
                if changed:
                    environment.make(progress.say)
        packages = environment.installed()
    except (EnvironmentFailedError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(changed=changed, python=environment.python, packages=packages)


if __name__ == "__main__":
    main()
