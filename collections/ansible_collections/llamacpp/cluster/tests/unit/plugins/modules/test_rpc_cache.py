# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module on a head and on a worker: from the store of the one to the cache of the other, over a real share."""

from __future__ import annotations

import os
import shutil
import threading
from functools import partial

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _rpc_program, _share, _worker_tensors
from ansible_collections.llamacpp.cluster.plugins.modules import rpc_cache
from ansible_collections.llamacpp.cluster.tests.unit.rpc_cache_program import (
    COMPILER,
    compiled,
    name_of,
    planned,
    stored,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

LAYERS = 4


@pytest.fixture(autouse=True)
def small_threshold(monkeypatch):
    """Tensors of a small model are large enough."""
    monkeypatch.setattr(_worker_tensors, "THRESHOLD", 8000)


@pytest.fixture
def module(run_module, tmp_path):
    """A function that runs the module with the compiled program."""
    return partial(run_module, rpc_cache, program=compiled(), directory=str(tmp_path / "worker" / "rpc"))


@pytest.fixture
def head(module, tmp_path, monkeypatch):
    """What the head's node said: entries of node2, and the addresses of files that it shares."""
    path, sha256 = stored(tmp_path / "models", "owner/toy/F16", LAYERS)
    said = module(state="listed", store=str(tmp_path / "models"), instances=[planned("demo", path)])
    config = {
        "address": "127.0.0.1",
        "port": 0,
        "secret": "s3cret",
        "files": {sha256: said["files"][sha256]},
        "peers": ["127.0.0.1"],
        "idle": 60,
    }
    # Its lines are for the journal; here they would get into what the module says.
    monkeypatch.setattr(_share, "say", lambda text: None)
    share = _share.Share(config)
    threading.Thread(target=share.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = "http://127.0.0.1:%d/s3cret/%s" % (share.server_address[1], sha256)
    yield {"entries": said["workers"]["node2"], "sources": [{sha256: url}]}
    share.shutdown()
    share.server_close()


def cached(tmp_path):
    """Return the names of the entries on the worker; each has to be what its name says."""
    directory = tmp_path / "worker" / "rpc"
    for path in directory.iterdir():
        assert name_of(path.read_bytes()) == path.name
    return sorted(os.listdir(directory))


def names(entries):
    return sorted(entry["hash"] for entry in entries)


def test_from_a_heads_store_to_a_workers_cache_and_no_second_time(module, head, tmp_path):
    told = module(check=True, **head)
    assert (told["changed"], sorted(told["seeded"]), told["present"]) == (True, names(head["entries"]), 0)
    assert not (tmp_path / "worker").exists()
    first = module(**head)
    size = sum(entry["bytes"] for entry in head["entries"])
    assert (first["changed"], first["present"], first["fetched_bytes"]) == (True, 6, size)
    assert cached(tmp_path) == names(head["entries"])
    again = module(**dict(head, sources=[]))
    assert (again["changed"], again["present"], again["fetched_bytes"]) == (False, 6, 0)
    assert module(check=True, **head)["changed"] is False


def test_a_look_at_what_is_settled_reads_no_weights(module, head, tmp_path):
    assert module(peek=True, **head)["pending"] is True
    assert not (tmp_path / "worker").exists()
    module(**head)
    found = module(peek=True, **head)
    assert (found["changed"], found["present"], "pending" in found) == (False, 6, False)
    assert module(peek=True, **dict(head, entries=head["entries"][:2]))["pending"] is True
    assert module(peek=True, quota=1, **head)["pending"] is True
    os.utime(tmp_path / "worker" / "rpc" / head["entries"][0]["hash"])
    assert module(peek=True, **head)["pending"] is True


def test_a_look_at_models_that_were_hashed(module, head, tmp_path):
    path = tmp_path / "models" / "names" / "owner" / "toy" / "F16" / "toy.gguf"
    asked = {"state": "listed", "store": str(tmp_path / "models"), "instances": [planned("demo", path)]}
    assert module(peek=True, **asked)["workers"]["node2"] == head["entries"]
    shutil.rmtree(tmp_path / "models" / "tensors")
    assert module(peek=True, **asked)["pending"] is True


def test_a_node_that_has_the_file_takes_it_from_its_own_store(module, head, tmp_path):
    found = module(entries=head["entries"], store=str(tmp_path / "models"))
    assert (found["fetched_bytes"], len(found["seeded"])) == (0, 6)
    assert cached(tmp_path) == names(head["entries"])


def test_a_truncated_entry_is_replaced(module, head, tmp_path):
    module(**head)
    name = head["entries"][0]["hash"]
    os.truncate(tmp_path / "worker" / "rpc" / name, 100)
    found = module(**head)
    assert (found["changed"], found["seeded"]) == (True, [name])
    assert [finding["name"] for finding in found["findings"]] == [name]
    assert cached(tmp_path) == names(head["entries"])


def test_scrub_quarantines_and_the_next_run_mends(module, head, tmp_path):
    module(**head)
    name = head["entries"][0]["hash"]
    path = tmp_path / "worker" / "rpc" / name
    path.write_bytes(bytes(path.stat().st_size))
    found = module(state="scrubbed")
    assert (found["changed"], [item["name"] for item in found["findings"]], found["entries"]) == (True, [name], 5)
    assert module(state="scrubbed")["changed"] is False
    assert module(**head)["seeded"] == [name]


def test_scrub_keeps_within_the_quota_and_what_the_plan_needs(module, head, tmp_path):
    module(**head)
    module(**dict(head, entries=head["entries"][:2]))
    kept = names(head["entries"][:2])
    size = sum(entry["bytes"] for entry in head["entries"][:2])
    found = module(state="scrubbed", quota=size)
    assert (len(found["evicted"]), found["bytes"]) == (4, size)
    assert cached(tmp_path) == kept
    refused = module(state="scrubbed", quota=size - 1)
    assert "llamacpp_rpc_cache_quota" in refused["msg"]
    assert cached(tmp_path) == kept


def test_a_quota_that_is_too_small_does_not_hide_what_a_scrub_took_away(module, head, tmp_path):
    module(**head)
    name = head["entries"][0]["hash"]
    (tmp_path / "worker" / "rpc" / name).write_bytes(b"x")
    refused = module(state="scrubbed", quota=1)
    assert refused["failed"] is True and "llamacpp_rpc_cache_quota" in refused["msg"]
    assert ([item["name"] for item in refused["findings"]], refused["changed"]) == ([name], True)
    assert cached(tmp_path) == sorted(set(names(head["entries"])) - {name})
    assert not module(state="scrubbed")["findings"]


def test_scrub_in_check_mode_reads_and_leaves_everything(module, head, tmp_path):
    module(**head)
    name = head["entries"][0]["hash"]
    directory = tmp_path / "worker" / "rpc"
    (directory / name).write_bytes(b"x")
    before = sorted(os.listdir(directory.parent)), (directory.parent / "rpc-record.json").read_bytes()
    for _turn in range(2):
        found = module(check=True, state="scrubbed")
        assert (found["changed"], found["entries"]) == (True, 6)
        assert [(item["name"], item["path"]) for item in found["findings"]] == [(name, "")]
    assert (sorted(os.listdir(directory.parent)), (directory.parent / "rpc-record.json").read_bytes()) == before
    assert module(state="scrubbed")["entries"] == 5
    assert module(check=True, state="scrubbed")["changed"] is False


def test_check_mode_says_what_a_quota_does(module, head, tmp_path):
    module(**head)
    fewer = dict(head, entries=head["entries"][:2])
    size = sum(entry["bytes"] for entry in fewer["entries"])
    for asked in (fewer, {"state": "scrubbed", "entries": fewer["entries"]}):
        said = module(check=True, quota=size, **asked)
        assert (said["changed"], len(said["evicted"])) == (True, 4)
        assert "llamacpp_rpc_cache_quota" in module(check=True, quota=size - 1, **asked)["msg"]
    assert cached(tmp_path) == names(head["entries"])
    assert sorted(module(quota=size, **fewer)["evicted"]) == sorted(said["evicted"])


@pytest.mark.parametrize("check", [False, True])
def test_scrub_of_nothing_makes_nothing(module, tmp_path, check):
    found = module(check=check, state="scrubbed")
    assert (found["changed"], found["entries"], found["bytes"]) == (False, 0, 0)
    assert not (tmp_path / "worker").exists()


@pytest.mark.parametrize("option", ["quota", "threads"])
def test_numbers_below_zero_are_refused(module, option):
    assert module(state="scrubbed", **{option: -1})["msg"] == "%s = -1: write 0 or more" % option


def test_without_the_program_little_is_done_and_much_is_left_with_a_warning(run_module, head, tmp_path, monkeypatch):
    run = partial(run_module, rpc_cache, program="/nowhere/x", directory=str(tmp_path / "worker" / "rpc"))
    assert run(**head)["changed"] is True
    shutil.rmtree(tmp_path / "worker")
    monkeypatch.setattr(_rpc_program, "PYTHON_BYTES", 100)
    found = run(entries=head["entries"], store=str(tmp_path / "models"))
    assert (found["changed"], found["seeded"]) == (False, [])
    assert "The RPC cache is not seeded" in str(found["warnings"])
    assert cached(tmp_path) == []
    assert run(state="listed", store=str(tmp_path / "models"), instances=[])["workers"] == {}


def test_a_model_that_is_not_in_the_store_is_a_warning(module, tmp_path):
    found = module(state="listed", store=str(tmp_path), instances=[planned("demo", tmp_path / "toy.gguf")])
    assert (found["workers"], found["files"]) == ({}, {})
    assert "instance demo" in str(found["warnings"])


@pytest.mark.parametrize("change", [{"hash": "../../etc/passwd"}, {"hash": "A" * 16}, {"bytes": 0}, {"offset": -1}])
def test_entries_that_are_none_are_refused(module, tmp_path, change):
    entry = {"hash": "0" * 16, "bytes": 1, "sha256": "0" * 64, "offset": 0, **change}
    assert "is no entry" in module(entries=[entry])["msg"]
    assert not (tmp_path / "worker").exists()


def test_a_checksum_that_would_lead_elsewhere_is_refused(module, tmp_path):
    entry = {"hash": "0" * 16, "bytes": 1, "sha256": "../names/toy/toy.gguf", "offset": 0}
    assert "is no entry" in module(entries=[entry], store=str(tmp_path))["msg"]
