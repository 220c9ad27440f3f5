# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turn an archive of built binaries into a release: an own one as it is, another's with everything in ``bin/``.

What llama.cpp's own archives look like (b11434, .github/workflows/release.yml): ``llama-bN/`` with executables, shared
libraries and backend plugins beside each other, run path ``$ORIGIN``, the RPC server among them.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._elf import Elf, ElfError, libc_needed, read_elf
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    MANIFEST,
    RPC_SERVER_NAMES,
    ReleaseError,
    build_number,
    describe_tree,
    differences,
    file_sha256,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._runpath import machine_of, shorten

SERVER = "llama-server"
ORIGIN = "$ORIGIN"
SCHEMA = 2
_BUILD_IN_NAME = re.compile(r"(?:^|-)(b\d+)(?:-|$)")
_LICENSE = re.compile(r"^(LICENSE|COPYING|AUTHORS)", re.IGNORECASE)
_BACKEND = re.compile(r"^libggml-(cuda|hip|vulkan|sycl|blas|opencl|openvino)\b")
_SHARED = re.compile(r"\.so(\.\d+)*$")


def own_root(tree: str) -> str | None:
    """Return the directory of an unpacked archive that is a release of ours: the top, or the one in it; else None."""
    inside = [os.path.join(tree, name) for name in os.listdir(tree)]
    for directory in [tree, *(inside if len(inside) == 1 else [])]:
        if os.path.isfile(os.path.join(directory, MANIFEST)):
            return directory
    return None


def own_manifest(root: str, what: str) -> dict[str, Any]:
    """Read the manifest of an own release and compare it with the files.

    Raises :class:`ReleaseError` when they differ, or when the file is no manifest of a release.
    """
    try:
        with open(os.path.join(root, MANIFEST), encoding="utf-8") as stream:
            manifest = json.load(stream)
        files, named = dict(manifest["files"]), str(manifest["rpc_server"])
        if not isinstance(manifest["inputs"], dict):
            raise KeyError("inputs")
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError("%s: its %s is not that of a release: %r" % (what, MANIFEST, error)) from error
    wrong = differences(files, describe_tree(root))
    if wrong:
        raise ReleaseError("%s does not match its manifest: %s" % (what, "; ".join(wrong[:5])))
    _require(os.path.join(root, "bin"), SERVER, what)
    _require(os.path.join(root, "bin"), named, what)
    return dict(manifest)


def lay_out(tree: str, stage: str, what: str) -> str:
    """Move an unpacked archive of others into ``stage/bin``; return the name of its RPC server.

    The directory of ``llama-server`` is taken whole; libraries and the RPC server are taken from elsewhere too. Run
    paths that do not lead to the file's own directory are made to. Raises :class:`ReleaseError` without
    ``llama-server`` or an RPC server, for another system's binaries, and where a library would not be found.
    """
    found = _files_by_name(tree)
    if SERVER not in found:
        raise ReleaseError("%s holds no file %s: it is no archive of llama.cpp's binaries for Linux" % (what, SERVER))
    home = os.path.dirname(found[SERVER][0])
    worker = next((name for name in RPC_SERVER_NAMES if name in found), None)
    if worker is None:
        raise ReleaseError(
            "%s holds no RPC server (looked for %s): llama.cpp has to be built with GGML_RPC=ON; "
            "take another archive, or let the collection build" % (what, " and ".join(RPC_SERVER_NAMES))
        )
    elsewhere = [path for name in found for path in found[name] if os.path.dirname(path) != home]
    for path in elsewhere:
        name = os.path.basename(path)
        if not (_SHARED.search(name) or name == worker):
            continue
        target = os.path.join(home, name)
        if os.path.lexists(target) and not _same(path, target):
            raise ReleaseError("%s holds two different files %s" % (what, name))
        os.replace(path, target)
    binaries = os.path.join(stage, "bin")
    os.makedirs(stage)
    os.rename(home, binaries)
    for name in sorted(os.listdir(binaries)):
        path = os.path.join(binaries, name)
        if _LICENSE.match(name):
            os.rename(path, os.path.join(stage, name))
        elif os.path.islink(path):
            _lead_beside(path, what)
    for name in (SERVER, worker):
        _require(binaries, name, what)
    _lead_to_origin(binaries, what)
    return worker


def _files_by_name(tree: str) -> dict[str, list[str]]:
    """Return paths by file name, those with the fewest directories first."""
    found: dict[str, list[str]] = {}
    for directory, _names, files in os.walk(tree):
        for name in files:
            found.setdefault(name, []).append(os.path.join(directory, name))
    return {name: sorted(paths, key=lambda path: (path.count(os.sep), path)) for name, paths in found.items()}


def _same(path: str, other: str) -> bool:
    """Whether two files, or what they lead to, have the same bytes. A link to nothing is like no other."""
    return os.path.isfile(path) and os.path.isfile(other) and file_sha256(path) == file_sha256(other)


def _lead_beside(link: str, what: str) -> None:
    """Make a link between libraries lead to the file that now lies beside it."""
    name = os.path.basename(os.readlink(link))
    if not os.path.lexists(os.path.join(os.path.dirname(link), name)):
        raise ReleaseError("%s: the link %s leads to nothing" % (what, os.path.basename(link)))
    if os.readlink(link) != name:
        os.unlink(link)
        os.symlink(name, link)


def _require(binaries: str, name: str, what: str) -> None:
    """See that a binary is there, and one for Linux; make it executable. Raises :class:`ReleaseError`."""
    path = os.path.join(binaries, name)
    if not os.path.isfile(path):
        raise ReleaseError("%s holds no file bin/%s" % (what, name))
    if _elf(path, what) is None:
        raise ReleaseError("%s: %s is no ELF file of 64 bits: take the archive for Linux" % (what, name))
    os.chmod(path, 0o755)


def _elf(path: str, what: str) -> Elf | None:
    try:
        return read_elf(path)
    except ElfError as error:
        raise ReleaseError("%s: %s" % (what, error)) from error


def _lead_to_origin(binaries: str, what: str) -> None:
    """See that every file finds the libraries that lie beside it, and that none finds another's instead.

    Raises :class:`ReleaseError` for a file that has no run path to change.
    """
    beside = set(os.listdir(binaries))
    for name in sorted(beside):
        path = os.path.join(binaries, name)
        elf = None if os.path.islink(path) else _elf(path, what)
        needed = beside & set(elf.needed) if elf else set()
        if elf is None or not needed or (elf.runpath and elf.runpath[0] == ORIGIN):
            continue
        if not shorten(path, ORIGIN):
            raise ReleaseError(
                "%s: %s would not find %s beside it, because it was linked without a run path: build it with "
                "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN'" % (what, name, min(needed))
            )


def describe(root: str, manifest: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return what the files themselves tell: ``libc``, ``plugins`` and ``files``; what ``manifest`` knows stays."""
    elves = {
        os.path.basename(name): elf
        for name, elf in ((name, _elf(os.path.join(root, name), what)) for name in describe_tree(root))
        if elf is not None
    }
    needed = {name for elf in elves.values() for name in elf.needed}
    # A backend that nothing is linked to is one that ggml looks for when it starts (GGML_BACKEND_DL).
    plugins = any(
        name.startswith("libggml-") and name not in needed and elf.soname not in needed for name, elf in elves.items()
    )
    told = {"libc": libc_needed(elves.values()), "plugins": plugins, "files": describe_tree(root)}
    return {key: manifest.get(key, value) for key, value in told.items()}


def foreign_inputs(binaries: str, release: str, sha256: str) -> dict[str, Any]:
    """Return the inputs of a release that somebody else built: what can be known of them."""
    backends = [match.group(1) for match in map(_BACKEND.match, sorted(os.listdir(binaries))) if match]
    return {
        "release": release,
        "source": {"kind": "release_archive", "sha256": sha256},
        "backend": backends[0] if backends else "cpu",
        "architectures": [],
        "platform": {"os": "", "machine": machine_of(os.path.join(binaries, SERVER))},
    }


def new_manifest(
    root: str, known: Mapping[str, Any], release_id: str, inputs: Mapping[str, Any], newest: int, what: str
) -> dict[str, Any]:
    """Return the manifest, schema 2 and kind ``archive``, of a release that was laid out in ``root``.

    ``known``: the own manifest that it had, or ``{"rpc_server": NAME}``. ``newest``: time of its newest file.
    """
    empty: dict[str, Any] = {
        "commit": "",
        "compiler": "",
        "cuda_compiler": "",
        "builder": "",
        "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(newest)),
        "duration": 0,
        "cpu_flags": [],
        "build_number": build_number(str(inputs["release"])) or 0,
    }
    return {
        **empty,
        **known,
        **describe(root, known, what),
        "schema": SCHEMA,
        "kind": "archive",
        "id": release_id,
        "inputs": dict(inputs),
    }


def build_in_name(names: list[str]) -> str:
    """Return the build (``b11434``) in the first name that has one, as ``llama-b11434-bin-ubuntu-x64``, or nothing."""
    for name in names:
        match = _BUILD_IN_NAME.search(re.sub(r"\.(tar\.\w+|tgz|zip)$", "", name))
        if match:
            return match.group(1)
    return ""
