# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Scrubbing finds what a disk did to the bytes; sweeping removes what nobody will use, and nothing else."""

from __future__ import annotations

import os
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_clean, _store_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Manifest, Store, StoreError
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import (
    QUIET,
    add,
    bring,
    manifest_of,
    spoil,
    tree,
)

DAY = 86400


@pytest.fixture
def store(tmp_path):
    """Two models that share a file; nobody uses them."""
    for name in ("units", "proc"):
        (tmp_path / name).mkdir()
    store = Store(str(tmp_path / "models"), str(tmp_path / "units"), str(tmp_path / "proc"))
    add(store, "a", shared=b"shared", own=b"own of a")
    add(store, "b", shared=b"shared", own=b"own of b")
    return store


A = manifest_of("a", shared=b"shared", own=b"own of a")
B = manifest_of("b", shared=b"shared", own=b"own of b")


def later(monkeypatch, days):
    """Let the time of sweeps be some days from now."""
    moment = time.time() + days * DAY
    monkeypatch.setattr(_store_clean.time, "time", lambda: moment)


# Scrubbing


def test_a_flipped_bit_that_stat_does_not_see(store):
    spoil(store.blob(A.files[0].sha256), 3)
    assert store.present(A), "a stamp is trusted"
    (finding,) = store.scrub([], QUIET)
    assert (finding.names, finding.file, finding.taken_away) == (("a", "b"), "shared.bin", True)
    with open(finding.moved_to, "rb") as stream:
        assert len(stream.read()) == len(b"shared")
    # Nobody can load it any more, not even by its path.
    assert not os.path.exists(store.path_of("a", "shared.bin"))
    assert not os.path.exists(store.path_of("b", "shared.bin"))
    assert store.missing(A) == [A.files[0]] and store.missing(B) == [B.files[0]]
    bring(store, "shared.bin", b"shared")
    assert store.name(A) and store.name(B)
    assert store.scrub([], QUIET) == []


def test_a_truncated_file(store):
    with open(store.blob(A.files[1].sha256), "r+b") as stream:
        stream.truncate(3)
    (finding,) = store.scrub([], QUIET)
    assert (finding.names, finding.problem) == (("a",), "it has 3 bytes instead of 8")
    assert store.present(B) and not store.present(A)


def test_a_manifest_that_names_a_missing_blob(store):
    os.unlink(store.blob(A.files[1].sha256))
    (finding,) = store.scrub([], QUIET)
    assert (finding.names, finding.problem, finding.moved_to, finding.taken_away) == (("a",), "it is gone", "", False)
    assert not store.present(A)
    assert store.lacking(A, QUIET) == [A.files[1]]
    assert add(store, "a", shared=b"shared", own=b"own of a").files == A.files
    assert store.present(A) and store.scrub([], QUIET) == []


def test_a_touched_file_is_sound_and_trusted_again(store):
    os.utime(store.blob(A.files[0].sha256))
    assert not store.present(A)
    assert store.scrub([], QUIET) == []
    assert store.present(A)


def test_a_link_that_is_gone(store):
    os.unlink(store.path_of("a", "own.bin"))
    (finding,) = store.scrub([], QUIET)
    assert (finding.names, finding.problem) == (("a",), "its readable path is gone or leads elsewhere")
    assert store.trusted(A.files[1])


def test_a_file_without_a_name_is_scrubbed_as_well(store):
    file = bring(store, "left.bin", b"left")
    spoil(store.blob(file.sha256))
    (finding,) = store.scrub([], QUIET)
    assert (finding.names, finding.sha256) == ((), file.sha256)
    assert not store.trusted(file)


def test_other_names_of_a_wrong_file_are_told(store):
    spoil(store.blob(A.files[0].sha256))
    (finding,) = store.scrub(["b"], QUIET)
    assert finding.names == ("a", "b")


def test_a_rehearsal_changes_nothing(store):
    spoil(store.blob(A.files[0].sha256))
    os.utime(store.blob(A.files[1].sha256))
    before = tree(store.root)
    assert len(store.scrub([], QUIET, check=True)) == 1
    assert tree(store.root) == before
    assert store.trusted(A.files[0]) and not store.trusted(A.files[1])


def test_several_wrong_files_and_progress(store, monkeypatch):
    said = []
    monkeypatch.setattr(Progress, "say", lambda self, line, now=False: said.append(line))
    for file in (*A.files, *B.files):
        spoil(store.blob(file.sha256), 0)
    # The shared one was spoilt twice, which made it right again.
    assert sorted(finding.names for finding in store.scrub([], QUIET)) == [("a",), ("b",)]
    assert said[0].startswith("file 1 of 3: checking sha256 of shared.bin: ")


def test_a_file_that_is_replaced_while_it_is_read(store, monkeypatch):
    file = A.files[1]
    spoil(store.blob(file.sha256))
    other = Store(store.root, store.units, store.proc)

    def mend(_self, _line, now=False):
        os.unlink(store.blob(file.sha256))
        monkeypatch.undo()
        bring(other, "own.bin", b"own of a")

    monkeypatch.setattr(Progress, "say", mend)
    assert store.scrub(["a"], QUIET)[-1].problem == "its readable path is gone or leads elsewhere"
    assert store.trusted(file) and not os.path.exists(store.quarantine)


def foreign(store, tmp_path):
    """A model whose file the store does not hold."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"far away")
    file = store.adopt(str(path), "x.bin", "model", QUIET, external=True)
    manifest = Manifest("far", (file,), external={"x.bin": str(path)})
    store.name(manifest)
    return path, manifest


def test_a_shared_file_with_other_bytes_loses_its_link_alone(store, tmp_path):
    path, manifest = foreign(store, tmp_path)
    assert store.scrub(["far"], QUIET) == []
    spoil(path)
    assert store.present(manifest)
    (finding,) = store.scrub(["far"], QUIET)
    assert str(path) in finding.problem and finding.taken_away
    assert path.exists() and not os.path.lexists(store.path_of("far", "x.bin"))
    # Its size, time and inode are what they were; still nobody may name it.
    assert store.lacking(manifest, QUIET) == list(manifest.files)
    with pytest.raises(StoreError, match="bring the model again"):
        store.name(manifest)
    assert [finding.taken_away for finding in store.scrub(["far"], QUIET)] == [False]


def test_a_shared_file_that_is_gone(store, tmp_path):
    path, manifest = foreign(store, tmp_path)
    path.rename(tmp_path / "away")
    (finding,) = store.scrub(["far"], QUIET)
    assert finding.problem == "%s is gone" % path
    (tmp_path / "away").rename(path)
    assert store.name(manifest) is True and store.present(manifest)


def test_an_adopted_file_that_a_disk_spoilt_is_not_adopted_again(store, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"of this node")
    path.chmod(0o644)
    file = store.adopt(str(path), "x.bin", "model", QUIET)
    store.name(Manifest("mine", (file,)))
    spoil(path)
    assert [finding.names for finding in store.scrub(["mine"], QUIET)] == [("mine",)]
    with pytest.raises(StoreError, match="sha256"):
        store.adopt(str(path), "x.bin", "model", QUIET, file.sha256)


# Sweeping


def test_a_sound_store_has_no_leftovers(store, monkeypatch):
    before = tree(store.root)
    later(monkeypatch, 365)
    # Locks of transfers are the only thing that is left of these.
    assert all(path.endswith(".lock") for path in store.sweep().removed)
    assert tree(store.root) == before


def test_a_part_stays_for_a_week(store, monkeypatch):
    with store.transfer_lock("0" * 64, "t", 1.0, print):
        with open(store.part("0" * 64), "wb") as stream:
            stream.write(b"half")
        for name in (".chunks", ".convert"):
            os.makedirs(store.part("0" * 64) + name)
        later(monkeypatch, 6.9)
        assert store.sweep().removed == []
        later(monkeypatch, 7.1)
        # As long as somebody is at work on it, it stays.
        assert not any(path.startswith("incoming/0") for path in store.sweep().removed)
    swept = store.sweep()
    assert {"incoming/" + "0" * 64 + end for end in (".part", ".part.chunks", ".part.convert", ".lock")} <= set(
        swept.removed
    )
    assert swept.bytes >= 4
    assert not any(name.startswith("0") for name in os.listdir(store.incoming))


def test_a_part_whose_blob_is_there_goes_at_once(store):
    with open(store.part(A.files[0].sha256), "wb") as stream:
        stream.write(b"half")
    with store.transfer_lock(A.files[0].sha256, "t", 1.0, print):
        assert store.sweep().removed == []
    assert store.sweep().removed == ["incoming/%s.part" % A.files[0].sha256]


def test_a_blob_without_a_name_stays_for_a_day(store, monkeypatch):
    file = bring(store, "left.bin", b"left")
    later(monkeypatch, 0.9)
    assert store.sweep().removed == []
    later(monkeypatch, 1.1)
    assert store.sweep(check=True).removed == ["blobs/" + file.sha256, "stamps/%s.json" % file.sha256]
    assert store.trusted(file)
    assert store.sweep().removed == ["blobs/" + file.sha256, "stamps/%s.json" % file.sha256]
    assert store.present(A) and store.present(B)


def test_links_without_a_manifest_and_stamps_without_a_blob(store):
    os.unlink(os.path.join(store.manifests, "a.json"))
    os.unlink(store.blob(B.files[1].sha256))
    assert sorted(store.sweep().removed) == sorted(
        ["names/a/own.bin", "names/a/shared.bin", "stamps/%s.json" % B.files[1].sha256]
    )
    assert not os.path.exists(os.path.join(store.links, "a"))


def test_what_was_written_half_goes(store):
    for directory in (store.stamps, store.manifests, os.path.join(store.links, "a")):
        with open(os.path.join(directory, ".new-abc"), "w") as stream:
            stream.write("half")
    assert sorted(store.sweep().removed) == ["manifests/.new-abc", "names/a/.new-abc", "stamps/.new-abc"]
    assert store.present(A)


def test_what_somebody_may_be_writing_without_the_lock_stays_for_a_day(store, monkeypatch):
    os.makedirs(os.path.join(store.root, "torrents"))
    for path in ("torrents/.new-abc", "..sha256.json.abc"):
        with open(os.path.join(store.root, path), "w") as stream:
            stream.write("half")
    assert store.sweep().removed == []
    later(monkeypatch, 1.1)
    assert sorted(store.sweep().removed) == ["..sha256.json.abc", "torrents/.new-abc"]


def test_files_that_go_while_it_sweeps(store, monkeypatch):
    walk, listing = _store_files.walk, _store_files.listing
    gone = [os.path.join(store.root, path) for path in ("torrents/.new-x", "names/a/.new-x", "..sha256.json.x")]
    part = "0" * 64 + ".part"
    monkeypatch.setattr(_store_files, "walk", lambda top: [*walk(top), *(gone if top == store.root else [])])
    monkeypatch.setattr(
        _store_files, "listing", lambda top: [*listing(top), *([part] if top == store.incoming else [])]
    )
    assert store.sweep().removed == ["names/a/.new-x"]


def test_what_was_remembered_of_files_that_are_gone(store, monkeypatch, tmp_path):
    _path, manifest = foreign(store, tmp_path)
    os.makedirs(os.path.join(store.root, "tensors"))
    for sha256 in (A.files[0].sha256, manifest.files[0].sha256, "0" * 64):
        with open(os.path.join(store.root, "tensors", sha256 + ".json"), "w") as stream:
            stream.write("{}")
    assert store.sweep().removed == []
    later(monkeypatch, 8)
    assert [path for path in store.sweep().removed if path.startswith("tensors")] == ["tensors/%s.json" % ("0" * 64)]


def test_old_quarantine_and_marks_of_names_that_are_gone(store, monkeypatch):
    store.note_used(["a", "gone/by/now"])
    spoil(store.blob(A.files[1].sha256))
    store.scrub([], QUIET)
    later(monkeypatch, 8)
    assert "used/gone,by,now" in store.sweep().removed
    assert len(os.listdir(store.quarantine)) == 1
    later(monkeypatch, 31)
    store.sweep()
    assert os.listdir(store.quarantine) == [] and os.listdir(store.used) == ["a"]
