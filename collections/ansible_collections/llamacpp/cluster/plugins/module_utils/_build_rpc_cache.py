# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compile the program of the RPC cache beside llama.cpp's own binaries, with the compiler of the release."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_run import Runner
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import PROGRAM, PROGRAM_VERSION

# Not the release's own flags: those are for llama.cpp, and this has to run on the same nodes whatever they are.
_FLAGS = ("-std=c11", "-O2", "-pthread")


def compile_rpc_cache(runner: Runner, cache: Mapping[str, str], source: str, work: str, build: str) -> list[str]:
    """Compile ``source`` (a text in C) to ``bin`` of CMake's build directory; return the name, or nothing without it.

    ``cache``: entries of CMakeCache.txt. ``work``: for the source. Raises :class:`ReleaseError` and :class:`OSError`.
    """
    if not source:
        return []
    path = os.path.join(work, "rpc_cache.c")
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(source)
    program = os.path.join(build, "bin", PROGRAM)
    runner.run([cache.get("CMAKE_C_COMPILER") or "cc", *_FLAGS, "-o", program, path])
    said = runner.output([program, "version"]).strip()
    if said != PROGRAM_VERSION:
        raise ReleaseError("the new %s says version %s, not %s" % (PROGRAM, said, PROGRAM_VERSION))
    return [PROGRAM]


def source_sha256(source: str) -> str:
    """Return what the manifest says of the source; empty for a release without the program."""
    return hashlib.sha256(source.encode()).hexdigest() if source else ""
