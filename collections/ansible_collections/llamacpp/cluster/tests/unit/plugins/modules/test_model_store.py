# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module model_store on real stores; what may go is decided in test__store_room.py."""

from __future__ import annotations

import os

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.plugins.modules import model_store
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import add, bring, manifest_of, spoil, tree


@pytest.fixture
def store(tmp_path):
    """A store with three models of 100 bytes, each wanted later than the one before."""
    store = Store(str(tmp_path / "models"))
    for number in (1, 2, 3):
        add(store, "m%d" % number, x=b"%d" % number * 100)
        os.utime(os.path.join(store.manifests, "m%d.json" % number), (number * 1000, number * 1000))
    return store


def test_a_sound_store(run_module, store):
    found = run_module(model_store, store=store.root, state="scrubbed")
    assert (found["changed"], found["findings"]) == (False, [])


@pytest.mark.parametrize("check", [True, False])
def test_wrong_bytes_are_found_and_taken_away(run_module, store, check):
    manifest = manifest_of("m2", x=b"2" * 100)
    spoil(store.blob(manifest.files[0].sha256))
    found = run_module(model_store, check=check, store=store.root, state="scrubbed")
    (finding,) = found["findings"]
    assert found["changed"] is True
    assert (finding["names"], finding["file"], finding["sha256"]) == (["m2"], "x.bin", manifest.files[0].sha256)
    assert finding["problem"].startswith("its bytes have sha256 ")
    assert os.path.isfile(finding["moved_to"]) is not check
    assert store.present(manifest) is check
    # The second time it is gone, and nothing is left to be done about it.
    again = run_module(model_store, check=check, store=store.root, state="scrubbed")
    assert again["changed"] is check and len(again["findings"]) == 1


def test_one_model_alone_is_scrubbed(run_module, store):
    spoil(store.blob(manifest_of("m2", x=b"2" * 100).files[0].sha256))
    assert run_module(model_store, store=store.root, state="scrubbed", names=["m1"])["findings"] == []
    assert len(run_module(model_store, store=store.root, state="scrubbed", names=["m2"])["findings"]) == 1


def test_a_name_that_is_not_there(run_module, store):
    found = run_module(model_store, store=store.root, state="scrubbed", names=["m9"])
    assert found["failed"] and "m9" in found["msg"] and "m1, m2, m3" in found["msg"]


@pytest.mark.parametrize("check", [True, False])
def test_a_store_within_its_quota(run_module, store, check):
    found = run_module(model_store, check=check, store=store.root, state="pruned", quota=200, keep=["m1"])
    assert (found["changed"], found["evicted"], found["freed_bytes"]) == (True, ["m2"], 100)
    assert store.names() == (["m1", "m2", "m3"] if check else ["m1", "m3"])
    if not check:
        assert run_module(model_store, store=store.root, state="pruned", quota=200)["changed"] is False


def test_a_quota_that_cannot_be_kept(run_module, store):
    found = run_module(model_store, store=store.root, state="pruned", quota=50, keep=["m1", "m2"])
    assert found["failed"] and "raise llamacpp_models_quota" in found["msg"]
    assert store.names() == ["m1", "m2", "m3"]


@pytest.mark.parametrize("check", [True, False])
def test_leftovers(run_module, store, check):
    os.unlink(os.path.join(store.manifests, "m1.json"))
    before = tree(store.root)
    found = run_module(model_store, check=check, store=store.root, state="swept")
    assert (found["changed"], found["removed"]) == (True, ["names/m1/x.bin"])
    assert tree(store.root) == (before if check else sorted(set(before) - {"names/m1/x.bin"}))


@pytest.mark.parametrize("check", [True, False])
def test_a_model_that_is_still_wanted(run_module, store, check):
    given = {"store": store.root, "state": "noted", "names": ["m1", "not there yet"]}
    found = run_module(model_store, check=check, **given)
    assert (found["changed"], found["noted"]) == (True, ["m1"])
    assert run_module(model_store, check=check, **given)["changed"] is check
    evicted = run_module(model_store, check=True, store=store.root, state="pruned", quota=200)["evicted"]
    assert evicted == (["m1"] if check else ["m2"])


def test_a_quota_less_than_nothing(run_module, store):
    assert "write 0 or more" in run_module(model_store, store=store.root, state="pruned", quota=-1)["msg"]


def test_a_store_that_somebody_holds(run_module, store):
    bring(store, "x.bin", b"x")
    with store.lock("the other run", 1.0, print):
        found = run_module(model_store, store=store.root, state="swept", lock_wait=0)
    assert found["failed"] and "the other run" in found["msg"]
