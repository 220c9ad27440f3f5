#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make a bundle of everything that a run would fetch, or open one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle
short_description: Pack everything that a run would fetch into one archive, or open such an archive
version_added: 0.3.0
description:
  - With O(state=packed), puts O(files) into one archive with a manifest that has the sha256 of each. An archive that
    has these files already is not written again.
  - With O(state=opened), verifies an archive, unpacks it below C(bundles) of O(cache) and puts what it has where other
    modules look for it in the cache. What was unpacked before is not read again.
  - Either is done whole or not at all; one that was interrupted goes on.
  - An archive that is damaged or incomplete is refused with all members that are missing or have other bytes.
options:
  path:
    description: The archive.
    type: path
    required: true
  state:
    description: What to do.
    type: str
    choices: [packed, opened]
    required: true
  cache:
    description: The control node's cache.
    type: path
    required: true
  files:
    description: What goes into the archive (O(state=packed)).
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description: What it is. Each kind has a directory in the archive.
        type: str
        choices: [cuda, model, npm, packages, patch, release, source, ui, wheel]
        required: true
      file:
        description:
          - The file. A directory stands for all files in it, except with V(npm), where it becomes one member.
        type: path
        required: true
      name:
        description: What people call it; the file's name unless set.
        type: str
      folder:
        description: Folder below the directory of its kind.
        type: str
        default: ""
      sha256:
        description: What its sha256 has to be, where that is known.
        type: str
      details:
        description: More for the manifest. C(needed_by) is a list of names that messages about it show.
        type: dict
        default: {}
  about:
    description: What the archive is made for (O(state=packed)). C(for) is shown in messages.
    type: dict
    default: {}
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.package_bundle
  - module: llamacpp.cluster.python_wheels
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Pack a model and the source
  llamacpp.cluster.bundle:
    path: /srv/cluster.bundle.tar
    state: packed
    cache: ~/.cache/llamacpp-cluster
    files:
      - kind: source
        file: ~/.cache/llamacpp-cluster/sources/llama.cpp-pypi-b11434.tar.gz
        details: {release: b11434}
      - kind: model
        file: /srv/models/small.gguf
        folder: 0123456789ab

- name: Open it elsewhere
  llamacpp.cluster.bundle:
    path: /srv/cluster.bundle.tar
    state: opened
    cache: ~/.cache/llamacpp-cluster
  register: bundle_opened
"""

RETURN = r"""
manifest:
  description: What the archive has.
  returned: success
  type: dict
  contains:
    created_at:
      description: When it was made, in UTC.
      type: str
    about:
      description: What it was made for.
      type: dict
    members:
      description: Its files, each with C(path), C(kind), C(name), C(bytes), C(sha256) and C(details).
      type: list
      elements: dict
directory:
  description: Where it is unpacked. Empty with O(state=packed), and in check mode where it is not unpacked yet.
  returned: success
  type: str
bytes:
  description: Bytes of all its files.
  returned: success
  type: int
"""

import os
import tarfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle import (
    DIRECTORIES,
    BundleError,
    Manifest,
    Member,
    member_path,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle_archive import (
    pack,
    pack_directory,
    read_manifest,
    unpack,
    unpacked_directory,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._hash_cache import HashCache
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress


class Packer:
    """Turns the option ``files`` into members."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.module = module
        self.progress = progress
        self.cache: str = module.params["cache"]
        self.hashes = HashCache(os.path.join(self.cache, "sha256.json"))

    def members(self) -> list[tuple[Member, str]]:
        """Return the members, each with its file, ordered by path.

        Raises :class:`BundleError` when one is not there or is not what it should be.
        """
        found: dict[str, tuple[Member, str]] = {}
        for entry in self.module.params["files"]:
            for file in self._files(entry):
                member = self._member(entry, file)
                found[member.path] = (member, file)
        return [found[path] for path in sorted(found)]

    def _files(self, entry: dict[str, Any]) -> list[str]:
        file: str = entry["file"]
        if os.path.isfile(file):
            return [file]
        if not os.path.isdir(file):
            raise BundleError("%s %s: no such file or directory" % (entry["kind"], file))
        if entry["kind"] == "npm":
            return [pack_directory(file, os.path.join(self.cache, "npm.tar"))]
        return [
            path for path in (os.path.join(file, name) for name in sorted(os.listdir(file))) if os.path.isfile(path)
        ]

    def _member(self, entry: dict[str, Any], file: str) -> Member:
        base = os.path.basename(file)
        self.progress.say("reading %s" % base)
        sha256 = self.hashes.sha256(file, not self.module.check_mode)
        wanted = entry["sha256"]
        if wanted and sha256 != wanted.lower():
            raise BundleError("%s: its sha256 is %s, not %s" % (file, sha256, wanted))
        path = member_path(entry["kind"], base, entry["folder"])
        return Member(path, entry["kind"], entry["name"] or base, os.stat(file).st_size, sha256, entry["details"])


def result(manifest: Manifest, directory: str, changed: bool) -> dict[str, Any]:
    """Return what the module returns."""
    return {"changed": changed, "manifest": manifest.as_dict(), "directory": directory, "bytes": manifest.bytes}


def run(module: AnsibleModule, progress: Progress) -> dict[str, Any]:
    """Do it."""
    params = module.params
    if params["state"] == "packed":
        files = Packer(module, progress).members()
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if module.check_mode:
            return result(Manifest(now, params["about"], tuple(member for member, _file in files)), "", True)
        manifest, changed = pack(params["path"], files, params["about"], now, progress.say)
        return result(manifest, "", changed)
    if module.check_mode:
        manifest = read_manifest(params["path"])
        directory = unpacked_directory(manifest, params["cache"])
        there = os.path.isdir(directory)
        return result(manifest, directory if there else "", not there)
    return result(*unpack(params["path"], params["cache"], progress.say))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["packed", "opened"], "required": True},
            "cache": {"type": "path", "required": True},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "kind": {"type": "str", "choices": sorted(DIRECTORIES), "required": True},
                    "file": {"type": "path", "required": True},
                    "name": {"type": "str"},
                    "folder": {"type": "str", "default": ""},
                    "sha256": {"type": "str"},
                    "details": {"type": "dict", "default": {}},
                },
            },
            "about": {"type": "dict", "default": {}},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    progress = Progress(module.params["progress_file"])
    try:
        answer = run(module, progress)
    except (BundleError, tarfile.TarError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
