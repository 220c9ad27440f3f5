# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which versions of gcc a distribution has, and what they are called there. docs/toolchains.md shows it.

Sources: Debian's package lists, read for this table; Ubuntu (universe included) and EL as their documentation has it,
not looked up on a machine: for EL the release notes of RHEL say with which minor release each gcc-toolset came to
AppStream, which Rocky and Alma follow. EL10's gcc-toolset-15 is left out: it has no script to enable it (release notes
of 10.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ansible_collections.llamacpp.cluster.plugins.module_utils._cuda_versions import numbers

#: Oldest gcc that compiles llama.cpp: common/ and tools/ use std::filesystem, which needs libstdc++fs to be linked in
#: gcc 8 and is broken in 8.5 with -std=c++17 (b11434; seen on EL8: "filesystem" does not link). C++17 is complete in 9.
MINIMUM = 9
MINIMUM_WHY = "llama.cpp needs std::filesystem, which gcc has without a library of its own since 9"

#: What is taken on EL8, whose own gcc is too old, when no CUDA toolkit sets a limit: the first that every supported
#: EL8 has, so that nodes of different ages make the same release.
EL_TOOLSET = 12


@dataclass(frozen=True)
class Distribution:
    """A distribution's compilers.

    ``own``: major version of its default gcc. ``others``: further major versions by the minor release of the
    distribution that brought them (0: all). ``glibc``: version of its C library.
    """

    name: str
    own: int
    others: Mapping[int, int]
    glibc: str
    source: str


_DEBIAN = "package list of %s"
_UBUNTU = "packages of Ubuntu %s"
_EL = "release notes of RHEL %s, additional toolsets for development"

DISTRIBUTIONS = {
    ("debian", "11"): Distribution("Debian 11", 10, {9: 0}, "2.31", _DEBIAN % "Debian 11"),
    ("debian", "12"): Distribution("Debian 12", 12, {11: 0}, "2.36", _DEBIAN % "Debian 12"),
    ("debian", "13"): Distribution("Debian 13", 14, {12: 0, 13: 0}, "2.41", _DEBIAN % "Debian 13"),
    ("ubuntu", "22.04"): Distribution("Ubuntu 22.04", 11, {9: 0, 10: 0, 12: 0}, "2.35", _UBUNTU % "jammy"),
    ("ubuntu", "24.04"): Distribution(
        "Ubuntu 24.04", 13, {9: 0, 10: 0, 11: 0, 12: 0, 14: 0}, "2.39", _UBUNTU % "noble"
    ),
    ("ubuntu", "26.04"): Distribution("Ubuntu 26.04", 15, {12: 0, 13: 0, 14: 0}, "2.43", _UBUNTU % "resolute"),
    ("redhat", "8"): Distribution("EL8", 8, {11: 5, 12: 7, 13: 9, 14: 10}, "2.28", _EL % "8.5 to 8.10"),
    ("redhat", "9"): Distribution("EL9", 11, {12: 1, 13: 3, 14: 5, 15: 7}, "2.34", _EL % "9.1 to 9.7"),
    ("redhat", "10"): Distribution("EL10", 14, {}, "2.39", _EL % "10.1"),
}

#: A builder that nobody has looked at, as in a plan from declared devices alone.
UNKNOWN = Distribution("a builder that nobody looked at", 12, {major: 0 for major in range(9, 17)}, "", "not looked at")


@dataclass(frozen=True)
class Compiler:
    """A gcc of a distribution. ``version`` 0 stands for its default, of major version ``major``."""

    version: int
    major: int
    cc: str
    cxx: str
    packages: tuple[str, ...]
    enable: str = ""


def key(family: str, identity: str, version: str) -> tuple[str, str]:
    """Return the key of the tables: EL's relatives are one, Debian's and Ubuntu's are themselves."""
    if family == "redhat":
        return ("redhat", version.split(".")[0])
    return (identity, version if identity == "ubuntu" else version.split(".")[0])


def available(distribution: Distribution, version: str) -> list[int]:
    """Return the major versions that one can install, oldest first; ``version`` is of ``/etc/os-release``.

    CentOS Stream and Debian have no minor release and are taken as the newest.
    """
    parts = numbers(version)
    release = parts[1] if len(parts) > 1 else 1 << 30
    return sorted({distribution.own, *(major for major, since in distribution.others.items() if since <= release)})


def compiler(family: str, distribution: Distribution, major: int) -> Compiler:
    """Return where a compiler lies and which packages bring it."""
    if major == distribution.own:
        packages = ("gcc", "gcc-c++") if family == "redhat" else ("gcc", "g++")
        return Compiler(0, major, "gcc", "g++", packages)
    if family == "redhat":
        root = "/opt/rh/gcc-toolset-%d" % major
        names = ("gcc-toolset-%d-gcc" % major, "gcc-toolset-%d-gcc-c++" % major)
        return Compiler(major, major, root + "/root/usr/bin/gcc", root + "/root/usr/bin/g++", names, root + "/enable")
    return Compiler(major, major, "gcc-%d" % major, "g++-%d" % major, ("gcc-%d" % major, "g++-%d" % major))
