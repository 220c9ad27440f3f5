# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find what a node compiles with, as the choice of a toolchain wants it, and NVIDIA's driver."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _compilers, _gpu_find, _node
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

#: Beside a toolkit that was made of wheels: the wheels, a line each, so that the next run knows whether they changed.
WHEELS_FILE = "llamacpp-wheels.txt"

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


def builder(run: _gpu_find.Run, tree: Tree, machine: str, homes: Iterable[str], pip_directory: str) -> dict[str, Any]:
    """Return the builder as :func:`_toolchain.choose` takes it.

    ``homes``: further directories that may hold a toolkit. Each of ``toolkits`` also has ``wheels``, of which it was
    made; empty for others.
    """
    system = _node.os_release(tree.read("/etc/os-release"))
    looked_at = [*homes, *("%s/%s" % (pip_directory, name) for name in tree.names(pip_directory))]
    toolkits = [
        dict(toolkit, wheels=tree.read("%s/%s" % (toolkit["home"], WHEELS_FILE)).split())
        for toolkit in _compilers.toolkits(tree, run, looked_at)
    ]
    return {
        "os_id": system["id"],
        "os_version": system["version"],
        "os_family": system["family"],
        "machine": machine,
        "toolkits": toolkits,
        "compilers": _compilers.compilers(run),
    }
