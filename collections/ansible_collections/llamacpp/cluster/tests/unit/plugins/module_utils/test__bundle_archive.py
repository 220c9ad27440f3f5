# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A bundle is written and unpacked whole or not at all, and goes on after a break."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _bundle_archive as archive
from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle import BundleError, Member, member_path

NOW = "2026-11-21T16:00:00Z"
CONTENT = {
    ("source", "", "llama.cpp-pypi-b1.tar.gz"): b"source",
    ("release", "", "b1-cpu-0.tar.gz"): b"release",
    ("patch", "", "aa.patch"): b"patch",
    ("ui", "", "key-b1.tar.gz"): b"pages",
    ("packages", "", "debian-12-x86_64.tar"): b"packages",
    ("wheel", "", "one.whl"): b"wheel",
    ("model", "0123", "small.gguf"): b"model" * 50000,
}


def quiet(_line: str) -> None:
    """Say nothing."""


def make(directory, content=None):
    """Return the files of a bundle on the disk as members."""
    found = []
    for (kind, folder, name), data in (CONTENT if content is None else content).items():
        file = directory / kind / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        details = {"needed_by": ["demo"]} if kind == "model" else {}
        found.append((Member(member_path(kind, name, folder), kind, name, len(data), sha256, details), str(file)))
    return found


@pytest.fixture
def bundle(tmp_path):
    """A bundle with a member of each kind."""
    path = str(tmp_path / "bundle.tar")
    archive.pack(path, make(tmp_path / "files"), {"for": "a test"}, NOW, quiet)
    return path


def rewritten(bundle, change):
    """Write the bundle anew through ``change`` (name, bytes -> bytes, or None to leave the member out)."""
    with tarfile.open(bundle) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(bundle, "w") as tar:
        for info, data in members:
            new = change(info.name, data)
            if new is not None:
                info.size = len(new)
                tar.addfile(info, io.BytesIO(new))


def test_the_manifest_comes_first_and_nothing_is_compressed(bundle):
    with tarfile.open(bundle, "r:") as tar:
        names = tar.getnames()
        assert names[0] == "manifest.json"
        assert json.load(tar.extractfile("manifest.json"))["about"] == {"for": "a test"}
    assert len(names) == 1 + len(CONTENT)


def test_unpacked_it_is_where_other_roles_look(bundle, tmp_path):
    cache = tmp_path / "cache"
    manifest, directory, changed = archive.unpack(bundle, str(cache), quiet)
    assert changed
    assert directory == str(cache / "bundles" / manifest.id)
    for (kind, folder, name), data in CONTENT.items():
        path = os.path.join(directory, member_path(kind, name, folder))
        with open(path, "rb") as stream:
            assert stream.read() == data
    assert (cache / "sources" / "llama.cpp-pypi-b1.tar.gz").read_bytes() == b"source"
    assert (cache / "patches" / "aa.patch").read_bytes() == b"patch"
    assert (cache / "ui" / "key-b1.tar.gz").read_bytes() == b"pages"
    assert (cache / "releases" / "b1-cpu-0.tar.gz").read_bytes() == b"release"
    assert (cache / "releases" / "b1-cpu-0.tar.gz.sha256").read_text().strip() == hashlib.sha256(b"release").hexdigest()
    assert not (cache / "models").exists()


def test_unpacked_again_nothing_is_read_and_nothing_changes(bundle, tmp_path, monkeypatch):
    archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    monkeypatch.setattr(archive, "_extract", lambda *_arguments: pytest.fail("it was unpacked again"))
    _manifest, _directory, changed = archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    assert not changed


def test_a_cache_that_was_cleaned_is_filled_again(bundle, tmp_path):
    archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    (tmp_path / "cache" / "sources" / "llama.cpp-pypi-b1.tar.gz").unlink()
    _manifest, _directory, changed = archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    assert changed
    assert (tmp_path / "cache" / "sources" / "llama.cpp-pypi-b1.tar.gz").read_bytes() == b"source"


def test_what_the_cache_has_already_stays(bundle, tmp_path):
    (tmp_path / "cache" / "sources").mkdir(parents=True)
    (tmp_path / "cache" / "sources" / "llama.cpp-pypi-b1.tar.gz").write_bytes(b"older")
    archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    assert (tmp_path / "cache" / "sources" / "llama.cpp-pypi-b1.tar.gz").read_bytes() == b"older"


def test_models_need_not_be_hashed_again(bundle, tmp_path):
    _manifest, directory, _changed = archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    known = json.loads((tmp_path / "cache" / "sha256.json").read_text())
    path = os.path.realpath(os.path.join(directory, "models/0123/small.gguf"))
    assert known[path]["sha256"] == hashlib.sha256(b"model" * 50000).hexdigest()


def test_every_member_that_is_missing_or_damaged_is_named_at_once(bundle, tmp_path):
    def change(name, data):
        if name.startswith("models/"):
            return None
        return b"other" if name.startswith("wheels/") else data

    rewritten(bundle, change)
    with pytest.raises(BundleError) as refused:
        archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    assert "2 of its 7 members cannot be used" in str(refused.value)
    assert "model small.gguf (for demo) is not in it" in str(refused.value)
    assert "wheel one.whl has other bytes than its manifest says" in str(refused.value)
    assert not (tmp_path / "cache" / "sources").exists()


def test_a_file_that_ends_early_names_what_it_lacks(bundle, tmp_path):
    size = os.stat(bundle).st_size
    os.truncate(bundle, size - 20480)
    with pytest.raises(BundleError, match="cannot be used"):
        archive.unpack(bundle, str(tmp_path / "cache"), quiet)


def test_after_a_break_it_goes_on(bundle, tmp_path, monkeypatch):
    whole = Path(bundle).read_bytes()
    rewritten(bundle, lambda name, data: None if name.startswith("wheels/") else data)
    with pytest.raises(BundleError):
        archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    with open(bundle, "wb") as stream:
        stream.write(whole)
    read = []
    verified = archive._verified
    monkeypatch.setattr(archive, "_verified", lambda *given: read.append(given[2].name) or verified(*given))
    archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    assert read == ["one.whl"]


def test_what_is_not_in_the_manifest_is_not_unpacked(bundle, tmp_path):
    with tarfile.open(bundle, "a") as tar:
        info = tarfile.TarInfo("../../evil")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    archive.unpack(bundle, str(tmp_path / "a" / "b" / "cache"), quiet)
    assert list(tmp_path.rglob("evil")) == []


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 1000])
def test_what_is_no_bundle_says_so(tmp_path, data):
    path = tmp_path / "bundle.tar"
    path.write_bytes(data)
    with pytest.raises(BundleError, match="is no bundle"):
        archive.unpack(str(path), str(tmp_path / "cache"), quiet)


def test_a_tar_without_a_manifest_is_no_bundle(tmp_path):
    path = tmp_path / "bundle.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("wheels/one.whl"), io.BytesIO())
    with pytest.raises(BundleError, match=r"its first member is not manifest.json"):
        archive.read_manifest(str(path))


def test_a_bundle_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"bundle.tar: no such file on the control node"):
        archive.unpack(str(tmp_path / "bundle.tar"), str(tmp_path / "cache"), quiet)


def test_packed_again_with_the_same_members_it_stays(bundle, tmp_path):
    before = os.stat(bundle).st_mtime_ns
    files = make(tmp_path / "files")
    _manifest, changed = archive.pack(bundle, files, {"for": "a test"}, "2027-01-01T00:00:00Z", quiet)
    assert not changed
    assert os.stat(bundle).st_mtime_ns == before
    _manifest, changed = archive.pack(bundle, files[1:], {"for": "a test"}, "2027-01-01T00:00:00Z", quiet)
    assert changed
    assert len(archive.read_manifest(bundle).members) == len(CONTENT) - 1


def test_a_file_that_changes_while_it_is_packed_leaves_the_old_bundle(bundle, tmp_path):
    before = Path(bundle).read_bytes()
    files = make(tmp_path / "files")
    with open(files[0][1], "wb") as stream:
        stream.write(b"SOURCE")
    with pytest.raises(BundleError, match="changed while it was packed"):
        archive.pack(bundle, files, {"for": "another test"}, NOW, quiet)
    assert Path(bundle).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("bundle")] == ["bundle.tar"]


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(bundle, tmp_path, monkeypatch):
    files = make(tmp_path / "files")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _path: usage(1, 1, 0))
    with pytest.raises(BundleError, match="MiB are needed and 0 MiB are free"):
        archive.pack(str(tmp_path / "new.tar"), files, {}, NOW, quiet)
    with pytest.raises(BundleError, match="MiB are needed and 0 MiB are free"):
        archive.unpack(bundle, str(tmp_path / "cache"), quiet)
    assert not (tmp_path / "new.tar").exists()
    assert list((tmp_path / "cache").rglob("*.whl")) == []


def test_progress_says_how_much_is_done(bundle, tmp_path):
    lines = []
    archive.unpack(bundle, str(tmp_path / "cache"), lines.append)
    assert lines[-1].startswith("small.gguf: ") or lines[-1].startswith("one.whl: ")
    assert "100 %" in lines[-1]


def test_a_directory_is_the_same_archive_each_time(tmp_path):
    for name in ("b", "a/c"):
        path = tmp_path / "npm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    first = Path(archive.pack_directory(str(tmp_path / "npm"), str(tmp_path / "one.tar"))).read_bytes()
    os.utime(tmp_path / "npm" / "b", (1, 1))
    assert Path(archive.pack_directory(str(tmp_path / "npm"), str(tmp_path / "two.tar"))).read_bytes() == first


def test_npms_cache_is_unpacked_where_there_is_none(tmp_path):
    (tmp_path / "npm" / "a").mkdir(parents=True)
    (tmp_path / "npm" / "a" / "c").write_text("package")
    packed = archive.pack_directory(str(tmp_path / "npm"), str(tmp_path / "npm.tar"))
    data = Path(packed).read_bytes()
    files = make(tmp_path / "files", {("npm", "", "npm.tar"): data})
    archive.pack(str(tmp_path / "bundle.tar"), files, {}, NOW, quiet)
    cache = tmp_path / "cache"
    archive.unpack(str(tmp_path / "bundle.tar"), str(cache), quiet)
    assert (cache / "npm" / "a" / "c").read_text() == "package"
    assert not archive.unpack(str(tmp_path / "bundle.tar"), str(cache), quiet)[2]
