# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How bytes become blobs of the store: hashed, their header read, then moved in one step; or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files as files
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, read_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import (
    File,
    Manifest,
    StoreError,
    check_file,
    utc,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_state import State


class Blobs(State):
    """Brings files in, and takes out those whose bytes are wrong."""

    def lacking(self, manifest: Manifest, progress: Progress) -> list[File]:
        """Return the files that have to be brought: as :meth:`missing`, but what is there and not trusted is hashed.

        When it is what it should be, it is trusted again; when not, it goes to quarantine. What is there is claimed.
        """
        self.claim(manifest)
        for file in manifest.files:
            if file.name in manifest.external:
                if not self._usable(file, manifest) and os.path.isfile(manifest.external[file.name]):
                    self._hashed(manifest.external[file.name], progress)
            elif not self.trusted(file) and files.status(self.blob(file.sha256)):
                self.recheck(file, progress)
        return self.missing(manifest)

    def recheck(self, file: File, progress: Progress, mend: bool = True) -> tuple[str, str]:
        """Hash a blob that is there; return what is wrong with it, empty when nothing is, and where it is now.

        ``mend``: a right one is trusted from now on, a wrong one goes to quarantine with all its links.
        """
        path = self.blob(file.sha256)
        before = files.status(path)
        if before is None:
            return "it is gone", ""
        problem, found = "it has %d bytes instead of %d" % (before.st_size, file.bytes), ""
        if before.st_size == file.bytes:
            found = files.sha256_of(path, progress.say, what=file.name)
            problem = "" if found == file.sha256 else "its bytes have sha256 %s" % found
        if not mend:
            return problem, ""
        with self._changing():
            info = files.status(path)
            if info is None or files.marks(info) != files.marks(before):
                return "", ""  # Replaced meanwhile, by a verified one.
            if problem:
                return problem, self._quarantine(file.sha256, found)
            if not self._stamped(file.sha256, info):
                self._write_stamp(file.sha256, info)
        return "", ""

    def _quarantine(self, sha256: str, found: str) -> str:
        """Take a blob away, and all links to it, so that nobody loads it any more; return where it is.

        ``found``: its real checksum, or nothing. Where it was adopted from by a link are the same bytes.
        """
        path = self.blob(sha256)
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = os.path.join(self.quarantine, "%s.%s" % (sha256, moment))
        files.make_directory(self.quarantine)
        inode = os.stat(path).st_ino
        # What says that the bytes are right goes first: who is killed in between leaves a blob that is hashed again.
        for real, entry in self.hashes.entries().items():
            if entry.get("inode") == inode and entry.get("sha256") == sha256:
                self.hashes.remember(real, dict(entry, sha256=found))
        files.forget(self._stamp(sha256))
        for link in list(files.walk(self.links)):
            info = files.status(link)
            if info is not None and info.st_ino == inode:
                os.unlink(link)
        os.rename(path, target)
        files.sync_directory(self.blobs)
        return target

    def _write_stamp(self, sha256: str, info: os.stat_result) -> None:
        stamp = dict(files.marks(info), verified_at=utc(time.time()))
        files.write_durably(self._stamp(sha256), json.dumps(stamp, sort_keys=True).encode() + b"\n")

    def admit(self, part: str, file: File, progress: Progress, origin: str) -> None:
        """Make a blob of a part that is complete: its bytes are hashed, a GGUF file's header is read.

        ``origin`` tells people where it came from. A part with other bytes is removed, and :class:`StoreError` raised.
        """
        if self.trusted(file):
            files.forget(part)
            return
        info = self._plain(part, file.name, origin)
        if info.st_size != file.bytes:
            os.unlink(part)
            raise StoreError(
                "%s from %s has %d bytes instead of %d; they are thrown away: run again, or ask who publishes it"
                % (file.name, origin, info.st_size, file.bytes)
            )
        self.take(part, file.name, file.role, progress, origin, file.sha256)

    def take(
        self, part: str, name: str, role: str, progress: Progress, origin: str, expected: str | None = None
    ) -> File:
        """Make a blob of a part whose checksum may not be known; see :meth:`admit`. The part is gone afterwards."""
        check_file(name)
        self._plain(part, name, origin)
        # Before it is read: who had it may still have it open, but can no longer set its time back.
        self._make_ours(part)
        info = os.stat(part)
        try:
            self._check_header(part, name, origin)
            found = files.sha256_of(part, progress.say, what=name)
            self._check_hash(name, origin, found, expected)
        except StoreError:
            os.unlink(part)
            raise
        return self._store(part, File(name, found, info.st_size, role), info)

    def _plain(self, part: str, name: str, origin: str) -> os.stat_result:
        """See that a part is a file: of a link that somebody has put there, what it leads to would become root's."""
        info = files.status(part)
        if info is None:
            raise StoreError("%s from %s: %s is no file; run again" % (name, origin, part))
        return info

    def _check_header(self, path: str, name: str, origin: str) -> None:
        if name.endswith(".gguf"):
            try:
                read_header(path)
            except GgufError as error:
                raise StoreError("%s from %s is no usable model: %s" % (name, origin, error)) from error

    def _check_hash(self, name: str, origin: str, found: str, expected: str | None) -> None:
        if expected is not None and found != expected:
            raise StoreError(
                "%s from %s has sha256 %s instead of %s: run again; when that does not help, correct the checksum, or"
                " ask who publishes it" % (name, origin, found, expected)
            )

    def _make_ours(self, part: str) -> None:
        """Let nobody but root change it, and everybody read it, whoever has brought it."""
        if os.geteuid() == 0:
            os.chown(part, 0, 0)
        os.chmod(part, 0o644)

    def _store(self, part: str, file: File, info: os.stat_result) -> File:
        """Move verified bytes among the blobs; ``info``: what the part was before they were read.

        Whoever changes it after that makes it another file than the stamp's.
        """
        files.sync_file(part)
        with self._changing():
            if not self.trusted(file):
                files.make_directory(self.blobs)
                # First the stamp: a blob without one would have to be hashed again.
                self._write_stamp(file.sha256, info)
                os.rename(part, self.blob(file.sha256))
                files.sync_directory(self.blobs)
            files.forget(part)
        return file

    def linkable(self, path: str) -> bool:
        """Whether a file can be adopted without a copy: on this file system, readable by all, and nobody's to change.

        A hard link is the same file, so whoever may write it would write into the store.
        """
        info = os.stat(path)
        top = self.root
        while not os.path.isdir(top):
            top = os.path.dirname(top)
        return (
            info.st_uid == os.geteuid()
            and info.st_mode & 0o022 == 0
            and info.st_mode & 0o444 == 0o444
            and info.st_dev == os.stat(top).st_dev
        )

    def adopt(
        self,
        path: str,
        name: str,
        role: str,
        progress: Progress,
        expected: str | None = None,
        external: bool = False,
    ) -> File:
        """Take over a file of this node, which stays where it is: linked if :meth:`linkable`, else cloned or copied.

        ``external``: nothing of it is held; its name will be a symbolic link (put ``path`` into the manifest's
        ``external``). It is hashed once, and again when its size, mtime or inode changed.
        """
        check_file(name)
        real = os.path.realpath(path)
        if not os.path.isfile(real):
            raise StoreError("%s: no such file on this node" % path)
        info = os.stat(real)
        known = self._remembered(real, info)
        if known is not None and not external and expected in (None, known):
            file = File(name, known, info.st_size, role)
            if self.trusted(file):
                return file
        self._check_header(real, name, path)
        if external:
            found = self._hashed(real, progress)
            self._check_hash(name, path, found, expected)
            return File(name, found, info.st_size, role)
        if not self.linkable(real):
            return self._copy(real, name, role, progress, expected)
        found = self._hashed(real, progress)
        self._check_hash(name, path, found, expected)
        with self._incoming(found, progress) as part:
            files.forget(part)
            os.link(real, part)
            return self._store(part, File(name, found, info.st_size, role), info)

    def _copy(self, real: str, name: str, role: str, progress: Progress, expected: str | None) -> File:
        """Copy a file of this node, hashing it on the way."""
        info = os.stat(real)
        # Nobody knows its checksum yet, so the part is called by where it comes from.
        with self._incoming(files.key_of(real), progress) as part:
            files.forget(part)
            try:
                found = files.sha256_of(real, progress.say, what=name, copy=part)
                self._check_hash(name, real, found, expected)
            except (StoreError, OSError):
                files.forget(part)
                raise
            self._make_ours(part)
            stored = self._store(part, File(name, found, info.st_size, role), os.stat(part))
        self.remember(real, info, found)
        return stored

    @contextlib.contextmanager
    def _incoming(self, sha256: str, progress: Progress) -> Iterator[str]:
        with self.transfer_lock(sha256, "a run that adopts a file", self.patience, progress.say):
            yield self.part(sha256)

    def _hashed(self, real: str, progress: Progress) -> str:
        """Return the checksum of somebody's file, from memory when it has not changed since."""
        info = os.stat(real)
        known = self._remembered(real, info)
        if known is not None:
            return known
        found = files.sha256_of(real, progress.say)
        self.remember(real, info, found)
        return found

    def remember(self, real: str, info: os.stat_result, sha256: str) -> None:
        """Remember what somebody's file is, as long as it has this size, mtime and inode."""
        seen = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino, "sha256": sha256}
        with self._changing():
            self.hashes.remember(os.path.realpath(real), seen)
