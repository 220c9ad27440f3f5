# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find what a node could compile with: CUDA toolkits and the default gcc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_find import Run
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

# NVIDIA's packages and installer; the directories of the collection's own provider pip.
_TOOLKITS = ("/usr/local", "/opt/llamacpp-cuda")
# Debian's and Ubuntu's nvidia-cuda-toolkit puts nvcc here, and the rest of it where the system's files are.
_DISTRIBUTION = "/usr"


def toolkits(tree: Tree, run: Run, homes: Iterable[str] = ()) -> list[dict[str, str]]:
    """Return the CUDA toolkits with a compiler: ``version`` (``12.2``) and ``home``, newest first.

    ``homes``: further directories to look into. One that is reached by several names is named once,
    by the name with its version where it has one.
    """
    candidates = [home for home in homes if home]
    for base in _TOOLKITS:
        names = [name for name in tree.names(base) if base != "/usr/local" or name.startswith("cuda")]
        candidates += ["%s/%s" % (base, name) for name in sorted(names, key=len, reverse=True)]
    found: dict[str, dict[str, str]] = {}
    for home in [*candidates, _DISTRIBUTION]:
        nvcc = home + "/bin/nvcc"
        real = os.path.realpath(nvcc)
        if real in found or not tree.exists(nvcc):
            continue
        output = run(nvcc, "--version")
        match = re.search(r"release (\d+\.\d+)", output.out) if output else None
        if match:
            found[real] = {"version": match.group(1), "home": home}
    return sorted(found.values(), key=lambda item: [-int(part) for part in item["version"].split(".")])


def compilers(run: Run) -> dict[str, str]:
    """Return the version of the default ``gcc``, as ``{"gcc": "12.2.0"}``; empty without one."""
    output = run("gcc", "-dumpfullversion")
    version = output.out.strip() if output and output.code == 0 else ""
    return {"gcc": version} if re.match(r"^\d+(\.\d+)*$", version) else {}
