#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Check what is declared and make the plan."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_plan
short_description: Check what is declared and found, and make the plan
version_added: 0.1.0
description:
  - Works out where every instance goes and every flag that it gets, from the declared instances, what
    M(llamacpp.cluster.node_info) found on the nodes, and what M(llamacpp.cluster.gguf_info) read from the models.
  - Chooses what the declaration leaves open or calls V(auto), from the quantisation to the batch size, and says why.
  - When a model fits nowhere, says how much is missing and what would fit, each tried.
  - Runs on the control node and asks no node. The same input gives the same plan.
  - Reports all problems at once, a line each, with the variable, its value and what to write instead.
options:
  release:
    description: Release of llama.cpp.
    type: raw
    required: true
  instances:
    description: The declared instances. Their C(api_keys) are checked and then forgotten.
    type: raw
    required: true
  settings:
    description: Directories, base ports, margins and switches of the cluster.
    type: dict
    default: {}
  inventory_nodes:
    description: Names of all nodes.
    type: list
    elements: str
    required: true
  declared_nodes:
    description: What the inventory says of nodes, by name (C(fabric_address), C(devices), C(cores), and of builds).
    type: dict
    default: {}
  nodes:
    description: What M(llamacpp.cluster.node_info) found, by name. A node that did not answer is left out.
    type: dict
    default: {}
  builders:
    description: Names of the nodes that compile llama.cpp.
    type: list
    elements: str
    default: []
  builder_nodes:
    description: What M(llamacpp.cluster.node_info) found of builders that are not among O(inventory_nodes).
    type: dict
    default: {}
  pinned:
    description: Ids of releases by node that are taken as they are installed there, instead of O(release).
    type: dict
    default: {}
  models:
    description:
      - By instance, what was found of its model. The result of M(llamacpp.cluster.gguf_info), failed ones too.
      - For a model with several quantisations, C(quants), such results by quantisation.
      - For a model from a repository, the result of M(llamacpp.cluster.hub_info) with C(headers).
    type: dict
    default: {}
  static:
    description: Plan from what is declared alone, for nodes that cannot be asked.
    type: bool
    default: false
  check_only:
    description: Only check what is declared; make no plan.
    type: bool
    default: false
  dest:
    description: File to write the plan to, as JSON.
    type: path
extends_documentation_fragment:
  - llamacpp.cluster.attributes
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Make the plan
  llamacpp.cluster.cluster_plan:
    release: b11434
    instances:
      - name: qwen3-14b
        model: {path: /srv/models/qwen3-14b-q4_k_m.gguf}
        nodes: [node1, node2]
        context: 8192
      - name: behemoth
        model: {repo: mradermacher/OR1-Behemoth-GGUF, quant: auto}
        nodes: auto
        context: auto
    inventory_nodes: [node1, node2, node3]
    nodes: "{{ found_nodes }}"
    models: "{{ found_models }}"
    dest: /srv/cluster/plan.json
  delegate_to: localhost
"""

RETURN = r"""
plan:
  description: The plan; C(schema) 4.
  returned: when O(check_only=false)
  type: dict
  contains:
    release:
      description: Release of llama.cpp.
      type: str
    releases:
      description:
        - By id, what each release is made of (C(inputs)), for which C(nodes), by which C(builder) and with which
          C(toolchain). C(addresses) are those by which its nodes can copy it from each other.
      type: dict
    nodes:
      description: C(release), C(devices), C(fabric_address), C(units) and C(firewall) of every node.
      type: dict
    devices:
      description: By node, every device with its C(memory_bytes), the C(uses) of each instance, margin and free bytes.
      type: dict
    store:
      description: C(path) of the store on nodes, and its C(quota) in bytes, 0 for no limit.
      type: dict
    rpc_cache:
      description: C(quota) of the caches of workers in bytes, 0 for no limit.
      type: dict
    models:
      description:
        - By name in the store, the C(files) of each model, where they come from (C(source)), who needs them
          (C(holders)), who computes parts of them (C(workers)), who fetches them (C(fetcher), V(controller) or a
          node), and how they get to the others (C(transport)) and why.
      type: dict
    instances:
      description:
        - Head, workers, devices, layers, bytes, ports and arguments of every instance.
        - C(projector) is that which lies beside the model, or null. Its C(model_bytes) and C(compute_bytes) are part of
          the C(overhead_bytes) of its C(device), V(none) for the head's memory.
        - C(choices) says what was chosen, why, and what was rejected; C(alternatives) are all placements that would
          fit, best first, with a C(cost) to compare them by (lower is better).
      type: list
      elements: dict
"""

import gc
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse import parse
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse_instance import INSTANCE_KEYS
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import Plan, make_plan, plan_json
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError, Problem
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import file_sha256
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Found, Looked
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring


def without_keys(instances: Any) -> Any:
    """Return the instances without their API keys, and without unknown keys: one may be a misspelt secret."""
    if not isinstance(instances, list):
        return []
    shown = set(INSTANCE_KEYS) - {"api_keys"}
    return [{key: item[key] for key in item if key in shown} for item in instances if isinstance(item, dict)]


def read_model(result: dict[str, Any]) -> Looked | str:
    """Return what was found of a model by quantisation, or why there is nothing."""
    if "quantisations" in result:
        return {name: Found.from_hub(result, item) for name, item in result["quantisations"].items()}
    if "quants" in result:
        return {name: Found.from_result(item) for name, item in result["quants"].items()}
    if "gguf" in result:
        return {"": Found.from_result(result)}
    return str(result.get("msg") or "its header was not read")


def with_checksums(nodes: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Return what is declared of nodes with the sha256 of patches on the control node: it names the release."""
    problems: list[Problem] = []
    found = {}
    for name, data in nodes.items():
        patches = data.get("patches")
        if isinstance(patches, list):
            data = dict(data, patches=[_checked(problems, index, item) for index, item in enumerate(patches)])
        found[name] = data
    return found, list({str(problem): problem for problem in problems}.values())


def _checked(problems: list[Problem], index: int, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(patch.get("path"), str):
        return patch
    variable = "llamacpp_patches[%d].%s"
    try:
        sha256 = file_sha256(patch["path"])
    except OSError as error:
        fix = "cannot be read on the control node: %s" % error.strerror
        problems.append(Problem(variable % (index, "path"), patch["path"], fix))
        return patch
    if patch.get("sha256", sha256) != sha256:
        fix = "the file has %s: correct it, or find out who changed the file" % sha256
        problems.append(Problem(variable % (index, "sha256"), patch["sha256"], fix))
    return dict(patch, sha256=sha256)


def plan_or_problems(params: dict[str, Any], declared: Declared) -> tuple[Plan, list[Problem]]:
    """Make the plan; return it, or the problems."""
    nodes = {name: NodeFacts.from_dict(facts) for name, facts in params["nodes"].items()}
    models = {name: read_model(result) for name, result in params["models"].items()}
    try:
        builders = {name: NodeFacts.from_dict(facts) for name, facts in params["builder_nodes"].items()}
        return make_plan(declared, nodes, models, builders), []
    except PlanError as error:
        return {}, error.problems


def main() -> None:
    """Entry point."""
    # The process ends with the plan, and what it makes on the way are many small objects without cycles.
    gc.disable()
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "raw", "required": True},
            "instances": {"type": "raw", "required": True},
            "settings": {"type": "dict", "default": {}},
            "inventory_nodes": {"type": "list", "elements": "str", "required": True},
            "declared_nodes": {"type": "dict", "default": {}},
            "nodes": {"type": "dict", "default": {}},
            "builders": {"type": "list", "elements": "str", "default": []},
            "builder_nodes": {"type": "dict", "default": {}},
            "pinned": {"type": "dict", "default": {}},
            "models": {"type": "dict", "default": {}},
            "static": {"type": "bool", "default": False},
            "check_only": {"type": "bool", "default": False},
            "dest": {"type": "path"},
        },
        # The arguments hold API keys: they are not logged, and not returned either (below).
        no_log=True,
        supports_check_mode=True,
    )
    params = module.params
    declared_nodes, unread = with_checksums(params["declared_nodes"])
    declared, problems = parse(
        params["release"],
        params["instances"],
        params["settings"],
        params["inventory_nodes"],
        declared_nodes,
        params["builders"],
        params["static"],
        params["pinned"],
    )
    problems += unread
    params["instances"] = without_keys(params["instances"])
    plan: Plan = {}
    if not params["check_only"]:
        plan, found = plan_or_problems(params, declared)
        problems += found
    if problems:
        lines = ["%d problem%s with what is declared or found:" % (len(problems), "" if len(problems) == 1 else "s")]
        module.fail_json(msg="\n".join(lines + ["  %s" % problem for problem in problems]))
    if params["check_only"]:
        module.exit_json(changed=False)
    result: dict[str, Any] = {"changed": False}
    if params["dest"]:
        try:
            result = bring(params["dest"], plan_json(plan), module.check_mode)
        except OSError as error:
            module.fail_json(msg="dest = %s: the plan cannot be written: %s" % (params["dest"], error))
    module.exit_json(plan=plan, **result)


if __name__ == "__main__":
    main()
