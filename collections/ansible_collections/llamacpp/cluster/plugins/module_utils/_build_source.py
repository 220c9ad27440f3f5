# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Unpack llama.cpp's source, change it by patches, and put the pages of its web UI in."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError, file_sha256

# Where llama.cpp looks for pages that somebody else has built (scripts/ui-assets.cmake, b11434, priority 1).
UI_DIRECTORY = os.path.join("tools", "ui", "dist")


def extract(archive: str, into: str) -> None:
    """Unpack a tar archive. Raises :class:`ReleaseError` when it is absent, damaged or reaches out of ``into``."""
    if not os.path.isfile(archive):
        raise ReleaseError("%s is not there on the builder" % archive)
    try:
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(into, filter="data")
            else:
                tar.extractall(into)
    except (tarfile.TarError, EOFError) as error:
        raise ReleaseError("%s is not a whole archive: %s" % (archive, error)) from error


def unpack_source(archive: str, into: str) -> str:
    """Unpack the source; return the directory with llama.cpp's CMakeLists.txt, which may lie two levels down."""
    os.makedirs(into)
    extract(archive, into)
    for directory, names, files in os.walk(into):
        if "CMakeLists.txt" in files and "ggml" in names:
            return directory
        if directory.count(os.sep) - into.count(os.sep) >= 2:
            names.clear()
    raise ReleaseError("%s holds no llama.cpp: no CMakeLists.txt beside ggml/" % archive)


def check_patches(paths: Sequence[str], wanted: Sequence[Mapping[str, Any]]) -> None:
    """Compare patch files with those that the release's id stands for (``name``, ``sha256``), in order.

    Raises :class:`ReleaseError`.
    """
    if len(paths) != len(wanted):
        raise ReleaseError("%d patches were given, the release has %d" % (len(paths), len(wanted)))
    for path, entry in zip(paths, wanted):
        if not os.path.isfile(path):
            raise ReleaseError("patch %s is not there on the builder: %s" % (entry["name"], path))
        found = file_sha256(path)
        if found != entry["sha256"]:
            raise ReleaseError("patch %s has sha256 %s instead of %s" % (entry["name"], found, entry["sha256"]))


def apply_patch(tree: str, path: str, name: str) -> str:
    """Apply one patch with patch(1); return what it says.

    No fuzz: lines may have moved, but what stands around a hunk has to be what the patch says, or the change could
    land in another function. Raises :class:`ReleaseError` with patch's words, which name the hunk and the file.
    """
    command = ["patch", "--directory=%s" % tree, "--strip=1", "--fuzz=0", "--batch", "--forward"]
    command += ["--no-backup-if-mismatch", "--reject-file=-", "--input=%s" % os.path.abspath(path)]
    try:
        done = subprocess.run(
            command,
            env=dict(os.environ, LC_ALL="C.UTF-8"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise ReleaseError("patch %s: no command patch on the builder: install the package patch" % name) from error
    if done.returncode:
        raise ReleaseError(
            "patch %s does not apply to this source: %s\nIt has to be made for this version with git diff or diff -u, "
            "with paths as a/FILE and b/FILE" % (name, _failed_hunks(done.stdout))
        )
    return done.stdout


def _failed_hunks(output: str) -> str:
    """Return the lines of patch's output that tell what failed, each with its file; all when none is understood.

    GNU patch 2.7 says ``patching file F``, then ``Hunk #2 FAILED at 17.``
    """
    file_name, found = "", []
    for line in output.splitlines():
        if line.startswith(("patching file ", "checking file ")):
            file_name = line.split(" ", 2)[2]
        elif line.startswith("Hunk #") and "FAILED" in line:
            found.append("%s: %s" % (file_name, line.rstrip(".")))
        elif line.startswith(("Reversed (or previously applied)", "can't find file to patch", "Ignoring potentially")):
            found.append("%s%s" % (file_name + ": " if file_name else "", line))
    return "; ".join(found) or output.strip()


def place_ui(archive: str, tree: str) -> None:
    """Unpack the pages of the web UI where llama.cpp looks for them. Raises :class:`ReleaseError`."""
    target = os.path.join(tree, UI_DIRECTORY)
    os.makedirs(target, exist_ok=True)
    extract(archive, target)
    if not os.path.isfile(os.path.join(target, "index.html")):
        raise ReleaseError("%s holds no pages of the web UI: no index.html at its top" % archive)
