#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read the header of a model."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_info
short_description: Read the header of a GGUF file, from a disk, a web server or a hub
version_added: 0.1.0
description:
  - Reads what the header says of architecture, shape and tensor sizes, never the weights. Takes a fraction of a second.
  - From a server, no more is fetched than the header and 1 MiB.
  - Reads all files of a model that is split into C(-00001-of-00003.gguf) and so on, given any of them.
  - Describes everything that is GGUF, also adapters, projectors, importance matrices and bare vocabularies.
  - Takes and refuses the same files as llama.cpp b11434. Fails when the file is missing, truncated, not GGUF, broken,
    one of a set that is mixed up, or has another sha256 than O(sha256); the message names the field and the byte.
options:
  path:
    description: Model file on the machine where the module runs; of a split model, any of its files.
    type: path
  url:
    description:
      - Address of the model file; C(http), C(https), or C(hf://owner/repo/file.gguf) with or without C(@revision).
      - A server without ranges is read as far as necessary.
      - The environment variable E(HF_ENDPOINT) names another hub.
    type: str
  urls:
    description:
      - Addresses of all files of a model, or of the pieces (C(.part1of2)) of its file, instead of O(url).
    type: list
    elements: str
  revision:
    description: Branch, tag or commit of an C(hf://) address.
    type: str
  token:
    description:
      - Token for the server of O(url). It is sent to that server alone, and not on to where it redirects.
      - Without it, the hub gets that of the environment variable E(HF_TOKEN), or of the file that its command line
        tool writes, C(~/.cache/huggingface/token).
    type: str
  timeout:
    description: Seconds to wait for the server of O(url).
    type: int
    default: 30
  sha256:
    description: What the sha256 of the file at O(path) has to be. Of a split model it is that of the named file.
    type: str
  hash_cache:
    description:
      - File that remembers sha256s by path, size, time and inode, so that an unchanged file is read only once.
      - Not written in check mode.
    type: path
  tensors:
    description: Return the list of tensors too.
    type: bool
    default: false
  metadata:
    description:
      - V(summary) returns long arrays as their type and length and long strings as their length.
      - V(full) returns them whole; a vocabulary is 10 to 20 MiB.
    type: str
    choices: [summary, full]
    default: summary
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.hub_info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Read the header of a model
  llamacpp.cluster.gguf_info:
    path: /srv/models/qwen3-14b-q4_k_m.gguf
  register: model

- name: Read the header of a model on the hub, at a commit
  llamacpp.cluster.gguf_info:
    url: hf://ggml-org/gemma-3-4b-it-GGUF/gemma-3-4b-it-Q4_K_M.gguf
    revision: 8f8db1a
    tensors: true
"""

RETURN = r"""
gguf:
  description: What the header says.
  returned: success
  type: dict
  contains:
    version:
      description: Version of the file format.
      type: int
    byte_order:
      description: V(little), which is all that llama.cpp reads on the machines that it runs on here.
      type: str
    alignment:
      description: Bytes to which tensors are aligned.
      type: int
    architecture:
      description: Architecture as llama.cpp calls it; empty in a file that names none.
      type: str
    name:
      description: The name that the file gives itself.
      type: str
    file_type:
      description: Quantisation that the file says it has, as llama.cpp calls it (V(Q4_K_M)), or null.
      type: str
    quantisation:
      description: Quantisation that it really has, bytes of each tensor type.
      type: dict
      sample: {"F32": 266240, "Q4_K": 1254096896, "Q6_K": 269025280}
    parameter_count:
      description: Numbers in all tensors.
      type: int
    file_size:
      description: Bytes of all files.
      type: int
    tensor_count:
      description: Tensors in all files.
      type: int
    tensor_bytes:
      description: Bytes of all tensors, without padding.
      type: int
    shards:
      description: The files, in order.
      type: list
      elements: dict
      contains:
        name:
          description: Name without its directory.
          type: str
        size:
          description: Bytes of the file.
          type: int
        tensor_count:
          description: Tensors in it.
          type: int
    metadata:
      description:
        - All keys of the first file.
        - With O(metadata=summary), arrays of more than 4096 numbers, and all of strings, are C(type) and C(length);
          strings of more than 64 KiB are C(length). Infinity and not-a-number are strings.
      type: dict
    hyperparameters:
      description:
        - The keys of the architecture without its name, such as C(block_count) and C(attention.head_count_kv);
          a number, or a list with one for each layer.
        - C(vocab_size) is always there.
      type: dict
      sample: {"block_count": 28, "context_length": 40960, "attention.head_count_kv": 8, "vocab_size": 151936}
    tensor_groups:
      description: Tensors that differ in nothing but their layer.
      type: list
      elements: dict
      contains:
        name:
          description: Name with C(*) for the layer.
          type: str
        layers:
          description: Layers that have it, as first and last of ranges; empty outside of the layers.
          type: list
          elements: list
        shape:
          description: Dimensions, the first one first.
          type: list
          elements: int
        type:
          description: Tensor type.
          type: str
        nbytes:
          description: Bytes of one of them.
          type: int
    chat_template:
      description: Whether the file brings a chat template.
      type: bool
    license:
      description: The licence that the file names, or null.
      type: str
    sha256:
      description: sha256 that was verified, or null.
      type: str
    tensors:
      description: All tensors.
      returned: O(tensors=true)
      type: list
      elements: dict
      contains:
        name:
          description: Name.
          type: str
        shape:
          description: Dimensions, the first one first.
          type: list
          elements: int
        type:
          description: Tensor type.
          type: str
        offset:
          description: Where it begins, in bytes from the start of its file.
          type: int
        nbytes:
          description: Bytes, without padding.
          type: int
        shard:
          description: The file that it is in.
          type: str
servable:
  description: Whether it is a model that llama-server could serve, as far as a header can say.
  returned: success
  type: bool
reason:
  description: Why it is none, or null.
  returned: success
  type: str
fetched_bytes:
  description: Bytes that came over the network.
  returned: success
  type: int
"""

import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._hash_cache import HashCache
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import describe, tensor_list
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import address_headers, read_headers


def verified(module: AnsibleModule, path: str) -> str | None:
    """Return the sha256 of the file if one is wanted; ends the module when it has another."""
    wanted = (module.params["sha256"] or "").strip().lower()
    if not wanted or not module.params["path"]:
        return None
    sha256 = HashCache(module.params["hash_cache"]).sha256(path, not module.check_mode)
    if sha256 != wanted:
        module.fail_json(
            msg="%s: its sha256 is %s, not %s as declared; correct the checksum, or get the file again"
            % (path, sha256, wanted)
        )
    return sha256


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "url": {"type": "str"},
            "urls": {"type": "list", "elements": "str"},
            "revision": {"type": "str"},
            "token": {"type": "str", "no_log": True},
            "timeout": {"type": "int", "default": 30},
            "sha256": {"type": "str"},
            "hash_cache": {"type": "path"},
            "tensors": {"type": "bool", "default": False},
            "metadata": {"type": "str", "choices": ["summary", "full"], "default": "summary"},
        },
        mutually_exclusive=[("path", "url", "urls")],
        required_one_of=[("path", "url", "urls")],
        supports_check_mode=True,
    )
    params = module.params
    whole = params["metadata"] == "full"
    place = params["url"] or (params["urls"] or [""])[0] or os.path.abspath(params["path"])
    try:
        if params["urls"]:
            model = address_headers(params["urls"], params["token"], params["timeout"], whole)
        else:
            model = read_headers(place, params["revision"], params["token"], params["timeout"], whole)
        facts = describe(model.headers, model.names, verified(module, place))
    except GgufError as error:
        module.fail_json(msg="%s: %s" % (place, error))
    except OSError as error:
        module.fail_json(msg="%s: %s" % (place, error) if params["path"] else str(error))
    gguf: dict[str, Any] = facts.as_dict()
    if params["tensors"]:
        gguf["tensors"] = tensor_list(model.headers, model.names)
    reason = facts.servable()
    module.exit_json(changed=False, gguf=gguf, servable=reason is None, reason=reason, fetched_bytes=model.fetched)


if __name__ == "__main__":
    main()
