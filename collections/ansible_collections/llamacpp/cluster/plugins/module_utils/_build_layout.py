# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring what was compiled into the layout of a release.

``bin/`` has the executables and, beside them where llama.cpp looks for them, the backends that it loads as plugins
(``ggml_backend_load_best``, ggml/src/ggml-backend-reg.cpp, b11434); ``lib/`` has the shared libraries that they need.
CUDA's run-time libraries belong to a release, so that a node needs the driver and nothing else of CUDA. What belongs
to the node stays there: its C and C++ libraries, OpenMP, the Vulkan loader, InfiniBand's verbs, and the driver.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_cmake import is_on
from ansible_collections.llamacpp.cluster.plugins.module_utils._elf import Elf, ElfError, libc_needed, read_elf
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

RUN_PATH = "$ORIGIN/../lib"

# CUDA's run-time libraries; of them the toolkit's licence allows copies. Not libcuda: that is the driver.
_RUNTIME = re.compile(r"^lib(cudart|cublas|cublasLt|nccl)\.so\.")
_LIBRARY = re.compile(r"\.so(\.\d+)*$")
_PLUGIN = re.compile(r"^libggml-.*\.so$")


@dataclass(frozen=True)
class Layout:
    """Paths relative to the release. ``own``: compiled here. ``plugins``: those of them that llama.cpp loads itself.

    ``runtime``: CUDA's libraries, copied. ``libc``: the oldest C library that runs all of it (``2.34``).
    """

    own: tuple[str, ...]
    plugins: tuple[str, ...]
    runtime: tuple[str, ...]
    libc: str


def lay_out(build: str, stage: str, targets: Sequence[str], cache: Mapping[str, str]) -> Layout:
    """Copy from CMake's build directory to ``stage``, which does not exist yet.

    ``targets``: executables. ``cache``: entries of CMakeCache.txt. Raises :class:`ReleaseError`, :class:`ElfError`
    and :class:`OSError`.
    """
    for name in ("bin", "lib"):
        os.makedirs(os.path.join(stage, name))
    built = _built_libraries(build)
    executables = [os.path.join(build, "bin", name) for name in targets]
    linked = _closure(executables, built)
    plugins = _plugins(os.path.join(build, "bin"), linked) if is_on(cache, "GGML_BACKEND_DL") else []
    linked.update(_closure(plugins, built))
    own = [_copy(path, stage, "bin", os.path.basename(path)) for path in executables + plugins]
    for soname, path in sorted(linked.items()):
        own.append(_copy(path, stage, "lib", os.path.basename(path)))
        if soname != os.path.basename(path):
            os.symlink(os.path.basename(path), os.path.join(stage, "lib", soname))
    runtime = _copy_runtime(stage, own, cache)
    found = {name: _elf(os.path.join(stage, name)) for name in own + runtime}
    for name in own:
        inside = [library for library in found[name].needed if os.path.lexists(os.path.join(stage, "lib", library))]
        if inside and RUN_PATH not in found[name].runpath:
            raise ReleaseError(
                "%s would not find %s on a node: its run path is %s instead of %s; llamacpp_cmake_args must not change "
                "CMAKE_INSTALL_RPATH" % (name, inside[0], ":".join(found[name].runpath) or "empty", RUN_PATH)
            )
    return Layout(
        own=tuple(own),
        plugins=tuple(own[len(executables) : len(executables) + len(plugins)]),
        runtime=tuple(runtime),
        libc=libc_needed(found.values()),
    )


def total_bytes(stage: str, names: Iterable[str]) -> int:
    """Return the bytes of files of a release."""
    return sum(os.stat(os.path.join(stage, name)).st_size for name in names)


def _elf(path: str) -> Elf:
    """Read a file that has to be an ELF file."""
    elf = read_elf(path)
    if elf is None:
        raise ElfError("%s is neither a program nor a library for Linux with 64 bits" % path)
    return elf


def _copy(path: str, stage: str, directory: str, name: str) -> str:
    """Copy a file (of a link, what it leads to); return its path in the release."""
    relative = os.path.join(directory, name)
    shutil.copy2(path, os.path.join(stage, relative))
    return relative


def _built_libraries(build: str) -> dict[str, str]:
    """Return the shared libraries in a build directory: name by which others need it -> file, links resolved."""
    found = {}
    for directory, _names, files in os.walk(build):
        for name in files:
            path = os.path.join(directory, name)
            if _LIBRARY.search(name) and not os.path.islink(path):
                elf = read_elf(path)
                if elf:
                    found[elf.soname or name] = path
    return found


def _closure(files: Iterable[str], built: Mapping[str, str]) -> dict[str, str]:
    """Return those of the built libraries that files need, directly or through others."""
    found: dict[str, str] = {}
    waiting = list(files)
    while waiting:
        for name in _elf(waiting.pop()).needed:
            if name in built and name not in found:
                found[name] = built[name]
                waiting.append(built[name])
    return found


def _plugins(directory: str, linked: Mapping[str, str]) -> list[str]:
    """Return the backends that nothing is linked with, by the names under which llama.cpp looks for them."""
    taken = {os.path.realpath(path) for path in linked.values()}
    paths = [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if _PLUGIN.match(name)]
    return [path for path in paths if os.path.realpath(path) not in taken]


def _copy_runtime(stage: str, own: Sequence[str], cache: Mapping[str, str]) -> list[str]:
    """Copy the run-time libraries that files of a release need, directly or through others; return their paths."""
    directories = _library_directories(cache)
    copied: list[str] = []
    waiting = [os.path.join(stage, name) for name in own]
    while waiting:
        for name in _elf(waiting.pop()).needed:
            if not _RUNTIME.match(name) or os.path.join("lib", name) in copied:
                continue
            path = next((os.path.join(place, name) for place in directories if _there(place, name)), None)
            if path is None:
                raise ReleaseError("%s is needed and not in %s" % (name, ", ".join(directories) or "any directory"))
            copied.append(_copy(path, stage, "lib", name))
            waiting.append(path)
    return copied


def _there(directory: str, name: str) -> bool:
    """Whether a directory has a file."""
    return os.path.isfile(os.path.join(directory, name))


def _library_directories(cache: Mapping[str, str]) -> list[str]:
    """Return the directories of libraries that CMake found, as the toolkit's; each also as what links lead to."""
    found: list[str] = []
    for value in cache.values():
        if not os.path.isabs(value) or not _LIBRARY.search(value):
            continue
        for path in (value, os.path.realpath(value)):
            if os.path.dirname(path) not in found:
                found.append(os.path.dirname(path))
    return found
