# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A whole model from peers: its files one after the other, each admitted by its sha256, then its name."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress, amount
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull import Chunk, Pull, called, liars
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull_map import PartMap, forget_marks
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import File, Manifest, Store, StoreError

HOLDER = "a run that pulls a model"
Sources = Sequence[Mapping[str, str]]


class Pulled(NamedTuple):
    """What was done. ``warnings``: who failed or sent wrong bytes, although all is there now."""

    changed: bool
    fetched: int
    evicted: list[str]
    warnings: list[str]


def own(manifest: Manifest) -> Manifest:
    """Return a manifest for a node that holds all files itself, also where its first holder links to some."""
    return dataclasses.replace(manifest, external={})


def needed_bytes(store: Store, files: Sequence[File]) -> int:
    """Return how many bytes are still to be written for these files: without what parts have already."""
    total = 0
    for file in {file.sha256: file for file in files}.values():
        try:
            taken = os.stat(store.part(file.sha256)).st_blocks * 512
        except FileNotFoundError:
            taken = 0
        total += max(0, file.bytes - taken)
    return total


def pull_model(
    store: Store,
    manifest: Manifest,
    sources: Sources,
    quota: int,
    keep: Sequence[str],
    patience: float,
    progress: Progress,
) -> Pulled:
    """Bring a model into the store; ``sources``: sha256 -> address, a mapping for each peer.

    Without sources, parts that somebody else brought are admitted. Raises :class:`StoreError` when a file does not
    come; what has arrived stays, and the next call goes on from there.
    """
    manifest = own(manifest)
    if store.present(manifest):
        store.note_used([manifest.name])
        return Pulled(False, 0, [], [])
    lacking = list({file.sha256: file for file in store.lacking(manifest, progress)}.values())
    evicted = store.room(needed_bytes(store, lacking), quota, [*keep, manifest.name])
    fetched, warnings = 0, []
    for number, file in enumerate(lacking):
        count = " (%d of %d)" % (number + 1, len(lacking)) if len(lacking) > 1 else ""
        with store.transfer_lock(file.sha256, HOLDER, patience, progress.say):
            if store.trusted(file):
                continue
            urls = [source[file.sha256] for source in sources if file.sha256 in source]
            transfer = _File(store, file, urls, progress, count)
            transfer.bring()
            fetched += transfer.fetched
            warnings += transfer.warnings
    store.name(manifest)
    store.note_used([manifest.name])
    return Pulled(True, fetched, evicted, warnings)


class _File:
    """One file on its way in; its transfer lock is held."""

    def __init__(self, store: Store, file: File, urls: list[str], progress: Progress, count: str) -> None:
        self.store = store
        self.file = file
        self.urls = urls
        self.progress = progress
        self.count = count
        self.part = store.part(file.sha256)
        self.fetched = 0
        self.warnings: list[str] = []

    def bring(self) -> None:
        """Fetch and admit it; if its bytes are wrong and came from several, from each alone until they are right."""
        if self._whole():
            try:
                self._admit("an earlier run")
                return
            except StoreError:
                if not self.urls:
                    raise
        first = self._fetch(self.urls)
        tellers = sorted({chunk.source for chunk in first.received.values()})
        try:
            self._admit(", ".join(tellers) or "an earlier run")
            return
        except StoreError as error:
            wrong = error
        # What an earlier run has left may be what was wrong, so even a single source gets another chance.
        alone = len(tellers) == 1 and len(first.received) == len(first.marks.done)
        for url in [] if alone else self.urls:
            if called(url) in first.failed:
                continue
            try:
                self._fetch([url])
                self._admit(called(url))
            except StoreError as error:
                wrong = error
                # Nobody else shall go on with what this one has sent.
                self._discard()
                continue
            self._accuse(first.marks, first.received)
            return
        raise wrong

    def _discard(self) -> None:
        if os.path.lexists(self.part):
            os.unlink(self.part)
        forget_marks(self.part)

    def _accuse(self, marks: PartMap, received: Mapping[int, Chunk]) -> None:
        for name in liars(self.store.blob(self.file.sha256), marks, received):
            self.warnings.append("%s sent wrong bytes of %s: scrub the store there" % (name, self.file.name))

    def _whole(self) -> bool:
        """Whether somebody else, such as rsync, has left a part without holes and without marks."""
        try:
            info = os.stat(self.part, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if os.path.exists(self.part + ".map") or info.st_size != self.file.bytes:
            return False
        if not info.st_size:
            return True
        descriptor = os.open(self.part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return os.lseek(descriptor, 0, os.SEEK_HOLE) >= info.st_size
        finally:
            os.close(descriptor)

    def _fetch(self, urls: list[str]) -> Pull:
        """Fetch what is not there. Raises :class:`StoreError` when it does not come."""
        marks = PartMap(self.part, self.file.bytes)
        try:
            pull = Pull(marks, urls)
            before, started = marks.here(), time.monotonic()

            def show(here: int) -> None:
                now = time.monotonic()
                text = amount(here - before, self.file.bytes - before, started, now)
                self.progress.say("%s%s from %d peers: %s" % (self.file.name, self.count, len(urls), text))

            try:
                complete = pull.run(show)
            except OSError as error:
                raise StoreError(self._disk(error)) from error
            self.fetched += pull.fetched
            here = marks.here()
        finally:
            marks.close()
        if not complete:
            raise StoreError(
                "%s: %d of %d bytes are here, and nobody gives the rest%s; see that those who have it run, and that no"
                " packet filter is between (transport rsync needs no way from node to node), and run again: it goes on"
                % (
                    self.file.name,
                    here,
                    self.file.bytes,
                    "".join("; %s: %s" % item for item in sorted(pull.failed.items())),
                )
            )
        for name, why in sorted(pull.failed.items()):
            self.warnings.append("%s was left out while %s came: %s" % (name, self.file.name, why))
        return pull

    def _disk(self, error: OSError) -> str:
        """Tell what the disk says; what has come stays on it."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            words = "%s: the disk of %s is full: free some space and run again, what has come is kept"
            return words % (self.file.name, os.path.dirname(self.part))
        return "%s: %s says: %s" % (self.file.name, self.part, error.strerror or error)

    def _admit(self, origin: str) -> None:
        """Make a blob of the part. Raises :class:`StoreError` when its bytes are wrong; then it is gone."""
        try:
            self.store.admit(self.part, self.file, self.progress, origin)
        finally:
            # Also when the bytes were wrong: the part is gone, and its marks would be about nothing.
            if not os.path.exists(self.part):
                forget_marks(self.part)
