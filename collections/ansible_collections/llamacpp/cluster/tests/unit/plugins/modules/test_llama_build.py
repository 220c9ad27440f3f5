# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Building releases with real CMake and a real compiler, from a tiny project with llama.cpp's targets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._elf import read_elf
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import describe_tree, differences
from ansible_collections.llamacpp.cluster.plugins.modules import llama_build
from ansible_collections.llamacpp.cluster.tests.unit import rpc_cache_program, tiny_llama

pytestmark = pytest.mark.skipif(
    None in [shutil.which(name) for name in ("cmake", "g++", "patch")], reason="needs cmake, g++ and patch"
)

ID = "b11434-tiny-1"


@pytest.fixture
def build(run_module, tmp_path):
    """A function that builds a release; keywords are options, those in ``inputs`` change the release's inputs."""

    def run(inputs=None, check=False, **options):
        return run_module(llama_build, check=check, **arguments(tmp_path, inputs, **options))

    return run


def arguments(tmp_path, inputs=None, **options):
    """Return the module's options for the tiny project."""
    given = {
        "id": ID,
        "inputs": {
            "backend": "cpu",
            "cmake_args": tiny_llama.CMAKE_ARGS,
            "build_type": "Release",
            "cflags": "",
            "cxxflags": "",
            "patches": [],
            "web_ui": False,
            **(inputs or {}),
        },
        "build_number": tiny_llama.NUMBER,
        "commit": "abc123",
        "directory": str(tmp_path / "build"),
        "ccache_directory": str(tmp_path / "ccache"),
        "jobs": 2,
        **options,
    }
    if "source" not in given:
        given["source"] = str(tiny_llama.source(tmp_path))
    return given


def with_args(*more):
    """Return inputs with more arguments of CMake."""
    return {"cmake_args": [*tiny_llama.CMAKE_ARGS, *more]}


def unpacked(tmp_path, result):
    """Unpack a built release as a node would; return its directory."""
    target = tmp_path / "node"
    with tarfile.open(result["archive"]) as tar:
        tar.extractall(target, filter="data")
    return target


def left(tmp_path):
    """Return what is in the directory of builds."""
    return sorted(os.listdir(tmp_path / "build"))


def test_release_runs_elsewhere_and_its_manifest_says_what_it_is(build, tmp_path):
    result = build(inputs=with_args("-DGGML_AVX2=ON"))
    assert result["changed"] is True
    assert result["sha256"] == hashlib.sha256((tmp_path / "build" / (ID + ".tar.gz")).read_bytes()).hexdigest()
    assert left(tmp_path) == [ID + ".lock", ID + ".log", ID + ".tar.gz"]
    node = unpacked(tmp_path, result)
    said = subprocess.run([node / "bin" / "llama-server"], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert said == "version: 11434 (abc123) without pages 1\n"
    assert sorted(os.listdir(node / "bin")) == ["ggml-rpc-server", "llama-bench", "llama-server"]
    assert sorted(os.listdir(node / "lib")) == [
        "libggml-base.so.0",
        "libggml-base.so.0.6.0",
        "libggml-cpu.so.0",
        "libggml-cpu.so.0.6.0",
    ]
    manifest = json.loads((node / "manifest.json").read_text())
    assert differences(manifest["files"], describe_tree(str(node))) == []
    assert (manifest["schema"], manifest["kind"], manifest["id"]) == (2, "build", ID)
    assert (manifest["build_number"], manifest["commit"], manifest["rpc_server"]) == (
        11434,
        "abc123",
        "ggml-rpc-server",
    )
    assert manifest["plugins"] is False
    assert manifest["cuda_compiler"] == ""
    assert manifest["builder"] == socket.gethostname()
    # Whole seconds; with the compiler's cache it may be none.
    assert manifest["duration"] == result["duration"]
    assert manifest["duration"] in range(600)
    assert manifest["compiler"].startswith(("c++", "g++")) and manifest["compiler"][-1].isdigit()
    assert manifest["libc"].startswith("2.")
    if os.uname().machine == "x86_64":
        assert {"avx", "avx2"} <= set(manifest["cpu_flags"])
    with tarfile.open(result["archive"]) as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert {member.uname for member in members.values()} == {"root"}
    assert members["./bin/llama-server"].mode == 0o755
    assert os.stat(result["archive"]).st_mode & 0o777 == 0o644, "whoever logs in takes it away"


def test_the_program_of_the_rpc_cache_is_compiled_beside(build, tmp_path):
    source = rpc_cache_program.SOURCE.read_text(encoding="utf-8")
    node = unpacked(tmp_path, build(rpc_cache_source=source))
    program = node / "bin" / "llamacpp-rpc-cache"
    asked = subprocess.run([program, "hash", __file__], input="0 1\n", capture_output=True, check=True, text=True)
    assert asked.stdout == rpc_cache_program.name_of(b"#") + "\n"
    manifest = json.loads((node / "manifest.json").read_text())
    assert manifest["rpc_cache"] == hashlib.sha256(source.encode()).hexdigest()
    assert manifest["files"]["bin/llamacpp-rpc-cache"]["executable"] is True


def test_a_program_that_does_not_compile_or_speaks_another_language_is_no_release(build, tmp_path):
    broken = build(rpc_cache_source="#error no\n")
    assert "rpc_cache.c:1" in broken["msg"]
    other = build(rpc_cache_source='#include <stdio.h>\nint main(void) { puts("99"); return 0; }\n')
    assert "the new llamacpp-rpc-cache says version 99, not 1" in other["msg"]
    assert left(tmp_path) == [ID + ".lock", ID + ".log"]


def test_again_there_is_nothing_to_build(build, tmp_path):
    first = build()
    again = build()
    assert (again["changed"], again["duration"], again["sha256"]) == (False, 0, first["sha256"])


def test_check_mode_builds_nothing(build, tmp_path):
    result = build(check=True)
    assert (result["changed"], result["sha256"]) == (True, "")
    assert not (tmp_path / "build").exists()


def test_backends_as_plugins_lie_beside_the_executables(build, tmp_path):
    result = build(inputs=with_args("-DGGML_BACKEND_DL=ON"))
    node = unpacked(tmp_path, result)
    assert json.loads((node / "manifest.json").read_text())["plugins"] is True
    assert "libggml-cpu.so" in os.listdir(node / "bin")
    assert sorted(os.listdir(node / "lib")) == ["libggml-base.so.0", "libggml-base.so.0.6.0"]
    plugin = node / "bin" / "libggml-cpu.so"
    assert not plugin.is_symlink()
    assert read_elf(str(plugin)).runpath == ("$ORIGIN/../lib", "$ORIGIN")
    subprocess.run([sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", plugin], check=True)


def test_libraries_of_cuda_belong_to_the_release_and_the_driver_does_not(build, tmp_path):
    toolkit = tiny_llama.cuda(tmp_path / "cuda")
    result = build(inputs=with_args("-DGGML_BACKEND_DL=ON", "-DTINY_CUDA=%s" % toolkit))
    node = unpacked(tmp_path, result)
    libraries = os.listdir(node / "lib")
    assert {"libcublas.so.11", "libcublasLt.so.11", "libcudart.so.11.0"} <= set(libraries)
    assert not [name for name in libraries if name.startswith(("libcuda.", "libc.", "libstdc++", "libgomp"))]
    assert not (node / "lib" / "libcublas.so.11").is_symlink()
    assert result["sizes"]["runtime"] > 0


def test_without_a_driver_on_the_builder_the_nodes_try_it(build, tmp_path):
    toolkit = tiny_llama.cuda(tmp_path / "cuda")
    result = build(inputs=with_args("-DTINY_CUDA=%s" % toolkit))
    assert result["changed"] is True


def test_missing_runtime_library_is_named(build, tmp_path):
    toolkit = tiny_llama.cuda(tmp_path / "cuda")
    (toolkit / "libcublasLt.so.11").unlink()
    result = build(inputs=with_args("-DGGML_BACKEND_DL=ON", "-DTINY_CUDA=%s" % toolkit))
    assert result["failed"]
    assert "libcublasLt.so.11 is needed and not in %s" % toolkit in result["msg"]


def test_symbols_go_unless_they_are_asked_for(build, tmp_path):
    sizes = build()["sizes"]
    assert sizes["stripped"] < sizes["compiled"]
    debug = build(id="debug", inputs={"build_type": "RelWithDebInfo"})["sizes"]
    assert debug["stripped"] == debug["compiled"] > sizes["compiled"]


def test_run_path_that_nobody_could_use_is_refused(build, tmp_path):
    result = build(inputs=with_args("-DCMAKE_INSTALL_RPATH=/opt/elsewhere"))
    assert result["failed"]
    for word in ("bin/llama-server", "libggml-cpu.so.0", "/opt/elsewhere"):
        assert word in result["msg"]
    assert left(tmp_path) == [ID + ".lock", ID + ".log"]


def patch_file(tmp_path, text, name="greet.patch"):
    """Write a patch; return its path and its entry in the inputs."""
    path = tmp_path / name
    path.write_text(text)
    return str(path), {"name": name, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def test_patches_flags_and_pages(build, tmp_path):
    first, first_entry = patch_file(tmp_path, tiny_llama.PATCH)
    second, second_entry = patch_file(
        tmp_path, tiny_llama.PATCH.replace('"patched"', '"twice"').replace('"version"', '"patched"'), "second.patch"
    )
    pages = tiny_llama.pack(tmp_path, "pages.tar.gz", {"index.html": "<html></html>", "version.json": "{}"})
    result = build(
        inputs={"patches": [first_entry, second_entry], "web_ui": True, "cxxflags": "-DCOMPANY=1", "cflags": "-O1"},
        patches=[first, second],
        web_ui=str(pages),
    )
    node = unpacked(tmp_path, result)
    said = subprocess.run([node / "bin" / "llama-server"], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert said == "twice: 11434 (abc123) with pages 1\n"
    log = (tmp_path / "build" / (ID + ".log")).read_text()
    assert "-DCMAKE_CXX_FLAGS=-DCOMPANY=1" in log and "-DCMAKE_C_FLAGS=-O1" in log
    assert "patching file main.cpp" in log


def test_patch_that_does_not_apply_names_hunk_and_file(build, tmp_path):
    path, entry = patch_file(tmp_path, tiny_llama.PATCH.replace('"version"', '"Version"'))
    result = build(inputs={"patches": [entry]}, patches=[path])
    assert result["failed"]
    assert "patch greet.patch does not apply to this source: main.cpp: Hunk #1 FAILED at 16" in result["msg"]
    assert left(tmp_path) == [ID + ".lock", ID + ".log"]


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ({"patches": [{"name": "a.patch", "sha256": "0" * 64}]}, {}, "0 patches were given, the release has 1"),
        (
            {"patches": [{"name": "a.patch", "sha256": "0" * 64}]},
            {"patches": ["/nowhere/a"]},
            "patch a.patch is not there",
        ),
        ({"patches": [{"name": "a.patch", "sha256": "0" * 64}]}, {"patches": [__file__]}, "instead of 000"),
        ({"web_ui": True}, {}, "its pages were not given"),
        ({}, {"source": "/nowhere/llama.tar.gz"}, "/nowhere/llama.tar.gz is not there"),
        ({}, {"source": __file__}, "is not a whole archive"),
        ({}, {"enable": ["/opt/rh/gcc-toolset-99/enable"]}, "/opt/rh/gcc-toolset-99/enable is not there"),
        ({}, {"environment": {"PATH": "/nowhere"}}, "no command cmake on the builder"),
    ],
)
def test_what_is_missing_is_named(build, tmp_path, inputs, options, words):
    result = build(inputs=inputs, **options)
    assert result["failed"]
    assert words in result["msg"]
    assert ID + ".tar.gz" not in left(tmp_path) and ID not in left(tmp_path)


def test_pages_without_an_index_are_refused(build, tmp_path):
    pages = tiny_llama.pack(tmp_path, "pages.tar.gz", {"dist/index.html": ""})
    result = build(inputs={"web_ui": True}, web_ui=str(pages))
    assert "no index.html at its top" in result["msg"]


def test_archive_that_is_not_llama_cpp_is_refused(build, tmp_path):
    archive = tiny_llama.pack(tmp_path, "other.tar.gz", {"README": "something else"})
    assert "holds no llama.cpp" in build(source=str(archive))["msg"]


def test_failed_build_says_cause_and_end_of_its_log_and_leaves_the_log_alone(build, tmp_path):
    broken = "#error -- unsupported GNU version! gcc versions later than 11 are not supported!\n"
    result = build(source=str(tiny_llama.source(tmp_path, **{"ggml/cpu.c": broken})))
    assert result["failed"]
    for words in ("cmake --build failed", "Probable cause: the compiler is too new for this CUDA toolkit", "cpu.c:1"):
        assert words in result["msg"]
    assert "llamacpp_gcc_version" in result["msg"]
    assert left(tmp_path) == [ID + ".lock", ID + ".log"]
    assert str(tmp_path / "build" / (ID + ".log")) in result["msg"]
    assert build()["changed"] is True


def test_absent_compiler_is_the_cause(build):
    result = build(environment={"CXX": "g++-99", "CC": "gcc-99"})
    assert "no compiler on the builder" in result["msg"]


def test_toolchain_is_enabled_for_the_build_alone(build, tmp_path):
    enable = tmp_path / "enable"
    wrapper = tmp_path / "toolset" / "g++-toolset"
    wrapper.parent.mkdir()
    wrapper.write_text('#!/bin/sh\necho used >> %s\nexec g++ "$@"\n' % (tmp_path / "used"))
    wrapper.chmod(0o755)
    enable.write_text("echo hello\nexport PATH=%s:$PATH\nexport CXX=overruled\n" % wrapper.parent)
    result = build(enable=[str(enable)], environment={"CXX": "g++-toolset"})
    assert result["changed"] is True
    assert (tmp_path / "used").exists()
    assert str(wrapper.parent) not in os.environ["PATH"]


def test_enable_script_that_fails_is_named(build, tmp_path):
    enable = tmp_path / "enable"
    enable.write_text("echo no such collection >&2\nfalse\n")
    result = build(enable=[str(enable)])
    assert "cannot source %s: no such collection" % enable in result["msg"]


def test_server_that_says_another_build_is_refused(build, tmp_path):
    result = build(build_number=7, inputs=with_args("-DLLAMA_BUILD_NUMBER=8"))
    assert result["failed"]
    assert "does not say build 7: version: 8" in result["msg"]


@pytest.mark.skipif(shutil.which("ccache") is None, reason="needs ccache")
def test_compilers_cache_serves_the_next_release(build, tmp_path):
    first = build()
    assert first["ccache"]["misses"] > 0
    second = build(id="b11434-tiny-2")
    assert second["ccache"] == {"hits": first["ccache"]["misses"] + first["ccache"]["hits"], "misses": 0}


@pytest.mark.parametrize("name", [ID + ".tar.gz.new", ID + ".log"])
def test_full_disk_is_said_and_leaves_nothing(build, tmp_path, name):
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / name).symlink_to("/dev/full")
    result = build()
    assert result["failed"]
    assert "No space left on device" in result["msg"]
    assert "the disk of %s is full" % (tmp_path / "build") in result["msg"]
    assert not [entry for entry in left(tmp_path) if entry.endswith((".tar.gz", ".new"))]
    assert ID not in left(tmp_path)


START = "from ansible_collections.llamacpp.cluster.plugins.modules import llama_build as m; m.main()"


def start(tmp_path, **options):
    """Start the module in a process of its own, with a target that takes minutes while ``slow`` is there."""
    slow = tmp_path / "slow"
    slow.touch()
    given = arguments(tmp_path, with_args("-DTINY_SLOW=%s" % slow), holder="anna on control", **options)
    file = tmp_path / "arguments.json"
    file.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": given}))
    return subprocess.Popen(
        [sys.executable, "-c", START, file], env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    )


def wait_for(condition, seconds=60):
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sleepers(tmp_path):
    """Return the processes of the slow target."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/environ" % pid, "rb") as environment, open("/proc/%s/comm" % pid) as name:
                if str(tmp_path).encode() in environment.read() and name.read() == "sleep\n":
                    found.append(int(pid))
        except OSError:
            continue
    return found


def test_who_waits_sees_for_whom_and_a_killed_build_is_in_nobodys_way(build, tmp_path):
    holder = start(tmp_path)
    try:
        wait_for(lambda: sleepers(tmp_path))
        waited = build(lock_wait=1)
        assert waited["failed"]
        for words in ("gave up after 1 s", "build of %s by anna on control (pid %d) since " % (ID, holder.pid)):
            assert words in waited["msg"]
        other = build(id="b11434-tiny-2")
        assert other["changed"] is True
        orphans = sleepers(tmp_path)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert sleepers(tmp_path) == orphans
    (tmp_path / "slow").unlink()
    assert (tmp_path / "build" / ID).is_dir()
    assert build()["changed"] is True
    assert sleepers(tmp_path) == []
    assert left(tmp_path).count(ID) == 0
