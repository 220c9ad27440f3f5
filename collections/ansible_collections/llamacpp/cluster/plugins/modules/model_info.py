#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say which models are in a node's store, who uses them, and since when."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_info
short_description: Say which models are in a node's store, who uses them, and since when
version_added: 0.4.0
description:
  - Says which models the store has, what they take of the disk, where they came from, who uses them, and which of those
    that are expected are missing.
  - Reads no model. A file counts when its size, time and inode are those that it had when it was verified; where that
    is not so, RV(models[].complete) is false, and M(llamacpp.cluster.model) looks at the bytes again.
options:
  store:
    description: Directory of the store.
    type: path
    default: /var/lib/llamacpp/models
  names:
    description: Names to speak of; all of them when it is empty.
    type: list
    elements: str
    default: []
  expected:
    description:
      - Manifests of models that ought to be there, as M(llamacpp.cluster.model) returns them. The name and the files
        matter, where they came from does not.
    type: list
    elements: dict
    default: []
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.model
  - module: llamacpp.cluster.model_store
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Look at the models of a node
  llamacpp.cluster.model_info:
  register: model_info

- name: Show what nobody uses
  ansible.builtin.debug:
    msg: "{{ model_info.models | rejectattr('used_by') | map(attribute='name') }}"
"""

RETURN = r"""
models:
  description: The models of the store, by name. Sizes in bytes, times in UTC.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: mradermacher/OR1-Behemoth-GGUF/Q4_K_M
    files:
      description: Its files with C(name), C(sha256), C(bytes) and C(role); empty when its manifest is broken.
      type: list
      elements: dict
    external:
      description: Paths of files that the store only links to, by name of the file.
      type: dict
    bytes:
      description: Size of all its files.
      type: int
    own_bytes:
      description: How many bytes of them no other name has, so what its removal would free.
      type: int
    source:
      description: Where it came from, as whoever brought it wrote it down.
      type: dict
    created:
      description: When it got this name and these files; null when its manifest is broken.
      type: str
    last_used:
      description: When a deployment last wanted it. The one that was wanted longest ago is evicted first.
      type: str
    used_by:
      description: Units that name it, and processes that run with it where no unit does.
      type: list
      elements: str
      sample: [llamacpp-behemoth.service]
    used_since:
      description: Since when a process has run with it; null when none does.
      type: str
    complete:
      description: Whether all its files are there, unchanged since they were verified, and can be read by their names.
      type: bool
missing:
  description: Names of O(expected) that are not there, or have other files, or are not complete.
  returned: success
  type: list
  elements: str
free_bytes:
  description: What is free on the disk of the store for models.
  returned: success
  type: int
store_bytes:
  description: What the store takes of its quota, files on their way in with it.
  returned: success
  type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import Manifest, StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_report import report


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "default": "/var/lib/llamacpp/models"},
            "names": {"type": "list", "elements": "str", "default": []},
            "expected": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    store = Store(module.params["store"])
    try:
        expected = [Manifest.from_dict(item) for item in module.params["expected"]]
        found = report(store, module.params["names"], expected)
    except (StoreError, OSError) as error:
        module.fail_json(msg="store %s: %s" % (store.root, error))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
