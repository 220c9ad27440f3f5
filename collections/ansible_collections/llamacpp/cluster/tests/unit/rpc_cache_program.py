# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program of the RPC cache, compiled for tests, and entries made of nothing."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache import Entry
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import fnv1a64

SOURCE = Path(__file__).resolve().parents[2] / "roles" / "llama_cpp" / "files" / "rpc_cache.c"
COMPILER = shutil.which("cc")
STRICT = ("-std=c11", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror")


@functools.cache
def compiled() -> str:
    """Return the path of the compiled program, without a single warning."""
    path = os.path.join(tempfile.mkdtemp(prefix="llamacpp-rpc-cache-"), "llamacpp-rpc-cache")
    subprocess.run([str(COMPILER), *STRICT, "-o", path, str(SOURCE)], check=True)
    return path


def name_of(data: bytes) -> str:
    """Return the name of an entry."""
    return "%016x" % fnv1a64(data)


def entry(data: bytes, sha256: str = "0" * 64, offset: int = 0) -> Entry:
    """Return the entry of some bytes."""
    return Entry(name_of(data), len(data), sha256, offset)
