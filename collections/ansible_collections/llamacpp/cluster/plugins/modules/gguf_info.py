#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read the header of a model."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_info
short_description: Read the header of a GGUF model, from a file or over HTTP
version_added: 0.1.0
description:
  - Reads architecture, shape and tensor sizes from the header, never the weights. Takes a fraction of a second for any
    model, also when it is at an address.
  - Reads all files of a model that is split into C(-00001-of-00003.gguf) and so on, given the first.
  - Fails when the file is missing, truncated, not GGUF, or has another sha256 than O(sha256).
options:
  path:
    description: Model file on the machine where the module runs.
    type: path
  url:
    description: Address of the model file. The server has to support ranges.
    type: str
  sha256:
    description: What the sha256 of the file at O(path) has to be. Of a split model it is that of the first file.
    type: str
  hash_cache:
    description:
      - File that remembers sha256s by path, size, time and inode, so that an unchanged file is read only once.
      - Not written in check mode.
    type: path
  timeout:
    description: Seconds to wait for the server of O(url).
    type: int
    default: 30
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Read the header of a model
  llamacpp.cluster.gguf_info:
    path: /srv/models/qwen3-14b-q4_k_m.gguf
  register: model
"""

RETURN = r"""
gguf:
  description: What the planner has to know of the model.
  returned: success
  type: dict
  contains:
    architecture:
      description: Architecture as llama.cpp calls it.
      type: str
    name:
      description: The name that the file gives itself.
      type: str
    file_type:
      description: Number of the quantisation, or null.
      type: int
    version:
      description: Version of the file format.
      type: int
    n_layers:
      description: Layers, the output not counted.
      type: int
    n_ctx_train:
      description: Tokens of context that it was trained on.
      type: int
    n_embd:
      description: Width of the model.
      type: int
    n_ff:
      description: Width of its feed-forward layers.
      type: int
    n_head:
      description: Attention heads.
      type: int
    n_head_kv:
      description: Key and value heads of each layer; 0 for a layer without attention.
      type: list
      elements: int
    key_length:
      description: Width of a key.
      type: int
    value_length:
      description: Width of a value.
      type: int
    n_vocab:
      description: Tokens in the vocabulary.
      type: int
    n_tensors:
      description: Tensors in all files.
      type: int
    file_bytes:
      description: Bytes of all files.
      type: int
    files:
      description: Names of all files.
      type: list
      elements: str
    tensor_bytes:
      description: Bytes of all tensors.
      type: int
    layer_bytes:
      description: Bytes of each layer.
      type: list
      elements: int
    embed_bytes:
      description: Bytes of the input side, which stays in the head's memory.
      type: int
    output_bytes:
      description: Bytes of the output side; when it is tied, the embedding once more.
      type: int
    chat_template:
      description: Whether the file brings a chat template.
      type: bool
    sha256:
      description: sha256 that was verified, or null.
      type: str
"""

import hashlib
import json
import os
import tempfile
import urllib.error
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import (
    GgufError,
    Header,
    parse_header,
    read_header,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import describe, shard_names

BLOCK = 1 << 20
# A header is a few MiB; this bounds what a server can make us read.
HEADER_LIMIT = 256 << 20


class ModelError(Exception):
    """The model cannot be used; the text says why and what to do."""


class HashCache:
    """Remembers sha256s of files that have not changed since."""

    def __init__(self, path: str | None) -> None:
        self.path = path

    def entries(self) -> dict[str, Any]:
        """Return what is remembered; nothing when the cache is missing or broken."""
        try:
            with open(self.path or "", encoding="utf-8") as stream:
                entries = json.load(stream)
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def sha256(self, path: str, write: bool) -> str:
        """Return the sha256 of a file, from memory when its size, time and inode are the same."""
        real = os.path.realpath(path)
        info = os.stat(real)
        seen = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
        entry = self.entries().get(real)
        if isinstance(entry, dict) and dict(entry, sha256=None) == dict(seen, sha256=None):
            return str(entry["sha256"])
        digest = hashlib.sha256()
        with open(real, "rb") as stream:
            for block in iter(lambda: stream.read(BLOCK), b""):
                digest.update(block)
        if self.path and write:
            self.remember(real, dict(seen, sha256=digest.hexdigest()))
        return digest.hexdigest()

    def remember(self, real: str, entry: dict[str, Any]) -> None:
        """Add an entry; files that are gone are forgotten."""
        entries = {key: value for key, value in self.entries().items() if os.path.exists(key)}
        entries[real] = entry
        directory = os.path.dirname(str(self.path))
        os.makedirs(directory, mode=0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(entries, stream, indent=1, sort_keys=True)
        os.chmod(temporary, 0o644)
        os.rename(temporary, str(self.path))


def fetch_header(url: str, timeout: int) -> Header:
    """Read a header over HTTP and hang up; raises :class:`ModelError` or :class:`GgufError`."""
    try:
        answer = open_url(url, headers={"Range": "bytes=0-%d" % (HEADER_LIMIT - 1)}, timeout=timeout)
    except urllib.error.HTTPError as error:
        raise ModelError("the server says %d %s; correct the address" % (error.code, error.reason)) from error
    except (OSError, ValueError) as error:
        raise ModelError("%s; correct the address, or see that the server can be reached" % error) from error
    with answer:
        total = str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
        if answer.status != 206 or not total.isdigit():
            raise ModelError("the server does not support ranges; download the file and give its path instead")
        return parse_header(answer.read, int(total))


def examine(module: AnsibleModule, place: str) -> dict[str, Any]:
    """Return the facts of the model at ``place``, a path or an address."""
    params = module.params
    directory, name = place.rsplit("/", 1)
    tail = ""
    if params["url"] and "?" in name:
        name, tail = name.split("?", 1)
        tail = "?" + tail
    names = shard_names(name)
    headers = []
    for shard in names:
        where = "%s/%s%s" % (directory, shard, tail)
        try:
            headers.append(fetch_header(where, params["timeout"]) if params["url"] else read_header(where))
        except (GgufError, ModelError) as error:
            if len(names) > 1:
                raise ModelError("%s: %s" % (shard, error)) from error
            raise
    sha256 = None
    if params["sha256"] and params["path"]:
        wanted = params["sha256"].strip().lower()
        sha256 = HashCache(params["hash_cache"]).sha256(place, not module.check_mode)
        if sha256 != wanted:
            raise ModelError(
                "its sha256 is %s, not %s as declared; correct the checksum, or get the file again" % (sha256, wanted)
            )
    return describe(headers, names, sha256).as_dict()


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "url": {"type": "str"},
            "sha256": {"type": "str"},
            "hash_cache": {"type": "path"},
            "timeout": {"type": "int", "default": 30},
        },
        mutually_exclusive=[("path", "url")],
        required_one_of=[("path", "url")],
        supports_check_mode=True,
    )
    place = module.params["url"] or os.path.abspath(module.params["path"])
    try:
        facts = examine(module, place)
    except (GgufError, ModelError, OSError) as error:
        module.fail_json(msg="%s: %s" % (place, error))
    module.exit_json(changed=False, gguf=facts)


if __name__ == "__main__":
    main()
