#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Remove releases that nobody needs any more."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_prune
short_description: Remove old releases of llama.cpp, never one in use
version_added: 0.1.0
description:
  - Removes releases from a node until O(keep) are left besides those that stay in any case. These are the current one
    and the previous one, those in O(protect), and those that a unit names or a process runs.
  - The newest stay, by the time of their installation. What is left of a broken installation goes first.
  - In check mode says what would go.
options:
  prefix:
    description: Directory that holds C(releases/).
    type: path
    default: /opt/llamacpp
  keep:
    description: How many releases stay that nobody uses.
    type: int
    default: 2
  protect:
    description: Ids that stay in any case, for example those of the plan.
    type: list
    elements: str
    default: []
  lock_wait:
    description: Seconds to wait for another run that changes the releases of this node.
    type: int
    default: 600
extends_documentation_fragment:
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Remove old releases
  llamacpp.cluster.release_prune:
    keep: 2
    protect: ["{{ llamacpp_plan.nodes[inventory_hostname].release }}"]
"""

RETURN = r"""
removed:
  description: Ids that were removed, or would be in check mode, oldest first.
  returned: success
  type: list
  elements: str
kept:
  description: Why each of the others stays, by id.
  returned: success
  type: dict
  sample: {b11434-cpu-1a2b3c4d: current}
freed_bytes:
  description: How many bytes that frees.
  returned: success
  type: int
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._installed import Releases, to_prune, total_own_bytes
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError


def choose(releases: Releases, keep: int, protect: list[str]) -> tuple[list[str], dict[str, str]]:
    """Choose what goes, by what is there now."""
    users = releases.users()
    return to_prune([releases.describe(name, users.get(name, [])) for name in releases.ids()], keep, protect)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "prefix": {"type": "path", "default": "/opt/llamacpp"},
            "keep": {"type": "int", "default": 2},
            "protect": {"type": "list", "elements": "str", "default": []},
            "lock_wait": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    keep, protect = module.params["keep"], module.params["protect"]
    if keep < 0:
        module.fail_json(msg="keep = %d: write 0 or more" % keep)
    releases = Releases(module.params["prefix"])
    try:
        doomed, kept = choose(releases, keep, protect)
        freed = total_own_bytes([releases.path(name) for name in doomed])
        if doomed and not module.check_mode:
            with releases.lock("the removal of old releases", module.params["lock_wait"], module.debug):
                releases.sweep()
                # Whoever held the lock may have made one of them current.
                doomed, kept = choose(releases, keep, protect)
                freed = total_own_bytes([releases.path(name) for name in doomed])
                for name in doomed:
                    releases.remove(name)
    except (ReleaseError, OSError) as error:
        module.fail_json(msg="releases in %s: %s" % (releases.directory, error))
    module.exit_json(changed=bool(doomed), removed=doomed, kept=kept, freed_bytes=freed)


if __name__ == "__main__":
    main()
