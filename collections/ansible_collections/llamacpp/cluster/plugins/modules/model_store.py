#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Look after a node's store of models: read everything again, keep it within a quota, remove leftovers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_store
short_description: Scrub, prune, sweep or note the use of a node's store of models
version_added: 0.4.0
description:
  - V(scrubbed) reads all bytes of models again and compares them with their sha256. A file with other bytes goes to
    C(quarantine/) in the store with all its links, so that no service loads it; its models are incomplete until
    M(llamacpp.cluster.model) or M(llamacpp.cluster.model_pull) brings them again. What it found, also what is missing,
    is returned and is no failure.
  - V(pruned) removes models until the store is within O(quota), those first that were wanted longest ago, and never one
    of O(keep), one that a unit names or one that a process runs with. When that is not enough it fails and removes
    none. Without a quota there is nothing to remove.
  - V(swept) removes what killed runs have left and nobody goes on with. These are files on their way in after a week,
    files without a name after a day, and links without a model. Of C(quarantine/) it removes what is a month old.
  - V(noted) remembers that O(names) are wanted, so that they are removed after those that were wanted longer ago. To
    bring a model notes it as well; this is for runs that have nothing to bring. What was noted within a day is left.
  - In check mode says what would happen. To scrub reads everything then, too.
  - The action of the same name shows the progress.
options:
  state:
    description: What to do.
    type: str
    choices: [scrubbed, pruned, swept, noted]
    required: true
  store:
    description: Directory of the store.
    type: path
    default: /var/lib/llamacpp/models
  names:
    description:
      - Models to scrub; all of them, and files without a name, when it is empty.
      - Models to note; those that the store does not have are passed over.
    type: list
    elements: str
    default: []
  quota:
    description: Bytes that the store may take; V(0) means no limit. For O(state=pruned).
    type: int
    default: 0
  keep:
    description: Models that stay in any case, for example those of the plan. For O(state=pruned).
    type: list
    elements: str
    default: []
  lock_wait:
    description: Seconds to wait for another run that changes names or files of this store.
    type: int
    default: 600
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.model
  - module: llamacpp.cluster.model_info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Read all models again
  llamacpp.cluster.model_store:
    state: scrubbed
  register: scrub

- name: Keep the store within its quota
  llamacpp.cluster.model_store:
    state: pruned
    quota: "{{ '500 GiB' | llamacpp.cluster.quota_bytes }}"
    keep: "{{ llamacpp_plan.models | list }}"
"""

RETURN = r"""
findings:
  description: What is wrong; empty unless O(state=scrubbed).
  returned: success
  type: list
  elements: dict
  contains:
    names:
      description: Models that have the file.
      type: list
      elements: str
    file:
      description: Its name; empty when the manifest of the model is broken.
      type: str
    sha256:
      description: The sha256 that it should have.
      type: str
    problem:
      description: What is wrong with it.
      type: str
      sample: it is gone
    moved_to:
      description: Where its bytes are now; empty when they stayed, or are gone.
      type: str
evicted:
  description: Models that were removed, or would be in check mode; empty unless O(state=pruned).
  returned: success
  type: list
  elements: str
removed:
  description: Paths in the store that were removed, or would be in check mode; empty unless O(state=swept).
  returned: success
  type: list
  elements: str
noted:
  description: Models whose use was noted, or would be in check mode; empty unless O(state=noted).
  returned: success
  type: list
  elements: str
freed_bytes:
  description: How many bytes O(state=pruned) or O(state=swept) freed, or would.
  returned: success
  type: int
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store


def look_after(store: Store, module: AnsibleModule, progress: Progress) -> dict[str, Any]:
    """Do what is asked; return what was found or removed, and whether that changed anything."""
    result: dict[str, Any] = {"findings": [], "evicted": [], "removed": [], "noted": [], "freed_bytes": 0}
    check = module.check_mode
    if module.params["state"] == "scrubbed":
        findings = store.scrub(module.params["names"], progress, check)
        changed = any(finding.taken_away for finding in findings)
        return dict(result, changed=changed, findings=[finding.as_dict() for finding in findings])
    if module.params["state"] == "pruned":
        before = store.space().stored
        evicted = store.room(0, module.params["quota"], module.params["keep"], check)
        freed = store.own_bytes(evicted) if check else before - store.space().stored
        return dict(result, changed=bool(evicted or freed), evicted=evicted, freed_bytes=freed)
    if module.params["state"] == "noted":
        noted = store.note_still_used(module.params["names"], check)
        return dict(result, changed=bool(noted), noted=noted)
    swept = store.sweep(check)
    return dict(result, changed=bool(swept.removed), removed=swept.removed, freed_bytes=swept.bytes)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["scrubbed", "pruned", "swept", "noted"], "required": True},
            "store": {"type": "path", "default": "/var/lib/llamacpp/models"},
            "names": {"type": "list", "elements": "str", "default": []},
            "quota": {"type": "int", "default": 0},
            "keep": {"type": "list", "elements": "str", "default": []},
            "lock_wait": {"type": "int", "default": 600},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    if module.params["quota"] < 0:
        module.fail_json(msg="quota = %d: write 0 or more" % module.params["quota"])
    store = Store(module.params["store"])
    store.patience = module.params["lock_wait"]
    progress = Progress(module.params["progress_file"])
    try:
        result = look_after(store, module, progress)
    except (StoreError, OSError) as error:
        module.fail_json(msg="store %s: %s" % (store.root, error))
    finally:
        progress.close()
    module.exit_json(**result)


if __name__ == "__main__":
    main()
