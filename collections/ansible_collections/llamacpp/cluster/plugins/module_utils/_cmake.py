# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The CMake arguments of a release, and which instructions its CPU code will use. Pure functions.

Names of options: llama.cpp's CMakeLists.txt, ggml/CMakeLists.txt and docs/build.md (b11434).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_settings import BuildSettings

# On by default when GGML_NATIVE is off (ggml/CMakeLists.txt, INS_ENB) -> the flags of /proc/cpuinfo.
_PORTABLE = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_AVX2": ("avx2",),
    "GGML_BMI2": ("bmi2",),
    "GGML_FMA": ("fma",),
    "GGML_F16C": ("f16c",),
}
# Off by default (ggml/src/ggml-cpu/CMakeLists.txt: what each adds to the compiler's flags).
_OPTIONAL = {
    "GGML_AVX_VNNI": ("avx_vnni",),
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
    "GGML_AMX_TILE": ("amx_tile",),
    "GGML_AMX_INT8": ("amx_int8",),
    "GGML_AMX_BF16": ("amx_bf16",),
}
_DEFINITION = re.compile(r"^-D(\w+)(?::\w+)?=(.*)$")
_TRUE = ("ON", "1", "TRUE", "YES", "Y")


def cmake_arguments(
    settings: BuildSettings,
    backend: str,
    architectures: Sequence[str],
    rdma: bool = False,
    nccl: bool = False,
    fa_all_quants: bool = False,
) -> list[str]:
    """Return the ``-D`` arguments of a build, without build type, flags, build number and commit.

    ``architectures``: CUDA's as ``["70", "90"]``, HIP's as ``["gfx90a"]``. The operator's own
    arguments come last, so they win.
    """
    plugins = backend != "cpu" or settings.cpu_variants
    arguments = [
        # A release is copied to other nodes: no -march=native, libraries found beside the binary.
        "-DGGML_NATIVE=OFF",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        "-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib" + (";$ORIGIN" if plugins else ""),
        "-DGGML_RPC=ON",
        "-DGGML_RPC_RDMA=%s" % _word(rdma),
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        # The pages are built beforehand, on the control node: a builder needs no way out.
        "-DLLAMA_BUILD_UI=OFF",
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        # Models are placed by the collection and TLS ends in front of the cluster: without
        # libssl and libcurl one build runs on every release of a distribution.
        "-DLLAMA_OPENSSL=OFF",
        "-DLLAMA_CURL=OFF",
    ]
    if plugins:
        # A backend is loaded where its driver is, and passed over where it is not.
        arguments.append("-DGGML_BACKEND_DL=ON")
    if settings.cpu_variants:
        arguments.append("-DGGML_CPU_ALL_VARIANTS=ON")
    arguments += _backend_arguments(backend, architectures, nccl, fa_all_quants)
    return arguments + list(settings.cmake_args)


def _backend_arguments(backend: str, architectures: Sequence[str], nccl: bool, fa_all_quants: bool) -> list[str]:
    if backend == "cuda":
        arguments = ["-DGGML_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=%s" % ";".join(architectures)]
        if any(int(re.sub(r"\D.*", "", item)) <= 70 for item in architectures):
            # Volta has no int8 tensor cores; without MMQ whole matrices are dequantised in VRAM.
            arguments.append("-DGGML_CUDA_FORCE_MMQ=ON")
        if fa_all_quants:
            arguments.append("-DGGML_CUDA_FA_ALL_QUANTS=ON")
        # Left open, it would follow from what happens to be installed on the builder.
        return [*arguments, "-DGGML_CUDA_NCCL=%s" % _word(nccl)]
    if backend == "hip":
        arguments = ["-DGGML_HIP=ON", "-DGPU_TARGETS=%s" % ";".join(architectures)]
        return arguments + (["-DGGML_CUDA_FA_ALL_QUANTS=ON"] if fa_all_quants else [])
    if backend == "vulkan":
        return ["-DGGML_VULKAN=ON"]
    if backend == "blas":
        return ["-DGGML_BLAS=ON", "-DGGML_BLAS_VENDOR=OpenBLAS"]
    return []


def _word(value: bool) -> str:
    return "ON" if value else "OFF"


def definition(arguments: Sequence[str], name: str) -> str:
    """Return the value of ``-DNAME=value`` that counts, the last one; empty when there is none."""
    found = ""
    for argument in arguments:
        match = _DEFINITION.match(argument)
        if match and match.group(1) == name:
            found = match.group(2)
    return found


def expected_cpu_flags(settings: BuildSettings, machine: str) -> dict[str, str]:
    """Return the flags of /proc/cpuinfo that a build of these settings will need, as far as one can tell beforehand.

    Each with the option of CMake that asks for it.
    Flags of the compiler are not looked into: the manifest of the finished release says what it really uses.
    """
    if settings.cpu_variants or machine not in ("x86_64", "amd64"):
        return {}
    found: dict[str, str] = {}
    for option, flags in {**_PORTABLE, **_OPTIONAL}.items():
        value = definition(settings.cmake_args, option)
        if value.upper() in _TRUE if value else option in _PORTABLE:
            found.update(dict.fromkeys(flags, option))
    return found
