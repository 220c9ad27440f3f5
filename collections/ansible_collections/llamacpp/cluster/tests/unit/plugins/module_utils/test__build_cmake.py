# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""CMake's command line, cache and targets."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _build_cmake

INPUTS = {"backend": "cpu", "cmake_args": ["-DGGML_RPC=ON", "-DCMAKE_BUILD_TYPE=Debug"], "build_type": "Release"}


def configured(ninja=False, ccache=False, **inputs):
    """Return the arguments for inputs."""
    return _build_cmake.configure_arguments({**INPUTS, **inputs}, 7, "abc", ninja, ccache)


def test_what_an_operator_writes_comes_last():
    arguments = configured(cflags="-O1", cxxflags="-march=x86-64-v3")
    assert arguments[-2:] == INPUTS["cmake_args"]
    assert {"-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_C_FLAGS=-O1", "-DCMAKE_CXX_FLAGS=-march=x86-64-v3"} <= set(arguments)


def test_no_flags_leave_the_compilers_own():
    assert not [argument for argument in configured() if "_FLAGS" in argument]


def test_number_and_commit_under_both_names():
    names = ("-DLLAMA_BUILD_NUMBER=7", "-DBUILD_NUMBER=7", "-DLLAMA_BUILD_COMMIT=abc", "-DBUILD_COMMIT=abc")
    assert set(names) <= set(configured())


@pytest.mark.parametrize(
    ("backend", "languages"), [("cpu", ["C", "CXX"]), ("cuda", ["C", "CXX", "CUDA"]), ("hip", ["C", "CXX", "HIP"])]
)
def test_every_language_uses_the_compilers_cache(backend, languages):
    launchers = [argument for argument in configured(ccache=True, backend=backend) if "LAUNCHER" in argument]
    assert launchers == ["-DCMAKE_%s_COMPILER_LAUNCHER=ccache" % language for language in languages]
    assert not [argument for argument in configured(backend=backend) if "LAUNCHER" in argument]


def test_ninja_where_it_is():
    assert "Ninja" in configured(ninja=True) and "Ninja" not in configured()


CACHE = """\
# This is the CMakeCache file.

//Help about it, with GGML_FAKE:BOOL=ON
//and a second line
GGML_BACKEND_DL:BOOL=ON

//Path to a library.
CUDA_cublas_LIBRARY:FILEPATH=/usr/lib/libcublas.so
EMPTY:STRING=
CMAKE_CXX_FLAGS:STRING=-DA=B:C
"""


def test_cache():
    cache = _build_cmake.read_cache(CACHE)
    assert cache == {
        "GGML_BACKEND_DL": "ON",
        "CUDA_cublas_LIBRARY": "/usr/lib/libcublas.so",
        "EMPTY": "",
        "CMAKE_CXX_FLAGS": "-DA=B:C",
    }
    assert _build_cmake.is_on(cache, "GGML_BACKEND_DL")
    assert not _build_cmake.is_on(cache, "EMPTY") and not _build_cmake.is_on(cache, "ABSENT")


@pytest.mark.parametrize(
    "printed",
    [
        "all: phony\nllama-server: phony\nbin/llama-server: CXX_EXECUTABLE\n",
        "The following are some:\n... all\n... llama-server\n",
    ],
)
def test_targets_of_ninja_and_make(printed):
    assert "llama-server" in _build_cmake.targets(printed)


@pytest.mark.parametrize(("cpus", "gib", "jobs"), [(16, 64, 16), (16, 6, 4), (2, 1, 1), (64, 0, 1)])
def test_jobs_fit_cpus_and_memory(cpus, gib, jobs):
    assert _build_cmake.jobs(cpus, gib << 30) == jobs


def test_ccache_counts():
    printed = "cache_miss\t3\ndirect_cache_hit\t10\npreprocessed_cache_hit\t2\ncleanups_performed\t0\n"
    assert _build_cmake.ccache_counts(printed) == {"hits": 12, "misses": 3}
    assert _build_cmake.ccache_counts("") == {"hits": 0, "misses": 0}
