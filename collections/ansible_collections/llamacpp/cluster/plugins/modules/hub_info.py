#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say what a repository on a hub has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hub_info
short_description: List the GGUF files and quantisations of a repository on a hub
version_added: 0.2.0
description:
  - Asks a hub that speaks as Hugging Face's does which files a repository has, how large they are and what their
    sha256s are, and gathers them as quantisations. Only the list is downloaded, and headers with O(headers=true).
  - The environment variable E(HF_ENDPOINT) names another hub.
options:
  repo:
    description: Repository, as C(owner/name).
    type: str
    required: true
  revision:
    description: Branch, tag or commit.
    type: str
    default: main
  token:
    description:
      - Token for the hub. Without it, that of the environment variable E(HF_TOKEN), or of the file that the hub's
        command line tool writes, C(~/.cache/huggingface/token).
    type: str
  timeout:
    description: Seconds to wait for the hub.
    type: int
    default: 30
  headers:
    description: Read the header of each quantisation too, as M(llamacpp.cluster.gguf_info) does.
    type: bool
    default: false
  quants:
    description: Quantisations to return; all when it is left out.
    type: list
    elements: str
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.gguf_info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: See which quantisations there are
  llamacpp.cluster.hub_info:
    repo: ggml-org/gemma-3-4b-it-GGUF
  register: found
"""

RETURN = r"""
commit:
  description: The commit that the revision is now.
  returned: success
  type: str
files:
  description: All files of the repository, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name with its folders.
      type: str
    size:
      description: Bytes.
      type: int
    sha256:
      description: sha256 where the hub keeps one, which it does for large files, else null.
      type: str
quantisations:
  description: Complete models among the files, by quantisation (V(Q4_K_M)).
  returned: success
  type: dict
  contains:
    files:
      description: Names of the files, in order.
      type: list
      elements: str
    bytes:
      description: Bytes of all of them.
      type: int
    sha256:
      description: sha256 of each of them.
      type: list
      elements: str
    urls:
      description: Addresses of each of them, at RV(commit).
      type: list
      elements: str
    gguf:
      description: What M(llamacpp.cluster.gguf_info) returns.
      returned: O(headers=true)
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import (
    PREFIX,
    Address,
    hub_client,
    hub_commit,
    hub_files,
    quantisations,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import read_model


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "token": {"type": "str", "no_log": True},
            "timeout": {"type": "int", "default": 30},
            "headers": {"type": "bool", "default": False},
            "quants": {"type": "list", "elements": "str"},
        },
        supports_check_mode=True,
    )
    params = module.params
    repo = params["repo"]
    client = hub_client(params["token"], params["timeout"])
    try:
        commit = hub_commit(repo, params["revision"], client)
        files = hub_files(repo, commit, client)
        found = quantisations(files)
        wanted = [name.upper() for name in params["quants"] or found]
        missing = [name for name in wanted if name not in found]
        if missing:
            module.fail_json(
                msg="%s%s: it has no %s; it has %s"
                % (PREFIX, repo, ", ".join(missing), ", ".join(sorted(found)) or "no GGUF model")
            )
        for name in wanted:
            found[name]["urls"] = [Address(repo, item, commit).url() for item in found[name]["files"]]
            if params["headers"]:
                place = "%s%s/%s@%s" % (PREFIX, repo, found[name]["files"][0], commit)
                found[name]["gguf"] = read_model(place, token=params["token"], timeout=params["timeout"]).as_dict()
    except GgufError as error:
        module.fail_json(msg="%s%s: %s" % (PREFIX, repo, error))
    except OSError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        commit=commit,
        files=[dict(item._asdict()) for item in files],
        quantisations={name: found[name] for name in wanted},
    )


if __name__ == "__main__":
    main()
