# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What module model_info says of real stores."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Manifest, Store
from ansible_collections.llamacpp.cluster.plugins.modules import model_info
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import QUIET, add, bring, manifest_of


@pytest.fixture
def store(tmp_path):
    """A store with two models that share a file."""
    store = Store(str(tmp_path / "models"))
    add(store, "owner/repo/Q4", shared=b"1" * 100, own=b"2" * 10)
    add(store, "small", shared=b"1" * 100)
    return store


def test_what_is_in_the_store(run_module, store):
    store.note_used(["small"])
    os.utime(os.path.join(store.used, "small"), (2e9, 2e9))
    found = run_module(model_info, store=store.root)
    first, second = found["models"]
    assert (first["name"], first["bytes"], first["own_bytes"], first["complete"]) == ("owner/repo/Q4", 110, 10, True)
    assert (second["name"], second["bytes"], second["own_bytes"]) == ("small", 100, 0)
    assert second["last_used"] == "2033-05-18T03:33:20Z" and first["last_used"] == first["created"]
    assert [file["name"] for file in first["files"]] == ["shared.bin", "own.bin"]
    assert (first["used_by"], first["used_since"]) == ([], None)
    assert (found["changed"], found["missing"], found["store_bytes"]) == (False, [], 110)
    assert 0 < found["free_bytes"] < shutil.disk_usage(store.root).free + 1


def test_of_some_names_alone(run_module, store):
    found = run_module(model_info, store=store.root, names=["small", "unheard/of"])
    assert [model["name"] for model in found["models"]] == ["small"]


def test_a_file_that_the_store_only_links_to(run_module, store, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"shared")
    file = store.adopt(str(tmp_path / "x.bin"), "x.bin", "model", QUIET, external=True)
    store.name(Manifest("far", (file,), external={"x.bin": str(tmp_path / "x.bin")}))
    (found,) = run_module(model_info, store=store.root, names=["far"])["models"]
    assert found["external"] == {"x.bin": str(tmp_path / "x.bin")}
    assert (found["bytes"], found["own_bytes"], found["complete"]) == (6, 0, True)


def test_what_is_missing(run_module, store):
    whole = manifest_of("small", shared=b"1" * 100)
    other = manifest_of("owner/repo/Q4", shared=b"1" * 100, own=b"other")
    absent = manifest_of("absent", x=b"x")
    expected = [manifest.as_dict() for manifest in (whole, other, absent)]
    found = run_module(model_info, store=store.root, expected=expected)
    assert found["missing"] == ["absent", "owner/repo/Q4"]
    os.unlink(store.path_of("small", "shared.bin"))
    found = run_module(model_info, store=store.root, expected=expected)
    assert found["missing"] == ["absent", "owner/repo/Q4", "small"]
    assert [model["complete"] for model in found["models"]] == [True, False]


def test_no_model_is_read(run_module, store, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("a file was hashed")

    monkeypatch.setattr(_store_files, "sha256_of", refuse)
    os.utime(store.blob(manifest_of("small", shared=b"1" * 100).files[0].sha256))
    found = run_module(model_info, store=store.root, expected=[manifest_of("small", shared=b"1" * 100).as_dict()])
    assert found["missing"] == ["small"]


def test_a_process_that_runs_with_a_model(run_module, store):
    command = [sys.executable, "-c", "import time; time.sleep(60)", "--model", store.path_of("small", "shared.bin")]
    with subprocess.Popen(command) as process:
        found = run_module(model_info, store=store.root)
        process.kill()
    assert found["models"][1]["used_by"] == ["%s (process %d)" % (os.path.basename(sys.executable), process.pid)]
    assert found["models"][1]["used_since"].startswith("20")


def test_a_broken_manifest(run_module, store):
    with open(os.path.join(store.manifests, "small.json"), "w") as stream:
        stream.write("{")
    broken = run_module(model_info, store=store.root)["models"][1]
    assert (broken["name"], broken["complete"], broken["files"], broken["created"]) == ("small", False, [], None)


def test_a_node_without_a_store(run_module, tmp_path):
    found = run_module(model_info, store=str(tmp_path / "none"), expected=[manifest_of("a", x=b"x").as_dict()])
    assert (found["models"], found["missing"], found["store_bytes"]) == ([], ["a"], 0)
    assert os.listdir(tmp_path) == []


def test_what_is_no_manifest(run_module, tmp_path):
    found = run_module(model_info, store=str(tmp_path), expected=[{"name": "../a"}])
    assert found["failed"] and "a manifest without 'files'" in found["msg"]


def test_files_on_their_way_in_count(run_module, store):
    file = bring(store, "x.bin", b"x")
    with open(store.part("0" * 64), "wb") as stream:
        stream.write(b"1" * 8192)
        stream.flush()
        os.fsync(stream.fileno())
    assert run_module(model_info, store=store.root)["store_bytes"] == 110 + file.bytes + 8192
