# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A directory of distribution packages that apt-get or dnf installs from, and nothing else.

apt: files ``*.deb`` and the index ``Packages`` ("Debian Repository Format", flat repository: every stanza of a
package's control file with Filename, Size and SHA256). dnf: files ``*.rpm`` and ``repodata`` as createrepo_c makes it.
The node's own lists of repositories are neither read nor written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

INDEX = "Packages"
REPODATA = "repodata/repomd.xml"
# What apt is told and what it makes of the repository; below it, so that it goes when the repository goes.
STATE = ".apt"
APT_LISTS = STATE + "/lists"
NAME = "llamacpp-bundle"


class RepositoryError(Exception):
    """The directory cannot be used, or packages cannot be collected; the text says why."""


def index_stanza(control: str, file_name: str, size: int, sha256: str) -> str:
    """Return a package's part of the index; ``control``: its control file as ``dpkg-deb --field`` prints it."""
    return "%s\nFilename: ./%s\nSize: %d\nSHA256: %s\n\n" % (control.rstrip("\n"), file_name, size, sha256)


def index_versions(lines: Iterable[str]) -> dict[str, str]:
    """Return name -> version of an index, or of the control files of packages."""
    versions: dict[str, str] = {}
    name = ""
    for line in lines:
        key, separator, value = line.partition(":")
        if not separator or line[:1].isspace():
            continue
        if key == "Package":
            name = value.strip()
        elif key == "Version" and name:
            versions[name] = value.strip()
    return versions


def apt_options(repository: str) -> list[str]:
    """Return apt's options that make ``repository`` all that apt knows; the system's own files stay as they are.

    They need the files of :func:`apt_files`, and a directory ``partial`` in :data:`APT_LISTS`.
    """
    state = os.path.join(repository, STATE)
    settings = {
        "Dir::Etc::sourcelist": os.path.join(state, "sources.list"),
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": os.path.join(repository, APT_LISTS),
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        # apt's own user cannot read what only root may.
        "APT::Sandbox::User": "root",
    }
    return ["--option=%s=%s" % setting for setting in sorted(settings.items())]


def apt_files(repository: str) -> dict[str, str]:
    """Return path -> content of the files that :func:`apt_options` names.

    Trusted, because every byte was compared with the bundle's manifest and there is no signature of a
    whole that was put together from the repositories of a distribution.
    """
    return {os.path.join(repository, STATE, "sources.list"): "deb [trusted=yes] file:%s ./\n" % repository}


def dnf_options(repository: str) -> list[str]:
    """Return dnf's options that make ``repository`` all that dnf knows."""
    return [
        "--disablerepo=*",
        "--repofrompath=%s,file://%s" % (NAME, repository),
        "--enablerepo=%s" % NAME,
        "--nogpgcheck",
        "--setopt=%s.module_hotfixes=1" % NAME,
    ]


def apt_collect(names: Sequence[str], status: str, archives: str) -> list[str]:
    """Return apt-get's arguments that download packages and all that they need, as for a system with nothing.

    ``status``: an empty file in dpkg's place, so that what this node happens to have is downloaded too.
    """
    return [
        "install",
        "--download-only",
        "--no-install-recommends",
        "--option=Dir::State::status=%s" % status,
        "--option=Dir::Cache::archives=%s" % archives,
        "--option=APT::Sandbox::User=root",
        *names,
    ]


def apt_file_names(output: str) -> set[str]:
    """Return the file names of ``apt-get --print-uris``, whose lines are ``'uri' name size hash``."""
    return {line.split()[1] for line in output.splitlines() if line.startswith("'") and len(line.split()) >= 3}


def dnf_collect(names: Sequence[str], archives: str) -> list[str]:
    """Return dnf's arguments that download packages and all that they need, whether installed or not."""
    return ["--assumeyes", "download", "--resolve", "--alldeps", "--destdir=%s" % archives, *names]


def lacking(wanted: Sequence[str], collected: Mapping[str, str]) -> list[str]:
    """Return the names that the collection does not have, in the order given."""
    return [name for name in dict.fromkeys(wanted) if name not in collected]
