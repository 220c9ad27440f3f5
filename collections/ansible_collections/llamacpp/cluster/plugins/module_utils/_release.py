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
MANIFEST_SCHEMA = 2

# Which programs a release is made of, as a number that rises when one is added or has to be replaced: 2 has
# llama-quantize and llamacpp-rpc-cache. It is a part of the id, so that releases without them are made anew; a changed
# comment in our own program is not worth compiling CUDA again.
CONTENTS = 2

# The names that the RPC worker's binary (and CMake target) has had; newest first.
RPC_SERVER_NAMES = ("ggml-rpc-server", "rpc-server")

# What a node runs and an operator measures with. Targets that a version of
# llama.cpp does not have are left out; llama-server and the RPC server are not.
OPTIONAL_TARGETS = ("llama-bench", "llama-fit-params", "llama-quantize")

_BUILD_TAG = re.compile(r"^b([0-9]+)$")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._]+")


class ReleaseError(ValueError):
    """A release that cannot be described, built or installed; the text says why."""


def build_number(release: str) -> int | None:
    """Return N of ``bN``, the name that llama.cpp gives its builds; None for anything else."""
    match = _BUILD_TAG.match(release)
    return int(match.group(1)) if match else None


def release_id(inputs: Mapping[str, Any]) -> str:
    """Return the directory name of a release, e.g. ``b11434-cuda-sm70-1a2b3c4d``.

    ``inputs``: everything that decides what it contains, JSON-able, with ``release``, ``backend``
    and ``architectures`` at least.
    """
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    label = _NOT_IN_NAMES.sub("_", str(inputs["release"]))[:40]
    parts = [label, str(inputs["backend"])]
    if inputs["architectures"]:
        prefix = "sm" if inputs["backend"] == "cuda" else ""
        parts.append(prefix + "_".join(str(arch) for arch in inputs["architectures"]))
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


def read_manifest(target: str) -> dict[str, Any]:
    """Return the manifest of a release's directory; empty where there is none that can be read."""
    try:
        with open(os.path.join(target, MANIFEST), encoding="utf-8") as stream:
            manifest = json.load(stream)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def complete(target: str) -> bool:
    """Whether a release is there with all its files at their full size.

    The bytes were compared when it was installed; hashing 20 MB on every run is not worth the wait.
    """
    files = read_manifest(target).get("files")
    if files is None:
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
