# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where everything of the store is, who may change it now, and what is there, by stamps alone."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files as files
from ansible_collections.llamacpp.cluster.plugins.module_utils._hash_cache import HashCache
from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import BusyError, locked
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import (
    File,
    Manifest,
    StoreError,
    check_file,
    check_name,
    check_sha256,
    is_name,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_users import PROC, UNIT_DIRECTORY

# For which methods wait that take a lock themselves. Names and blobs change in moments; who takes longer is stuck.
PATIENCE_SECONDS = 600.0


class State:
    """What of the store can be told without reading a model's bytes."""

    def __init__(self, root: str, units: str = UNIT_DIRECTORY, proc: str = PROC) -> None:
        self.root = os.path.abspath(root)
        self.blobs = os.path.join(self.root, "blobs")
        self.stamps = os.path.join(self.root, "stamps")
        self.manifests = os.path.join(self.root, "manifests")
        self.links = os.path.join(self.root, "names")
        self.used = os.path.join(self.root, "used")
        self.incoming = os.path.join(self.root, "incoming")
        self.quarantine = os.path.join(self.root, "quarantine")
        self.hashes = HashCache(os.path.join(self.root, ".sha256.json"))
        self.units = units
        self.proc = proc
        self.patience = PATIENCE_SECONDS
        self.claimed: set[str] = set()
        self._holding = threading.local()

    # Where things are

    def blob(self, sha256: str) -> str:
        """Return the path of a blob, there or not."""
        return os.path.join(self.blobs, check_sha256(sha256))

    def blob_bytes(self, sha256: str) -> int:
        """Return the size of a blob; 0 when it is not there."""
        info = files.status(self.blob(sha256))
        return info.st_size if info else 0

    def part(self, sha256: str) -> str:
        """Return the path of a file on its way in; its directory is there once :meth:`transfer_lock` is held."""
        return os.path.join(self.incoming, check_sha256(sha256) + ".part")

    def path_of(self, name: str, file: str) -> str:
        """Return the readable path of a file of a model, there or not: what ``--model`` gets."""
        return os.path.join(self.links, check_name(name), check_file(file))

    def _stamp(self, sha256: str) -> str:
        return os.path.join(self.stamps, sha256 + ".json")

    def _manifest(self, name: str) -> str:
        return os.path.join(self.manifests, check_name(name) + ".json")

    def _mark(self, name: str) -> str:
        # A comma is in no name, so a/b and a/b/c do not get into each other's way.
        return os.path.join(self.used, check_name(name).replace("/", ","))

    # Locks

    @contextlib.contextmanager
    def lock(self, holder: str, patience: float, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the store, so that one run at a time changes names or blobs. Not for the transfer of bytes.

        ``holder`` tells others who wait; whom this one waits for is told to ``say``. Raises :class:`StoreError`
        after ``patience`` seconds.
        """
        if getattr(self._holding, "store", False):
            yield
            return
        files.make_directory(self.root)
        with self._locked(os.path.join(self.root, ".lock"), holder, patience, say):
            self._holding.store = True
            try:
                yield
            finally:
                self._holding.store = False

    @contextlib.contextmanager
    def transfer_lock(self, sha256: str, holder: str, patience: float, say: Callable[[str], None]) -> Iterator[None]:
        """Hold a blob that is on its way in, so that one run at a time writes its part. See :meth:`lock`.

        Whoever waited for it finds the blob there: ask again before fetching.
        """
        files.make_directory(self.incoming)
        with self._locked(os.path.join(self.incoming, check_sha256(sha256) + ".lock"), holder, patience, say):
            yield

    @contextlib.contextmanager
    def _locked(self, path: str, holder: str, patience: float, say: Callable[[str], None]) -> Iterator[None]:
        try:
            with locked(path, holder, patience, lambda other: say("waiting for %s" % other)):
                yield
        except BusyError as error:
            raise StoreError(
                "%s is at work in %s, waited %d s for it: run again when it has ended"
                % (error.holder, self.root, patience)
            ) from error

    def _changing(self) -> contextlib.AbstractContextManager[None]:
        return self.lock("a change of models", self.patience, lambda line: None)

    # What is there

    def names(self) -> list[str]:
        """Return all names, sorted."""
        found = []
        for path in files.walk(self.manifests):
            name, extension = os.path.splitext(os.path.relpath(path, self.manifests))
            if extension == ".json" and is_name(name):
                found.append(name)
        return sorted(found)

    def manifest(self, name: str) -> Manifest | None:
        """Return what a name stands for; None where it is not there, or its manifest cannot be understood."""
        path = self._manifest(name)
        try:
            with open(path, encoding="utf-8") as stream:
                manifest = Manifest.from_dict(json.load(stream))
        except (FileNotFoundError, NotADirectoryError, ValueError, StoreError):
            return None
        return manifest if manifest.name == name else None

    def trusted(self, file: File) -> bool:
        """Whether a file's blob is there and is the one that was verified, by its size, mtime and inode."""
        info = files.status(self.blob(file.sha256))
        return info is not None and info.st_size == file.bytes and self._stamped(file.sha256, info)

    def _stamped(self, sha256: str, info: os.stat_result) -> bool:
        try:
            with open(self._stamp(sha256), encoding="utf-8") as stream:
                stamp = json.load(stream)
        except (OSError, ValueError):
            return False
        seen = files.marks(info)
        return isinstance(stamp, dict) and {key: stamp.get(key) for key in seen} == seen

    def _external(self, file: File, path: str) -> bool:
        """Whether a file that the store only links to is the one that was hashed, by its size, mtime and inode."""
        try:
            info = os.stat(path)
        except OSError:
            return False
        return info.st_size == file.bytes and self._remembered(path, info) == file.sha256

    def _remembered(self, path: str, info: os.stat_result) -> str | None:
        entry = self.hashes.entries().get(os.path.realpath(path))
        seen = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
        if not isinstance(entry, dict) or {key: entry.get(key) for key in seen} != seen:
            return None
        return str(entry.get("sha256"))

    def missing(self, manifest: Manifest) -> list[File]:
        """Return the files of a manifest that are not there, or not as they were verified. Reads no bytes."""
        return [file for file in manifest.files if not self._usable(file, manifest)]

    def _usable(self, file: File, manifest: Manifest) -> bool:
        path = manifest.external.get(file.name)
        return self._external(file, path) if path else self.trusted(file)

    def claim(self, manifest: Manifest) -> None:
        """Let the blobs of a manifest be when room is made: this run is about to name them."""
        self.claimed.update(file.sha256 for file in manifest.held)

    def present(self, manifest: Manifest) -> bool:
        """Whether the name stands for these files, and all of them can be read under it. Reads no bytes.

        Where the store links to a file instead of holding it is the stored manifest's matter.
        """
        stored = self.manifest(manifest.name)
        return (
            stored is not None
            and stored.files == manifest.files
            and all(self._usable(file, stored) and self._linked(file, stored) for file in stored.files)
        )

    def _linked(self, file: File, manifest: Manifest) -> bool:
        link, path = self.path_of(manifest.name, file.name), manifest.external.get(file.name)
        try:
            if path:
                return os.path.islink(link) and os.readlink(link) == path
            return not os.path.islink(link) and os.path.samefile(link, self.blob(file.sha256))
        except OSError:
            return False
