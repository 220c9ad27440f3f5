#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Install one immutable release of llama.cpp on a node, try it, make it current, or remove it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_release
short_description: Install, try, switch to or remove one immutable release of llama.cpp
version_added: 0.1.0
description:
  - Unpacks the archive of a release beside its place, compares every file with the release's manifest and
    links files that another release has too, so that a second release costs only what differs.
  - Then tries it. The CPU has the instructions and the C library is new enough; shared libraries resolve;
    C(llama-server --version) and C(--list-devices) work, and the latter shows O(devices);
    a server on those devices recites a tiny model, whose answer is known.
  - Only then the directory gets its name, and with O(state=current) C(current) leads to it and C(previous) to the
    one before. A release that fails any of it never becomes current and leaves nothing behind.
  - What has been tried is remembered, so a release that is installed and complete is left alone.
    It is tried again for other O(devices), after a new GPU driver, and when it was installed anew.
  - Devices without memory left, because instances run on them, cannot be tried; a warning says so, and the
    tiny model runs on the CPU alone.
  - The action of the same name shows how far the work is.
options:
  id:
    description: Identity of the release, for example V(b11434-cpu-1a2b3c4d).
    type: str
    required: true
  archive:
    description:
      - Archive on the node. One in C(incoming/) of O(prefix) is removed afterwards, whatever became of it.
    type: path
  urls:
    description:
      - Where to fetch the archive when O(archive) is not given or not there, in this order.
      - When none of them answers, the module fails with RV(unreachable_urls=true), so that the archive can be
        brought another way.
    type: list
    elements: str
    default: []
  sha256:
    description: sha256 of the archive. Required with O(urls).
    type: str
  prefix:
    description: Directory that holds C(releases/), C(current), C(previous) and C(validated/).
    type: path
    default: /opt/llamacpp
  state:
    description:
      - V(present) installs and tries it; V(current) also makes it the current one. Making the one that
        C(previous) leads to current is the way back.
      - V(absent) removes it, but never one that is current, that a unit names or that a process runs.
    type: str
    choices: [present, current, absent]
    default: present
  devices:
    description:
      - Devices that llama-server has to see and compute on, as it calls them, for example V(CUDA0).
        V(CPU) is always there and need not be listed.
    type: list
    elements: str
    default: []
  environment:
    description: Environment in which the release is tried.
    type: dict
    default: {}
  lock_wait:
    description: Seconds to wait for another run that changes the releases of this node.
    type: int
    default: 600
  probe:
    description: Set by the action plugin. Do what takes no time, and say in RV(pending) whether there is more.
    type: bool
    default: false
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Install the release and make it current
  llamacpp.cluster.llama_release:
    id: b11434-cuda-sm70-1a2b3c4d
    urls: "{{ __llama_cpp_shared.urls }}"
    sha256: "{{ __llama_cpp_archive_sha256 }}"
    devices: [CUDA0, CUDA1]
    state: current
  register: __llama_cpp_fetched
  failed_when:
    - __llama_cpp_fetched is failed
    - not __llama_cpp_fetched.unreachable_urls | default(false)

- name: Go back to the release before
  llamacpp.cluster.llama_release:
    id: b11401-cuda-sm70-5e6f7a8b
    devices: [CUDA0, CUDA1]
    state: current
"""

RETURN = r"""
path:
  description: Directory of the release.
  returned: always
  type: str
version:
  description: What C(llama-server --version) says, first line. Empty when it was not tried, as in check mode.
  returned: always
  type: str
current:
  description: Id of the release that is current now.
  returned: success
  type: str
previous:
  description: Id of the release that was current before; empty when there was none.
  returned: success
  type: str
tried:
  description: Whether the release was tried in this run.
  returned: success
  type: bool
bytes:
  description: Size of the release's files in bytes.
  returned: when the release is there
  type: int
own_bytes:
  description: How many bytes of them no other release shares.
  returned: when the release is there
  type: int
fetched_bytes:
  description: How many bytes came from O(urls).
  returned: success
  type: int
seconds:
  description: How long it took.
  returned: success
  type: float
pending:
  description: Whether the release has to be installed or tried, with O(probe=true) or in check mode.
  returned: success
  type: bool
unreachable_urls:
  description: Whether it failed because none of O(urls) answered.
  returned: failure
  type: bool
"""

import os
import shutil
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._archive import unpack, unpacked_bytes
from ansible_collections.llamacpp.cluster.plugins.module_utils._install import (
    UnreachableError,
    blocks_bytes,
    disk_full,
    fetch,
    room,
    share_files,
    verify,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._installed import Releases, read_manifest, sizes
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError, file_sha256
from ansible_collections.llamacpp.cluster.plugins.module_utils._trial import Trial, planned


class Release:
    """One release on this node, brought to its state."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.id: str = module.params["id"]
        self.releases = Releases(module.params["prefix"])
        self.path = self.releases.path(self.id)
        self.devices = planned(module.params["devices"])
        self.progress = Progress(module.params["progress_file"])
        self.incoming = os.path.join(self.releases.incoming, "%s.tar.gz" % self.id)
        self.version = ""
        self.tried = False
        self.fetched = 0

    def say(self, line: str) -> None:
        """Show what is being done."""
        self.progress.say("release %s: %s" % (self.id, line))

    def look(self) -> tuple[bool, bool, bool]:
        """Return whether the release has to be installed, to be tried and to be made current."""
        missing = not self.releases.complete(self.id)
        version = None if missing else self.releases.tried(self.id, self.devices)
        self.version = version or ""
        flip = self.params["state"] == "current" and self.releases.linked("current") != self.id
        return missing, version is None, flip

    def bring(self) -> bool:
        """Bring the release to be there, tried, and perhaps current; return whether that changes anything."""
        missing, untried, flip = self.look()
        self.pending = untried and (self.module.check_mode or self.params["probe"])
        if not self.pending and (untried or flip) and not self.module.check_mode:
            with self.releases.lock("the installation of %s" % self.id, self.params["lock_wait"], self.say):
                self.releases.sweep()
                # Whoever held the lock may have done it.
                missing, untried, flip = self.look()
                if missing:
                    self.install()
                elif untried:
                    self.try_it(self.path)
                    self.releases.note_tried(self.id, self.devices, self.version)
                if flip:
                    self.releases.flip(self.id)
        return missing or flip

    def try_it(self, root: str) -> None:
        """Try the release that lies in a directory."""
        trial = Trial(
            root,
            read_manifest(root),
            self.devices,
            {name: str(value) for name, value in self.params["environment"].items()},
            self.say,
        )
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            cpuinfo = stream.read()
        self.version = trial.run(_libc(), cpuinfo)
        self.tried = True
        for note in trial.notes:
            self.module.warn("release %s: %s" % (self.id, note))

    def install(self) -> None:
        """Fetch, unpack, verify, link, try, and give the directory its name."""
        os.makedirs(self.releases.incoming, mode=0o700, exist_ok=True)
        archive = self.incoming
        try:
            with disk_full(self.releases.directory, lambda: blocks_bytes(archive), "release %s" % self.id):
                archive = self.archive()
                work = tempfile.mkdtemp(prefix=".%s." % self.id, dir=self.releases.directory)
                try:
                    self.fill(work, archive)
                    self.place(work)
                finally:
                    if os.path.isdir(work):
                        shutil.rmtree(work)
        finally:
            if os.path.dirname(archive) == self.releases.incoming and os.path.exists(archive):
                os.unlink(archive)
        self.releases.note_tried(self.id, self.devices, self.version)

    def archive(self) -> str:
        """Return the path of the archive with the right checksum, fetched when it is not here."""
        wanted = self.params["sha256"]
        given = self.params["archive"]
        if given and os.path.isfile(given):
            if wanted:
                self.say("checking the archive")
                found = file_sha256(given)
                if found != wanted:
                    raise ReleaseError("%s has sha256 %s instead of %s" % (given, found, wanted))
            return str(given)
        if not self.params["urls"]:
            raise ReleaseError("it is not installed and its archive is not there (%s)" % (given or "none was given"))
        if not wanted:
            raise ReleaseError("urls need the sha256 of the archive")
        self.fetched = fetch(self.params["urls"], wanted, self.incoming, self.progress)
        return self.incoming

    def fill(self, work: str, archive: str) -> None:
        """Make a directory the release, as far as its files go, and try it."""
        if self.params["sha256"]:
            # A broken archive may say any size, so only one that is known to be right is asked.
            room(work, unpacked_bytes(archive), "release %s" % self.id)
        unpack(archive, work, archive, self.say)
        self.say("comparing files with the manifest")
        manifest = verify(work, self.id)
        share_files(work, manifest, self.releases)
        self.try_it(work)

    def place(self, work: str) -> None:
        """Give the directory its name, in one step."""
        os.chmod(work, 0o755)
        os.utime(work)
        if os.path.lexists(self.path):
            # Incomplete, or it would not have come to this: out of the way, then away.
            stale = tempfile.mkdtemp(prefix=".stale.", dir=self.releases.directory)
            os.rename(self.path, os.path.join(stale, "release"))
            os.rename(work, self.path)
            shutil.rmtree(stale)
        else:
            os.rename(work, self.path)

    def remove(self) -> bool:
        """Remove the release; return whether it was there."""
        self.pending = False
        if not os.path.isdir(self.path):
            return False
        if self.releases.linked("current") == self.id:
            raise ReleaseError("it is the current one: make another current first")
        users = self.releases.users().get(self.id, [])
        if users:
            raise ReleaseError("it is used by %s: let them use another first" % ", ".join(users))
        if not self.module.check_mode:
            with self.releases.lock("the removal of %s" % self.id, self.params["lock_wait"], self.say):
                self.releases.sweep()
                if os.path.isdir(self.path):
                    self.releases.remove(self.id)
        return True


def _libc() -> str:
    """Return the version of this node's glibc; empty for another C library."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").rpartition(" ")[2]
    except (ValueError, OSError):
        return ""


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "required": True},
            "archive": {"type": "path"},
            "urls": {"type": "list", "elements": "str", "default": []},
            "sha256": {"type": "str"},
            "prefix": {"type": "path", "default": "/opt/llamacpp"},
            "state": {"type": "str", "choices": ["present", "current", "absent"], "default": "present"},
            "devices": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "lock_wait": {"type": "int", "default": 600},
            "probe": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    result = {}
    try:
        release = Release(module)
        try:
            changed = release.remove() if module.params["state"] == "absent" else release.bring()
            if os.path.isdir(release.path):
                result["bytes"], result["own_bytes"] = sizes(release.path)
        finally:
            release.progress.close()
    except (ReleaseError, OSError) as error:
        module.fail_json(
            msg="release %s: %s" % (module.params["id"], error),
            path=os.path.join(module.params["prefix"], "releases", module.params["id"]),
            version="",
            unreachable_urls=isinstance(error, UnreachableError),
        )
    module.exit_json(
        changed=changed,
        path=release.path,
        version=release.version,
        current=release.releases.linked("current") or "",
        previous=release.releases.linked("previous") or "",
        tried=release.tried,
        fetched_bytes=release.fetched,
        seconds=round(time.monotonic() - started, 3),
        pending=release.pending,
        **result,
    )


if __name__ == "__main__":
    main()
