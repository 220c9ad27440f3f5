# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names of models: given when all files are there, taken away with what nobody else names, evicted for others."""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files as files
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import Manifest, StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_blobs import Blobs
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_room import Blob, Held, Space, choose, refusal
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_users import Use, find_uses

# Manifests, stamps and directories beside the bytes.
_SLACK = 1 << 20
# How exact the time of a use is while nothing is brought: a run that finds all in place need not write.
_NOTED_SECONDS = 86400.0
# Of blobs that are about to get a name.
_NAMELESS = ""


class Names(Blobs):
    """Gives names and takes them away."""

    def name(self, manifest: Manifest) -> bool:
        """Give files that are all there their name, in one step; False when it was so.

        What the name stood for before, and nobody else names, goes.
        """
        with self._changing():
            absent = self.missing(manifest)
            if absent:
                raise StoreError(
                    "model %s: %s %s not in %s: bring the model again"
                    % (manifest.name, ", ".join(file.name for file in absent), _is(len(absent)), self.root)
                )
            self._check_place(manifest)
            stored = self.manifest(manifest.name)
            same = stored is not None and _content(stored) == _content(manifest)
            unlinked = [file for file in manifest.files if not self._linked(file, manifest)]
            directory = os.path.join(self.links, manifest.name)
            files.make_directory(directory)
            for file in unlinked:
                path = manifest.external.get(file.name)
                files.give_name(path or self.blob(file.sha256), self.path_of(manifest.name, file.name), bool(path))
            if unlinked:
                files.sync_directory(directory)
            if not same:
                files.write_durably(self._manifest(manifest.name), _text(manifest))
            before = {file.sha256 for file in stored.held} if stored else set()
            self._clear(manifest.name, before, manifest)
            self.claimed.difference_update(file.sha256 for file in manifest.held)
        return bool(unlinked) or not same

    def _check_place(self, manifest: Manifest) -> None:
        """See that no directory of the readable paths would have to be a file of another model, or the other way."""
        place = self.links
        for segment in manifest.name.split("/"):
            place = os.path.join(place, segment)
            if os.path.islink(place) or os.path.isfile(place):
                raise StoreError(
                    "name = %s: %s is a file of another model; choose another name" % (manifest.name, place)
                )
        for file in manifest.files:
            link = self.path_of(manifest.name, file.name)
            if os.path.isdir(link) and not os.path.islink(link):
                raise StoreError(
                    "model %s: its file %s would lie at %s, where other models are; choose another name"
                    % (manifest.name, file.name, link)
                )

    def remove(self, name: str) -> int:
        """Take a name away, and the blobs that nobody else names; return their bytes. Finishes what broke off, too.

        The manifest goes last: until then it tells the next run what has to go. The name is not present from the first
        step on.
        """
        return self._remove(name, set())

    def _remove(self, name: str, spared: set[str]) -> int:
        with self._changing():
            manifest, path = self.manifest(name), self._manifest(name)
            before = {file.sha256 for file in manifest.held} if manifest else set[str]()
            freed = self._clear(name, before, None, spared)
            if os.path.exists(path):
                os.unlink(path)
                files.sync_directory(os.path.dirname(path))
            files.remove_empty(os.path.dirname(path), self.manifests)
            files.forget(self._mark(name))
        return freed

    def _clear(
        self, name: str, before: set[str], after: Manifest | None, spared: AbstractSet[str] = frozenset()
    ) -> int:
        """Remove links and blobs that a name needed ``before`` and not ``after``; return the bytes of the blobs.

        ``spared``: blobs that stay in any case.
        """
        directory = os.path.join(self.links, name)
        keep = {file.name for file in after.files} if after else set()
        stale = [os.path.join(directory, file) for file in files.listing(directory) if file not in keep]
        # Directories are those of names that go on from this one.
        stale = [link for link in stale if os.path.islink(link) or not os.path.isdir(link)]
        # Where a run broke off behind the manifest, or the manifest is broken, only the links are left to tell.
        going = before | (self._linked_blobs(name) if stale else set())
        if after:
            going -= {file.sha256 for file in after.held}
        freed = 0
        if going:
            others = frozenset[str]().union(*(model.blobs for model in self.held() if model.name != name))
            freed = sum(self._drop(sha256) for sha256 in sorted(going - others - spared))
        for link in stale:
            os.unlink(link)
        files.remove_empty(directory, self.links)
        return freed

    def _linked_blobs(self, name: str) -> set[str]:
        """Return the blobs that the links of a name lead to."""
        directory = os.path.join(self.links, name)
        infos = [files.status(os.path.join(directory, file)) for file in files.listing(directory)]
        inodes = {info.st_ino for info in infos if info is not None}
        return {sha256 for sha256, info in self._blob_infos().items() if info.st_ino in inodes} if inodes else set()

    def _blob_infos(self) -> dict[str, os.stat_result]:
        infos = {name: files.status(os.path.join(self.blobs, name)) for name in files.listing(self.blobs)}
        return {name: info for name, info in infos.items() if info is not None}

    def held(self) -> list[Held]:
        """Return all names with their blobs, and when each was last wanted."""
        found = []
        for name in self.names():
            manifest = self.manifest(name)
            # What a broken manifest stood for is what its links lead to.
            blobs = {file.sha256 for file in manifest.held} if manifest else self._linked_blobs(name)
            found.append(Held(name, frozenset(blobs), self.last_used(name)))
        return found

    def own_bytes(self, names: Iterable[str], held: Sequence[Held] | None = None) -> int:
        """Return the bytes that nobody else names: what the removal of these names would free.

        ``held``: what :meth:`held` says, for a caller who asks for many.
        """
        mine, held = set(names), self.held() if held is None else held
        goes = frozenset[str]().union(*(model.blobs for model in held if model.name in mine))
        return sum(map(self.blob_bytes, goes.difference(*(model.blobs for model in held if model.name not in mine))))

    def _drop(self, sha256: str) -> int:
        """Remove a blob, and what is known of it."""
        size = self.blob_bytes(sha256)
        files.forget(self.blob(sha256))
        files.forget(self._stamp(sha256))
        return size

    # Who wants what

    def note_used(self, names: Iterable[str]) -> None:
        """Remember that these names are wanted now."""
        for name in names:
            files.make_directory(self.used)
            with open(self._mark(name), "ab"):
                os.utime(self._mark(name))

    def note_still_used(self, names: Iterable[str], check: bool = False) -> list[str]:
        """Note that these names are wanted, where that was noted more than a day ago; return those.

        ``check``: only say which.
        """
        known, due = set(self.names()), time.time() - _NOTED_SECONDS
        late = sorted(name for name in known.intersection(names) if self.last_used(name) < due)
        if not check:
            self.note_used(late)
        return late

    def last_used(self, name: str) -> float:
        """Return when a name was last wanted, or got its files: seconds since the epoch; 0 when it is not there."""
        moments = [0.0]
        for path in (self._mark(name), self._manifest(name)):
            info = files.status(path)
            moments += [info.st_mtime] if info else []
        return max(moments)

    def uses(self, units: str | None = None, proc: str | None = None) -> dict[str, list[Use]]:
        """Return by name who uses it: units of the collection, and processes that belong to none."""
        found: dict[str, list[Use]] = {}
        for use in find_uses(_spellings(self.root), units or self.units, proc or self.proc):
            kind, _slash, tail = use.path.partition("/")
            if kind == os.path.basename(self.links):
                found.setdefault(os.path.dirname(tail), []).append(use)
            elif kind == os.path.basename(self.blobs):
                for model in self.held():
                    if tail in model.blobs:
                        found.setdefault(model.name, []).append(use)
        return found

    def users(self, units: str | None = None, proc: str | None = None) -> dict[str, list[str]]:
        """Return by name the units that name it, and processes such as ``llama-server (process 12)`` of no unit."""
        return {name: sorted({use.who for use in uses}) for name, uses in self.uses(units, proc).items()}

    # Room

    def space(self, quota: int = 0) -> Space:
        """Return what there is on the disk for models, and what the store holds: blobs, and parts on their way in."""
        top = self.root
        while not os.path.isdir(top):
            top = os.path.dirname(top)
        disk = os.statvfs(top)
        stored = sum(info.st_size for info in self._blob_infos().values())
        for path in files.walk(self.incoming):
            info = files.status(path) if not path.endswith(".lock") else None
            # A part may have holes where nothing came yet.
            stored += min(info.st_size, info.st_blocks * 512) if info else 0
        return Space(max(0, disk.f_bavail * disk.f_frsize - _SLACK), stored, quota)

    def room(self, needed: int, quota: int, keep: Iterable[str]) -> list[str]:
        """Make room for ``needed`` bytes that are still to be written; return the names that were evicted for that.

        ``quota``: bytes that the store may hold, 0 for no limit. ``keep``: names that stay, as those do that somebody
        uses. The least recently used go first; blobs that are claimed stay without their name. When it cannot fit,
        none goes and :class:`StoreError` has the figures.
        """
        stays = set(keep)
        with self._changing():
            # What is declared while others come is wanted, too.
            self.note_used(sorted(stays.intersection(self.names())))
            evicted = self._choose(needed, quota, stays)
            for name in evicted:
                self._remove(name, self.claimed)
        return evicted

    def _choose(self, needed: int, quota: int, keep: set[str], swept: int = 0) -> list[str]:
        """Return the names that have to go; ``swept``: bytes that will have gone before."""
        space = self.space(quota)
        space = space._replace(free=space.free + swept, stored=space.stored - swept)
        if not space.short(needed, []):
            return []
        links = collections.Counter(info.st_ino for info in map(files.status, files.walk(self.links)) if info)
        blobs = {
            sha256: Blob(info.st_size, info.st_size if info.st_nlink <= 1 + links[info.st_ino] else 0)
            for sha256, info in self._blob_infos().items()
        }
        held = [*self.held(), Held(_NAMELESS, frozenset(self.claimed), 0.0)]
        fixed = {*keep, *self.users(), _NAMELESS}
        chosen = choose(needed, space, held, blobs, fixed)
        if chosen is None:
            raise StoreError("the store %s %s" % (self.root, refusal(needed, space, held, blobs, fixed)))
        return chosen


def _spellings(path: str) -> list[str]:
    """Return a directory as it is called and as it really is: a process knows its files by either."""
    return sorted({path, os.path.realpath(path)})


def _content(manifest: Manifest) -> Mapping[str, Any]:
    """Return what makes two manifests the same: all but when they were written."""
    return {key: value for key, value in json.loads(_text(manifest)).items() if key != "created"}


def _text(manifest: Manifest) -> bytes:
    return json.dumps(manifest.as_dict(), indent=1, sort_keys=True).encode() + b"\n"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
