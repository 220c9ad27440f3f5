#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Collect packages of the distribution, with all that they need, in one archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: package_bundle
short_description: Collect packages with all that they need, for nodes without a network
version_added: 0.3.0
description:
  - Downloads packages and everything that they depend on with the node's own C(apt-get) or C(dnf), makes an index, and
    puts it all into one archive. M(llamacpp.cluster.packages) installs from it after it was unpacked.
  - Packages that this node has already are downloaded too, so that the archive serves every node of the same system.
  - Nothing is installed. C(dnf) needs C(createrepo_c) and its own command C(download) (C(dnf-plugins-core)).
options:
  name:
    description: Names of the packages.
    type: list
    elements: str
    required: true
  archive:
    description:
      - Archive to write on the node, C(.tar).
      - One that has these packages already, in the versions of today, is not written again.
    type: path
    required: true
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.bundle
  - module: llamacpp.cluster.packages
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Collect what a build needs
  llamacpp.cluster.package_bundle:
    name: [cmake, g++, ninja-build, ccache]
    archive: /var/cache/llamacpp/bundle/debian-12-x86_64.tar
"""

RETURN = r"""
packages:
  description: Version of every package in the archive, by name.
  returned: success, not in check mode
  type: dict
  sample: {"cmake": "3.25.1-1"}
bytes:
  description: Size of the archive. 0 in check mode.
  returned: success
  type: int
"""

import glob
import io
import os
import shutil
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle_packages import (
    INDEX,
    RepositoryError,
    apt_collect,
    apt_file_names,
    dnf_collect,
    index_stanza,
    index_versions,
    lacking,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming, run_with_status
from ansible_collections.llamacpp.cluster.plugins.module_utils._packages import apt_progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import file_sha256

TAIL = 1500
# The first member of the archive: name and version of each package, in the form of an index.
VERSIONS = "versions"


class Collector:
    """Downloads packages into a directory, which then is a repository, and puts it into the archive."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.module = module
        self.progress = progress
        self.names: list[str] = module.params["name"]
        self.archive: str = module.params["archive"]
        # Kept when a download breaks off: the package managers go on with what is there.
        self.directory = self.archive + ".d"

    def collect(self) -> bool:
        """Bring the archive up to date; return whether it was written."""
        if shutil.which("apt-get"):
            return self._apt()
        if shutil.which("dnf"):
            return self._dnf()
        raise RepositoryError("neither apt-get nor dnf is there to download %s" % ", ".join(self.names))

    def _apt_get(self, arguments: list[str]) -> str:
        def command(status: int) -> list[str]:
            return ["apt-get", "--yes", "--quiet", "--option=APT::Status-Fd=%d" % status, *arguments]

        def show(line: str) -> None:
            words = apt_progress(line)
            if words:
                self.progress.say(words)

        rc, output = run_with_status(
            command, dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8"), show
        )
        if rc != 0:
            raise RepositoryError("apt-get %s failed:\n%s" % (" ".join(arguments), output[-TAIL:]))
        return output

    def _apt(self) -> bool:
        with tempfile.TemporaryDirectory() as work:
            nothing = os.path.join(work, "status")
            with open(nothing, "w", encoding="ascii"):
                pass
            os.makedirs(os.path.join(work, "none", "partial"))
            self.progress.say("fetching the package lists", now=True)
            self._apt_get(["update"])
            wanted = apt_file_names(
                self._apt_get([*apt_collect(self.names, nothing, os.path.join(work, "none")), "--print-uris"])
            )
            if wanted == {name for name in archive_files(self.archive) if name.endswith(".deb")}:
                return False
            os.makedirs(os.path.join(self.directory, "partial"), exist_ok=True)
            for path in glob.glob(os.path.join(self.directory, "*.deb")):
                if os.path.basename(path) not in wanted:
                    os.unlink(path)  # what an earlier try left in an older version
            self._apt_get(apt_collect(self.names, nothing, self.directory))
        stanzas = []
        for number, name in enumerate(sorted(wanted), 1):
            self.progress.say("reading package %d of %d" % (number, len(wanted)))
            path = os.path.join(self.directory, name)
            _rc, control, _err = self.module.run_command(["dpkg-deb", "--field", path], check_rc=True)
            stanzas.append(index_stanza(control, name, os.stat(path).st_size, file_sha256(path)))
        index = "".join(stanzas)
        self._write(index_versions(index.splitlines()), [*sorted(wanted)], {INDEX: index})
        return True

    def _dnf(self) -> bool:
        if not shutil.which("createrepo_c"):
            raise RepositoryError(
                "createrepo_c is not there to make the index: install createrepo_c and dnf-plugins-core on the node"
            )
        os.makedirs(self.directory, exist_ok=True)
        said: list[str] = []

        def show(line: str) -> None:
            said.append(line)
            self.progress.say("downloading: %s" % line.strip())

        for argv in (["dnf", *dnf_collect(self.names, self.directory)], ["createrepo_c", "--quiet", self.directory]):
            if run_streaming(argv, dict(os.environ, LC_ALL="C.UTF-8"), show) != 0:
                raise RepositoryError("%s failed:\n%s" % (" ".join(argv), "".join(said)[-TAIL:]))
        packages = sorted(name for name in os.listdir(self.directory) if name.endswith(".rpm"))
        if set(packages) == {name for name in archive_files(self.archive) if name.endswith(".rpm")}:
            shutil.rmtree(self.directory)
            return False
        _rc, out, _err = self.module.run_command(
            ["rpm", "--query", "--package", "--queryformat", "Package: %{NAME}\\nVersion: %{VERSION}-%{RELEASE}\\n"]
            + [os.path.join(self.directory, name) for name in packages],
            check_rc=True,
        )
        self._write(index_versions(out.splitlines()), [*packages, "repodata"], {})
        return True

    def _write(self, versions: dict[str, str], names: list[str], texts: dict[str, str]) -> None:
        """Write the archive, whole or not at all: the versions, ``texts`` by name, and ``names`` of the directory."""
        absent = lacking(self.names, versions)
        if absent:
            raise RepositoryError("the package manager downloaded no %s" % ", ".join(absent))
        listed = "".join("Package: %s\nVersion: %s\n" % item for item in sorted(versions.items()))
        part = self.archive + ".part"
        with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar:
            for name, text in {VERSIONS: listed, **texts}.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
            for name in names:
                tar.add(os.path.join(self.directory, name), name, filter=_plain)
        os.chmod(part, 0o644)
        os.rename(part, self.archive)
        shutil.rmtree(self.directory)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member as everybody may read it."""
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mode = 0o755 if info.isdir() else 0o644
    return info


def archive_files(archive: str) -> list[str]:
    """Return the names in an archive; none when it is not there, or no archive."""
    try:
        with tarfile.open(archive) as tar:
            return tar.getnames()
    except (FileNotFoundError, tarfile.TarError):
        return []


def archive_versions(archive: str) -> dict[str, str]:
    """Return the version of every package in an archive that this module wrote."""
    with tarfile.open(archive) as tar:
        stream = tar.extractfile(VERSIONS)
        return index_versions(stream.read().decode().splitlines()) if stream else {}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "list", "elements": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    archive: str = module.params["archive"]
    if module.check_mode:
        module.exit_json(changed=True, bytes=0)
    progress = Progress(module.params["progress_file"])
    try:
        os.makedirs(os.path.dirname(archive), mode=0o755, exist_ok=True)
        changed = Collector(module, progress).collect()
        versions = archive_versions(archive)
    except (RepositoryError, tarfile.TarError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(changed=changed, packages=versions, bytes=os.stat(archive).st_size)


if __name__ == "__main__":
    main()
