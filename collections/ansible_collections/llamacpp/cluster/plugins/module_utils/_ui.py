# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The pages of llama-server's web UI: their sources, what decides what they are, and what has to come out.

llama.cpp takes pages that are built already from ``tools/ui/dist`` (b11434, scripts/ui-assets.cmake, "Priority 1").
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import posixpath
import re
import shutil
import tarfile
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._llama_source import NO_WHOLE_TAR, root_of
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError, file_sha256

PAGES = "tools/ui"
# In the key: another way to build gives other pages.
RECIPE = "npm ci, npm run build; 1"
WAY_OUT = "or build without the web UI: llamacpp_web_ui: false"
BUILD = "build.json"

# What llama.cpp insists on (b11434, scripts/ui-assets.cmake, ui_validate_assets): any directory, names as here.
_REQUIRED = (
    "index.html",
    "manifest.webmanifest",
    "sw.js",
    BUILD,
    "version.json",
    "bundle*.js",
    "bundle*.css",
    "workbox*.js",
)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._]+")
_STEPS = re.compile(r"(vite v\S+ building \S+|\d+ modules transformed|rendering chunks|PWA assets generated)")
# npm's own codes (npm 9 to 11) and Node.js's words -> what to do
_CAUSES = (
    ("ENOTCACHED", "a package is not in npm's cache, and offline was asked for: run once with a network"),
    ("EBADENGINE", "Node.js or npm on the control node is too old: install a newer one"),
    ("ENOSPC", "the disk of llamacpp_cache is full: the build needs about 1 GB there"),
    ("heap out of memory", "Node.js ran out of memory: the build needs about 2 GB"),
    ("EINTEGRITY", "a package differs from its checksum in package-lock.json: remove npm's cache and run again"),
    (
        r"ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|ECONNRESET|E40[134]\b",
        "npm's registry does not answer: see npm config get registry",
    ),
)


def unpack_pages(archive: str, into: str) -> str:
    """Unpack ``tools/ui`` of a source archive below ``into``; return the directory with package.json.

    Raises :class:`ReleaseError` for a broken archive, and for a llama.cpp whose web UI is elsewhere.
    """
    try:
        with tarfile.open(archive) as tar:
            members = {posixpath.normpath(member.name): member for member in tar.getmembers()}
            root = root_of(members)
            prefix = posixpath.normpath(posixpath.join(root or "", PAGES)) + "/"
            for name, member in members.items():
                stream = tar.extractfile(member) if name.startswith(prefix) and member.isfile() else None
                if stream is None:
                    continue
                path = os.path.join(into, PAGES, name[len(prefix) :])
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with stream, open(path, "wb") as target:
                    shutil.copyfileobj(stream, target)
                os.chmod(path, 0o755 if member.mode & 0o111 else 0o644)
    except NO_WHOLE_TAR as error:
        raise ReleaseError("%s is not a whole tar archive: %s" % (archive, error)) from error
    pages = os.path.join(into, PAGES)
    for name in ("package.json", "package-lock.json"):
        if not os.path.isfile(os.path.join(pages, name)):
            raise ReleaseError("%s has no %s/%s: take a newer llama.cpp, %s" % (archive, PAGES, name, WAY_OUT))
    return pages


def read_json(path: str) -> dict[str, Any]:
    """Read a file of npm's. Raises :class:`ReleaseError`."""
    try:
        with open(path, encoding="utf-8") as stream:
            return dict(json.load(stream))
    except (ValueError, TypeError) as error:
        raise ReleaseError("%s is not to be read: %s" % (path, error)) from error


def key_of(pages: str) -> str:
    """Return what names the pages that these sources give: 16 hexadecimal digits."""
    digest = hashlib.sha256(RECIPE.encode())
    for directory, names, files in os.walk(pages):
        names.sort()
        for name in sorted(files):
            path = os.path.join(directory, name)
            line = "%s %s\n" % (os.path.relpath(path, pages), file_sha256(path))
            digest.update(line.encode())
    return digest.hexdigest()[:16]


def archive_name(key: str, release: str) -> str:
    """Return the name of packed pages. The release is in it because the pages show it."""
    return "%s-%s.tar.gz" % (key, _NOT_IN_NAMES.sub("_", release)[:40])


def write_build(dist: str, release: str) -> None:
    """Write what the pages show as version, as llama.cpp's vite-plugin-build-info.ts does."""
    with open(os.path.join(dist, BUILD), "w", encoding="utf-8") as stream:
        json.dump({"version": release}, stream)


def missing_pages(dist: str) -> list[str]:
    """List what llama.cpp would miss in a directory of built pages."""
    names = {name for _directory, _names, files in os.walk(dist) for name in files}
    return [wanted for wanted in _REQUIRED if not fnmatch.filter(names, wanted)]


def step(line: str) -> str:
    """Return the step of the build that a line of its output tells of; empty for any other line."""
    match = _STEPS.search(line)
    return match.group(1) if match else ""


def probable_cause(output: str) -> str:
    """Return what most likely broke npm, with what to do; empty when unknown."""
    return next((advice for pattern, advice in _CAUSES if re.search(pattern, output)), "")
