#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compare what is planned with what llama.cpp says and with what is taken."""

from __future__ import annotations

DOCUMENTATION = r"""
module: memory_ledger
short_description: Compare planned memory with what llama.cpp says and with what is really taken
version_added: 0.1.0
description:
  - Sets prediction, oracle and reality side by side for every device of every instance, and for the heads' own memory.
  - Fails when one of them is off by more than O(margin_mib), with the numbers. A GPU that takes less than planned has
    drifted too; host memory may be less, because pages that nobody has touched are not there.
  - Compares what it is given and asks nobody. Changes nothing.
options:
  plan:
    description: The plan, from M(llamacpp.cluster.cluster_plan).
    type: dict
    required: true
  nodes:
    description: What M(llamacpp.cluster.node_info) found, by name. Its devices tell which GPU is which.
    type: dict
    default: {}
  reality:
    description: The C(memory) of M(llamacpp.cluster.process_memory_info), by name of the node.
    type: dict
    default: {}
  oracle:
    description: The C(devices) of M(llamacpp.cluster.memory_oracle), by name of the instance.
    type: dict
    default: {}
  margin_mib:
    description: How far a figure may be off, in MiB.
    type: int
    default: 256
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.process_memory_info
  - module: llamacpp.cluster.memory_oracle
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Compare plan and reality
  llamacpp.cluster.memory_ledger:
    plan: "{{ preflight_plan.plan }}"
    nodes: {node1: "{{ preflight_node.node }}"}
    reality: {node1: "{{ taken.memory }}"}
  delegate_to: localhost
"""

RETURN = r"""
ledger:
  description: >-
    An entry a device with C(instance), C(node), C(device), C(predicted), C(predicted_buffers), C(oracle), C(reality),
    all in bytes and null where nobody knows, and C(drift) in words.
  returned: success
  type: list
  elements: dict
table:
  description: The same as text, in MiB.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._ledger import drifted, ledger_table, make_ledger


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "plan": {"type": "dict", "required": True},
            "nodes": {"type": "dict", "default": {}},
            "reality": {"type": "dict", "default": {}},
            "oracle": {"type": "dict", "default": {}},
            "margin_mib": {"type": "int", "default": 256},
        },
        supports_check_mode=True,
    )
    params = module.params
    entries = make_ledger(
        params["plan"], params["nodes"], params["reality"], params["oracle"], params["margin_mib"] << 20
    )
    table = ledger_table(entries)
    # The plan and the facts of all nodes are long, and no help to anyone who reads an error.
    for key in ("plan", "nodes", "reality", "oracle"):
        params[key] = {}
    wrong = drifted(entries)
    if wrong:
        lines = ["memory is off by more than %d MiB on %d:" % (params["margin_mib"], len(wrong))]
        advice = "see what else runs there, or plan again with the settings that really run"
        module.fail_json(msg="\n".join([*lines, *("  %s" % line for line in wrong), advice, table]), table=table)
    module.exit_json(changed=False, ledger=[entry.as_dict() for entry in entries], table=table)


if __name__ == "__main__":
    main()
