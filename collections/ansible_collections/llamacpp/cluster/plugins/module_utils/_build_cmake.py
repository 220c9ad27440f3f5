# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""CMake's side of a build: its command line, its cache, its targets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# One compiler of llama.cpp's largest files (and nvcc's cicc) takes up to 1.5 GiB.
MEMORY_PER_JOB = 1536 << 20

_CACHE_LINE = re.compile(r"^([^#/\s][^:=\n]*):([A-Z]+)=(.*)$", re.MULTILINE)
_TARGET = re.compile(r"^(?:\.\.\. )?([A-Za-z0-9_.-]+)(?::.*)?$", re.MULTILINE)
# Language of a backend's own code, which ccache can serve as well.
_LANGUAGES = {"cuda": "CUDA", "hip": "HIP"}
_TRUE = ("ON", "1", "TRUE", "YES", "Y")


def configure_arguments(
    inputs: Mapping[str, Any], build_number: int, commit: str, ninja: bool, ccache: bool
) -> list[str]:
    """Return CMake's arguments behind ``cmake -S ... -B ...``.

    ``inputs``: of the release. Its ``cmake_args`` come last, and CMake lets the last win: what an operator writes there
    counts.
    """
    arguments = ["-DCMAKE_BUILD_TYPE=%s" % inputs.get("build_type", "Release"), "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    for language, flags in (("C", inputs.get("cflags")), ("CXX", inputs.get("cxxflags"))):
        if flags:
            arguments.append("-DCMAKE_%s_FLAGS=%s" % (language, flags))
    for prefix in ("LLAMA_", ""):
        arguments.append("-D%sBUILD_NUMBER=%d" % (prefix, build_number))
        arguments.append("-D%sBUILD_COMMIT=%s" % (prefix, commit))
    if ninja:
        arguments += ["-G", "Ninja"]
    if ccache:
        own = _LANGUAGES.get(inputs["backend"])
        arguments += ["-DCMAKE_%s_COMPILER_LAUNCHER=ccache" % language for language in ("C", "CXX", own) if language]
    return arguments + list(inputs["cmake_args"])


def read_cache(text: str) -> dict[str, str]:
    """Return the entries of a CMakeCache.txt, without their types."""
    return {name: value for name, _type, value in _CACHE_LINE.findall(text)}


def is_on(cache: Mapping[str, str], name: str) -> bool:
    """Whether an option is on."""
    return cache.get(name, "").upper() in _TRUE


def targets(help_text: str) -> list[str]:
    """Return the names in what ``cmake --build DIR --target help`` prints, by ninja or make."""
    return _TARGET.findall(help_text)


def jobs(cpus: int, available: int) -> int:
    """Return how many compilers to run at a time. ``available``: bytes of memory."""
    return max(1, min(cpus, available // MEMORY_PER_JOB))


def ccache_counts(printed: str) -> dict[str, int]:
    """Return ``hits`` and ``misses`` in what ``ccache --print-stats`` prints (ccache 3.7 and newer)."""
    counts = {
        name: int(value) for name, _tab, value in (line.partition("\t") for line in printed.splitlines()) if value
    }
    hits = counts.get("direct_cache_hit", 0) + counts.get("preprocessed_cache_hit", 0)
    return {"hits": hits, "misses": counts.get("cache_miss", 0)}
