#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring a model into the store of the machine that runs this."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model
short_description: Bring a model into a store, from a hub, from addresses or from files
version_added: 0.4.0
description:
  - Brings the files of a model into the store of the machine that runs it, verifies them and gives them a name; or
    takes a name away with the files that no other name has.
  - Of a repository of a hub, the commit is found out first and recorded, and every byte is of that commit. A
    quantisation is found by its name, wherever the repository keeps it; files that are split come whole, pieces
    (C(.part1of2)) are joined.
  - Bytes that came stay when it is interrupted, however that happens, and the next run asks for the rest. What is in
    the store already is not fetched again, whatever name it has there.
  - Every file is compared with the sha256 that the hub has of it, or that O(sha256) gives, and the header of every GGUF
    file is read, before anything has the model's name.
  - The action of the same name shows how far it is.
requirements:
  - huggingface_hub 1.8 or newer, for O(repo); M(llamacpp.cluster.python_environment) makes an interpreter that has it
options:
  name:
    description:
      - Name of the model. By default it is made of where it comes from, C(owner/repo/Q4_K_M) or the first file's name
        without its ending.
    type: str
  state:
    description: Whether the model is to be there. V(absent) needs O(name).
    type: str
    choices: [present, absent]
    default: present
  store:
    description: The store's directory.
    type: path
    default: /var/lib/llamacpp/models
  repo:
    description: A repository of the hub, C(owner/name).
    type: str
  revision:
    description: Branch, tag or commit of O(repo); by default V(main). A commit that is in the store is not asked for.
    type: str
  quant:
    description: The quantisation, for example V(Q4_K_M) or V(UD-Q2_K_XL).
    type: str
  folder:
    description: The folder that has the model, and no other one.
    type: str
  file:
    description: The file, or a pattern such as V(*Q4_K_M*.gguf) that means one model.
    type: str
  beside:
    description:
      - What of O(repo) comes along. V(mmproj) is the projector (F16, else the most precise), V(tokenizer) all files of
        the tokenizer and of its chat template, V(imatrix) the importance matrix; anything else is a file or a pattern.
    type: list
    elements: str
    default: []
  urls:
    description: Addresses, V(http) or V(https); several are the files of a split model, or pieces of one file.
    type: list
    elements: str
  paths:
    description: Files of the machine that runs it; several as with O(urls).
    type: list
    elements: path
  external:
    description: Leave O(paths) where they are, and only link there. They have to be there for as long as they are used.
    type: bool
    default: false
  sha256:
    description: The checksum of the model's file, or a dictionary with those of its files, by name.
    type: raw
  token:
    description:
      - Token for the hub. Without it, that of O(token_file); without that, the one of the environment variable
        E(HF_TOKEN), or the one that the hub's command line tool saved on the machine that runs it.
    type: str
  token_file:
    description: A file that has the token.
    type: path
  endpoint:
    description: Address of the hub. By default that of the environment variable E(HF_ENDPOINT), else the public one.
    type: str
  quota:
    description: Bytes that the store may hold; the models that nobody used for longest go. V(0) for no limit.
    type: int
    default: 0
  keep:
    description: Names that do not go for it. Those that an instance uses never go.
    type: list
    elements: str
    default: []
  lock_wait:
    description: Seconds to wait for another run that fetches the same file.
    type: int
    default: 21600
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.python_environment
  - module: llamacpp.cluster.hub_info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Fetch a quantisation with its projector
  llamacpp.cluster.model:
    repo: ggml-org/gemma-3-4b-it-GGUF
    quant: Q4_K_M
    beside: [mmproj]
    token_file: /etc/llamacpp/hub_token
  vars:
    ansible_python_interpreter: /opt/llamacpp/hub/bin/python

- name: Fetch a file whose publisher cut it in two
  llamacpp.cluster.model:
    name: behemoth
    urls:
      - https://models.example.org/behemoth.gguf.part1of2
      - https://models.example.org/behemoth.gguf.part2of2
    sha256: 500a8806e85ee9c83f3ae08420295592451379b4f8cf2d0f41c15dffeb6b81f0

- name: Use a file where it is
  llamacpp.cluster.model:
    paths: [/srv/models/qwen3-14b-q4_k_m.gguf]
    external: true

- name: Remove a model
  llamacpp.cluster.model:
    name: ggml-org/gemma-3-4b-it-GGUF/Q4_K_M
    state: absent
"""

RETURN = r"""
name:
  description: Name of the model.
  returned: success
  type: str
manifest:
  description:
    - What the name stands for, C(files) and C(source) above all. Null in check mode where nobody knows a checksum
      before the bytes are here.
  returned: O(state=present)
  type: dict
file:
  description: The path that C(--model) gets; empty where RV(manifest) is null.
  returned: O(state=present)
  type: str
commit:
  description: The commit of O(repo); empty for other sources.
  returned: O(state=present)
  type: str
fetched_bytes:
  description: Bytes that were fetched; in check mode those that would be.
  returned: O(state=present)
  type: int
freed_bytes:
  description: Bytes that went with the name; in check mode those that would.
  returned: O(state=absent)
  type: int
seconds:
  description: How long it took.
  returned: success
  type: float
evicted:
  description: Names that went to make room; in check mode those that would.
  returned: O(state=present)
  type: list
  elements: str
"""

import os
import time
import traceback

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch import Fetch, Outcome
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import ChoiceError, Selection
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_hub import Hub
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_parts import FetchError
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import endpoint, find_token
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Rejected
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store, StoreError

TOKEN_BYTES = 4096


def token(module: AnsibleModule) -> str | None:
    """Return the token for the hub."""
    path = module.params["token_file"]
    if module.params["token"] or not path:
        found = find_token(module.params["token"])
        module.no_log_values.update([found] if found else [])
        return found
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(TOKEN_BYTES).strip()
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise FetchError("token_file = %s: %s" % (path, (error.strerror or "").lower())) from error
    if not text or not text.isprintable() or " " in text:
        raise FetchError("token_file = %s: it has no token; write the token into it, and nothing else" % path)
    module.no_log_values.add(text)
    return text


def checksums(module: AnsibleModule) -> dict[str, str] | str | None:
    """Return what O(sha256) says."""
    given = module.params["sha256"]
    if given is None or isinstance(given, str):
        return given or None
    if not isinstance(given, dict):
        raise FetchError("sha256: write the checksum, or a dictionary, file: checksum")
    return {str(name): str(text) for name, text in given.items()}


def bring(module: AnsibleModule, fetch: Fetch) -> Outcome:
    """Bring the model from where it is."""
    params = module.params

    def hub() -> Hub:
        try:
            return Hub(params["endpoint"] or endpoint(), token(module))
        except ImportError:
            module.fail_json(msg=missing_required_lib("huggingface_hub"), exception=traceback.format_exc())

    if params["repo"]:
        selection = Selection(params["quant"], params["folder"], params["file"], tuple(params["beside"]))
        return fetch.from_hub(hub, params["repo"], params["revision"], selection, checksums(module), params["name"])
    if params["urls"]:
        return fetch.from_urls(Client(), params["urls"], checksums(module), params["name"])
    paths = [os.path.abspath(path) for path in params["paths"]]
    return fetch.from_paths(paths, checksums(module), params["name"], params["external"])


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "store": {"type": "path", "default": "/var/lib/llamacpp/models"},
            "repo": {"type": "str"},
            "revision": {"type": "str"},
            "quant": {"type": "str"},
            "folder": {"type": "str"},
            "file": {"type": "str"},
            "beside": {"type": "list", "elements": "str", "default": []},
            "urls": {"type": "list", "elements": "str"},
            "paths": {"type": "list", "elements": "path"},
            "external": {"type": "bool", "default": False},
            "sha256": {"type": "raw"},
            "token": {"type": "str", "no_log": True},
            "token_file": {"type": "path", "no_log": False},
            "endpoint": {"type": "str"},
            "quota": {"type": "int", "default": 0},
            "keep": {"type": "list", "elements": "str", "default": []},
            "lock_wait": {"type": "int", "default": 21600},
            "progress_file": {"type": "path"},
        },
        mutually_exclusive=[("repo", "urls", "paths"), ("quant", "folder", "file")],
        required_by={"revision": "repo", "quant": "repo", "folder": "repo", "file": "repo"},
        supports_check_mode=True,
    )
    params = module.params
    present = params["state"] == "present"
    if present and not (params["repo"] or params["urls"] or params["paths"]):
        module.fail_json(msg="state = present: say where the model is with repo, urls or paths")
    if not present and not params["name"]:
        module.fail_json(msg="state = absent: say which model with name")
    progress = Progress(params["progress_file"])
    started = time.monotonic()
    try:
        fetch = Fetch(
            Store(params["store"]),
            progress,
            quota=params["quota"],
            keep=params["keep"],
            patience=params["lock_wait"],
            check=module.check_mode,
        )
        if not present:
            changed, freed = fetch.remove(params["name"])
            module.exit_json(
                changed=changed, name=params["name"], freed_bytes=freed, seconds=round(time.monotonic() - started, 3)
            )
        outcome = bring(module, fetch)
    except (FetchError, ChoiceError, StoreError, Rejected, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    for warning in outcome.warnings:
        module.warn(warning)
    manifest = outcome.manifest
    module.exit_json(
        changed=outcome.changed,
        name=outcome.name,
        manifest=manifest.as_dict() if manifest else None,
        file=fetch.store.path_of(outcome.name, manifest.first.name) if manifest else "",
        commit=outcome.commit,
        fetched_bytes=outcome.fetched,
        evicted=list(outcome.evicted),
        seconds=round(time.monotonic() - started, 3),
    )


if __name__ == "__main__":
    main()
