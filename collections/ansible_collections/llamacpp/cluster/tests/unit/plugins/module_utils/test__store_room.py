# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which models go for another one: the fewest, the least recently used, and never one that is needed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_clean, _store_names
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store, StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_room import (
    Blob,
    Held,
    Space,
    amount,
    choose,
    refusal,
)
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import QUIET, add, bring, manifest_of

GIB = 1 << 30


def held(name, blobs, used):
    """A model whose blobs are letters."""
    return Held(name, frozenset(blobs), used)


SIZES = {letter: Blob(10, 10) for letter in "abcdefgh"}


def test_when_there_is_room_nothing_goes():
    assert choose(10, Space(10, 30, 40), [held("x", "abc", 1)], SIZES, set()) == []
    assert choose(0, Space(0, 30, 0), [held("x", "abc", 1)], SIZES, set()) == []


def test_the_least_recently_used_goes():
    models = [held("new", "a", 3), held("old", "b", 1), held("between", "c", 2)]
    assert choose(10, Space(100, 30, 30), models, SIZES, set()) == ["old"]
    assert choose(10, Space(100, 30, 30), models, SIZES, {"old"}) == ["between"]
    assert choose(20, Space(0, 30, 0), models, SIZES, set()) == ["old", "between"]


def test_a_small_one_is_not_taken_when_a_large_one_has_to_go_anyhow():
    models = [held("small", "a", 1), held("large", "bcd", 2)]
    assert choose(30, Space(0, 40, 0), models, SIZES, set()) == ["large"]


def test_a_name_whose_blobs_others_need_gives_nothing():
    models = [held("alias", "ab", 1), held("kept", "abc", 2), held("other", "d", 3)]
    assert choose(10, Space(0, 40, 0), models, SIZES, {"kept"}) == ["other"]
    # Two names of the same blobs give them only together.
    models = [held("one", "ab", 1), held("two", "ab", 2)]
    assert choose(10, Space(0, 20, 0), models, SIZES, set()) == ["one", "two"]


def test_what_others_link_to_does_not_free_the_disk():
    models = [held("linked", "a", 1), held("own", "b", 2)]
    blobs = {"a": Blob(10, 0), "b": Blob(10, 10)}
    assert choose(10, Space(0, 20, 0), models, blobs, set()) == ["own"]
    assert choose(10, Space(10, 20, 20), models, blobs, set()) == ["linked"]


MODELS = st.dictionaries(
    st.sampled_from("ABCDEF"), st.tuples(st.frozensets(st.sampled_from("abcdefgh")), st.integers(0, 3)), max_size=6
)


@given(
    MODELS,
    st.fixed_dictionaries({letter: st.tuples(st.integers(0, 9), st.booleans()) for letter in "abcdefgh"}),
    st.integers(0, 40),
    st.integers(0, 20),
    st.integers(0, 60),
    st.sets(st.sampled_from("ABCDEF")),
)
def test_what_goes_is_enough_and_no_more(models, sizes, needed, free, quota, fixed):
    named = [Held(name, blobs, float(used)) for name, (blobs, used) in models.items()]
    blobs = {letter: Blob(size, size if frees else 0) for letter, (size, frees) in sizes.items()}
    present = set().union(*(model.blobs for model in named))
    space = Space(free, sum(blobs[letter].stored for letter in present), quota)

    def fits(names):
        stays = set().union(*(model.blobs for model in named if model.name not in names))
        gone = [blobs[letter] for letter in present - stays]
        on_disk = free + sum(blob.freed for blob in gone) >= needed
        within = space.stored - sum(blob.stored for blob in gone) + needed <= quota
        return on_disk and (within or not quota)

    chosen = choose(needed, space, named, blobs, fixed)
    evictable = {model.name for model in named} - fixed
    if chosen is None:
        assert not fits(evictable)
        assert "too few" in refusal(needed, space, named, blobs, fixed)
        return
    assert set(chosen) <= evictable
    assert fits(set(chosen))
    for name in chosen:
        assert not fits(set(chosen) - {name})
    # Nobody who was wanted earlier could have gone in place of the one who was wanted last.
    if chosen:
        latest = max((model.last_used, model.name) for model in named if model.name in chosen)
        assert not fits({m.name for m in named if m.name in evictable and (m.last_used, m.name) < latest})


def refused(needed, space, models, fixed=()):
    """The words of a refusal."""
    assert choose(needed, space, models, SIZES, fixed) is None
    return refusal(needed, space, models, SIZES, fixed)


def test_a_refusal_has_the_figures_and_a_remedy():
    models = [held("unused", "a", 1), held("used", "b", 2)]
    assert refused(50, Space(1000, 20, 45), models, {"used"}) == (
        "needs 50 bytes more: 1000 bytes are free on its disk, 20 bytes of its quota of 45 bytes are taken, what"
        " nobody uses (unused) has 10 bytes: 15 bytes too few; the quota is smaller than the model, raise"
        " llamacpp_models_quota"
    )
    text = refused(30, Space(1000, 20, 30), models, {"used", "unused"})
    assert "every model in it is used or declared" in text
    assert text.endswith("raise llamacpp_models_quota, or stop declaring a model")
    text = refused(30, Space(0, 20 + 3 * GIB, 0), models)
    assert ", 3.0 GiB have no name yet, which go by themselves when nobody brings the rest: 10 bytes too few" in text
    text = refused(5 * GIB, Space(GIB, 20, 0), models)
    assert text.startswith(
        "needs 5.0 GiB more: 1.0 GiB are free on its disk, what nobody uses (unused, used) has 20 bytes"
    )
    assert " 4.0 GiB too few; " in text
    assert text.endswith("free its disk, or take a larger one")


def test_amounts_for_people():
    assert [amount(count) for count in (0, 1023, 1024, 5 * GIB, 3 << 50)] == [
        *("0 bytes", "1023 bytes", "1.0 KiB", "5.0 GiB", "3072.0 TiB")
    ]


# On a disk


@pytest.fixture
def store(tmp_path):
    """Three models of 100 bytes, each wanted later than the one before; m2 shares half with m3."""
    (tmp_path / "units").mkdir()
    (tmp_path / "proc").mkdir()
    store = Store(str(tmp_path / "models"), str(tmp_path / "units"), str(tmp_path / "proc"))
    add(store, "m1", x=b"1" * 100)
    add(store, "m2", y=b"s" * 50, z=b"2" * 50)
    add(store, "m3", y=b"s" * 50, z=b"3" * 50)
    for number in (1, 2, 3):
        os.utime(os.path.join(store.manifests, "m%d.json" % number), (number * 1000, number * 1000))
    return store


def test_quota(store):
    assert store.space(0).stored == 250
    assert store.room(50, 300, []) == []
    assert store.room(51, 300, [], check=True) == ["m1"]
    assert store.names() == ["m1", "m2", "m3"]
    assert store.room(51, 300, []) == ["m1"]
    assert store.names() == ["m2", "m3"] and store.space(0).stored == 150
    # Its other half is needed still.
    assert store.room(200, 300, ["m3"]) == ["m2"]
    assert store.present(manifest_of("m3", y=b"s" * 50, z=b"3" * 50))


def test_what_was_wanted_lately_stays(store):
    store.note_used(["m1"])
    assert store.room(51, 300, []) == ["m2"]


def test_what_a_unit_names_stays(store, tmp_path):
    (tmp_path / "units" / "llamacpp-x.service").write_text(
        "[Service]\nExecStart=/opt/llama-server \\\n  --model %s \\\n  --port 1\n" % store.path_of("m1", "x.bin")
    )
    assert store.room(51, 300, []) == ["m2"]
    with pytest.raises(StoreError, match="every model in it is used or declared"):
        store.room(200, 300, ["m3"])
    assert store.names() == ["m1", "m3"]


def test_what_was_declared_until_lately_goes_last(store):
    store.room(0, 0, ["m1", "m2", "not there yet"])
    assert store.last_used("m3") < store.last_used("m1")
    # Of the others m3 was wanted longest ago, though it came last.
    assert store.room(51, 300, []) == ["m3"]


def test_what_is_used_while_nothing_is_brought_is_noted_once_a_day(store, monkeypatch):
    assert store.note_still_used(["m1", "m2", "not there"], check=True) == ["m1", "m2"]
    assert store.last_used("m1") == 1000
    assert store.note_still_used(["m1", "not there"]) == ["m1"]
    assert store.room(51, 300, []) == ["m2"]
    assert store.note_still_used(["m1"]) == []
    real = os.stat(os.path.join(store.used, "m1")).st_mtime
    monkeypatch.setattr(_store_names.time, "time", lambda: real + 86401)
    assert store.note_still_used(["m1"], check=True) == ["m1"]


def test_what_a_new_model_has_of_an_old_one_stays(store):
    wanted = manifest_of("new", y=b"s" * 50, n=b"n" * 60)
    assert store.lacking(wanted, QUIET) == [wanted.files[1]]
    with pytest.raises(StoreError, match="1 bytes too few"):
        store.room(60, 209, ["m1"])
    assert store.room(60, 210, ["m1"], check=True) == store.room(60, 210, ["m1"]) == ["m2", "m3"]
    bring(store, "n.bin", b"n" * 60)
    assert store.name(wanted) and store.present(wanted)
    # It has its name: nothing is held back any more.
    assert store.room(100, 200, ["m1"]) == ["new"]
    assert store.space().stored == 100


def test_a_file_that_came_long_ago_and_is_wanted_now_stays(store, monkeypatch):
    wanted = manifest_of("new", l=b"l" * 100, n=b"n" * 60)
    bring(store, "l.bin", b"l" * 100)
    moment = time.time() + 2 * _store_clean.UNNAMED_SECONDS
    monkeypatch.setattr(_store_clean.time, "time", lambda: moment)
    store.lacking(wanted, QUIET)
    assert store.room(60, 310, ["m2", "m3"]) == ["m1"]
    assert store.trusted(wanted.files[0])


def test_what_would_be_swept_is_room_in_check_mode_too(store, monkeypatch):
    file = bring(store, "left.bin", b"l" * 100)
    moment = time.time() + 2 * _store_clean.UNNAMED_SECONDS
    monkeypatch.setattr(_store_clean.time, "time", lambda: moment)
    assert store.room(51, 350, [], check=True) == []
    assert store.trusted(file)
    assert store.room(51, 350, []) == []
    assert not store.trusted(file)


def test_a_quota_smaller_than_the_model_evicts_nothing(store):
    with pytest.raises(StoreError, match="the quota is smaller than the model, raise llamacpp_models_quota"):
        store.room(400, 300, [])
    assert store.names() == ["m1", "m2", "m3"]


def test_unnamed_leftovers_go_before_models(store, monkeypatch):
    file = bring(store, "left.bin", b"l" * 100)
    with pytest.raises(StoreError):
        store.room(51, 300, ["m1", "m2", "m3"])
    real = os.stat(store.blob(file.sha256)).st_ctime
    monkeypatch.setattr(_store_clean.time, "time", lambda: real + _store_clean.UNNAMED_SECONDS + 1)
    assert store.room(50, 300, ["m1", "m2", "m3"]) == []
    assert not store.trusted(file)


def test_a_model_that_is_linked_from_outside_frees_no_disk(store, tmp_path, monkeypatch):
    os.link(store.blob(manifest_of("m1", x=b"1" * 100).files[0].sha256), tmp_path / "mine")
    monkeypatch.setattr(_store_names.Names, "space", lambda self, quota=0: Space(10, 250, quota))
    assert store.room(60, 0, [], check=True) == ["m2"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 300),
    st.integers(1, 600),
    st.sets(st.integers(0, 3)),
    st.sets(st.integers(0, 3)),
)
def test_room_on_a_disk(models, needed, quota, keep, used):
    """Blob n has 10 * (n + 1) bytes; model n may be kept, used, or neither."""
    root = tempfile.mkdtemp()
    try:
        os.makedirs(root + "/proc")
        os.makedirs(root + "/units")
        store = Store(root + "/models", root + "/units", root + "/proc")
        wanted = {}
        for number, (blobs, moment) in enumerate(models):
            name = "m%d" % number
            wanted[name] = add(store, name, **{"f%d" % blob: b"%d" % blob * (10 * (blob + 1)) for blob in blobs})
            os.utime(os.path.join(store.manifests, name + ".json"), (moment, moment))
            if number in used:
                path = store.path_of(name, wanted[name].files[0].name)
                with open("%s/units/llamacpp-%s.service" % (root, name), "w") as stream:
                    stream.write("[Service]\nExecStart=/x/llama-server --model %s\n" % path)
        stays = {"m%d" % number for number in keep | used}
        try:
            evicted = store.room(needed, quota, ["m%d" % number for number in keep])
        except StoreError:
            evicted = []
            assert all(store.present(manifest) for manifest in wanted.values())
        else:
            assert store.space().stored + needed <= quota
        assert not stays & set(evicted)
        assert store.names() == sorted(set(wanted) - set(evicted))
        assert all(store.present(wanted[name]) for name in store.names())
        assert store.scrub([], QUIET) == []
    finally:
        shutil.rmtree(root)
