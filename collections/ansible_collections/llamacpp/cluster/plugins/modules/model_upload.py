#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring a model from the control node's store into the store of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_upload
short_description: Bring a model from the control node into the store of a node
version_added: 0.4.0
description:
  - Sends the files of a model that the node lacks from a store on the control node, through Ansible's own connection,
    so that it works wherever Ansible does.
  - Bytes that came stay when it is interrupted, and the next run sends the rest. Two runs at once send one file
    together.
  - What came is compared with its sha256, and the header of a GGUF file is read, before it has the model's name.
  - Room is made before the first byte is sent.
options:
  manifest:
    description: The model, RV(llamacpp.cluster.model#module:manifest) of the control node.
    type: dict
    required: true
  source:
    description: The store on the control node that has the files. Handled by the action plugin.
    type: path
    required: true
  store:
    description: The store on the node.
    type: path
    default: /var/lib/llamacpp/models
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
    description: Seconds to wait for another run that brings the same file.
    type: int
    default: 21600
  login:
    description: Set by the action plugin. Who sends the bytes; with it, the module only prepares for them.
    type: str
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.model
  - module: llamacpp.cluster.model_pull
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Fetch the model to the control node
  llamacpp.cluster.model:
    repo: ggml-org/gemma-3-4b-it-GGUF
    quant: Q4_K_M
    store: ~/.cache/llamacpp-cluster/models
  delegate_to: localhost
  become: false
  register: __fetched

- name: Bring it to the node
  llamacpp.cluster.model_upload:
    manifest: "{{ __fetched.manifest }}"
    source: ~/.cache/llamacpp-cluster/models
"""

RETURN = r"""
lacking:
  description: Files that the node lacked, each C(name), C(sha256), C(bytes) and C(path), where its bytes go.
  returned: success
  type: list
  elements: dict
evicted:
  description: Names that went to make room; in check mode those that would.
  returned: success
  type: list
  elements: str
"""

import os
import pwd
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import File, Manifest
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store, StoreError

# Behind the name of a part, so that a sweep of the store knows whose it is.
SUFFIX = ".upload"


class Upload:
    """One model on its way from the control node."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.params = module.params
        self.progress = progress
        self.store = Store(module.params["store"])
        self.manifest = Manifest.from_dict(module.params["manifest"])

    def place(self, file: File) -> str:
        """Return where the bytes of a file go."""
        return self.store.part(file.sha256) + SUFFIX

    def lacking(self) -> list[File]:
        """Return the files that the node lacks, each once."""
        return list({file.sha256: file for file in self.store.lacking(self.manifest, self.progress)}.values())

    def look(self) -> dict[str, Any]:
        """Say what would have to come."""
        self.store.claim(self.manifest)
        absent = list({file.sha256: file for file in self.store.missing(self.manifest)}.values())
        evicted = self.store.room(sum(file.bytes for file in absent), self.params["quota"], self.keep(), check=True)
        return self.answer(absent, evicted, not self.store.present(self.manifest))

    def prepare(self) -> dict[str, Any]:
        """Make room, and files that the login user may write to."""
        absent = self.lacking()
        there = sum(os.stat(self.place(file)).st_size for file in absent if os.path.isfile(self.place(file)))
        needed = sum(file.bytes for file in absent) - there
        evicted = self.store.room(max(needed, 0), self.params["quota"], self.keep())
        owner = pwd.getpwnam(self.params["login"])
        for file in absent:
            with self.store.transfer_lock(file.sha256, self.holder, self.params["lock_wait"], self.progress.say):
                descriptor = os.open(self.place(file), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                try:
                    os.fchown(descriptor, owner.pw_uid, owner.pw_gid)
                finally:
                    os.close(descriptor)
        return self.answer(absent, evicted, bool(evicted))

    def finish(self) -> dict[str, Any]:
        """Verify what came, and give the model its name."""
        absent = self.lacking()
        for file in absent:
            with self.store.transfer_lock(file.sha256, self.holder, self.params["lock_wait"], self.progress.say):
                # Another run may have brought it while this one waited.
                if not self.store.trusted(file):
                    if not os.path.exists(self.place(file)):
                        raise StoreError("%s: another run found that what was sent is wrong; run again" % file.name)
                    os.rename(self.place(file), self.store.part(file.sha256))
                    self.store.admit(self.store.part(file.sha256), file, self.progress, "the control node")
        return self.answer(absent, [], self.store.name(self.manifest))

    @property
    def holder(self) -> str:
        """Return what others who wait are told."""
        return "a run that uploads %s" % self.manifest.name

    def keep(self) -> list[str]:
        """Return the names that do not go."""
        return [*self.params["keep"], self.manifest.name]

    def answer(self, absent: list[File], evicted: list[str], changed: bool) -> dict[str, Any]:
        """Return the result of a step."""
        lacking = [
            {"name": file.name, "sha256": file.sha256, "bytes": file.bytes, "path": self.place(file)} for file in absent
        ]
        return {"changed": changed, "lacking": lacking, "evicted": evicted}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "manifest": {"type": "dict", "required": True},
            "source": {"type": "path", "required": True},
            "store": {"type": "path", "default": "/var/lib/llamacpp/models"},
            "quota": {"type": "int", "default": 0},
            "keep": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "lock_wait": {"type": "int", "default": 21600},
            "login": {"type": "str"},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    progress = Progress(module.params["progress_file"])
    try:
        upload = Upload(module, progress)
        if module.check_mode:
            found = upload.look()
        elif module.params["login"]:
            found = upload.prepare()
        else:
            found = upload.finish()
    except (StoreError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(**found)


if __name__ == "__main__":
    main()
