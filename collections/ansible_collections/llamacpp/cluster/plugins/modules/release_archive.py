#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Take an archive of built binaries of llama.cpp as a release."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_archive
short_description: Take built binaries of llama.cpp as a release
version_added: 0.3.0
description:
  - Brings a tar or zip archive with binaries of llama.cpp for Linux into the layout of a release and packs it
    in the cache, as if it had been built. Runs on the control node, and runs nothing of the archive.
  - An archive that this collection packed keeps its layout and what its manifest says; every file is compared with it.
  - Of any other archive the directory of C(llama-server) becomes C(bin/), with shared libraries and the RPC server
    from other directories beside it. Run paths (RUNPATH) that do not lead to the file's own directory are changed to.
    This is how the archives that llama.cpp itself publishes look already.
  - Refuses archives without C(llama-server), or without C(ggml-rpc-server) or C(rpc-server).
  - The same archive gives the same bytes. Two runs at once wait for each other.
  - The action of the same name shows how far it is.
options:
  path:
    description: Archive on the control node.
    type: path
  url:
    description: Address of the archive, V(http) or V(https).
    type: str
  sha256:
    description: sha256 of the archive.
    type: str
    required: true
  id:
    description: Identity of the release, from the plan.
    type: str
    required: true
  inputs:
    description:
      - Inputs for the manifest. Unless set, those of the own manifest, or what can be seen in the archive.
      - With a build C(bN) as C(release) or a C(platform.machine) in it, an archive of another one is refused.
    type: dict
  cache:
    description: Directory for releases.
    type: path
    required: true
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Take what llama.cpp publishes
  llamacpp.cluster.release_archive:
    url: https://github.com/ggml-org/llama.cpp/releases/download/b11434/llama-b11434-bin-ubuntu-x64.tar.gz
    sha256: 4f1f0c5b6e7d8c9ba0b1c2d3e4f5061728394a5b6c7d8e9fa0b1c2d3e4f50617
    id: b11434-cpu-1a2b3c4d
    cache: ~/.cache/llamacpp-cluster/releases
  delegate_to: localhost
"""

RETURN = r"""
archive:
  description: The packed release on the control node.
  returned: always
  type: str
sha256:
  description: Its sha256. Empty in check mode when it is not in the cache yet.
  returned: always
  type: str
manifest:
  description: The manifest of the release, without its C(files). Empty in check mode when it is not in the cache yet.
  returned: always
  type: dict
"""

import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _imported
from ansible_collections.llamacpp.cluster.plugins.module_utils._archive import pack, read_member, unpack
from ansible_collections.llamacpp.cluster.plugins.module_utils._download import download
from ansible_collections.llamacpp.cluster.plugins.module_utils._keep import keep, scratch
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    MANIFEST,
    ReleaseError,
    build_number,
    file_sha256,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._runpath import machine_of


class Import:
    """One archive that becomes a release."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.params = module.params
        self.check_mode: bool = module.check_mode
        self.progress = progress
        self.place: str = self.params["path"] or self.params["url"]
        self.wanted: str = self.params["sha256"].lower()
        self.archive = os.path.join(self.params["cache"], self.params["id"] + ".tar.gz")
        self.stamp = self.archive + ".sha256"

    def cached(self) -> bool:
        """Whether the release is in the cache; the stamp is written last."""
        return os.path.exists(self.stamp) and os.path.exists(self.archive)

    def run(self) -> bool:
        """Import unless it is in the cache; return whether it was (or would be) imported."""
        if self.cached():
            return False
        path = self.params["path"]
        if path and not os.path.isfile(path):
            raise ReleaseError("llamacpp_source.path = %s: no such file on the control node" % path)
        if self.check_mode:
            if path:
                self.verify(file_sha256(path))
            return True
        with scratch(self.params["cache"], self.progress) as work:
            if self.cached():
                return False  # another run brought it while this one waited
            self.bring(path or self.download(work), work)
        return True

    def download(self, work: str) -> str:
        """Download the archive; return where it is."""
        into = os.path.join(work, "archive")
        try:
            self.verify(download(self.params["url"], into, self.progress, self.params["id"]))
        except OSError as error:
            raise ReleaseError("llamacpp_source.url = %s" % error) from error
        return into

    def verify(self, found: str) -> None:
        """Compare a checksum with the declared one."""
        if found != self.wanted:
            raise ReleaseError(
                "llamacpp_source.sha256 = %s, but %s has %s: correct the checksum, or find out who changed the archive"
                % (self.wanted, self.place, found)
            )

    def bring(self, source: str, work: str) -> None:
        """Unpack, lay out, describe and pack."""
        tree, stage, packed = (os.path.join(work, name) for name in ("tree", "stage", "packed"))
        os.mkdir(tree)
        if source == self.params["path"]:
            self.progress.say("checking sha256 of %s" % source, now=True)
            self.verify(file_sha256(source))
        self.progress.say("unpacking %s" % os.path.basename(self.place), now=True)
        newest = unpack(source, tree, self.place, self.progress.say)
        build = _imported.build_in_name([*os.listdir(tree), os.path.basename(self.place)])
        own = _imported.own_root(tree)
        if own:
            stage, known = own, _imported.own_manifest(own, self.place)
            inputs = self.params["inputs"] or known["inputs"]
            build = str(known["inputs"].get("release", ""))
        else:
            known = {"rpc_server": _imported.lay_out(tree, stage, self.place)}
            binaries = os.path.join(stage, "bin")
            inputs = self.params["inputs"] or _imported.foreign_inputs(binaries, build or "unknown", self.wanted)
        self.compare(inputs, build, os.path.join(stage, "bin", _imported.SERVER))
        manifest = _imported.new_manifest(stage, known, self.params["id"], inputs, newest, self.place)
        manifest["origin"] = {"name": os.path.basename(self.place), "sha256": self.wanted}
        with open(os.path.join(stage, MANIFEST), "w", encoding="utf-8") as stream:
            json.dump(manifest, stream, indent=2, sort_keys=True)
            stream.write("\n")
        os.utime(os.path.join(stage, MANIFEST), (newest, newest))
        self.progress.say("packing %s" % self.params["id"], now=True)
        pack(stage, packed, MANIFEST)
        with open(packed + ".sha256", "w", encoding="ascii") as stream:
            stream.write(file_sha256(packed) + "\n")
        keep(packed, self.archive)
        keep(packed + ".sha256", self.stamp)

    def compare(self, inputs: dict[str, Any], build: str, server: str) -> None:
        """Refuse an archive that is another build, or for another CPU, than what was declared."""
        declared = str(inputs.get("release", ""))
        if build_number(declared) and build_number(build) and declared != build:
            raise ReleaseError(
                "llamacpp_release = %s, but %s is %s: correct one of them" % (declared, self.place, build)
            )
        machine = (inputs.get("platform") or {}).get("machine")
        if machine and machine != machine_of(server):
            raise ReleaseError(
                "%s is for %s, and the nodes are %s: take the archive for %s"
                % (self.place, machine_of(server), machine, machine)
            )

    def manifest(self) -> dict[str, Any]:
        """Return the manifest in the cache. Refuse one that came from another archive."""
        manifest = json.loads(read_member(self.archive, MANIFEST))
        origin = manifest.get("origin", {}).get("sha256")
        if origin != self.wanted:
            raise ReleaseError(
                "the cache has a release %s already, which came from %s: give this one another id, or remove %s"
                % (self.params["id"], "the archive with sha256 %s" % origin if origin else "a build", self.archive)
            )
        return dict(manifest)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "url": {"type": "str"},
            "sha256": {"type": "str", "required": True},
            "id": {"type": "str", "required": True},
            "inputs": {"type": "dict"},
            "cache": {"type": "path", "required": True},
            "progress_file": {"type": "path"},
        },
        mutually_exclusive=[("path", "url")],
        required_one_of=[("path", "url")],
        supports_check_mode=True,
    )
    progress = Progress(module.params["progress_file"])
    archive = Import(module, progress)
    sha256, manifest = "", {}
    try:
        changed = archive.run()
        if archive.cached():
            manifest, sha256 = archive.manifest(), file_sha256(archive.archive)
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    shown = {key: value for key, value in manifest.items() if key != "files"}
    module.exit_json(changed=changed, archive=archive.archive, sha256=sha256, manifest=shown)


if __name__ == "__main__":
    main()
