# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the workers of a head need, from models in its store."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _worker_tensors
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache_list import list_entries
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import Python, RpcCacheError
from ansible_collections.llamacpp.cluster.tests.unit.rpc_cache_program import name_of, planned, stored

LAYERS = 4


class Counting(Python):
    """Python that counts what it hashes."""

    def __init__(self):
        super().__init__("no program")
        self.bytes = 0

    def hash(self, file, ranges):
        self.bytes += sum(item.bytes for item in ranges)
        return super().hash(file, ranges)


@pytest.fixture(autouse=True)
def small_threshold(monkeypatch):
    """Tensors of a small model are large enough."""
    monkeypatch.setattr(_worker_tensors, "THRESHOLD", 8000)


@pytest.fixture
def hasher():
    return Counting()


def test_entries_are_what_the_files_have(tmp_path, hasher):
    path, sha256 = stored(tmp_path, "owner/toy/F16", LAYERS)
    found = list_entries(str(tmp_path), [planned("demo", path)], hasher)
    assert found.warnings == []
    assert found.files == {sha256: str(tmp_path / "blobs" / sha256)}
    data = path.read_bytes()
    assert {node: len(entries) for node, entries in found.workers.items()} == {"node2": 6, "node3": 3}
    everything = found.workers["node2"] + found.workers["node3"]
    for entry in everything:
        assert entry["sha256"] == sha256
        assert entry["hash"] == name_of(data[entry["offset"] : entry["offset"] + entry["bytes"]])
    assert (
        found.hashed == hasher.bytes == sum(entry["bytes"] for entries in found.workers.values() for entry in entries)
    )


def test_a_file_is_hashed_once(tmp_path, hasher):
    path, sha256 = stored(tmp_path, "toy", LAYERS)
    first = list_entries(str(tmp_path), [planned("demo", path)], hasher)
    again = list_entries(str(tmp_path), [planned("demo", path)], hasher)
    assert (again.workers, again.hashed) == (first.workers, 0)
    # Another split needs other tensors of it, and only those are read.
    other = list_entries(str(tmp_path), [planned("demo", path, devices=("RPC1", "CUDA0"), split=(3, 2))], hasher)
    assert (len(other.workers["node3"]), other.hashed) == (6, 0)
    memory = tmp_path / "tensors" / (sha256 + ".json")
    for text in ("{", "[]", json.dumps({"schema": 9, "hashes": {}}), json.dumps({"schema": 1, "hashes": {"a": "b"}})):
        memory.write_text(text)
        assert list_entries(str(tmp_path), [planned("demo", path)], hasher).workers == first.workers


def test_check_mode_writes_nothing(tmp_path, hasher):
    path, _sha256 = stored(tmp_path, "toy", LAYERS)
    assert list_entries(str(tmp_path), [planned("demo", path)], hasher, write=False).hashed > 0
    assert not (tmp_path / "tensors").exists()


def test_several_instances_of_a_model_need_it_once(tmp_path, hasher):
    path, sha256 = stored(tmp_path, "toy", LAYERS)
    other, other_sha256 = stored(tmp_path, "other", LAYERS, seed=2)
    found = list_entries(str(tmp_path), [planned("a", path), planned("b", path), planned("c", other)], hasher)
    assert set(found.files) == {sha256, other_sha256}
    assert len(found.workers["node2"]) == 12
    assert len({entry["hash"] for entry in found.workers["node2"]}) == 12


def test_a_model_that_is_not_in_the_store_is_no_reason_to_stop(tmp_path, hasher):
    path, _sha256 = stored(tmp_path, "toy", LAYERS)
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(path.read_bytes())
    broken = tmp_path / "names" / "toy" / "broken.gguf"
    broken.write_bytes(b"GGUF")
    found = list_entries(str(tmp_path), [planned("x", outside), planned("y", broken), planned("demo", path)], hasher)
    assert len(found.workers["node2"]) == 6
    assert found.warnings[0].startswith("instance x: its workers are not seeded: %s is no model of the store" % outside)
    assert found.warnings[1].startswith("instance y: its workers are not seeded: %s: " % broken)


def test_a_manifest_without_the_file_is_no_reason_to_stop(tmp_path, hasher):
    path, _sha256 = stored(tmp_path, "toy", LAYERS)
    manifest = tmp_path / "manifests" / "toy.json"
    manifest.write_text(manifest.read_text().replace("toy.gguf", "other.gguf"))
    found = list_entries(str(tmp_path), [planned("demo", path)], hasher)
    assert found.workers == {}
    assert "the manifest of toy does not name toy.gguf: bring the model again" in found.warnings[0]


def test_an_override_that_cannot_be_read_is_told(tmp_path, hasher):
    path, _sha256 = stored(tmp_path, "toy", LAYERS)
    found = list_entries(str(tmp_path), [planned("demo", path, extra=["-ot", "(=CPU"])], hasher)
    assert (found.workers, len(found.warnings)) == ({}, 1)
    assert "--override-tensor (" in found.warnings[0]


def test_a_file_that_lost_its_end_is_named(tmp_path, hasher):
    path, _sha256 = stored(tmp_path, "toy", LAYERS)
    size = path.stat().st_size

    class Cut(Python):
        def hash(self, file, ranges):
            with open(file, "r+b") as stream:
                stream.truncate(size - 100)
            return super().hash(file, ranges)

    with pytest.raises(RpcCacheError, match=r"toy\.gguf: the file ends at byte"):
        list_entries(str(tmp_path), [planned("demo", path)], Cut("no program"))
