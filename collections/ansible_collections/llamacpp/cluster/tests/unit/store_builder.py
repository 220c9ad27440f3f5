# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Stores with small files in them."""

from __future__ import annotations

import hashlib
import os

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import File, Manifest

QUIET = Progress(None)


def describe(name, content, role="other"):
    """Return what a manifest says of a file with this content."""
    return File(name, hashlib.sha256(content).hexdigest(), len(content), role)


def bring(store, name, content, role="other"):
    """Bring a file into a store, as a fetch does."""
    file = describe(name, content, role)
    with store.transfer_lock(file.sha256, "a test", 5.0, lambda line: None):
        if not store.trusted(file):
            with open(store.part(file.sha256), "wb") as stream:
                stream.write(content)
            store.admit(store.part(file.sha256), file, QUIET, "a test")
    return file


def manifest_of(name, **contents):
    """Return the manifest of a model with these files, ``.bin`` behind their names."""
    return Manifest(name, tuple(describe(key + ".bin", content) for key, content in contents.items()))


def add(store, name, **contents):
    """Bring a model into a store; return its manifest."""
    for key, content in contents.items():
        bring(store, key + ".bin", content)
    manifest = manifest_of(name, **contents)
    store.name(manifest)
    return manifest


def tree(root):
    """Return the paths of all files below a directory, locks left out."""
    found = [os.path.relpath(os.path.join(path, name), root) for path, _dirs, names in os.walk(root) for name in names]
    return sorted(path for path in found if not path.endswith(".lock"))


def spoil(path, position=0):
    """Flip a bit of a file, as a disk does: nothing that stat tells changes."""
    info = os.stat(path)
    with open(path, "r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
