# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking built binaries as a release: real archives of real, if tiny, programs and libraries made by the C compiler."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import describe_tree
from ansible_collections.llamacpp.cluster.plugins.modules import release_archive

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to make binaries with")

LIBRARY = 'const char *build(void) { return "build 7"; }'
PROGRAM = "#include <stdio.h>\nconst char *build(void);\nint main(void) { puts(build()); return 0; }"
PLUGIN = "int backend(void) { return 1; }"


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    """A function that compiles a server, an RPC server and their library, with a run path, into one directory."""

    @functools.lru_cache
    def compile_all(runpath):
        path = tmp_path_factory.mktemp("binaries")

        def cc(source, *arguments):
            flags = ["-Wl,-rpath," + runpath.replace("HERE", str(path))] if runpath else []
            subprocess.run(["cc", "-xc", "-", *flags, *arguments], input=source, cwd=path, check=True, text=True)

        cc(LIBRARY, "-shared", "-fPIC", "-Wl,-soname,libllama.so.0", "-o", "libllama.so.0.7")
        for link, target in (("libllama.so.0", "libllama.so.0.7"), ("libllama.so", "libllama.so.0")):
            (path / link).symlink_to(target)
        for name in ("llama-server", "ggml-rpc-server"):
            cc(PROGRAM, "-L.", "-o", name, "-xnone", "-lllama")
        cc(PLUGIN, "-shared", "-fPIC", "-o", "libggml-cuda.so")
        (path / "LICENSE").write_text("MIT\n")
        return path

    return compile_all


def pack(path, files):
    """Pack files of the disk by name in the archive; return the sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, source in files.items():
            tar.add(source, arcname=name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def take(run_module, tmp_path):
    """A function that imports an archive into a cache of its own."""

    def run(path, sha256=None, **arguments):
        given = {"id": "b7-cpu-1", "cache": str(tmp_path / "cache"), **arguments}
        place = given if "url" in given else dict(given, path=str(path))
        return run_module(release_archive, sha256=sha256 or hashlib.sha256(path.read_bytes()).hexdigest(), **place)

    return run


@pytest.fixture
def official(binaries, tmp_path):
    """An archive as llama.cpp's own releases are."""
    path = tmp_path / "llama-b7-bin-ubuntu-x64.tar.gz"
    pack(path, {"llama-b7": binaries("$ORIGIN")})
    return path


def kept(tmp_path):
    """The files in the cache, without the lock."""
    path = tmp_path / "cache"
    return sorted(name for name in os.listdir(path) if name != ".lock") if path.exists() else []


def installed(result, tmp_path):
    """Unpack a packed release; return the directory and the manifest."""
    root = tmp_path / "installed"
    with tarfile.open(result["archive"]) as tar:
        tar.extractall(root, filter="tar")
    return root, json.loads((root / "manifest.json").read_text())


def said_by(program):
    """What a program prints, started with no help from the environment."""
    return subprocess.run([str(program)], capture_output=True, text=True, check=True, env={}).stdout


def test_archive_of_llama_cpp(take, official, tmp_path):
    result = take(official)
    assert result["changed"] is True
    assert kept(tmp_path) == ["b7-cpu-1.tar.gz", "b7-cpu-1.tar.gz.sha256"]
    with open(result["archive"] + ".sha256", encoding="ascii") as stream:
        assert stream.read() == result["sha256"] + "\n"
    with open(result["archive"], "rb") as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == result["sha256"]
    root, manifest = installed(result, tmp_path)
    assert sorted(os.listdir(root)) == ["LICENSE", "bin", "manifest.json"]
    assert manifest["files"] == describe_tree(str(root))
    assert manifest["files"]["bin/libllama.so.0"] == {"link": "libllama.so.0.7"}
    expected = {
        "schema": 2,
        "kind": "archive",
        "id": "b7-cpu-1",
        "build_number": 7,
        "rpc_server": "ggml-rpc-server",
        "plugins": True,
        "cpu_flags": [],
    }
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["libc"].startswith("2.")
    assert manifest["inputs"]["backend"] == "cuda"
    assert manifest["inputs"]["platform"]["machine"] == os.uname().machine
    assert said_by(root / "bin" / "llama-server") == "build 7\n"


def test_second_time_nothing_is_done_and_the_archive_not_needed(take, official):
    result = take(official)
    sha256 = hashlib.sha256(official.read_bytes()).hexdigest()
    official.unlink()
    again = take(official, sha256=sha256)
    assert (again["changed"], again["sha256"], again["manifest"]) == (False, result["sha256"], result["manifest"])


def test_same_archive_gives_the_same_bytes(take, binaries, tmp_path):
    path = tmp_path / "b7.tar.gz"
    pack(path, {"build/bin": binaries("HERE")})
    first = take(path)["sha256"]
    assert take(path, cache=str(tmp_path / "other"))["sha256"] == first


def test_members_belong_to_root_and_the_manifest_is_first(take, official):
    with tarfile.open(take(official)["archive"]) as tar:
        members = tar.getmembers()
    assert members[0].name == "./manifest.json"
    assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "root")}


@pytest.mark.parametrize("runpath", ["HERE", "HERE:", "$ORIGIN/../lib", "$ORIGIN/../lib:$ORIGIN"])
def test_run_path_of_a_build_directory_is_changed(take, binaries, tmp_path, runpath):
    there = binaries(runpath)
    path = tmp_path / "b7.tar.gz"
    pack(path, {"build/bin": there})
    root, _manifest = installed(take(path), tmp_path)
    away = there.with_name("away")
    there.rename(away)
    try:
        assert said_by(root / "bin" / "llama-server") == "build 7\n"
        assert said_by(root / "bin" / "ggml-rpc-server") == "build 7\n"
    finally:
        away.rename(there)


def test_installed_tree_with_libraries_elsewhere(take, binaries, tmp_path):
    there = binaries("$ORIGIN/../lib")
    path = tmp_path / "usr.tar.gz"
    pack(
        path,
        {
            "./usr/bin/llama-server": there / "llama-server",
            "./usr/lib/libllama.so.0.7": there / "libllama.so.0.7",
            "./usr/lib/libllama.so.0": there / "libllama.so.0",
            "./usr/libexec/ggml-rpc-server": there / "ggml-rpc-server",
            "./usr/share/doc/copyright": there / "LICENSE",
        },
    )
    root, manifest = installed(take(path), tmp_path)
    assert sorted(manifest["files"]) == [
        "bin/ggml-rpc-server",
        "bin/libllama.so.0",
        "bin/libllama.so.0.7",
        "bin/llama-server",
    ]
    assert said_by(root / "bin" / "ggml-rpc-server") == "build 7\n"


def test_zip(take, binaries, tmp_path):
    there = binaries("$ORIGIN")
    path = tmp_path / "llama-b7-bin-ubuntu-x64.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name in ("llama-server", "ggml-rpc-server", "libllama.so.0.7"):
            packed.write(there / name, "build/bin/" + name)
        link = zipfile.ZipInfo("build/bin/libllama.so.0")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "libllama.so.0.7")
    root, manifest = installed(take(path), tmp_path)
    assert manifest["build_number"] == 7
    assert said_by(root / "bin" / "llama-server") == "build 7\n"


def own_release(binaries, tmp_path, spoil=None):
    """Pack a release as llama_build does; return the archive."""
    there, root = binaries("$ORIGIN/../lib"), tmp_path / "own"
    for directory, names in (
        ("bin", ["llama-server", "ggml-rpc-server"]),
        ("lib", ["libllama.so.0.7", "libllama.so.0"]),
    ):
        (root / directory).mkdir(parents=True)
        for name in names:
            shutil.copy2(there / name, root / directory / name, follow_symlinks=False)
    manifest = {
        "schema": 2,
        "kind": "build",
        "id": "b7-cpu-0",
        "inputs": {"release": "b7", "backend": "cpu", "platform": {"os": "debian-12", "machine": os.uname().machine}},
        "build_number": 7,
        "commit": "abcdef012",
        "compiler": "cc 12",
        "rpc_server": "ggml-rpc-server",
        "cpu_flags": ["avx2"],
        "libc": "2.36",
        "files": describe_tree(str(root)),
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    if spoil:
        spoil(root)
    path = tmp_path / "own.tar.gz"
    pack(path, {".": root})
    return path, manifest


def test_own_release_keeps_layout_and_manifest(take, binaries, tmp_path):
    path, own = own_release(binaries, tmp_path)
    root, manifest = installed(take(path), tmp_path)
    for key in ("inputs", "commit", "compiler", "cpu_flags", "libc", "build_number", "files"):
        assert manifest[key] == own[key]
    assert (manifest["id"], manifest["kind"]) == ("b7-cpu-1", "archive")
    assert said_by(root / "bin" / "llama-server") == "build 7\n"


def test_packed_release_can_be_taken_again(take, official, tmp_path):
    first = take(official)
    again = take(tmp_path / "cache" / "b7-cpu-1.tar.gz", id="b7-cpu-2")
    assert again["manifest"]["libc"] == first["manifest"]["libc"]
    assert again["manifest"]["plugins"] is True


def test_own_release_that_differs_from_its_manifest_is_refused(take, binaries, tmp_path):
    path, _own = own_release(binaries, tmp_path, lambda root: (root / "lib" / "libllama.so.0.7").write_text("forged"))
    result = take(path)
    assert result["failed"]
    assert "lib/libllama.so.0.7 differs" in result["msg"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("left_out", "words"),
    [("llama-server", "holds no file llama-server"), ("ggml-rpc-server", "looked for ggml-rpc-server and rpc-server")],
)
def test_archive_without_a_binary_is_refused(take, binaries, tmp_path, left_out, words):
    there, path = binaries("$ORIGIN"), tmp_path / "some.tar.gz"
    pack(path, {"b/" + name: there / name for name in os.listdir(there) if name != left_out})
    result = take(path)
    assert result["failed"]
    assert words in result["msg"]
    assert kept(tmp_path) == []


def test_binaries_of_another_system_are_refused(take, tmp_path):
    (tmp_path / "script").write_bytes(b"\xcf\xfa\xed\xfe" + b"\0" * 100)
    path = tmp_path / "macos.tar.gz"
    pack(path, {"llama-b7/" + name: tmp_path / "script" for name in ("llama-server", "ggml-rpc-server")})
    assert "take the archive for Linux" in take(path)["msg"]


def test_library_that_would_not_be_found_is_refused(take, binaries, tmp_path):
    path = tmp_path / "b7.tar.gz"
    pack(path, {"b": binaries("")})
    result = take(path)
    assert result["failed"]
    assert "would not find libllama.so.0 beside it" in result["msg"]


def test_two_different_libraries_of_one_name_are_refused(take, binaries, tmp_path):
    there, path = binaries("$ORIGIN"), tmp_path / "b7.tar.gz"
    (tmp_path / "libllama.so.0").write_text("another")
    pack(path, {"b": there, "lib/libllama.so.0": tmp_path / "libllama.so.0"})
    assert "two different files libllama.so.0" in take(path)["msg"]


def test_other_build_than_declared_is_refused(take, official):
    result = take(official, inputs={"release": "b8"})
    assert result["failed"]
    assert "llamacpp_release = b8" in result["msg"]
    assert "is b7" in result["msg"]


def test_other_machine_than_declared_is_refused(take, official):
    result = take(official, inputs={"release": "b7", "platform": {"os": "", "machine": "vax"}})
    assert "the nodes are vax" in result["msg"]


def test_declared_inputs_go_into_the_manifest(take, official):
    inputs = {"release": "b7", "source": {"kind": "release_archive"}, "backend": "vulkan", "architectures": []}
    assert take(official, inputs=inputs)["manifest"]["inputs"] == inputs


@pytest.mark.parametrize("check", [False, True])
def test_wrong_checksum(take, official, tmp_path, check):
    result = take(official, sha256="0" * 64, **({"check": True} if check else {}))
    assert result["failed"]
    assert "llamacpp_source.sha256 = %s" % ("0" * 64) in result["msg"]
    assert kept(tmp_path) == []


def test_check_mode_takes_nothing(take, official, tmp_path):
    result = take(official, check=True)
    assert (result["changed"], result["sha256"], result["manifest"]) == (True, "", {})
    assert not (tmp_path / "cache").exists()


def test_archive_that_is_not_there(take, tmp_path):
    result = take(tmp_path / "no.tar.gz", sha256="0" * 64)
    assert "llamacpp_source.path" in result["msg"]


def test_cut_archive_is_refused(take, official, tmp_path):
    official.write_bytes(official.read_bytes()[:-200])
    result = take(official)
    assert result["failed"]
    assert "is not a whole archive" in result["msg"]
    assert kept(tmp_path) == []


def test_id_of_another_archive_is_refused(take, official, binaries, tmp_path):
    take(official)
    other = tmp_path / "other.tar.gz"
    pack(other, {"b": binaries("HERE")})
    result = take(other)
    assert result["failed"]
    assert "give this one another id" in result["msg"]


def member(name, kind=tarfile.REGTYPE, link=""):
    """A member of an archive that nobody packs by mistake."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([member("../outside")], "leaves the directory"),
        ([member("/outside")], "leaves the directory"),
        ([member("a/../../outside")], "leaves the directory"),
        ([member("b/link", tarfile.SYMTYPE, "../../outside")], "leaves the directory"),
        ([member("link", tarfile.SYMTYPE, "/etc/passwd")], "leaves the directory"),
        ([member("in", tarfile.SYMTYPE, "b"), member("in/file")], "goes through a link"),
        ([member("pipe", tarfile.FIFOTYPE)], "neither file, directory nor link"),
        ([member("null", tarfile.CHRTYPE)], "neither file, directory nor link"),
    ],
)
def test_member_that_leaves_the_directory_is_refused(take, tmp_path, members, words):
    path = tmp_path / "bad.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for one in members:
            tar.addfile(one, io.BytesIO())
    before = sorted(os.listdir(tmp_path))
    result = take(path)
    assert result["failed"]
    assert words in result["msg"]
    assert kept(tmp_path) == []
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "cache"])


def test_over_http(take, official, tmp_path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            """Stay silent."""

    handler = functools.partial(Handler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = "http://127.0.0.1:%d/" % server.server_port
    try:
        missing = take(official, url=address + "no.tar.gz")
        assert "404" in missing["msg"]
        wrong = take(official, url=address + official.name, sha256="0" * 64)
        assert "llamacpp_source.sha256" in wrong["msg"]
        assert kept(tmp_path) == []
        assert take(official, url=address + official.name)["manifest"]["build_number"] == 7
    finally:
        server.shutdown()
        server.server_close()
