# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What each CUDA toolkit can do: host compilers, GPU architectures, drivers, C libraries. docs/toolchains.md shows it.

Where each column comes from:

- ``gcc``: ``#if __GNUC__ > N`` in ``crt/host_config.h`` of NVIDIA's wheels nvidia-cuda-nvcc-cu11 11.8.89,
  nvidia-cuda-nvcc-cu12 12.0.140 to 12.9.86 and nvidia-cuda-crt 13.0.88 to 13.5.37, read for this table. NVIDIA's CUDA
  Installation Guide for Linux (host compiler support policy) has the same major versions, some with a minor one
  (12.0: 12.1; 12.1 to 12.3: 12.2; 12.4 to 12.6: 13.2), which nvcc does not look at.
- ``architectures``: ``nvcc --list-gpu-arch`` of 11.8, 12.4 (Debian's packages), 13.0 and 13.5 (wheels); for the others
  ``ptxas --help`` of the wheels, which in 12.x lists the same.
- ``driver``: the driver that came with the toolkit, which NVIDIA's installer of its first release names
  (``cuda_12.4.0_550.54.14_linux.run``). Those of 13.4 and newer bring none, so that only the rule of the major version
  counts.
- ``glibc``: the newest C library whose declarations agree with the toolkit's own. glibc 2.41 declares cospi and
  sinpi (and 2.42 rsqrt) as noexcept, which ``crt/math_functions.h`` contradicts up to 12.9, and for rsqrt up to 13.1;
  empty: no limit is known. Debian's own toolkit lies among the system's headers, where that is no error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VOLTA = (50, 52, 53, 60, 61, 62, 70, 72)  # what CUDA 13 no longer compiles
_AMPERE = (75, 80, 86, 87)
_HOPPER = (89, 90)


@dataclass(frozen=True)
class Cuda:
    """One minor version of the CUDA toolkit.

    ``version``: ``12.2``. ``gcc``: newest major version of gcc that nvcc takes. ``architectures``: compute capabilities
    without the dot that it compiles for. ``driver``: NVIDIA's driver that came with it, or an empty string.
    ``glibc``: newest glibc that it compiles with, or an empty string.
    """

    version: str
    gcc: int
    architectures: tuple[int, ...]
    driver: str
    glibc: str = ""

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.split(".")[0])


_TURING_AND_UP = (*_AMPERE, 88, *_HOPPER, 100, 103, 110, 120, 121)

TOOLKITS = (
    Cuda("11.8", 11, (35, 37, *_VOLTA, *_AMPERE, *_HOPPER), "520.61.05", "2.40"),
    Cuda("12.0", 12, (*_VOLTA, *_AMPERE, *_HOPPER), "525.60.13", "2.40"),
    Cuda("12.1", 12, (*_VOLTA, *_AMPERE, *_HOPPER), "530.30.02", "2.40"),
    Cuda("12.2", 12, (*_VOLTA, *_AMPERE, *_HOPPER), "535.54.03", "2.40"),
    Cuda("12.3", 12, (*_VOLTA, *_AMPERE, *_HOPPER), "545.23.06", "2.40"),
    Cuda("12.4", 13, (*_VOLTA, *_AMPERE, *_HOPPER), "550.54.14", "2.40"),
    Cuda("12.5", 13, (*_VOLTA, *_AMPERE, *_HOPPER), "555.42.02", "2.40"),
    Cuda("12.6", 13, (*_VOLTA, *_AMPERE, *_HOPPER), "560.28.03", "2.40"),
    Cuda("12.8", 14, (*_VOLTA, *_AMPERE, *_HOPPER, 100, 101, 120), "570.86.10", "2.40"),
    Cuda("12.9", 14, (*_VOLTA, *_AMPERE, *_HOPPER, 100, 101, 103, 120, 121), "575.51.03", "2.40"),
    Cuda("13.0", 15, _TURING_AND_UP, "580.65.06", "2.41"),
    Cuda("13.1", 15, _TURING_AND_UP, "590.44.01", "2.41"),
    Cuda("13.2", 15, _TURING_AND_UP, "595.45.04"),
    Cuda("13.3", 15, _TURING_AND_UP, "610.43.02"),
    Cuda("13.4", 16, (*_TURING_AND_UP, 107), ""),
    Cuda("13.5", 16, (*_TURING_AND_UP, 107), ""),
)

BY_VERSION = {toolkit.version: toolkit for toolkit in TOOLKITS}

#: Oldest driver that runs any toolkit of a major version ("minor version compatibility"), Linux x86_64.
#: CUDA Toolkit release notes, table of minimum drivers; CUDA Compatibility, "Minor Version Compatibility".
MINIMUM_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}

GCC_SOURCE = "crt/host_config.h of CUDA %s"
ARCHITECTURE_SOURCE = "nvcc --list-gpu-arch of CUDA %s"
DRIVER_SOURCE = "CUDA Toolkit release notes, minimum driver of CUDA %d.x"

#: What a distribution has as nvidia-cuda-toolkit, by ``/etc/os-release``'s ID and VERSION_ID.
#: Debian: the package lists of its component non-free. Ubuntu (multiverse): as its documentation says, not looked up.
DISTRIBUTION = {
    ("debian", "11"): "11.2",
    ("debian", "12"): "11.8",
    ("debian", "13"): "12.4",
    ("ubuntu", "22.04"): "11.5",
    ("ubuntu", "24.04"): "12.0",
}

#: NVIDIA's package repositories by ID or family and version: name in the address, first and last toolkit.
#: The names are in NVIDIA's Driver Installation Guide, 610. First and last follow from when a distribution came and
#: which toolkits support it (CUDA Installation Guide for Linux); the repositories themselves were not looked into, and
#: what one lacks fails with the package manager's words.
REPOSITORIES = {
    ("redhat", "8"): ("rhel8", "11.8", "13.5"),
    ("redhat", "9"): ("rhel9", "11.8", "13.5"),
    ("redhat", "10"): ("rhel10", "12.9", "13.5"),
    ("debian", "11"): ("debian11", "11.8", "12.6"),
    ("debian", "12"): ("debian12", "12.3", "13.5"),
    ("debian", "13"): ("debian13", "13.1", "13.5"),
    ("ubuntu", "22.04"): ("ubuntu2204", "11.8", "13.5"),
    ("ubuntu", "24.04"): ("ubuntu2404", "12.5", "13.5"),
    ("ubuntu", "26.04"): ("ubuntu2604", "13.3", "13.5"),
}

#: Toolkits whose wheels hold a whole compiler. Those of 12.x (nvidia-cuda-nvcc-cu12) have ptxas and no nvcc.
WHEELS = ("13.0", "13.1", "13.2", "13.3", "13.4", "13.5")


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers that compare, ``(535, 183, 1)`` for ``535.183.01``; empty for an empty string."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def minor(version: str) -> str:
    """Return ``12.2`` for ``12.2.140``."""
    return ".".join(version.split(".")[:2])


def newest_native(driver: str) -> str:
    """Return the newest toolkit that a driver brings itself, ``12.2`` for ``535.183.01``; empty when it is older."""
    known = [toolkit for toolkit in TOOLKITS if toolkit.driver and numbers(toolkit.driver) <= numbers(driver)]
    return known[-1].version if known else ""
