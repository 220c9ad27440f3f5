# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A project with the targets and options of llama.cpp that matter to a build, and next to no code: real CMake and a
real compiler make a release of it in seconds. What it calls CUDA's libraries are stand-ins with their names."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

NUMBER = 11434

_FILES = {
    "CMakeLists.txt": """\
cmake_minimum_required(VERSION 3.14)
project(tiny C CXX)
option(GGML_BACKEND_DL "" OFF)
option(GGML_AVX2 "" OFF)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(ggml-base SHARED ggml/base.c)
if (GGML_BACKEND_DL)
    add_library(ggml-cpu MODULE ggml/cpu.c)
else()
    add_library(ggml-cpu SHARED ggml/cpu.c)
endif()
set_target_properties(ggml-base ggml-cpu PROPERTIES VERSION 0.6.0 SOVERSION 0)
target_link_libraries(ggml-cpu PRIVATE ggml-base)
if (GGML_AVX2)
    target_compile_options(ggml-cpu PRIVATE -mavx2)
endif()
if (TINY_CUDA)
    find_library(CUDA_cublas_LIBRARY cublas PATHS ${TINY_CUDA} NO_DEFAULT_PATH REQUIRED)
    target_link_libraries(ggml-cpu PRIVATE -Wl,--no-as-needed ${CUDA_cublas_LIBRARY})
    target_link_options(ggml-cpu PRIVATE -Wl,--allow-shlib-undefined)
endif()
add_library(unused SHARED ggml/base.c)
foreach(name llama-server ggml-rpc-server llama-bench llama-cli)
    add_executable(${name} main.cpp)
    target_link_libraries(${name} PRIVATE ggml-base)
    if (GGML_BACKEND_DL)
        add_dependencies(${name} ggml-cpu)
    else()
        target_link_libraries(${name} PRIVATE ggml-cpu)
        target_compile_definitions(${name} PRIVATE LINKED)
    endif()
endforeach()
target_compile_definitions(llama-server PRIVATE NUMBER=${LLAMA_BUILD_NUMBER} "COMMIT=\\"${LLAMA_BUILD_COMMIT}\\"")
if (EXISTS ${CMAKE_SOURCE_DIR}/tools/ui/dist/index.html)
    target_compile_definitions(llama-server PRIVATE PAGES)
endif()
if (TINY_SLOW)
    add_custom_target(slow COMMAND ${CMAKE_SOURCE_DIR}/slow.sh ${TINY_SLOW})
    add_dependencies(llama-server slow)
endif()
""",
    "main.cpp": """\
#include <cstdio>
#ifdef LINKED
extern "C" int ggml_backend_init(void);
#define base ggml_backend_init
#else
extern "C" int base(void);
#endif
#ifndef NUMBER
#define NUMBER 0
#define COMMIT ""
#endif
#ifdef PAGES
#define UI "with pages"
#else
#define UI "without pages"
#endif
static const char * greeting = "version";
int main() {
    std::printf("%s: %d (%s) %s %d\\n", greeting, NUMBER, COMMIT, UI, base());
    return 0;
}
""",
    "slow.sh": '#!/bin/sh\ntest ! -e "$1" || exec sleep 300\n',
    "ggml/base.c": "int base(void) { return 1; }\n",
    "ggml/cpu.c": "int base(void);\nint ggml_backend_init(void) { return base(); }\n",
}

# What the plan gives to every build (module_utils/_cmake.py).
CMAKE_ARGS = [
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib;$ORIGIN",
]

PATCH = """\
diff --git a/main.cpp b/main.cpp
--- a/main.cpp
+++ b/main.cpp
@@ -16,5 +16,5 @@
 #endif
-static const char * greeting = "version";
+static const char * greeting = "patched";
 int main() {
     std::printf("%s: %d (%s) %s %d\\n", greeting, NUMBER, COMMIT, UI, base());
     return 0;
"""


def source(directory: Path, **changes: str) -> Path:
    """Pack the source, with files changed or added (their paths are the keywords); return the archive."""
    return pack(directory, "tiny-llama.tar.gz", {**_FILES, **changes}, top="llama.cpp-b%d/" % NUMBER)


def pack(directory: Path, name: str, files: dict[str, str], top: str = "./") -> Path:
    """Pack texts as an archive."""
    root = directory / ("tree-of-" + name)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o755 if text.startswith("#!") else 0o644)
    archive = directory / name
    with tarfile.open(archive, "w:gz") as tar:
        for path in files:
            tar.add(root / path, arcname=top + path)
    return archive


def cuda(directory: Path) -> Path:
    """Make libraries that are named and linked as CUDA's: cublas needs cublasLt beside it; the driver is not there."""
    directory.mkdir()
    empty = directory / "empty.c"
    empty.write_text("")
    for name, soname, needs in [
        ("libcuda.so", "libcuda.so.1", []),
        ("libcudart.so", "libcudart.so.11.0", []),
        ("libcublasLt.so", "libcublasLt.so.11", []),
        ("libcublas.so", "libcublas.so.11", ["libcublasLt.so", "libcudart.so", "libcuda.so"]),
    ]:
        linking = ["-Wl,-soname," + soname, "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", *[directory / n for n in needs]]
        subprocess.run(["gcc", "-shared", "-o", directory / (soname + ".8.89"), empty, *linking], check=True)
        (directory / soname).symlink_to(soname + ".8.89")
        (directory / name).symlink_to(soname)
    (directory / "libcuda.so.1").unlink()
    return directory
