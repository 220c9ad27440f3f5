# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Why a build failed, most likely: what a log says -> what an operator can do about it.

The words are those of CMake 3.25, gcc 8 to 14, nvcc 11.8 to 13, GNU ld and llama.cpp b11434's own CMakeLists.txt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Lines of a failed build's end that are shown with the message.
TAIL_LINES = 25
# A failed step is followed by the output of those that ran beside it.
SEARCHED_LINES = 2000


@dataclass(frozen=True)
class Cause:
    """``advice``: what it is and what to write. ``line``: the line of the log that says so."""

    advice: str
    line: str


# The first that matches counts: a full disk or a killed compiler breaks anything else as well.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk of the builder is full: free some space, or set llamacpp_build_dir to another disk",
    ),
    (
        r"File size limit exceeded|File too large",
        "a limit on the size of files (ulimit -f) stopped the build: raise it for the user that builds",
    ),
    (
        r"Killed signal terminated program|internal compiler error: Killed|(due to|terminated with|killed by) signal 9"
        r"|virtual memory exhausted|out of memory allocating|Cannot allocate memory|std::bad_alloc|^Killed\b",
        "the compiler was killed or got no memory: lower llama_cpp_build_jobs, or build on a node with more memory",
    ),
    (
        r"unsupported GNU version! gcc versions later than (\d+)|unsupported clang version",
        "the compiler is too new for this CUDA toolkit: set llamacpp_gcc_version to one that it takes, "
        "or llamacpp_cuda_version to a newer toolkit",
    ),
    (
        r"Unsupported gpu architecture|[Uu]nsupported CUDA architecture|is not defined for option 'gpu-architecture'",
        "this CUDA toolkit cannot compile for llamacpp_cuda_architectures: toolkits before 13 know sm_70, "
        "from 12.8 on sm_120; set llamacpp_cuda_version",
    ),
    (
        r"Could NOT find CUDAToolkit|CUDA Toolkit not found|nvcc.*not found|No CMAKE_CUDA_COMPILER could be found"
        r"|CMAKE_CUDA_COMPILER.*not set|The CMAKE_CUDA_COMPILER:\s+\S+\s+is not a full path|[Ff]ind nvcc\b"
        r"|Failed to detect a default CUDA architecture",
        "no CUDA toolkit on the builder where it was looked for: set llamacpp_cuda_provider, or llamacpp_cuda_home to "
        "one that is there",
    ),
    (
        r"exception specification is incompatible with that of previous function",
        "this CUDA toolkit does not know the builder's C library: set llamacpp_cuda_version to a newer one",
    ),
    (
        r"fatal error: filesystem: No such file|undefined reference to .std::filesystem|error: .*std::filesystem"
        r"|error: .filesystem. (is not a (namespace|member)|in namespace .std. does not name a type)",
        "the compiler is too old for std::filesystem (gcc 8 has it in a library of its own): "
        "set llamacpp_gcc_version to 9 or newer; on Enterprise Linux 8 that installs gcc-toolset",
    ),
    (
        r"no known features for CXX compiler|unrecognized command.line option .-std=(c|gnu)\+\+17\W"
        r"|CXX_STANDARD.*(requires|not supported)|target_compile_features.*cxx_std_17",
        "the compiler is too old for C++17: set llamacpp_gcc_version to 9 or newer",
    ),
    (
        r"Could NOT find Vulkan",
        "no Vulkan headers, loader or shader compiler on the builder: install libvulkan-dev and glslc "
        "(Enterprise Linux: vulkan-headers, vulkan-loader-devel, glslc)",
    ),
    (
        r"SPIRV-Headers|spirv\.hpp: No such file",
        "no SPIR-V headers on the builder: install spirv-headers (Enterprise Linux: spirv-headers-devel)",
    ),
    (
        r"ggml-vulkan\.cpp.*error: .*(VK_|vk::|was not declared|is not a member of)|vulkan/vulkan\.hpp: No such file",
        "the Vulkan headers of the builder are too old for this llama.cpp: build on a newer distribution "
        "(Debian 13 is new enough, 12 is not), or set llamacpp_backend to another one",
    ),
    (
        r"Could NOT find PkgConfig",
        "no pkg-config on the builder: install pkgconf (Enterprise Linux: pkgconf-pkg-config)",
    ),
    (
        r"BLAS not found|Could NOT find BLAS|cblas\.h: No such file",
        "no BLAS on the builder: install libopenblas-dev (Enterprise Linux: openblas-devel)",
    ),
    (
        r"At least ROCM/HIP V\S+ is required",
        "ROCm on the builder is too old for this llama.cpp: install AMD's own packages, and write in "
        "llama_cpp_build_environment where they are (ROCM_PATH)",
    ),
    (
        r"provided by \"?(hip|hipblas|rocblas)\"?|No CMAKE_HIP_COMPILER|Failed to find ROCm",
        "no ROCm on the builder: install its HIP SDK, and write in llama_cpp_build_environment where it is (ROCM_PATH)",
    ),
    (
        r"Could not find RDMA_LIB|infiniband/verbs\.h: No such file|cannot find -libverbs",
        "no libibverbs on the builder: install libibverbs-dev (Enterprise Linux: rdma-core-devel), or set "
        "llamacpp_rdma to false",
    ),
    (
        r"CMake \d\S* or higher is required|CMake Error.*cmake_minimum_required",
        "cmake on the builder is too old for this llama.cpp (b11434 needs 3.14, with Vulkan 3.19, with HIP 3.21)",
    ),
    (
        r"CMake was unable to find a build program|CMAKE_MAKE_PROGRAM is not set",
        "neither ninja nor make on the builder: install ninja-build",
    ),
    (
        r"No CMAKE_(C|CXX)_COMPILER could be found|CMAKE_(C|CXX)_COMPILER not set"
        r"|is not a full path( to an existing compiler tool)?( and was not found in the PATH)?",
        "no compiler on the builder where it was looked for: install g++, or correct CC and CXX in "
        "llama_cpp_build_environment",
    ),
    (
        r"is not able to compile a simple test program",
        "the compiler of the builder compiles nothing at all: look at CC, CXX, llamacpp_cflags and llamacpp_cxxflags",
    ),
    (
        r"unrecognized command.line option|unrecognized argument (to|in) option|bad value .* for .-m(arch|tune|cpu)=",
        "the compiler does not know one of the flags: look at llamacpp_cflags, llamacpp_cxxflags, llamacpp_cmake_args",
    ),
    (
        r"GGML_NATIVE is not compatible with GGML_BACKEND_DL|GGML_CPU_ALL_VARIANTS requires|GGML_BACKEND_DL requires",
        "two arguments contradict each other: look at llamacpp_cmake_args",
    ),
    (
        r"cannot find -l\S+",
        "a library is not on the builder: install the package that has it for compiling",
    ),
    (
        r"fatal error: .*: No such file or directory",
        "a header is not on the builder: install the package that has it",
    ),
)


def probable_cause(log: str) -> Cause | None:
    """Return what most likely broke a build, from its log (the end is enough); None when unknown."""
    text = "\n".join(log.splitlines()[-SEARCHED_LINES:])
    for pattern, advice in _CAUSES:
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            start = text.rfind("\n", 0, match.end()) + 1
            return Cause(advice, text[start:].partition("\n")[0].strip())
    return None


def failure(command: str, log: str, log_path: str) -> str:
    """Return the message of a failed build: command, probable cause, where the whole log is, and its end."""
    tail = log.splitlines()[-TAIL_LINES:]
    cause = probable_cause(log)
    words = ["%s failed." % command]
    if cause:
        words[0] += " Probable cause: %s." % cause.advice
        if cause.line not in (line.strip() for line in tail):
            words.append("The line that says so: %s" % cause.line)
    return "\n".join([*words, "The whole log is in %s on the builder; its end:" % log_path, *tail])
