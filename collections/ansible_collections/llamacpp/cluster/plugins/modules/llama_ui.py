#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Build the pages of llama-server's web UI from the source of llama.cpp."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_ui
short_description: Build the pages of llama-server's web UI
version_added: 0.3.0
description:
  - Builds C(tools/ui) of a source archive with C(npm ci) and C(npm run build), and packs the pages.
    Unpacked into C(tools/ui/dist), llama.cpp compiles them into C(llama-server).
  - Runs on the control node, so that builders need no Node.js and no way out. Needs Node.js and npm as new as the
    packages of the web UI ask for (b11434 20.19, 22.13 or 24), about 1 GB of disk while it works, and some two minutes.
  - Pages are kept by what they are made from. Versions of llama.cpp with the same C(tools/ui) are built once.
  - Scripts of npm's packages do not run, as llama.cpp's own C(.npmrc) says.
  - The action of the same name shows how far it is.
options:
  source:
    description: Archive of the source, from M(llamacpp.cluster.llama_source).
    type: path
    required: true
  release:
    description: What the pages show as version, for example V(b11434).
    type: str
    required: true
  patches:
    description:
      - Patches of llama.cpp, in order. Those that touch C(tools/ui) are applied to the pages, which needs C(git).
    type: list
    elements: path
    default: []
  cache:
    description: Directory for packed pages.
    type: path
    required: true
  npm_cache:
    description: Directory for npm's packages. Unless set, C(npm) beside O(cache).
    type: path
  offline:
    description: Take packages from O(npm_cache) alone.
    type: bool
    default: false
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Build the pages of the web UI
  llamacpp.cluster.llama_ui:
    source: ~/.cache/llamacpp-cluster/sources/llama.cpp-pypi-b11434.tar.gz
    release: b11434
    cache: ~/.cache/llamacpp-cluster/ui
  delegate_to: localhost
"""

RETURN = r"""
archive:
  description: The packed pages on the control node.
  returned: always
  type: str
sha256:
  description: Its sha256. Empty in check mode when they are not built yet.
  returned: always
  type: str
bytes:
  description: Size of the packed pages in bytes. 0 in check mode when they are not built yet.
  returned: always
  type: int
"""

import glob
import os
import shutil
import subprocess
import tempfile
from typing import Callable

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _ui
from ansible_collections.llamacpp.cluster.plugins.module_utils._archive import pack, unpack
from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming
from ansible_collections.llamacpp.cluster.plugins.module_utils._keep import keep, scratch
from ansible_collections.llamacpp.cluster.plugins.module_utils._node_version import parse_version, refusals
from ansible_collections.llamacpp.cluster.plugins.module_utils._patch_files import touches_pages
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError, file_sha256

TAIL_LINES = 15
REFUSALS_SHOWN = 3


class Pages:
    """The pages of one source."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.params = module.params
        self.check_mode: bool = module.check_mode
        self.progress = progress
        self.archive = ""

    def run(self) -> bool:
        """Build the pages unless they are there; return whether they were (or would be) built."""
        cache = self.params["cache"]
        with tempfile.TemporaryDirectory(prefix="llamacpp-ui-") as work:
            self.progress.say("looking at the sources of the web UI", now=True)
            sources = self.sources(work)
            key = _ui.key_of(sources)
            self.archive = os.path.join(cache, _ui.archive_name(key, self.params["release"]))
            if os.path.exists(self.archive):
                return False
            if self.check_mode:
                if not self.others(key):
                    self.require_node(sources)
                return True
            with scratch(cache, self.progress) as room:
                if os.path.exists(self.archive):
                    return False  # another run built them while this one waited
                dist, packed = os.path.join(room, "dist"), os.path.join(room, "packed")
                os.mkdir(dist)
                others = self.others(key)
                if others:
                    unpack(others[0], dist, others[0])
                else:
                    self.require_node(sources)
                    shutil.move(sources, os.path.join(room, "ui"))
                    self.build(os.path.join(room, "ui"), dist)
                _ui.write_build(dist, self.params["release"])
                missing = _ui.missing_pages(dist)
                if missing:
                    raise ReleaseError("the web UI was built without %s, which llama.cpp needs" % ", ".join(missing))
                self.progress.say("packing the pages of the web UI", now=True)
                pack(dist, packed, "index.html")
                keep(packed, self.archive)
        return True

    def others(self, key: str) -> list[str]:
        """Return the same pages, packed for other releases."""
        return sorted(glob.glob(os.path.join(glob.escape(self.params["cache"]), key + "-*.tar.gz")))

    def sources(self, work: str) -> str:
        """Unpack and patch the sources of the pages; return their directory."""
        sources = _ui.unpack_pages(self.params["source"], work)
        for patch in filter(touches_pages, self.params["patches"]):
            if not shutil.which("git"):
                raise ReleaseError(
                    "llamacpp_patches: %s changes the web UI, and there is no git on the control node to apply it: "
                    "install git, %s" % (patch, _ui.WAY_OUT)
                )
            done = subprocess.run(
                ["git", "apply", "--whitespace=nowarn", "--include=%s/*" % _ui.PAGES, os.path.abspath(patch)],
                cwd=work,
                # Inside of a repository git would take the paths as that repository's.
                env=dict(os.environ, GIT_CEILING_DIRECTORIES=os.path.dirname(os.path.realpath(work)), LC_ALL="C.UTF-8"),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise ReleaseError(
                    "llamacpp_patches: %s does not apply to the web UI: %s" % (patch, done.stderr.strip())
                )
        return sources

    def require_node(self, sources: str) -> None:
        """See that Node.js and npm are there and new enough."""
        for program in ("node", "npm"):
            if not shutil.which(program):
                raise ReleaseError(
                    "the web UI is built with Node.js and npm, and there is no %s on the control node: install it, %s"
                    % (program, _ui.WAY_OUT)
                )
        said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False)
        try:
            version = parse_version(said.stdout)
        except ValueError as error:
            raise ReleaseError("node --version: %s %s" % (error, said.stderr.strip())) from error
        package, lock = (_ui.read_json(os.path.join(sources, name)) for name in ("package.json", "package-lock.json"))
        found = refusals(version, package, lock)
        if found:
            more = " and %d more" % (len(found) - REFUSALS_SHOWN) if len(found) > REFUSALS_SHOWN else ""
            raise ReleaseError(
                "Node.js %s on the control node does not do for the web UI: %s%s: install another version, %s"
                % (said.stdout.strip(), "; ".join(found[:REFUSALS_SHOWN]), more, _ui.WAY_OUT)
            )

    def build(self, sources: str, dist: str) -> None:
        """Install the packages and build the pages into ``dist``."""
        beside = os.path.join(os.path.dirname(os.path.normpath(self.params["cache"])), "npm")
        environment = dict(
            os.environ,
            CI="true",
            NPM_CONFIG_CACHE=self.params["npm_cache"] or beside,
            NPM_CONFIG_UPDATE_NOTIFIER="false",
            LLAMA_UI_OUT_DIR=dist,
            LLAMA_BUILD_NUMBER=self.params["release"],
        )
        # It would make npm leave out what the pages are built with.
        environment.pop("NODE_ENV", None)
        packages = 0

        def count(line: str) -> None:
            nonlocal packages
            packages += line.startswith("npm http ") and ".tgz" in line
            self.progress.say("fetching the web UI's packages: %d" % packages)

        def follow(line: str) -> None:
            words = _ui.step(line)
            if words:
                self.progress.say("building the web UI: %s" % words)

        install = ["npm", "ci", "--no-audit", "--no-fund", "--include=dev", "--loglevel=http"]
        install += ["--offline"] if self.params["offline"] else ["--prefer-offline"]
        self.progress.say("fetching the web UI's packages", now=True)
        self.npm(install, sources, environment, count)
        self.progress.say("building the web UI", now=True)
        self.npm(["npm", "run", "build"], sources, environment, follow)

    def npm(self, argv: list[str], directory: str, environment: dict[str, str], on_line: Callable[[str], None]) -> None:
        """Run npm in a directory; its last lines are in the error, with the most likely cause."""
        lines: list[str] = []

        def read(line: str) -> None:
            if not line.startswith("npm http "):
                lines.append(line.rstrip())
            on_line(line)

        if run_streaming([*argv, "--prefix", directory], environment, read):
            cause = _ui.probable_cause("\n".join(lines))
            raise ReleaseError(
                "%s failed for the web UI%s; %s\n%s"
                % (
                    " ".join(argv[:2]),
                    ". Probable cause: " + cause if cause else "",
                    _ui.WAY_OUT,
                    "\n".join(lines[-TAIL_LINES:]),
                )
            )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "patches": {"type": "list", "elements": "path", "default": []},
            "cache": {"type": "path", "required": True},
            "npm_cache": {"type": "path"},
            "offline": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    progress = Progress(module.params["progress_file"])
    pages = Pages(module, progress)
    try:
        changed = pages.run()
        there = os.path.exists(pages.archive)
        sha256, size = (file_sha256(pages.archive), os.stat(pages.archive).st_size) if there else ("", 0)
    except (ReleaseError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(changed=changed, archive=pages.archive, sha256=sha256, bytes=size)


if __name__ == "__main__":
    main()
