# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""For tests of the RPC cache: its program compiled, entries, instances of a plan, a store with a small model."""

from __future__ import annotations

import atexit
import functools
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import read_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import Manifest
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache import Entry
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import fnv1a64
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.tests.unit.builders import llama

SOURCE = Path(__file__).resolve().parents[2] / "roles" / "llama_cpp" / "files" / "rpc_cache.c"
COMPILER = shutil.which("cc")
STRICT = ("-std=c11", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror")


@functools.cache
def compiled() -> str:
    """Return the path of the compiled program, without a single warning."""
    directory = tempfile.mkdtemp(prefix="llamacpp-rpc-cache-")
    atexit.register(shutil.rmtree, directory)
    path = os.path.join(directory, "llamacpp-rpc-cache")
    subprocess.run([str(COMPILER), *STRICT, "-o", path, str(SOURCE)], check=True)
    return path


def name_of(data: bytes) -> str:
    """Return the name of an entry."""
    return "%016x" % fnv1a64(data)


def entry(data: bytes, sha256: str = "0" * 64, offset: int = 0) -> Entry:
    """Return the entry of some bytes."""
    return Entry(name_of(data), len(data), sha256, offset)


WORKERS = {"RPC0": ("node2", "10.0.1.12:50052"), "RPC1": ("node3", "10.0.1.13:50052")}


def planned(
    name: str = "demo",
    path: Path | None = None,
    devices: Sequence[str] = ("RPC0", "RPC1"),
    split: Sequence[float] = (1, 1),
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Return an instance of a plan: a head with a GPU of its own, and two workers. ``path``: of its model."""
    chosen = {"gpu_layers": 99, "split_mode": "layer", "cpu_moe": False, "n_cpu_moe": 0, "tensor_split": list(split)}
    shown = [
        {"device": device, "node": node, "endpoint": endpoint, "kind": "cuda", "memory_bytes": 1 << 34, "host": False}
        for device, (node, endpoint) in WORKERS.items()
    ]
    local = {"device": "CUDA0", "node": "node1", "endpoint": None, "kind": "cuda", "memory_bytes": 1 << 34}
    beside = dict(local, device="CPU", kind="cpu", host=True)
    return {
        "name": name,
        "model": {"path": str(path), "files": [str(path)]},
        "workers": [
            {"node": node, "host": endpoint.partition(":")[0], "port": 50052} for node, endpoint in WORKERS.values()
        ],
        "devices": [*shown, dict(local, host=False), beside],
        "settings": {**chosen, **settings},
        "args": ["--device", ",".join(devices), *extra],
        "environment": environment or {},
    }


def stored(root: Path, name: str, layers: int, seed: int = 1) -> tuple[Path, str]:
    """Put a model whose weights are all different into a store; return its readable path and its sha256."""
    data = llama(layers)
    path = root / "brought" / "toy.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    begin = read_header(str(path)).data_offset
    path.write_bytes(data[:begin] + random.Random(seed).randbytes(len(data) - begin))
    store = Store(str(root))
    file = store.adopt(str(path), path.name, "model", Progress(None))
    store.name(Manifest(name, (file,)))
    path.unlink()
    return Path(store.path_of(name, file.name)), file.sha256
