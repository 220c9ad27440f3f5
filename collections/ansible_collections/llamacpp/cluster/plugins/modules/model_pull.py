#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring a model into a node's store from the peers that have it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_pull
short_description: Bring a model into a node's store from the peers that have it
version_added: 0.4.0
description:
  - Takes the files of O(manifest) from the web servers of O(sources) into the store, from all of them at once, and
    gives them the name of the manifest. M(llamacpp.cluster.fabric_share) starts such servers.
  - A source that dies, is silent, or is slower than 64 KiB/s is left out; the others give the rest. When nobody is
    left the module fails, and the next run goes on where this one ended, also after it was killed.
  - Every file is hashed when it is whole. Wrong bytes are thrown away and fetched again, from one source after the
    other, and who sent them is named. A GGUF file's header is read before the name is given.
  - Without O(sources) the module takes over files that somebody else, such as C(rsync), has brought as
    C(incoming/SHA256.part).
  - Where the name is there already with these files, nothing is read, hashed or changed.
options:
  store:
    description: Directory of the store.
    type: path
    default: /var/lib/llamacpp/models
  manifest:
    description:
      - The model, as M(llamacpp.cluster.model) returns it.
      - Files that its first holder only links to (C(external)) are held by this node.
    type: dict
    required: true
  sources:
    description: The peers that have files of it, for each a dictionary of addresses by sha256.
    type: list
    elements: dict
    default: []
  quota:
    description: Bytes that the store may hold; V(0) for no limit. The least recently used models make room.
    type: int
    default: 0
  keep:
    description: Names of models that do not make room, as those do not that an instance uses.
    type: list
    elements: str
    default: []
  lock_wait:
    description: Seconds to wait for another run that brings the same file.
    type: int
    default: 21600
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Bring the model from two peers
  llamacpp.cluster.model_pull:
    manifest: "{{ __models_fetched.manifest }}"
    sources:
      - 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b: http://10.0.1.11:38211/Zm9vYmFyYmF6/model.gguf
      - 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b: http://10.0.1.12:40123/YmFyYmF6Zm9v/model.gguf
"""

RETURN = r"""
name:
  description: Name of the model.
  returned: always
  type: str
fetched_bytes:
  description: Bytes that came over the network.
  returned: success
  type: int
seconds:
  description: How long it took.
  returned: success
  type: float
evicted:
  description: Models that were removed to make room.
  returned: success
  type: list
  elements: str
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull_model import own, pull_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Manifest, Store, StoreError


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "store": {"type": "path", "default": "/var/lib/llamacpp/models"},
            "manifest": {"type": "dict", "required": True},
            "sources": {"type": "list", "elements": "dict", "default": []},
            "quota": {"type": "int", "default": 0},
            "keep": {"type": "list", "elements": "str", "default": []},
            "lock_wait": {"type": "int", "default": 21600},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    params = module.params
    progress = Progress(params["progress_file"])
    started = time.monotonic()
    name = str(params["manifest"].get("name"))
    try:
        manifest = Manifest.from_dict(params["manifest"])
        store = Store(params["store"])
        if module.check_mode:
            module.exit_json(
                changed=not store.present(own(manifest)), name=name, fetched_bytes=0, seconds=0.0, evicted=[]
            )
        pulled = pull_model(
            store, manifest, params["sources"], params["quota"], params["keep"], params["lock_wait"], progress
        )
    except (StoreError, OSError) as error:
        module.fail_json(msg=str(error), name=name)
    finally:
        progress.close()
    for warning in pulled.warnings:
        module.warn(warning)
    module.exit_json(
        changed=pulled.changed,
        name=name,
        fetched_bytes=pulled.fetched,
        seconds=round(time.monotonic() - started, 3),
        evicted=pulled.evicted,
    )


if __name__ == "__main__":
    main()
