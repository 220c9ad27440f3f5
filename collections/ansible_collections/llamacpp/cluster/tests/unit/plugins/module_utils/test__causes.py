# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Probable causes: in the words of real compilers and a real CMake where one can make them fail like that."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _causes

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
needs_cmake = pytest.mark.skipif(None in (shutil.which("cmake"), shutil.which("g++")), reason="no cmake or g++")


def advice(log):
    """Return the advice for a log; empty when the cause is unknown."""
    cause = _causes.probable_cause(log)
    return cause.advice if cause else ""


def output(*argv, cwd=None):
    """Run something that has to fail; return what it says."""
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=dict(os.environ, LC_ALL="C.UTF-8"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
    )
    assert done.returncode != 0, done.stdout
    return done.stdout


@needs_gcc
@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        ("#include <filesystem>\nstd::filesystem::path p;", ["-std=c++11"], "std::filesystem (gcc 8"),
        ("#include <filesystem>", ["-nostdinc++"], "std::filesystem (gcc 8"),
        (
            "namespace std { namespace filesystem { void probe(); } } int main() { std::filesystem::probe(); }",
            [],
            "std::filesystem (gcc 8",
        ),
        ("#error -- unsupported GNU version! gcc versions later than 11 are not supported!", [], "too new"),
        ("#include <infiniband/no_verbs.h>", [], "a header is not on the builder"),
        ("int main() {}", ["-std=c++17x"], "does not know one of the flags"),
        ("int main() {}", ["-march=pentium99"], "does not know one of the flags"),
        ("int main() {}", ["-wrapper", "sh,-c,kill -9 $$"], "killed or got no memory"),
        ("int main() {}", ["-lno-such-library"], "a library is not on the builder"),
        ("int main( {}", [], ""),
    ],
)
def test_words_of_the_compiler(tmp_path, code, flags, words):
    (tmp_path / "a.cpp").write_text(code + "\n")
    said = advice(output("g++", *flags, "a.cpp", "-o", "a.out", cwd=tmp_path))
    assert words in said and bool(said) is bool(words)


@needs_gcc
def test_compiler_without_memory():
    said = output("bash", "-c", "ulimit -v 60000; echo 'int a;' | g++ -S -x c++ -include vector -o /dev/null -")
    assert "killed or got no memory" in advice(said)


@needs_gcc
def test_compiler_with_a_full_disk():
    said = output("bash", "-c", "echo 'int a;' | gcc -S -x c -o - - > /dev/full")
    assert "disk of the builder is full" in advice(said)


# As if nothing were installed on this machine.
NOTHING = "project(a CXX)\nset(CMAKE_FIND_ROOT_PATH /nowhere)\n" + "\n".join(
    "set(CMAKE_FIND_ROOT_PATH_MODE_%s ONLY)" % mode for mode in ("LIBRARY", "INCLUDE", "PACKAGE", "PROGRAM")
)
BLAS = 'find_package(BLAS)\nif (NOT BLAS_FOUND)\nmessage(FATAL_ERROR "BLAS not found, please refer to ...")\nendif()'


@needs_cmake
@pytest.mark.parametrize(
    ("listfile", "arguments", "words"),
    [
        ("cmake_minimum_required(VERSION 99)", [], "too old for this llama.cpp"),
        (NOTHING + "\nfind_package(Vulkan COMPONENTS glslc REQUIRED)", [], "no Vulkan headers"),
        (NOTHING + "\nfind_package(SPIRV-Headers CONFIG REQUIRED)", [], "no SPIR-V headers"),
        (NOTHING + "\n" + BLAS, [], "no BLAS"),
        (NOTHING + "\nfind_package(PkgConfig REQUIRED)", [], "no pkg-config"),
        (NOTHING + "\nfind_library(RDMA_LIB ibverbs REQUIRED)", [], "libibverbs"),
        (NOTHING + "\nfind_package(CUDAToolkit REQUIRED)", [], "no CUDA toolkit"),
        ("project(a CUDA)", ["-DCMAKE_CUDA_COMPILER=/nowhere/nvcc"], "no CUDA toolkit"),
        (NOTHING + "\nfind_package(hip REQUIRED)", [], "no ROCm"),
        ("project(a CXX)", ["-DCMAKE_CXX_COMPILER=g++-99"], "no compiler"),
        ("project(a CXX)", ["-DCMAKE_CXX_COMPILER=/bin/false"], "compiles nothing at all"),
        (
            "project(a CXX)",
            ["-G", "Ninja", "-DCMAKE_MAKE_PROGRAM=CMAKE_MAKE_PROGRAM-NOTFOUND"],
            "neither ninja nor make",
        ),
        ('project(a CXX)\nmessage(FATAL_ERROR "no such thing")', [], ""),
    ],
)
def test_words_of_cmake(tmp_path, listfile, arguments, words):
    if "minimum" not in listfile:
        listfile = "cmake_minimum_required(VERSION 3.18)\n" + listfile
    (tmp_path / "CMakeLists.txt").write_text(listfile + "\n")
    said = output("cmake", "-S", ".", "-B", "b", *arguments, cwd=tmp_path)
    assert words in advice(said) and bool(advice(said)) is bool(words), said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nvcc fatal   : Unsupported gpu architecture 'compute_70'", "llamacpp_cuda_architectures"),
        ("nvcc fatal   : Value 'sm_120' is not defined for option 'gpu-architecture'", "llamacpp_cuda_architectures"),
        ("nvcc error   : 'cicc' died due to signal 9 (Kill signal)", "no memory"),
        ("collect2: fatal error: ld terminated with signal 9 [Killed]", "no memory"),
        ("cmake was killed by signal 9", "no memory"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "no memory"),
        ('error: exception specification is incompatible with that of previous function "cospi"', "newer one"),
        ("/s/ggml-vulkan.cpp:99:5: error: 'VK_KHR_COOPERATIVE_MATRIX' was not declared in this scope", "too old"),
        ("  At least ROCM/HIP V6.1 is required", "ROCm on the builder is too old"),
        ("undefined reference to `std::filesystem::__cxx11::path::_M_split_cmpts()'", "gcc-toolset"),
    ],
)
def test_recorded_words(line, words):
    assert words in advice("[1/2] Building\n%s\nninja: build stopped\n" % line)


def test_warnings_are_no_cause():
    assert advice("a.cpp:1: warning: std::filesystem is slow here\n-- Could NOT find OpenMP\n") == ""


def test_a_full_disk_counts_before_what_it_broke():
    log = "fatal error: ggml.h: No such file or directory\nfatal error: error writing to x.s: No space left on device\n"
    assert "disk of the builder is full" in advice(log)


def test_message_has_cause_log_and_end():
    log = "\n".join(["nvcc fatal : Unsupported gpu architecture 'compute_70'", *["line %d" % n for n in range(60)]])
    message = _causes.failure("cmake --build", log, "/b/x.log")
    assert message.startswith("cmake --build failed. Probable cause: this CUDA toolkit cannot compile")
    assert "The line that says so: nvcc fatal : Unsupported gpu architecture 'compute_70'" in message
    assert "/b/x.log" in message
    assert "line 59" in message and "line 20\n" not in message


def test_message_without_a_known_cause():
    assert _causes.failure("cmake -S", "who knows", "/b/x.log").startswith("cmake -S failed.\nThe whole log")
