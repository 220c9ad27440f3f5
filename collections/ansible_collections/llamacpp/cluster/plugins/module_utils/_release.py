# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a release of llama.cpp is: its id, its CMake arguments and its manifest.

A release is one immutable build: source + backend + architectures + flags +
the platform that compiled it. The id is a hash of all of them, so a release
that exists never has to be looked into to know whether it is the wanted one.
Pure functions; nothing here touches a disk except :func:`describe_tree`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from typing import Any

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1

# The names that the RPC worker's binary (and CMake target) has had; newest first.
RPC_SERVER_NAMES = ("ggml-rpc-server", "rpc-server")

# What a node runs and an operator measures with. Targets that a version of
# llama.cpp does not have are left out; llama-server and the RPC server are not.
OPTIONAL_TARGETS = ("llama-bench", "llama-fit-params")

BACKENDS = ("cpu", "cuda")

_BUILD_TAG = re.compile(r"^b([0-9]+)$")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._]+")


class ReleaseError(ValueError):
    """A release that cannot be described, built or installed; the text says why."""


def build_number(release: str) -> int | None:
    """Return N of ``bN``, the name that llama.cpp gives its builds; None for anything else."""
    match = _BUILD_TAG.match(release)
    return int(match.group(1)) if match else None


def cmake_arguments(
    backend: str,
    architectures: Sequence[str] = (),
    extra: Sequence[str] = (),
) -> list[str]:
    """Return the ``-D`` arguments of a build, without build number and commit.

    ``architectures``: CUDA compute capabilities without the dot, as ``["70", "90"]``.
    ``extra`` comes last, so an operator's own argument wins.

    Raises :class:`ReleaseError` for an unknown backend, or CUDA without architectures
    (llama.cpp would then build for all it knows, and ``native`` does not survive a copy).
    """
    if isinstance(architectures, str) or isinstance(extra, str):
        raise ReleaseError('llamacpp_cuda_architectures and llamacpp_cmake_args are lists: write ["70"], not "70"')
    if backend not in BACKENDS:
        raise ReleaseError(
            "llama_cpp_backend = %s: this version of the collection builds %s" % (backend, " and ".join(BACKENDS))
        )
    arguments = [
        "-DCMAKE_BUILD_TYPE=Release",
        # A release is copied to other nodes: no -march=native, libraries found beside the binary.
        "-DGGML_NATIVE=OFF",
        "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        "-DCMAKE_INSTALL_RPATH=$ORIGIN/../lib",
        "-DGGML_RPC=ON",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        # Models are placed by the collection and TLS ends in front of the cluster: without
        # libssl and libcurl one build runs on every release of a distribution.
        "-DLLAMA_OPENSSL=OFF",
        "-DLLAMA_CURL=OFF",
    ]
    if backend == "cuda":
        if not architectures:
            raise ReleaseError(
                "llama_cpp_cuda_architectures is empty: name the compute capabilities of "
                'the GPUs without the dot, e.g. ["70"] for V100, ["90"] for H100'
            )
        arguments += [
            "-DGGML_CUDA=ON",
            "-DCMAKE_CUDA_ARCHITECTURES=%s" % ";".join(architectures),
        ]
        if any(int(arch.rstrip("af")) <= 70 for arch in architectures if arch[:1].isdigit()):
            # Volta has no int8 tensor cores; without MMQ whole matrices are dequantised in VRAM.
            arguments.append("-DGGML_CUDA_FORCE_MMQ=ON")
    return arguments + list(extra)


def release_inputs(
    release: str,
    source: Mapping[str, Any],
    backend: str,
    architectures: Sequence[str],
    cmake_args: Sequence[str],
    platform: Mapping[str, str],
) -> dict[str, Any]:
    """Return everything that decides what a build contains, as JSON-able data.

    ``source``: ``kind`` and what names it (url, path, sha256, commit).
    ``platform``: ``os`` (``debian-12``) and ``machine`` (``x86_64``) of the builder.
    """
    arguments = cmake_arguments(backend, architectures, cmake_args)
    return {
        "release": release,
        "source": {key: source[key] for key in sorted(source) if source[key] is not None},
        "backend": backend,
        "architectures": sorted(architectures),
        "cmake_args": arguments,
        "platform": dict(platform),
    }


def release_id(inputs: Mapping[str, Any]) -> str:
    """Return the directory name of a release, e.g. ``b11434-cpu-1a2b3c4d``."""
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    label = _NOT_IN_NAMES.sub("_", str(inputs["release"]))[:40]
    parts = [label, str(inputs["backend"])]
    if inputs["architectures"]:
        parts.append("sm" + "_".join(str(arch) for arch in inputs["architectures"]))
    return "-".join([*parts, digest[:8]])


def choose_targets(available: Sequence[str]) -> list[str]:
    """Choose the CMake targets to build among those that this llama.cpp has.

    Raises :class:`ReleaseError` when the server or every name of the RPC worker is missing.
    """
    known = set(available)
    rpc = [name for name in RPC_SERVER_NAMES if name in known]
    if "llama-server" not in known or not rpc:
        raise ReleaseError(
            "this source has no target llama-server or none of %s: it is not llama.cpp, "
            "or too old or new for this collection" % ", ".join(RPC_SERVER_NAMES)
        )
    return ["llama-server", rpc[0]] + [name for name in OPTIONAL_TARGETS if name in known]


def rpc_server_name(binaries: Sequence[str]) -> str:
    """Return the RPC worker's file name in a release's ``bin``.

    Raises :class:`ReleaseError` when there is none.
    """
    for name in RPC_SERVER_NAMES:
        if name in binaries:
            return name
    raise ReleaseError("no RPC worker in bin/: expected one of %s" % ", ".join(RPC_SERVER_NAMES))


def describe_tree(root: str) -> dict[str, dict[str, Any]]:
    """Describe every file below ``root`` for the manifest: sha256 and size, or link target.

    Keys are paths relative to ``root`` with forward slashes. The manifest itself is left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for directory, _dirs, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, root)
            if relative == MANIFEST:
                continue
            if os.path.islink(path):
                found[relative] = {"link": os.readlink(path)}
                continue
            info = os.stat(path)
            found[relative] = {
                "sha256": file_sha256(path),
                "bytes": info.st_size,
                "executable": bool(info.st_mode & stat.S_IXUSR),
            }
    return found


def differences(wanted: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List how a tree differs from its manifest's ``files``, one phrase a file; empty when equal."""
    phrases = ["%s is missing" % name for name in sorted(set(wanted) - set(found))]
    phrases += ["%s does not belong there" % name for name in sorted(set(found) - set(wanted))]
    phrases += [
        "%s differs" % name for name in sorted(set(wanted) & set(found)) if dict(wanted[name]) != dict(found[name])
    ]
    return phrases


def complete(target: str) -> bool:
    """Whether a release is there with all its files at their full size.

    The bytes were compared when it was installed; hashing 20 MB on every run is not worth the wait.
    """
    try:
        with open(os.path.join(target, MANIFEST), encoding="utf-8") as stream:
            files = json.load(stream)["files"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False
    for name, wanted in files.items():
        path = os.path.join(target, name)
        try:
            if "link" in wanted:
                if os.readlink(path) != wanted["link"]:
                    return False
            elif os.stat(path).st_size != wanted["bytes"]:
                return False
        except OSError:
            return False
    return True


def file_sha256(path: str) -> str:
    """Return the sha256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


# What the end of a failed build's log says -> what an operator can do about it.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device",
        "the disk of llama_cpp_build_dir is full: free some space or set llama_cpp_build_dir to another disk",
    ),
    (
        r"Killed signal terminated program|internal compiler error: Killed|signal 9",
        "the compiler was killed, most likely out of memory: lower llama_cpp_build_jobs",
    ),
    (
        r"std::filesystem|<filesystem>|undefined reference to `std::filesystem",
        "the compiler is too old for std::filesystem (gcc 8): use gcc 9 or newer",
    ),
    (
        r"Unsupported gpu architecture|unsupported CUDA architecture|CMAKE_CUDA_ARCHITECTURES",
        "this CUDA toolkit cannot compile for llama_cpp_cuda_architectures",
    ),
    (
        r"Could NOT find CUDAToolkit|nvcc.*not found|No CMAKE_CUDA_COMPILER",
        "no CUDA toolkit on the builder: install it and set llama_cpp_cuda_home",
    ),
    (
        r"CMake \d.* or higher is required|CMake Error.*cmake_minimum_required",
        "cmake on the builder is too old for this llama.cpp",
    ),
)


def probable_cause(log_tail: str) -> str:
    """Return what most likely broke a build, from the end of its log; empty when unknown."""
    for pattern, advice in _CAUSES:
        if re.search(pattern, log_tail):
            return advice
    return ""
