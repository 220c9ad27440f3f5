"""`make scrub` from the operator's side: the playbook, with nodes that are directories of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import PYTHON_BYTES, fnv1a64
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import add, manifest_of, spoil

ROOT = Path(__file__).resolve().parents[1]
NODES = ("node1", "node2")


def entry(directory: Path, data: bytes, name: str = "") -> Path:
    """Write an entry of a cache, by its hash unless it has another name."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / (name or f"{fnv1a64(data):016x}")
    path.write_bytes(data)
    return path


def cache(tmp_path: Path, node: str) -> Path:
    return tmp_path / node / "cache" / "rpc"


def scrub(tmp_path: Path, **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run the playbook for two nodes without the program that hashes; ``models`` is where all have their store."""
    hosts = {node: {"llamacpp_rpc_cache_dir": str(cache(tmp_path, node))} for node in NODES}
    common = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "llamacpp_models_dir": str(tmp_path / "models"),
        "llamacpp_prefix": str(tmp_path / "prefix"),
        **variables,
    }
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"llamacpp_nodes": {"hosts": hosts, "vars": common}}), encoding="utf-8")
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), f"--inventory={inventory}", "playbooks/scrub.yml"]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def report(done: subprocess.CompletedProcess[str]) -> str:
    """Return what the playbook shows at its end, on one line."""
    shown = done.stdout.partition("TASK [Show what was found]")[2].partition("TASK [")[0].partition("PLAY RECAP")[0]
    return " ".join(shown.split())


def test_a_cache_that_cannot_be_hashed_hides_nothing_that_was_found(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "models"))
    add(store, "m1", x=b"1" * 100)
    spoil(store.blob(manifest_of("m1", x=b"1" * 100).files[0].sha256))
    wrong = entry(cache(tmp_path, "node2"), b"other bytes", "0" * 16)
    with entry(cache(tmp_path, "node1"), b"", "1" * 16).open("r+b") as stream:
        stream.truncate(PYTHON_BYTES + 1)
    done = scrub(tmp_path, llamacpp_models_transport="shared")
    found = report(done)
    # All share the store: one of them reads it.
    assert found.count("m1 x.bin: its bytes have sha256") == 1, done.stdout + done.stderr
    assert "node1: m1 x.bin" in found
    assert "node1: " + str(tmp_path / "prefix/current/bin/llamacpp-rpc-cache does not run here") in found
    assert "node2: cached tensor " + wrong.name in found and not wrong.exists()
    assert done.returncode != 0
    failed = done.stdout.partition("TASK [Fail where something was not scrubbed]")[2]
    assert [node for node in NODES if f"fatal: [{node}]" in failed] == ["node1"]


def test_the_quota_that_is_declared_is_kept(tmp_path: Path) -> None:
    old, new = (entry(cache(tmp_path, "node2"), data) for data in (b"older", b"newer"))
    os.utime(old, (1000, 1000))
    # Nine bytes and some.
    done = scrub(tmp_path, llamacpp_rpc_cache_quota="0.000009 MiB")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node2: 1 cached tensors, 0 MiB, 1 removed for the quota" in report(done)
    assert new.exists() and not old.exists()
