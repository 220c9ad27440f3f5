# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The store on a real disk: what comes in, what is trusted, what a name stands for, what goes."""

from __future__ import annotations

import os
import stat

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import File, Manifest, Store, StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._tiny_model import tiny_model
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import QUIET, add, bring, describe, manifest_of, tree


@pytest.fixture
def store(tmp_path):
    """An empty store that nobody uses."""
    (tmp_path / "units").mkdir()
    (tmp_path / "proc").mkdir()
    return Store(str(tmp_path / "models"), str(tmp_path / "units"), str(tmp_path / "proc"))


@pytest.fixture
def hashed(monkeypatch):
    """Every file that is hashed, in order."""
    found, real = [], _store_files.sha256_of

    def spy(path, *arguments, **options):
        found.append(os.path.basename(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(_store_files, "sha256_of", spy)
    return found


# What comes in


def test_a_question_makes_nothing(store):
    manifest = manifest_of("a", x=b"x")
    assert store.names() == []
    assert store.manifest("a") is None
    assert not store.present(manifest)
    assert store.missing(manifest) == list(manifest.files)
    assert store.users() == {}
    assert store.scrub([], QUIET) == []
    assert store.sweep(check=True).removed == []
    assert store.room(1, 0, [], check=True) == []
    assert not os.path.exists(store.root)


def test_a_model_comes_in(store):
    manifest = add(store, "owner/repo/Q4_K_M", a=b"one", b=b"two")
    assert store.present(manifest)
    assert store.names() == ["owner/repo/Q4_K_M"]
    assert store.manifest("owner/repo/Q4_K_M") == manifest
    with open(store.path_of("owner/repo/Q4_K_M", "a.bin"), "rb") as stream:
        assert stream.read() == b"one"
    assert tree(store.root) == sorted(
        ["manifests/owner/repo/Q4_K_M.json", "names/owner/repo/Q4_K_M/a.bin", "names/owner/repo/Q4_K_M/b.bin"]
        + ["%s/%s" % ("blobs", file.sha256) for file in manifest.files]
        + ["%s/%s.json" % ("stamps", file.sha256) for file in manifest.files]
    )


def test_everybody_may_read_and_nobody_write_whatever_the_umask(store):
    before = os.umask(0o077)
    try:
        manifest = add(store, "owner/repo/Q", a=b"one")
    finally:
        os.umask(before)
    path = store.path_of("owner/repo/Q", "a.bin")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    assert stat.S_IMODE(os.stat(store.blob(manifest.files[0].sha256)).st_mode) == 0o644
    assert stat.S_IMODE(os.stat(os.path.join(store.manifests, "owner/repo/Q.json")).st_mode) == 0o644
    while path != store.root:
        path = os.path.dirname(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody")
def test_what_another_user_brought_becomes_roots(store):
    file = describe("a.bin", b"one")
    with store.transfer_lock(file.sha256, "t", 1.0, print), open(store.part(file.sha256), "wb") as stream:
        stream.write(b"one")
    os.chown(store.part(file.sha256), 65534, 65534)
    store.admit(store.part(file.sha256), file, QUIET, "a peer")
    info = os.stat(store.blob(file.sha256))
    assert (info.st_uid, info.st_gid) == (0, 0)


def test_the_same_file_of_two_models_is_there_once(store):
    first, second = add(store, "a", x=b"shared", y=b"1"), add(store, "b", x=b"shared", z=b"2")
    assert os.path.samefile(store.path_of("a", "x.bin"), store.path_of("b", "x.bin"))
    assert len(os.listdir(store.blobs)) == 3
    assert store.remove("a") == 1
    assert store.present(second) and not store.present(first)
    assert store.remove("b") == len(b"shared") + 1
    assert tree(store.root) == []


def part_with(store, file, content):
    """A part with this content, as if it had been fetched for ``file``."""
    with store.transfer_lock(file.sha256, "t", 1.0, print), open(store.part(file.sha256), "wb") as stream:
        stream.write(content)
    return store.part(file.sha256)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"tw0", "from a mirror has sha256 [0-9a-f]{64} instead of"),
        (b"tw", "has 2 bytes instead of 3"),
        (b"", "0 bytes"),
    ],
)
def test_wrong_bytes_never_become_a_blob(store, content, words):
    file = describe("a.bin", b"two")
    part = part_with(store, file, content)
    with pytest.raises(StoreError, match=words):
        store.admit(part, file, QUIET, "a mirror")
    assert tree(store.root) == []
    assert store.present(add(store, "a", a=b"two"))


def test_a_gguf_file_needs_a_header_that_can_be_read(store):
    model = tiny_model()
    broken = b"GGUX" + model[4:]
    file = describe("m.gguf", broken, "model")
    with pytest.raises(StoreError, match="no usable model"):
        store.admit(part_with(store, file, broken), file, QUIET, "a mirror")
    cut = describe("m.gguf", model[:-1], "model")
    with pytest.raises(StoreError, match="truncated"):
        store.admit(part_with(store, cut, model[:-1]), cut, QUIET, "a mirror")
    assert tree(store.root) == []
    assert store.trusted(bring(store, "m.gguf", model, "model"))


def test_a_link_in_the_place_of_a_part_is_no_file(store, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"two")
    secret.chmod(0o600)
    file = describe("a.bin", b"two")
    part = part_with(store, file, b"")
    os.unlink(part)
    os.symlink(secret, part)
    with pytest.raises(StoreError, match="is no file"):
        store.admit(part, file, QUIET, "a peer")
    with pytest.raises(StoreError, match="is no file"):
        store.take(part, "a.bin", "other", QUIET, "a peer")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_part_that_is_there_already_is_not_needed(store, hashed):
    file = bring(store, "a.bin", b"one")
    del hashed[:]
    store.admit(part_with(store, file, b"one"), file, QUIET, "a mirror")
    assert hashed == [] and not os.path.exists(store.part(file.sha256))


def test_bytes_without_a_known_checksum(store):
    part = part_with(store, File("x", _store_files.key_of("http://x"), 0), b"whatever")
    file = store.take(part, "a.bin", "other", QUIET, "a server")
    assert file == describe("a.bin", b"whatever")
    assert store.trusted(file) and not os.path.exists(part)


def test_a_part_that_is_changed_behind_its_verification_is_not_trusted(store, monkeypatch):
    file = describe("a.bin", b"right")
    part = part_with(store, file, b"right")
    with open(part, "r+b") as stream:

        def change(path):
            if path == part:
                os.pwrite(stream.fileno(), b"wrong", 0)
                os.utime(part, ns=(1, 1))

        monkeypatch.setattr(_store_files, "sync_file", change)
        store.admit(part, file, QUIET, "a peer that lies late")
    assert not store.trusted(file)
    assert store.lacking(Manifest("a", (file,)), QUIET) == [file]
    assert not os.path.exists(store.blob(file.sha256))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody")
def test_whoever_brought_a_part_cannot_set_its_time_back(store, monkeypatch):
    file = describe("a.bin", b"right")
    part = part_with(store, file, b"right")
    os.chown(part, 65534, 65534)
    owners = []
    real = _store_files.sha256_of

    def spy(path, *arguments, **options):
        owners.append(os.stat(path).st_uid)
        return real(path, *arguments, **options)

    monkeypatch.setattr(_store_files, "sha256_of", spy)
    store.admit(part, file, QUIET, "a peer")
    assert owners == [0]


def test_progress_is_said(store, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Progress, "say", lambda self, line, now=False: said.append(line))
    bring(store, "a.bin", b"one")
    assert said and said[0].startswith("checking sha256 of a.bin: ")


# What is trusted


def test_nothing_is_hashed_when_all_is_in_place(store, hashed):
    manifest = add(store, "a", x=b"1", y=b"2")
    del hashed[:]
    assert store.present(manifest)
    assert store.lacking(manifest, QUIET) == []
    assert store.name(manifest) is False
    assert hashed == []


def test_a_touched_blob_is_hashed_once_and_trusted_again(store, hashed):
    manifest = add(store, "a", x=b"1", y=b"2")
    touched = manifest.files[0]
    os.utime(store.blob(touched.sha256))
    del hashed[:]
    assert not store.present(manifest)
    assert store.missing(manifest) == [touched]
    assert store.lacking(manifest, QUIET) == []
    assert store.present(manifest)
    assert hashed == [touched.sha256]


def test_a_changed_blob_goes_to_quarantine_with_its_links(store):
    manifest = add(store, "a", x=b"1", y=b"2")
    other = add(store, "b", x=b"1")
    with open(store.path_of("a", "x.bin"), "wb") as stream:
        stream.write(b"7")
    os.utime(store.path_of("a", "x.bin"), ns=(1, 1))
    assert store.lacking(manifest, QUIET) == [manifest.files[0]]
    assert not os.path.exists(store.path_of("a", "x.bin")) and not os.path.exists(store.path_of("b", "x.bin"))
    assert len(os.listdir(store.quarantine)) == 1
    assert not store.present(other)
    bring(store, "x.bin", b"1")
    assert store.name(manifest) and store.name(other)
    assert store.present(manifest) and store.present(other)


def test_a_copied_blob_is_another_inode(store, hashed):
    manifest = add(store, "a", x=b"1")
    path = store.blob(manifest.files[0].sha256)
    info = os.stat(path)
    os.rename(path, path + ".old")
    with open(path, "wb") as stream:
        stream.write(b"1")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert not store.present(manifest)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"bytes": 1}', b"\xff"])
def test_a_broken_stamp_is_none(store, content):
    manifest = add(store, "a", x=b"1")
    with open(os.path.join(store.stamps, manifest.files[0].sha256 + ".json"), "wb") as stream:
        stream.write(content)
    assert not store.present(manifest)
    assert store.lacking(manifest, QUIET) == []
    assert store.present(manifest)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "../a"}', b"\xff"])
def test_a_broken_manifest_names_nothing_and_loses_nothing(store, content):
    manifest = add(store, "a", x=b"1")
    other = add(store, "b", x=b"2")
    with open(os.path.join(store.manifests, "a.json"), "wb") as stream:
        stream.write(content)
    assert store.manifest("a") is None and not store.present(manifest)
    store.remove("b")
    assert [finding.problem for finding in store.scrub([], QUIET)] == ["its manifest cannot be understood"]
    assert store.trusted(manifest.files[0]) and not store.trusted(other.files[0])
    assert store.name(manifest) and store.present(manifest)


def test_a_manifest_of_another_name_is_none(store):
    add(store, "a", x=b"1")
    os.rename(os.path.join(store.manifests, "a.json"), os.path.join(store.manifests, "b.json"))
    assert store.manifest("b") is None


def test_what_lies_about_is_no_name(store):
    add(store, "a", x=b"1")
    for stray in (".hidden.json", "x.txt", "-rf.json", "a b.json"):
        with open(os.path.join(store.manifests, stray), "w") as stream:
            stream.write("{}")
    assert store.names() == ["a"]


# Names


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a//b", "a/./b", ".hidden", "a\0b", "x" * 300, "ü"]
)
def test_no_name_leads_out_of_the_store(store, name):
    file = bring(store, "a.bin", b"1")
    before = tree(os.path.dirname(store.root))
    for attempt in (
        lambda: Manifest(name, (file,)),
        lambda: store.path_of(name, "a.bin"),
        lambda: store.path_of("a", name),
        lambda: store.manifest(name),
        lambda: store.remove(name),
        lambda: store.note_used([name]),
        lambda: store.scrub([name], QUIET),
        lambda: store.blob(name),
        lambda: store.part(name),
        lambda: store.transfer_lock(name, "t", 1.0, print).__enter__(),
        lambda: File(name, file.sha256, 1),
    ):
        with pytest.raises(StoreError):
            attempt()
    assert tree(os.path.dirname(store.root)) == before


def test_a_name_needs_all_of_its_files(store):
    bring(store, "x.bin", b"1")
    with pytest.raises(StoreError, match=r"model a: y\.bin is not in .* bring the model again"):
        store.name(manifest_of("a", x=b"1", y=b"2"))
    assert store.names() == []
    assert not os.path.exists(os.path.join(store.links, "a"))


def test_a_name_that_goes_on_from_another(store):
    short, long = add(store, "qwen", x=b"1"), add(store, "qwen/q/Q8_0", x=b"2")
    store.note_used(["qwen", "qwen/q/Q8_0"])
    assert store.present(short) and store.present(long)
    store.remove("qwen")
    assert store.names() == ["qwen/q/Q8_0"] and store.present(long)
    short = add(store, "qwen", x=b"1")
    store.remove("qwen/q/Q8_0")
    assert store.present(short)


def test_names_that_get_into_each_others_way(store):
    add(store, "a", x=b"1")
    bring(store, "y.bin", b"2")
    with pytest.raises(StoreError, match="is a file of another model; choose another name"):
        store.name(manifest_of("a/x.bin", y=b"2"))
    add(store, "c/y.bin", x=b"1")
    with pytest.raises(StoreError, match="where other models are; choose another name"):
        store.name(manifest_of("c", y=b"2"))
    assert store.names() == ["a", "c/y.bin"]


def test_a_name_gets_other_files(store):
    before = add(store, "a", x=b"1", y=b"2", shared=b"3")
    other = add(store, "b", shared=b"3")
    after = manifest_of("a", x=b"11", z=b"4", shared=b"3")
    for key, content in (("x", b"11"), ("z", b"4")):
        bring(store, key + ".bin", content)
    assert store.name(after) is True
    assert store.present(after) and store.present(other) and not store.present(before)
    assert sorted(os.listdir(os.path.join(store.links, "a"))) == ["shared.bin", "x.bin", "z.bin"]
    # What only the name of before had is gone.
    assert sorted(os.listdir(store.blobs)) == sorted(file.sha256 for file in after.files)


def test_a_link_that_somebody_removed_comes_back(store):
    manifest = add(store, "a", x=b"1")
    os.unlink(store.path_of("a", "x.bin"))
    assert not store.present(manifest)
    assert store.name(manifest) is True
    assert store.present(manifest)


def test_a_link_that_leads_elsewhere_is_none(store):
    manifest = add(store, "a", x=b"1")
    path = store.path_of("a", "x.bin")
    os.unlink(path)
    os.symlink("/etc/hostname", path)
    assert not store.present(manifest)
    store.name(manifest)
    assert not os.path.islink(path) and store.present(manifest)


def test_another_source_of_the_same_bytes_is_recorded(store):
    manifest = add(store, "a", x=b"1")
    moved = Manifest("a", manifest.files, {"commit": "2"})
    assert store.present(moved)
    assert store.name(moved) is True
    assert store.manifest("a").source == {"commit": "2"}
    assert store.name(Manifest("a", manifest.files, {"commit": "2"}, "2020-01-01T00:00:00Z")) is False


def test_removing_what_is_not_there(store):
    assert store.remove("a") == 0
