#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Install one immutable release of llama.cpp on a node, or remove it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_release
short_description: Install or remove one immutable release of llama.cpp
version_added: 0.1.0
description:
  - Unpacks the archive of a release beside its place, compares every file with the release's manifest,
    runs the binaries once, and only then renames the directory into place and points C(current) to it.
  - A release that is installed and complete is left alone.
options:
  id:
    description: Identity of the release, for example V(b11434-cpu-1a2b3c4d).
    type: str
    required: true
  archive:
    description: Archive on the node that M(llamacpp.cluster.llama_build) made. Removed after a successful install.
    type: path
  sha256:
    description: sha256 of O(archive).
    type: str
  prefix:
    description: Directory that holds C(releases/) and C(current).
    type: path
    default: /opt/llamacpp
  state:
    description: Whether the release shall be there.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Install the release
  llamacpp.cluster.llama_release:
    id: b11434-cpu-1a2b3c4d
    archive: /opt/llamacpp/incoming/b11434-cpu-1a2b3c4d.tar.gz
    sha256: "{{ __llama_cpp_archive_sha256 }}"
"""

RETURN = r"""
path:
  description: Directory of the release.
  returned: always
  type: str
version:
  description: What C(llama-server --version) says, first line. Empty when nothing was installed.
  returned: always
  type: str
"""

import json
import os
import shutil
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    MANIFEST,
    ReleaseError,
    complete,
    describe_tree,
    differences,
    file_sha256,
    rpc_server_name,
)


def run_binaries(module: AnsibleModule, root: str, built_on: str) -> str:
    """Run the binaries of a release; return the server's version line.

    Raises :class:`ReleaseError` when one does not start, with the loader's own words.
    """
    binaries = os.path.join(root, "bin")
    worker = rpc_server_name(os.listdir(binaries))
    for name, argument in (("llama-server", "--version"), (worker, "--help")):
        rc, out, err = module.run_command([os.path.join(binaries, name), argument])
        if rc != 0:
            raise ReleaseError(
                "%s from a release built on %s does not run here: %s; a release runs on the system "
                "that built it and on newer ones, so put the oldest node into llamacpp_builders"
                % (name, built_on, (err.strip() or out.strip())[-500:])
            )
        if name == "llama-server":
            version = (out.strip() or err.strip()).splitlines()[0]
    return version


def unpack(archive: str, into: str) -> None:
    """Unpack a release's archive; refuse members that would land elsewhere.

    Raises :class:`ReleaseError` for a broken archive.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                target = os.path.normpath(os.path.join(into, member.name))
                if not (target + os.sep).startswith(into + os.sep):
                    raise ReleaseError("%s: member %s leaves the directory" % (archive, member.name))
                if member.issym() and (os.path.isabs(member.linkname) or ".." in member.linkname.split("/")):
                    raise ReleaseError("%s: link %s leaves the directory" % (archive, member.name))
            tar.extractall(into)
    except (tarfile.TarError, EOFError) as error:
        raise ReleaseError("%s is not a whole archive: %s" % (archive, error)) from error


def install(module: AnsibleModule, releases: str, target: str) -> str:
    """Unpack, verify, try and rename; return the version line."""
    params = module.params
    if not params["archive"] or not os.path.isfile(params["archive"]):
        raise ReleaseError("release %s is not installed and its archive is not there" % params["id"])
    found = file_sha256(params["archive"])
    if params["sha256"] and found != params["sha256"]:
        raise ReleaseError("%s has sha256 %s instead of %s" % (params["archive"], found, params["sha256"]))
    os.makedirs(releases, mode=0o755, exist_ok=True)
    work = tempfile.mkdtemp(prefix=".%s." % params["id"], dir=releases)
    try:
        unpack(params["archive"], work)
        with open(os.path.join(work, MANIFEST), encoding="utf-8") as stream:
            manifest = json.load(stream)
        wrong = differences(manifest["files"], describe_tree(work))
        if wrong:
            raise ReleaseError("release %s does not match its manifest: %s" % (params["id"], "; ".join(wrong[:5])))
        version = run_binaries(module, work, manifest["inputs"]["platform"]["os"])
        os.chmod(work, 0o755)
        if os.path.lexists(target):
            # Incomplete, or it would not have come to this: out of the way, then away.
            stale = tempfile.mkdtemp(prefix=".stale.", dir=releases)
            os.rename(target, os.path.join(stale, "release"))
            os.rename(work, target)
            shutil.rmtree(stale)
        else:
            os.rename(work, target)
    finally:
        if os.path.isdir(work):
            shutil.rmtree(work)
    os.unlink(params["archive"])
    return version


def point(link: str, target: str) -> None:
    """Make ``link`` a symbolic link to ``target`` in one step."""
    temporary = "%s.%d" % (link, os.getpid())
    os.symlink(target, temporary)
    os.rename(temporary, link)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "required": True},
            "archive": {"type": "path"},
            "sha256": {"type": "str"},
            "prefix": {"type": "path", "default": "/opt/llamacpp"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    params = module.params
    releases = os.path.join(params["prefix"], "releases")
    target = os.path.join(releases, params["id"])
    link = os.path.join(params["prefix"], "current")
    current = os.readlink(link) if os.path.islink(link) else None
    relative = os.path.join("releases", params["id"])
    version = ""
    try:
        if params["state"] == "absent":
            changed = os.path.isdir(target)
            if changed and current == relative:
                raise ReleaseError("release %s is the current one: make another current first" % params["id"])
            if changed and not module.check_mode:
                shutil.rmtree(target)
        else:
            missing = not complete(target)
            changed = missing or current != relative
            if changed and not module.check_mode:
                if missing:
                    version = install(module, releases, target)
                point(link, relative)
    except (ReleaseError, OSError, KeyError, ValueError) as error:
        module.fail_json(msg="release %s: %s" % (params["id"], error))
    module.exit_json(changed=changed, path=target, version=version)


if __name__ == "__main__":
    main()
