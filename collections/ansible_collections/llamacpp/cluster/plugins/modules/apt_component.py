#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Have a component of the distribution's archive, such as non-free, in a sources file of our own."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_component
short_description: Enable components of Debian's or Ubuntu's archive
version_added: 0.1.0
description:
  - Writes a sources file of its own that adds components, such as V(non-free), wherever apt gets C(main) of this
    release from; with the mirrors and keys that are set up on the node. Other files are only read.
  - Where the components are enabled already, the file is not written, and removed if it is there.
options:
  components:
    description: Names of the components.
    type: list
    elements: str
    required: true
  path:
    description: The file, whose name ends in C(.sources).
    type: path
    required: true
extends_documentation_fragment:
  - llamacpp.cluster.attributes
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Let apt find Debian's CUDA toolkit
  llamacpp.cluster.apt_component:
    components: [non-free]
    path: /etc/apt/sources.list.d/llamacpp-cuda-distro.sources
"""

RETURN = r"""
enabled_elsewhere:
  description: Whether the components are there without this file.
  returned: success
  type: bool
"""

import glob
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _apt_sources
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

HEADER = "# Ansible managed: %s, from the other sources of this machine.\n"


def entries(own: str) -> list[_apt_sources.Entry]:
    """Return what all sources but our own file say."""
    tree = Tree()
    found = []
    for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*"))]:
        if os.path.realpath(path) == os.path.realpath(own):
            continue
        if path.endswith(".list"):
            found += _apt_sources.one_line(tree.read(path))
        elif path.endswith(".sources"):
            found += _apt_sources.deb822(tree.read(path))
    return found


def codename(text: str) -> str:
    """Return VERSION_CODENAME of /etc/os-release."""
    for line in text.splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip("\"'")
    return ""


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "components": {"type": "list", "elements": "str", "required": True},
            "path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    path, components = module.params["path"], module.params["components"]
    try:
        text = _apt_sources.added(entries(path), codename(Tree().read("/etc/os-release")), components)
        if text:
            result = bring(path, HEADER % ", ".join(components) + text, module.check_mode)
        else:
            result = {"changed": os.path.exists(path)}
            if result["changed"] and not module.check_mode:
                os.unlink(path)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(enabled_elsewhere=not text, **result)


if __name__ == "__main__":
    main()
