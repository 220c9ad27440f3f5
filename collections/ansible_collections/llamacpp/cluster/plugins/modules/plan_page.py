#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write the plan as a page to look at."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan_page
short_description: Write the plan as a page to look at
version_added: 0.1.0
description:
  - Writes one HTML file with the memory of every device drawn and written, the placement of every instance,
    the reasons for it and what was rejected, settings and command lines.
  - The file needs nothing else. It loads nothing from anywhere, can be mailed and printed, and can be read without
    scripts, in light and dark.
  - The same plan gives the same file.
options:
  plan:
    description: The plan, as M(llamacpp.cluster.cluster_plan) returns it.
    type: dict
  src:
    description: File that the plan was written to, as JSON.
    type: path
  dest:
    description: File to write.
    type: path
    required: true
  addresses:
    description: How people reach each node, by name. The name itself where it is missing.
    type: dict
    default: {}
extends_documentation_fragment:
  - llamacpp.cluster.attributes
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Show the plan that was kept
  llamacpp.cluster.plan_page:
    src: /srv/cluster/plan.json
    dest: /srv/cluster/plan.html
  delegate_to: localhost
"""

RETURN = r"""
dest:
  description: The file.
  returned: success
  type: str
size:
  description: Its bytes.
  returned: success
  type: int
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._page import PageError, plan_page
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring


def load(module: AnsibleModule) -> dict[str, Any]:
    """Return the plan."""
    if module.params["plan"] is not None:
        return dict(module.params["plan"])
    src = module.params["src"]
    try:
        with open(src, encoding="utf-8") as stream:
            plan = json.load(stream)
    except (OSError, ValueError) as error:
        module.fail_json(msg="src = %s: the plan cannot be read: %s" % (src, error))
    if not isinstance(plan, dict):
        module.fail_json(msg="src = %s: this is JSON, but no plan" % src)
    return plan


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "plan": {"type": "dict"},
            "src": {"type": "path"},
            "dest": {"type": "path", "required": True},
            "addresses": {"type": "dict", "default": {}},
        },
        mutually_exclusive=[("plan", "src")],
        required_one_of=[("plan", "src")],
        supports_check_mode=True,
    )
    try:
        page = plan_page(load(module), module.params["addresses"])
    except PageError as error:
        module.fail_json(msg=str(error))
    try:
        result = bring(module.params["dest"], page, module.check_mode)
    except OSError as error:
        module.fail_json(msg="dest = %s: the page cannot be written: %s" % (module.params["dest"], error))
    if not module._diff:
        # Thousands of lines that a task may have switched off.
        result.pop("diff", None)
    module.exit_json(dest=module.params["dest"], size=len(page.encode()), **result)


if __name__ == "__main__":
    main()
