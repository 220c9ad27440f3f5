# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The arguments that CMake gets, and the processor that they ask for."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_settings import BuildSettings
from ansible_collections.llamacpp.cluster.plugins.module_utils._cmake import (
    cmake_arguments,
    definition,
    expected_cpu_flags,
)


def arguments(backend="cpu", architectures=(), rdma=False, fa_all_quants=False, **settings):
    """Return the arguments of a build."""
    return cmake_arguments(BuildSettings(**settings), backend, architectures, rdma=rdma, fa_all_quants=fa_all_quants)


def test_cpu_build_is_portable_and_speaks_rpc():
    found = arguments()
    assert {"-DGGML_RPC=ON", "-DGGML_NATIVE=OFF", "-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib"} <= set(found)
    assert not [item for item in found if "CUDA" in item or "_DL" in item]


@pytest.mark.parametrize("backend", ["cuda", "hip", "vulkan", "blas"])
def test_other_backends_are_plugins_so_that_a_node_without_driver_runs_the_rest(backend):
    found = arguments(backend, ("70",) if backend == "cuda" else ())
    assert "-DGGML_BACKEND_DL=ON" in found
    assert "-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib;$ORIGIN" in found


@pytest.mark.parametrize(
    ("architectures", "forced"), [(("70",), True), (("90",), False), (("61", "86"), True), (("90a",), False)]
)
def test_volta_and_older_use_mmq(architectures, forced):
    assert ("-DGGML_CUDA_FORCE_MMQ=ON" in arguments("cuda", architectures)) is forced


def test_what_the_operator_says_comes_last():
    found = arguments("cuda", ("70",), cmake_args=("-DGGML_CUDA_FORCE_MMQ=OFF",))
    assert definition(found, "GGML_CUDA_FORCE_MMQ") == "OFF"


def test_rdma_is_said_either_way():
    assert definition(arguments(), "GGML_RPC_RDMA") == "OFF"
    assert definition(arguments(rdma=True), "GGML_RPC_RDMA") == "ON"


def test_all_quants_belong_to_backends_with_such_kernels():
    assert "-DGGML_CUDA_FA_ALL_QUANTS=ON" in arguments("cuda", ("90",), fa_all_quants=True)
    assert "-DGGML_CUDA_FA_ALL_QUANTS=ON" not in arguments("cpu", fa_all_quants=True)


def test_hip_names_its_targets():
    assert "-DGPU_TARGETS=gfx90a;gfx942" in arguments("hip", ("gfx90a", "gfx942"))


def test_portable_build_asks_for_the_instructions_of_haswell():
    assert set(expected_cpu_flags(BuildSettings(), "x86_64")) == {"sse4_2", "avx", "avx2", "bmi2", "fma", "f16c"}


def test_instructions_follow_the_arguments():
    settings = BuildSettings(cmake_args=("-DGGML_AVX2=OFF", "-DGGML_AVX512:BOOL=ON", "-DGGML_FMA=ON", "-DGGML_FMA=0"))
    found = expected_cpu_flags(settings, "x86_64")
    assert "avx2" not in found and "fma" not in found
    assert found["avx512bw"] == "GGML_AVX512"


def test_variants_and_other_machines_ask_for_nothing():
    assert not expected_cpu_flags(BuildSettings(cpu_variants=True), "x86_64")
    assert not expected_cpu_flags(BuildSettings(), "aarch64")
