# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a swarm does with a store: which pieces are there, parts for the engine to write, and blobs made of them.

The engine is an unprivileged process that talks to the network, so it gets the parts that are to be written as its own
files, and nothing else. Before a part is hashed it is taken back, and nobody may have it open for writing any more:
what was verified is what the blob stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files as files
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull_map import PartMap, forget_marks
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import File, Manifest, Store, StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_torrent import (
    THREADS,
    Content,
    TorrentError,
    content_of,
    covers,
    make_torrent,
    piece_bytes,
    piece_hash,
    read_torrent,
    small_root,
    torrent_id,
)

# Torrents of models that came so long ago are made again if need be.
TORRENT_SECONDS = 90 * 86400.0
HOLDER = "a swarm"
# A torrent engine closes what it has written a moment after the last piece.
CLOSING_SECONDS = 10.0
_POLL_SECONDS = 0.2


class Share(NamedTuple):
    """What the engine works on, by sha256: paths, and verified pieces as a text of 1 and 0.

    ``locks``: those that the engine holds while it writes, so that nobody else brings the same file.
    """

    files: dict[str, str]
    have: dict[str, str]
    locks: list[str]


def blobs_of(manifest: Manifest) -> dict[str, File]:
    """Return what a torrent of a model holds: each blob once, empty files not at all."""
    return {file.sha256: file for file in manifest.files if file.bytes}


class SwarmStore:
    """A model's part in a swarm, on one node."""

    def __init__(self, store: Store, manifest: Manifest, progress: Progress) -> None:
        self.store = store
        self.manifest = manifest
        self.progress = progress
        self.blobs = blobs_of(manifest)
        sizes = {sha256: file.bytes for sha256, file in self.blobs.items()}
        self.torrents = os.path.join(store.root, "torrents")
        self.torrent_path = os.path.join(self.torrents, torrent_id(sizes) + ".torrent")

    def lacking(self) -> list[File]:
        """Return the files that are not there, each blob once."""
        return list({file.sha256: file for file in self.store.missing(self._known())}.values())

    def recheck(self) -> None:
        """Hash files that are there and that something has touched: they need not come again."""
        self.store.lacking(self._known(), self.progress)

    def _known(self) -> Manifest:
        """Return the manifest as the store has it: some of its files may be elsewhere."""
        stored = self.store.manifest(self.manifest.name)
        return stored if stored is not None and stored.files == self.manifest.files else self.manifest

    def source(self, file: File) -> str:
        """Return where a file that is there can be read."""
        return self._known().external.get(file.name) or self.store.blob(file.sha256)

    # The torrent

    def torrent(self) -> bytes:
        """Return the torrent of a model that is here, made once. Raises :class:`StoreError` for wrong bytes."""
        with contextlib.suppress(FileNotFoundError, TorrentError):
            newest = max(os.stat(self.source(file)).st_ctime for file in self.blobs.values())
            # Made of an older file with that name, whose bytes may have been wrong, it would lead peers astray.
            if os.stat(self.torrent_path).st_mtime > newest:
                return self.kept()
        piece = piece_bytes(sum(file.bytes for file in self.blobs.values()))
        contents = {}
        for sha256, file in self.blobs.items():

            def show(done: int, file: File = file) -> None:
                self.progress.say("hashing pieces of %s: %d of %d MiB" % (file.name, done >> 20, file.bytes >> 20))

            contents[sha256], found = content_of(self.source(file), piece, show)
            if found != sha256:
                # Every peer would throw it away at its end.
                raise StoreError(
                    "%s of %s has other bytes than it should (sha256 %s): scrub the store, and run again"
                    % (file.name, self.manifest.name, found)
                )
        data = make_torrent(contents, piece)
        self.keep(data)
        return data

    def kept(self) -> bytes:
        """Return the torrent that is here. Raises :class:`FileNotFoundError` and :class:`TorrentError`."""
        with open(self.torrent_path, "rb") as stream:
            data = stream.read()
        self.check(data)
        return data

    def check(self, data: bytes) -> tuple[dict[str, Content], int]:
        """Return what a torrent says. Raises :class:`TorrentError` when it is not of this model."""
        contents, piece = read_torrent(data)
        if not covers(contents, ((file.sha256, file.bytes) for file in self.blobs.values())):
            raise TorrentError("the torrent is of other files")
        return contents, piece

    def keep(self, data: bytes) -> None:
        """Keep a torrent for this and later runs; very old ones go."""
        files.write_durably(self.torrent_path, data)
        for entry in files.listing(self.torrents):
            path = os.path.join(self.torrents, entry)
            # Another run may look after them, too.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - os.stat(path).st_mtime > TORRENT_SECONDS:
                    os.unlink(path)

    # Parts

    def prepare(self, data: bytes, owner: tuple[int, int] | None, patience: float) -> Share:
        """Return what the engine works on; parts that it has to write are there afterwards and belong to ``owner``.

        What earlier runs have left of a part is compared with the torrent. Raises :class:`TorrentError`,
        :class:`StoreError` when another run brings one of the files, and :class:`OSError`.
        """
        contents, piece = self.check(data)
        lacking = {file.sha256 for file in self.lacking()}
        share = Share({}, {}, [])
        for sha256, content in contents.items():
            file = self.blobs[sha256]
            if sha256 not in lacking:
                share.files[sha256] = self.source(file)
                share.have[sha256] = "1" * len(content.pieces)
                continue
            with self.store.transfer_lock(sha256, HOLDER, patience, self.progress.say):
                if self.store.trusted(file):
                    # Who held the lock has brought it.
                    share.files[sha256] = self.store.blob(sha256)
                    share.have[sha256] = "1" * len(content.pieces)
                    continue
                share.files[sha256] = part = self.store.part(sha256)
                share.have[sha256] = self._part(part, file, content, piece)
                if owner:
                    os.chown(part, *owner, follow_symlinks=False)
                if "0" in share.have[sha256]:
                    share.locks.append(os.path.join(self.store.incoming, sha256 + ".lock"))
                    # Whoever may read it can lock it, whatever the umask of who made it.
                    os.chmod(share.locks[-1], 0o644)
        return share

    def _part(self, part: str, file: File, content: Content, piece: int) -> str:
        """Bring a part to its final size; return the pieces of it that are there."""
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size > content.size:
                os.ftruncate(descriptor, 0)
                forget_marks(part)
            os.ftruncate(descriptor, content.size)
            os.fchmod(descriptor, 0o600)

            def show(number: int) -> None:
                self.progress.say("%s: looking what is there, piece %d" % (file.name, number))

            return verified(descriptor, content, piece, show)
        finally:
            os.close(descriptor)

    def leave(self, pieces: object) -> None:
        """Note for a pull which chunks of the parts the engine has written; ``pieces``: as it reports them.

        Only after it has ended by itself, so that they are on the disk.
        """
        contents, piece = self.check(self.kept())
        bits = unpack(pieces, sum(len(content.pieces) for content in contents.values()))
        if "1" not in bits:
            return
        have: dict[str, str] = {}
        at = 0
        for sha256, content in contents.items():
            have[sha256] = bits[at : at + len(content.pieces)]
            at += len(content.pieces)
        for sha256, part in self._left():
            content = contents[sha256]
            forget_marks(part)
            marks = PartMap(part, content.size)
            for index in range(len(marks.done)):
                start, length = marks.span(index)
                if "0" not in have[sha256][start // piece : (start + length - 1) // piece + 1]:
                    marks.finish(index)
            marks.sync()
            marks.close()

    def take_back(self) -> None:
        """Make the parts root's again, whoever wrote them."""
        for _sha256, part in self._left():
            _own(part)

    def _left(self) -> Iterator[tuple[str, str]]:
        """Go through the parts of this model, each with its lock held; those that another run is at are that run's."""
        for sha256 in self.blobs:
            with contextlib.suppress(StoreError), self.store.transfer_lock(sha256, HOLDER, 0.0, self.progress.say):
                part = self.store.part(sha256)
                if files.status(part) is not None:
                    yield sha256, part

    def admit(self, file: File, close: Callable[[], object], patience: float, origin: str) -> None:
        """Make a blob of a part that is complete. ``close`` ends the engine if it keeps the part open for writing."""
        part = self.store.part(file.sha256)
        with self.store.transfer_lock(file.sha256, HOLDER, patience, self.progress.say):
            if self.store.trusted(file):
                files.forget(part)
                forget_marks(part)
                return
            if files.status(part) is None:
                raise StoreError("%s: its part is gone; run again" % file.name)
            _own(part)
            if not closed(part, CLOSING_SECONDS):
                close()
            self.store.admit(part, file, self.progress, origin)
            forget_marks(part)

    def finish(self, patience: float) -> bool:
        """Give the model its name, now that all is here; False when it was so."""
        self._empty(patience)
        changed = self.store.name(self.manifest)
        self.store.note_used([self.manifest.name])
        if os.path.exists(self.torrent_path):
            # All of it was verified against the torrent after the files became blobs.
            os.utime(self.torrent_path)
        return changed

    def _empty(self, patience: float) -> None:
        """Bring the files without bytes, which are in no torrent."""
        for file in self.manifest.files:
            if not file.bytes and not self.store.trusted(file):
                with self.store.transfer_lock(file.sha256, HOLDER, patience, self.progress.say):
                    with open(self.store.part(file.sha256), "wb"):
                        pass
                    self.store.admit(self.store.part(file.sha256), file, self.progress, "nobody")


def _own(part: str) -> None:
    """Take a part from the engine, which may go on reading it to give it to others."""
    if os.geteuid() == 0:
        os.chown(part, 0, 0, follow_symlinks=False)
    os.chmod(part, 0o644)


def closed(path: str, patience: float) -> bool:
    """Whether nobody has a file open for writing any more, within some seconds.

    A lease for reading is granted only then (fcntl(2), F_SETLEASE); a file system without leases says no.
    """
    deadline = time.monotonic() + patience
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
    finally:
        os.close(descriptor)


def verified(descriptor: int, content: Content, piece: int, progress: Callable[[int], None]) -> str:
    """Return which pieces of an open file are what a torrent says: a 1 or 0 for each. Holes are not read."""
    here = ["0"] * len(content.pieces)
    candidates = [index for index in range(len(here)) if _whole(descriptor, content.size, piece, index)]

    def right(index: int) -> bool:
        data = os.pread(descriptor, piece, index * piece)
        found = small_root(data) if content.size <= piece else piece_hash(data, piece)
        return found == content.pieces[index]

    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        for number, (index, same) in enumerate(zip(candidates, pool.map(right, candidates))):
            progress(number)
            here[index] = "1" if same else "0"
    return "".join(here)


def _whole(descriptor: int, size: int, piece: int, index: int) -> bool:
    """Whether a piece of a file has no hole."""
    start = index * piece
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA) == start and os.lseek(descriptor, start, os.SEEK_HOLE) >= min(
            start + piece, size
        )
    except OSError:
        return False  # No data from here to the end (ENXIO).


def unpack(digits: object, count: int) -> str:
    """Return hexadecimal digits, as the engine reports its pieces, as ``count`` bits; none of them if they are not."""
    text = digits if isinstance(digits, str) else ""
    try:
        found = "".join(format(int(digit, 16), "04b") for digit in text)
    except ValueError:
        found = ""
    return found[:count] if len(found) >= count else "0" * count
