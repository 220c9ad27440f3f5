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
    description:
      - Read the header of each quantisation too, and of projectors beside them, as M(llamacpp.cluster.gguf_info) does.
    type: bool
    default: false
  quants:
    description: Quantisations to return; all when it is left out.
    type: list
    elements: str
  folder:
    description: Folder whose model to return instead, under the name of its quantisation, or of the folder.
    type: str
  file:
    description: File whose model to return instead, or a pattern that names its files.
    type: str
  beside:
    description: What to look for beside the model, V(mmproj), V(tokenizer), V(imatrix), or files and patterns.
    type: list
    elements: str
    default: []
  endpoint:
    description: Address of the hub, instead of that in E(HF_ENDPOINT).
    type: str
  memory:
    description:
      - Directory on the control node where the action plugin keeps each answer, without token. When the hub cannot be
        reached, or says that it cannot answer now, what it said to the same question before is returned, with a warning
        that says when that was.
      - A hub that refuses, or does not have the repository, is believed. In check mode nothing is kept.
    type: path
    version_added: 0.3.0
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
endpoint:
  description: Address of the hub, without a password.
  returned: always
  type: str
away:
  description: Whether the hub could not be reached, or broke off; another time it may say more.
  returned: always
  type: bool
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
      description: Names of the files, in order, as they are when pieces (C(.part1of2)) are joined.
      type: list
      elements: str
    sizes:
      description: Bytes of each of them.
      type: list
      elements: int
    bytes:
      description: Bytes of all of them.
      type: int
    sha256:
      description: sha256 of each of them, null where the hub has none, as for what is joined.
      type: list
      elements: str
    parts:
      description: Files of the repository that each of them is made of, more than one for pieces.
      type: list
      elements: list
    urls:
      description: Address of the first part of each of them, at RV(commit).
      type: list
      elements: str
    gguf:
      description: What M(llamacpp.cluster.gguf_info) returns.
      returned: O(headers=true), and the header can be read
      type: dict
    msg:
      description: Why its header cannot be read. When no header can, the module fails.
      returned: O(headers=true), and the header cannot be read
      type: str
beside:
  description: The files of O(beside), the same for all quantisations.
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
      description: sha256 where the hub keeps one, else null.
      type: str
    role:
      description: V(mmproj), V(tokenizer), V(imatrix) or V(other).
      type: str
    gguf:
      description: What M(llamacpp.cluster.gguf_info) returns of a projector.
      returned: O(headers=true) and it could be read
      type: dict
    msg:
      description: Why the header of a projector could not be read.
      returned: O(headers=true) and it could not be read
      type: str
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import (
    ChoiceError,
    Remote,
    Selection,
    Wanted,
    choose,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import RemoteError, shown
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import (
    PREFIX,
    Address,
    HubFile,
    endpoint,
    hub_client,
    hub_commit,
    hub_files,
    is_away,
    quantisation_name,
    quantisations,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import whole_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._model_name import stem
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import read_addresses


class Repository:
    """What a repository has at one commit."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.repo: str = params["repo"]
        self.away = False
        client = hub_client(params["token"], params["timeout"])
        self.commit = hub_commit(self.repo, params["revision"], client)
        self.files = hub_files(self.repo, self.commit, client)

    def selections(self) -> dict[str, Selection]:
        """Return what is asked for, by the name that it has in the result."""
        params, beside = self.params, tuple(self.params["beside"])
        if params["folder"]:
            return {params["folder"]: Selection(folder=params["folder"], beside=beside)}
        if params["file"]:
            return {params["file"]: Selection(file=params["file"], beside=beside)}
        sizes = {item.name: item.size for item in self.files}
        whole = whole_files([item.name for item in self.files])
        joined = [HubFile(name, sum(sizes[part] for part in parts), None) for name, parts in whole.items()]
        names = params["quants"] or list(quantisations(joined))
        # A repository may have one model whose name speaks of no quantisation.
        if not names and any(name.endswith(".gguf") for name in whole):
            return {"": Selection(beside=beside)}
        return {name: Selection(quant=name, beside=beside) for name in names}

    def look(self) -> dict[str, Any]:
        """Return the result of the module."""
        remotes = [Remote(item.name, item.size, item.sha256) for item in self.files]
        found: dict[str, dict[str, Any]] = {}
        beside: list[dict[str, Any]] = []
        for name, selection in self.selections().items():
            wanted = choose(PREFIX + self.repo, remotes, selection)
            own = [item for item in wanted if item.role == "model"]
            beside = [
                {"name": item.parts[0].name, "size": item.size, "sha256": item.sha256, "role": item.role}
                for item in wanted
                if item.role != "model"
            ]
            quant = quantisation_name(own[0].parts[0].name.partition(".part")[0])
            found[quant or name or stem(own[0].name)] = self.describe(own)
        if self.params["headers"]:
            for item in beside:
                item.update(self.header([item["name"]]) if item["role"] == "mmproj" else {})
        if found and all("msg" in item for item in found.values()):
            raise ChoiceError(next(iter(found.values()))["msg"])
        return {
            "commit": self.commit,
            "files": [dict(item._asdict()) for item in self.files],
            "quantisations": found,
            "beside": beside,
            "away": self.away,
        }

    def header(self, names: list[str]) -> dict[str, Any]:
        """Return what the header of a model or a projector says, or why it does not: others can be read without it."""
        urls = [Address(self.repo, name, self.commit).url() for name in names]
        try:
            return {"gguf": read_addresses(urls, self.params["token"], self.params["timeout"]).as_dict()}
        except GgufError as error:
            return {"msg": "%s%s: %s" % (PREFIX, self.repo, error)}
        except RemoteError as error:
            # What is true of the whole repository.
            if is_away(error) or error.status in (401, 403):
                raise
            # It broke off, or sent nonsense.
            self.away = self.away or error.status is None
            return {"msg": str(error)}

    def describe(self, own: list[Wanted]) -> dict[str, Any]:
        """Return one quantisation."""
        parts = [[part.name for part in item.parts] for item in own]
        found: dict[str, Any] = {
            "files": [_whole_name(names) for names in parts],
            "sizes": [item.size for item in own],
            "bytes": sum(item.size for item in own),
            "sha256": [item.sha256 for item in own],
            "parts": parts,
            "urls": [Address(self.repo, names[0], self.commit).url() for names in parts],
        }
        if self.params["headers"]:
            found.update(self.header([name for names in parts for name in names]))
        return found


def _whole_name(parts: list[str]) -> str:
    return next(iter(whole_files(parts)))


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
            "folder": {"type": "str"},
            "file": {"type": "str"},
            "beside": {"type": "list", "elements": "str", "default": []},
            "endpoint": {"type": "str"},
            "memory": {"type": "path"},
        },
        mutually_exclusive=[("quants", "folder", "file")],
        supports_check_mode=True,
    )
    params = module.params
    if params["endpoint"]:
        os.environ["HF_ENDPOINT"] = params["endpoint"]
    place = shown(endpoint())
    repository = None
    try:
        repository = Repository(params)
        found = repository.look()
    except (ChoiceError, OSError) as error:
        away = repository.away if repository else False
        away = away or (isinstance(error, RemoteError) and is_away(error))
        module.fail_json(msg=str(error), endpoint=place, away=away)
    module.exit_json(changed=False, endpoint=place, **found)


if __name__ == "__main__":
    main()
