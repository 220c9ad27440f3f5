# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find what a node can compile with: compilers, CUDA toolkits, and NVIDIA's driver, which decides what it can run."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_find, _node
from ansible_collections.llamacpp.cluster.plugins.module_utils._cuda_offers import DISTRO_HOME
from ansible_collections.llamacpp.cluster.plugins.module_utils._cuda_versions import numbers
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

#: Beside a toolkit that was made of wheels: the wheels, a line each, so that the next run knows whether they changed.
WHEELS_FILE = "llamacpp-wheels.txt"

_NVCC = ("/usr/local/cuda-*/bin/nvcc", "/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
_GCC = ("/usr/bin/gcc", "/usr/bin/gcc-[0-9]*", "/opt/rh/gcc-toolset-*/root/usr/bin/gcc")

_RELEASE = re.compile(r"release \d+\.\d+, V(\d+(?:\.\d+)+)")
_MODULE = re.compile(r"^NVRM version:.*?\s(\d{3,}\.\d+(?:\.\d+)?)\s", re.MULTILINE)


def nvcc_version(text: str) -> str:
    """Return ``12.2.140`` of what ``nvcc --version`` says; empty when it does not say."""
    match = _RELEASE.search(text)
    return match.group(1) if match else ""


def module_version(text: str) -> str:
    """Return the driver's version of ``/proc/driver/nvidia/version``; empty when there is none."""
    match = _MODULE.search(text)
    return match.group(1) if match else ""


def toolkits(run: _gpu_find.Run, homes: list[str], pip_directory: str) -> list[dict[str, Any]]:
    """Return ``version``, ``home``, ``nvcc`` and ``wheels`` of each CUDA toolkit, oldest first.

    ``homes`` are looked at besides the usual places. One that several links lead to is told once, by its longest name,
    which is the one with the version; ``wheels`` is empty unless it was made of wheels.
    """
    candidates = [(home, os.path.join(home, "bin", "nvcc")) for home in homes]
    for pattern in (*_NVCC, os.path.join(pip_directory, "*", "bin", "nvcc")):
        candidates += [(os.path.dirname(os.path.dirname(nvcc)), nvcc) for nvcc in sorted(glob.glob(pattern))]
    if os.path.isdir(DISTRO_HOME):
        candidates.append((DISTRO_HOME, "/usr/bin/nvcc"))
    found: dict[str, dict[str, Any]] = {}
    for home, nvcc in candidates:
        real = os.path.realpath(home)
        if not os.access(nvcc, os.X_OK) or (real in found and home not in homes):
            continue
        output = run(nvcc, "--version")
        version = nvcc_version(output.out) if output else ""
        if version:
            found[real] = {"version": version, "home": home, "nvcc": nvcc, "wheels": _wheels(home)}
    return sorted(found.values(), key=lambda toolkit: numbers(str(toolkit["version"])))


def _wheels(home: str) -> list[str]:
    try:
        with open(os.path.join(home, WHEELS_FILE), encoding="utf-8") as stream:
            return stream.read().split()
    except OSError:
        return []


def compilers(run: _gpu_find.Run) -> dict[str, str]:
    """Return the versions of gcc by name (``gcc``, ``gcc-11``) or, for gcc-toolset, by path."""
    found = {}
    for path in (path for pattern in _GCC for path in sorted(glob.glob(pattern))):
        name = path if path.startswith("/opt") else os.path.basename(path)
        output = run(path, "-dumpfullversion")
        if output is not None and output.code == 0 and re.fullmatch(r"gcc(-\d+)?", os.path.basename(path)):
            found[name] = output.out.strip()
    return found


def driver(run: _gpu_find.Run, tree: Tree, pynvml: str | None) -> dict[str, str]:
    """Return ``version`` of NVIDIA's driver and ``source``: who said so; both empty where there is none.

    A driver that does not work now (as after an update without a reboot) is the one whose module is loaded.
    """
    try:
        found = _gpu_find.find(run, tree, pynvml)
        if found["driver_version"]:
            return {"version": str(found["driver_version"]), "source": str(found["source"])}
    except _gpu_find.GpuError:
        # That is for the roles that use the GPU; here the version alone counts, which the kernel module tells.
        pass
    version = module_version(tree.read("/proc/driver/nvidia/version"))
    return {"version": version, "source": "/proc/driver/nvidia/version" if version else ""}


def builder(run: _gpu_find.Run, tree: Tree, machine: str, homes: list[str], pip_directory: str) -> dict[str, Any]:
    """Return the builder as :func:`_toolchain.choose` takes it."""
    system = _node.os_release(tree.read("/etc/os-release"))
    return {
        "os_id": system["id"],
        "os_version": system["version"],
        "os_family": system["family"],
        "machine": machine,
        "toolkits": toolkits(run, homes, pip_directory),
        "compilers": compilers(run),
    }
