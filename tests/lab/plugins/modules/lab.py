# The task `lab` is an action plugin (../action/lab.py); Ansible looks for its documentation here.
DOCUMENTATION = r"""
module: lab
short_description: Bring a lab of booted nodes up on this machine, or take it down
description:
  - Runs C(tests/lab/labctl.py) on the control node and shows its progress while it works.
options:
  name:
    description: Which lab; C(tests/lab/README.md) lists them. They can be up side by side.
    type: str
    default: lab
  state:
    description: Whether the lab is to be there.
    type: str
    choices: [up, down]
    default: up
  nodes:
    description: Number of nodes, 1 to 200.
    type: int
    default: 3
  suites:
    description: What a node runs where it is not Debian bookworm, such as C({node2&#58; bullseye}).
    type: dict
    default: {}
  owner_pid:
    description: Take the lab down when this process ends.
    type: int
author: [The llamacpp.cluster authors]
"""

EXAMPLES = r"""
- name: Boot four nodes
  lab:
    nodes: 4
    suites:
      node2: bullseye
"""

RETURN = r"""
nodes:
  description: Nodes by name with state, suite and addresses.
  type: dict
  returned: success
inventory:
  description: Path of an inventory of the lab's nodes.
  type: str
  returned: success
"""
