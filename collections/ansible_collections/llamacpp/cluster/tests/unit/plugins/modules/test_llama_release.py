# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installing releases. Their binaries are simulated by shell scripts; real ones are installed on the lab's nodes."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import describe_tree
from ansible_collections.llamacpp.cluster.plugins.modules import llama_release

SERVER = "#!/bin/sh\necho 'version: 1 (build 7)'\n"
FOREIGN = '#!/bin/sh\necho "libc.so.6: version GLIBC_2.99 not found" >&2\nexit 1\n'


@pytest.fixture
def pack(tmp_path):
    """A function that packs a release and returns the arguments to install it."""

    def make(release, server=SERVER, spoil=None):
        root = tmp_path / "build" / release
        (root / "bin").mkdir(parents=True)
        for name, text in (("llama-server", server), ("rpc-server", SERVER)):
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        manifest = {"files": describe_tree(str(root)), "inputs": {"platform": {"os": "debian-99", "machine": "x86_64"}}}
        (root / "manifest.json").write_text(json.dumps(manifest))
        if spoil:
            spoil(root)
        archive = tmp_path / ("%s.tar.gz" % release)
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(root, arcname=".")
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        return {"id": release, "archive": str(archive), "sha256": sha256, "prefix": str(tmp_path / "opt")}

    return make


def test_install_then_nothing_to_do(run_module, pack, tmp_path):
    arguments = pack("b7-cpu-1")
    result = run_module(llama_release, **arguments)
    assert (result["changed"], result["version"]) == (True, "version: 1 (build 7)")
    assert os.readlink(tmp_path / "opt" / "current") == "releases/b7-cpu-1"
    assert not os.path.exists(arguments["archive"])
    assert os.listdir(tmp_path / "opt" / "releases") == ["b7-cpu-1"]
    assert run_module(llama_release, **arguments)["changed"] is False


def test_check_mode_installs_nothing(run_module, pack, tmp_path):
    assert run_module(llama_release, check=True, **pack("b7-cpu-1"))["changed"] is True
    assert not (tmp_path / "opt").exists()


def test_second_release_becomes_current_and_the_first_stays(run_module, pack, tmp_path):
    run_module(llama_release, **pack("b7-cpu-1"))
    run_module(llama_release, **pack("b8-cpu-1"))
    assert os.readlink(tmp_path / "opt" / "current") == "releases/b8-cpu-1"
    assert sorted(os.listdir(tmp_path / "opt" / "releases")) == ["b7-cpu-1", "b8-cpu-1"]


def forge(root):
    """Change a binary after the manifest was written."""
    (root / "bin" / "rpc-server").write_text("#!/bin/sh\necho forged\n")


def add(root):
    """Add a file that the manifest does not know."""
    (root / "bin" / "stranger").write_text("")


@pytest.mark.parametrize(("spoil", "words"), [(forge, "bin/rpc-server differs"), (add, "bin/stranger does not belong")])
def test_release_that_differs_from_its_manifest_is_refused(run_module, pack, tmp_path, spoil, words):
    result = run_module(llama_release, **pack("b7-cpu-1", spoil=spoil))
    assert result["failed"]
    assert words in result["msg"]
    assert os.listdir(tmp_path / "opt" / "releases") == []
    assert not (tmp_path / "opt" / "current").exists()


def test_archive_with_a_wrong_checksum_is_refused(run_module, pack):
    result = run_module(llama_release, **dict(pack("b7-cpu-1"), sha256="0" * 64))
    assert result["failed"]
    assert "instead of" in result["msg"]


def test_truncated_archive_is_refused(run_module, pack, tmp_path):
    arguments = pack("b7-cpu-1")
    with open(arguments["archive"], "r+b") as stream:
        stream.truncate(100)
    result = run_module(llama_release, **dict(arguments, sha256=None))
    assert result["failed"]
    assert "not a whole archive" in result["msg"]
    assert os.listdir(tmp_path / "opt" / "releases") == []


def test_release_of_a_newer_system_is_refused_and_the_current_one_stays(run_module, pack, tmp_path):
    run_module(llama_release, **pack("b7-cpu-1"))
    result = run_module(llama_release, **pack("b8-cpu-1", server=FOREIGN))
    assert result["failed"]
    for words in ("GLIBC_2.99", "debian-99", "llamacpp_builders"):
        assert words in result["msg"]
    assert os.readlink(tmp_path / "opt" / "current") == "releases/b7-cpu-1"
    assert os.listdir(tmp_path / "opt" / "releases") == ["b7-cpu-1"]


def test_release_that_lost_a_file_is_installed_again(run_module, pack, tmp_path):
    run_module(llama_release, **pack("b7-cpu-1"))
    lost = tmp_path / "opt" / "releases" / "b7-cpu-1" / "bin" / "rpc-server"
    lost.unlink()
    (tmp_path / "build" / "b7-cpu-1").rename(tmp_path / "build" / "old")
    assert run_module(llama_release, **pack("b7-cpu-1"))["changed"] is True
    assert lost.exists()


def test_archive_that_reaches_out_of_its_directory_is_refused(run_module, pack, tmp_path):
    arguments = pack("b7-cpu-1")
    with tarfile.open(arguments["archive"], "w:gz") as tar:
        tar.add(__file__, arcname="../../outside")
    result = run_module(llama_release, **dict(arguments, sha256=None))
    assert result["failed"]
    assert "leaves the directory" in result["msg"]
    assert not (tmp_path / "outside").exists()


def test_absent(run_module, pack, tmp_path):
    run_module(llama_release, **pack("b7-cpu-1"))
    run_module(llama_release, **pack("b8-cpu-1"))
    arguments = {"prefix": str(tmp_path / "opt"), "state": "absent"}
    assert run_module(llama_release, id="b8-cpu-1", **arguments)["failed"]
    assert run_module(llama_release, id="b7-cpu-1", **arguments)["changed"] is True
    assert run_module(llama_release, id="b7-cpu-1", **arguments)["changed"] is False
    assert os.listdir(tmp_path / "opt" / "releases") == ["b8-cpu-1"]
