#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Search a hub for models, and say which of them fit a cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_search
short_description: Search a hub for models, and say which of them fit a cluster
version_added: 0.3.0
description:
  - Asks a hub that speaks as Hugging Face's does for repositories with GGUF files, and lists their quantisations with
    their sizes.
  - With O(cluster), makes a plan for each of up to O(headers) quantisations, as if it were the only instance of the
    cluster, and says what the plan says. Whether a model fits beside what is declared already, only its own plan tells.
  - Of a model, its header alone is read. Nothing is kept.
  - The environment variable E(HF_ENDPOINT) names another hub.
requirements:
  - huggingface_hub
options:
  query:
    description: What the names of the repositories contain. Required when O(author) is left out.
    type: str
  author:
    description: User or organisation that the repositories belong to.
    type: str
  limit:
    description: Repositories at most.
    type: int
    default: 5
  sort:
    description: What the first repositories have most of, or are newest by.
    type: str
    choices: [downloads, likes, last_modified, trending_score, created_at]
    default: downloads
  endpoint:
    description: Address of the hub, instead of the one that E(HF_ENDPOINT) names.
    type: str
  token:
    description:
      - Token for the hub. Without it, that of the environment variable E(HF_TOKEN), or of the file that the hub's
        command line tool writes, C(~/.cache/huggingface/token), is sent to the hub that it is for.
    type: str
  token_file:
    description: File with the token.
    type: path
  timeout:
    description: Seconds that the hub may be silent while a header is read.
    type: int
    default: 30
  cluster:
    description:
      - The cluster, as the arguments O(llamacpp.cluster.cluster_plan#module:release),
        O(llamacpp.cluster.cluster_plan#module:settings), O(llamacpp.cluster.cluster_plan#module:inventory_nodes),
        O(llamacpp.cluster.cluster_plan#module:declared_nodes), O(llamacpp.cluster.cluster_plan#module:nodes),
        O(llamacpp.cluster.cluster_plan#module:builders), O(llamacpp.cluster.cluster_plan#module:builder_nodes) and
        O(llamacpp.cluster.cluster_plan#module:static) of M(llamacpp.cluster.cluster_plan).
      - Without it, no header is read.
    type: dict
  headers:
    description:
      - Quantisations at most whose headers are read, some MiB each.
      - One of each repository in turn, and first the largest that the memory of the cluster could hold.
    type: int
    default: 20
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.hub_info
  - module: llamacpp.cluster.cluster_plan
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Look for models
  llamacpp.cluster.model_search:
    query: qwen3 14b gguf
    limit: 3
  delegate_to: localhost
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  register: found

- name: See which of them fit
  llamacpp.cluster.model_search:
    query: qwen3 14b gguf
    cluster:
      release: b11434
      inventory_nodes: [node1, node2]
      nodes: "{{ found_nodes }}"
      builders: [node1]
  delegate_to: localhost
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
"""

RETURN = r"""
endpoint:
  description: The hub that was asked.
  returned: success
  type: str
problems:
  description: What stands against any plan of O(cluster). No header is read then.
  returned: success
  type: list
  elements: str
repositories:
  description: What was found, in the hub's order.
  returned: success
  type: list
  elements: dict
  contains:
    repo:
      description: The repository, as C(owner/name).
      type: str
    commit:
      description: The commit that its main branch is now.
      type: str
    downloads:
      description: Downloads of the last month, as the hub counts them.
      type: int
    likes:
      description: How many people like it.
      type: int
    updated:
      description: Day of its last change.
      type: str
    gated:
      description: Whether its licence has to be accepted before it can be had.
      type: bool
    error:
      description: Why there are no quantisations.
      type: str
    quantisations:
      description: Complete models, largest first.
      type: list
      elements: dict
      contains:
        name:
          description: Name of the quantisation.
          type: str
        bytes:
          description: Bytes of its files.
          type: int
        files:
          description: Names of its files, in order.
          type: list
          elements: str
        urls:
          description: Their addresses.
          type: list
          elements: str
        sha256:
          description: The sha256 of each of them, null where the hub has none.
          type: list
          elements: str
        verdict:
          description: Whether it fits.
          type: dict
          contains:
            fits:
              description: V(true), V(false), or null when nobody looked or its header cannot be had.
              type: bool
            why:
              description: Why it goes there, or does not fit, or nobody knows.
              type: str
            strategy:
              description: How it is served, as the plan calls it; null when it does not fit.
              type: str
            devices:
              description: Devices that serve it.
              type: list
              elements: str
            context:
              description: Tokens of context for which there is room.
              type: int
            n_ctx_train:
              description: Tokens of context that the model was trained for.
              type: int
"""

import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.llamacpp.cluster.plugins.module_utils import _model_search
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import endpoint as usual_endpoint
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import find_token
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress


def token_of(module: AnsibleModule, endpoint: str) -> str | None:
    """Return the token for a hub. The machine's own is for the hub that the machine uses, and for no other."""
    given = module.params["token"]
    if module.params["token_file"]:
        try:
            with open(module.params["token_file"], encoding="utf-8") as stream:
                given = stream.read(4096).strip()
        except (OSError, ValueError) as error:
            module.fail_json(msg="token_file = %s: it cannot be read: %s" % (module.params["token_file"], error))
    if given:
        module.no_log_values.add(given)
        return str(given)
    return find_token() if endpoint == usual_endpoint() else None


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "query": {"type": "str"},
            "author": {"type": "str"},
            "limit": {"type": "int", "default": 5},
            "sort": {"type": "str", "choices": list(_model_search.SORTS), "default": _model_search.SORTS[0]},
            "endpoint": {"type": "str"},
            "token": {"type": "str", "no_log": True},
            "token_file": {"type": "path", "no_log": False},
            "timeout": {"type": "int", "default": 30},
            "cluster": {"type": "dict"},
            "headers": {"type": "int", "default": 20},
            "progress_file": {"type": "path"},
        },
        required_one_of=[("query", "author")],
        mutually_exclusive=[("token", "token_file")],
        supports_check_mode=True,
    )
    params = module.params
    for name, least in (("limit", 1), ("headers", 0)):
        if params[name] < least:
            module.fail_json(msg="%s = %d: write at least %d" % (name, params[name], least))
    endpoint = (params["endpoint"] or usual_endpoint()).rstrip("/")
    token = token_of(module, endpoint)
    try:
        api = _model_search.hub(endpoint, token)
    except ImportError:
        module.fail_json(msg=missing_required_lib("huggingface_hub"), exception=traceback.format_exc())
    progress = Progress(params["progress_file"])
    problems: list[str] = []
    try:
        found = _model_search.find(
            api, params["query"], params["author"], params["limit"], params["sort"], progress.say
        )
        if params["cluster"] is not None:
            cluster = _model_search.Cluster.from_dict(params["cluster"])
            problems = [str(problem) for problem in cluster.problems()]
            read = _model_search.reader(token, params["timeout"])
            found = _model_search.judge(found, cluster, 0 if problems else params["headers"], read, progress.say)
    except _model_search.SearchError as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(
        changed=False, endpoint=endpoint, problems=problems, repositories=[item.as_dict() for item in found]
    )


if __name__ == "__main__":
    main()
