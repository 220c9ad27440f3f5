# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files of this node that come into the store: linked, copied, or only named."""

from __future__ import annotations

import os
import stat

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Manifest, Store, StoreError
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import QUIET, bring, describe, tree


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


# Files of this node


def test_a_safe_file_is_linked(store, tmp_path, hashed):
    path = tmp_path / "x.bin"
    path.write_bytes(b"mine")
    path.chmod(0o644)
    file = store.adopt(str(path), "x.bin", "model", QUIET)
    assert file == describe("x.bin", b"mine", "model")
    assert os.path.samefile(path, store.blob(file.sha256)) and store.trusted(file)
    assert store.adopt(str(path), "y.bin", "model", QUIET).sha256 == file.sha256
    assert hashed == ["x.bin"]
    store.name(Manifest("a", (file,)))
    store.remove("a")
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o600])
def test_a_file_that_others_may_change_is_copied(store, tmp_path, mode, hashed):
    path = tmp_path / "x.bin"
    path.write_bytes(b"mine")
    path.chmod(mode)
    file = store.adopt(str(path), "x.bin", "model", QUIET)
    assert not os.path.samefile(path, store.blob(file.sha256)) and store.trusted(file)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    with open(path, "r+b") as stream:
        stream.write(b"evil")
    assert store.trusted(file) and store.scrub([], QUIET) == []
    assert store.adopt(str(path), "x.bin", "model", QUIET) == describe("x.bin", b"evil", "model")
    assert tree(store.incoming) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody")
def test_a_file_of_another_user_is_copied(store, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"mine")
    os.chown(path, 65534, 65534)
    assert not store.linkable(str(path))
    file = store.adopt(str(path), "x.bin", "model", QUIET)
    assert os.stat(store.blob(file.sha256)).st_uid == 0 and path.stat().st_uid == 65534


def test_a_copy_that_is_adopted_again_is_not_read_again(store, tmp_path, hashed):
    path = tmp_path / "x.bin"
    path.write_bytes(b"mine")
    path.chmod(0o666)
    store.adopt(str(path), "x.bin", "model", QUIET)
    store.adopt(str(path), "x.bin", "model", QUIET)
    assert hashed == ["x.bin"]


@pytest.mark.parametrize("mode", [0o644, 0o666])
def test_a_file_of_this_node_with_another_checksum(store, tmp_path, mode):
    path = tmp_path / "x.bin"
    path.write_bytes(b"mine")
    path.chmod(mode)
    with pytest.raises(StoreError, match="instead of %s" % ("0" * 64)):
        store.adopt(str(path), "x.bin", "model", QUIET, "0" * 64)
    assert path.read_bytes() == b"mine"
    assert [name for name in tree(store.root) if "json" not in name] == []


def test_a_file_of_this_node_that_is_none(store, tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StoreError, match="no such file on this node"):
            store.adopt(str(path), "x.bin", "model", QUIET)
    (tmp_path / "x.gguf").write_bytes(b"no model")
    with pytest.raises(StoreError, match="no usable model"):
        store.adopt(str(tmp_path / "x.gguf"), "x.gguf", "model", QUIET)


def test_a_file_that_grows_while_it_is_read(store, tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    path.write_bytes(b"mine")

    def grow(_self, _line, now=False):
        with open(path, "ab") as stream:
            stream.write(b"+")

    monkeypatch.setattr(Progress, "say", grow)
    monkeypatch.setattr(_store_files, "BLOCK", 3)
    path.chmod(0o644)
    with pytest.raises(StoreError, match="changed while it was read"):
        store.adopt(str(path), "x.bin", "model", QUIET)


def external(store, path, name="a"):
    """Name a file that the store does not hold."""
    file = store.adopt(str(path), "x.bin", "model", QUIET, external=True)
    manifest = Manifest(name, (file,), external={"x.bin": str(path)})
    store.name(manifest)
    return manifest


def test_a_shared_file_is_linked_and_not_held(store, tmp_path, hashed):
    path = tmp_path / "x.bin"
    path.write_bytes(b"shared")
    manifest = external(store, path)
    assert store.present(manifest)
    # Another node, which holds the file, tells the same of the model.
    assert store.present(Manifest("a", manifest.files))
    assert os.readlink(store.path_of("a", "x.bin")) == str(path)
    assert os.listdir(store.root + "/names") == ["a"] and not os.path.exists(store.blobs)
    assert hashed == ["x.bin"]
    assert store.remove("a") == 0
    assert path.read_bytes() == b"shared"


def test_a_shared_file_that_changed_is_hashed_again(store, tmp_path, hashed):
    path = tmp_path / "x.bin"
    path.write_bytes(b"shared")
    manifest = external(store, path)
    os.utime(path, ns=(1, 1))
    assert not store.present(manifest)
    assert store.lacking(manifest, QUIET) == []
    assert store.present(manifest)
    path.write_bytes(b"shared, but other")
    assert store.lacking(manifest, QUIET) == list(manifest.files)
    path.unlink()
    assert store.lacking(manifest, QUIET) == list(manifest.files)
    assert not store.present(manifest)


def test_a_file_becomes_the_stores_own(store, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"shared")
    manifest = external(store, path)
    held = Manifest("a", (bring(store, "x.bin", b"shared", "model"),))
    assert store.name(held) is True
    assert not os.path.islink(store.path_of("a", "x.bin"))
    assert store.present(manifest) and store.name(manifest) is True
    assert os.path.islink(store.path_of("a", "x.bin")) and not os.path.exists(store.blob(manifest.files[0].sha256))
