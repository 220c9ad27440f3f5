# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looks after the store: reads all bytes again, and removes what killed runs have left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files as files
from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import BusyError, locked
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import File, Manifest, StoreError, check_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_names import Names

_DAY = 86400.0
# A transfer that was given up is resumed within days, or never.
PART_SECONDS = 7 * _DAY
# A run that brings several files names them all at its end.
UNNAMED_SECONDS = _DAY
# Long enough that somebody looks at it.
QUARANTINE_SECONDS = 30 * _DAY
_HASHES_SCRATCH = "..sha256.json."
_KEY = re.compile(r"[0-9a-f]{64}")


class Finding(NamedTuple):
    """Something wrong.

    ``names``: models that have it. ``moved_to``: where the bytes are now, empty when nowhere. ``taken_away``: whether
    it was there to be loaded, and is not any more.
    """

    names: tuple[str, ...]
    file: str
    sha256: str
    problem: str
    moved_to: str = ""
    taken_away: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "names": list(self.names),
            "file": self.file,
            "sha256": self.sha256,
            "problem": self.problem,
            "moved_to": self.moved_to,
        }


class Swept(NamedTuple):
    """What was removed: paths below the root, and their bytes; ``room``: those of them that counted as models."""

    removed: list[str]
    bytes: int
    room: int


class _Counted(Progress):
    """Progress of one file among several."""

    def __init__(self, progress: Progress, number: int, total: int) -> None:
        super().__init__(None)
        self.progress = progress
        self.prefix = "file %d of %d: " % (number, total) if total > 1 else ""

    def say(self, line: str, now: bool = False) -> None:
        """Say how far the work is; see :class:`Progress`."""
        self.progress.say(self.prefix + line, now)


class Cleaning(Names):
    """Scrubs and sweeps."""

    def scrub(self, names: Sequence[str], progress: Progress, check: bool = False) -> list[Finding]:
        """Read all bytes of these names, of all without any, and compare; return what is wrong.

        Wrong bytes go to quarantine and their names are not present any more, until somebody brings them again;
        files that the store does not hold lose their link alone. ``check``: change nothing. Raises
        :class:`StoreError` for a name that is not there.
        """
        manifests, findings = self._to_scrub(names)
        owners: dict[str, list[str]] = {}
        for model in self.held():
            for sha256 in model.blobs:
                owners.setdefault(sha256, []).append(model.name)
        blobs = {file.sha256: file for manifest in manifests for file in manifest.held}
        if not names:
            for sha256, info in self._blob_infos().items():
                if _KEY.fullmatch(sha256):
                    blobs.setdefault(sha256, File(sha256, sha256, info.st_size, "other"))
        for number, file in enumerate(blobs.values()):
            there = files.status(self.blob(file.sha256)) is not None
            counted = _Counted(progress, number + 1, len(blobs))
            problem, moved_to = self.recheck(file, counted, mend=not check)
            if problem:
                names_of = tuple(owners.get(file.sha256, ()))
                findings.append(Finding(names_of, file.name, file.sha256, problem, moved_to, there))
        for manifest in manifests:
            findings += self._scrub_links(manifest) + self._scrub_external(manifest, progress, check)
        return findings

    def _to_scrub(self, names: Sequence[str]) -> tuple[list[Manifest], list[Finding]]:
        known = self.names()
        unknown = sorted(set(map(check_name, names)) - set(known))
        if unknown:
            raise StoreError(
                "names = %s: not in %s, which has %s"
                % (", ".join(unknown), self.root, ", ".join(known) or "no model at all")
            )
        manifests, broken = [], []
        for name in names or known:
            manifest = self.manifest(name)
            if manifest:
                manifests.append(manifest)
            else:
                broken.append(Finding((name,), "", "", "its manifest cannot be understood"))
        return manifests, broken

    def _scrub_links(self, manifest: Manifest) -> list[Finding]:
        """Find files that are there, but cannot be read under their name."""
        return [
            Finding((manifest.name,), file.name, file.sha256, "its readable path is gone or leads elsewhere")
            for file in manifest.held
            if self.trusted(file) and not self._linked(file, manifest)
        ]

    def _scrub_external(self, manifest: Manifest, progress: Progress, check: bool) -> list[Finding]:
        """Read the files that the store only links to; of those that are others now, take the link away."""
        findings = []
        for file in manifest.files:
            path = manifest.external.get(file.name)
            if path is None:
                continue
            link = self.path_of(manifest.name, file.name)
            there = os.path.lexists(link)
            problem = "" if self._linked(file, manifest) else "its readable path is gone or leads elsewhere"
            wrong = self._foreign(file, path, progress, check)
            if wrong and not check:
                with self._changing():
                    files.forget(link)
            if wrong or problem:
                findings.append(
                    Finding((manifest.name,), file.name, file.sha256, wrong or problem, "", bool(wrong) and there)
                )
        return findings

    def _foreign(self, file: File, path: str, progress: Progress, check: bool) -> str:
        """Read a file that is not the store's; return what is wrong with it, empty when nothing is."""
        if not os.path.isfile(path):
            return "%s is gone" % path
        info = os.stat(path)
        found = files.sha256_of(path, progress.say, what=file.name)
        if found == file.sha256:
            return ""
        if not check:
            # Its size, time and inode may be as they were: they are not those of the right bytes any more.
            self.remember(path, info, found)
        return "%s has sha256 %s" % (path, found)

    # What killed runs have left

    def room(self, needed: int, quota: int, keep: Iterable[str], check: bool = False) -> list[str]:
        """Make room; what killed runs have left goes before any model does. See :meth:`Names.room`.

        ``check``: only say which names would go.
        """
        swept = self.sweep(check).room if self.space(quota).short(needed, []) else 0
        return self._choose(needed, quota, set(keep), swept) if check else super().room(needed, quota, keep)

    def sweep(self, check: bool = False) -> Swept:
        """Remove what nobody will use: parts of a week ago, unnamed blobs of yesterday, links without a manifest.

        Old quarantine as well. ``check``: only say what would go.
        """
        if check:
            return self._sweep(check=True)
        with self._changing():
            return self._sweep(check=False)

    def _sweep(self, check: bool) -> Swept:
        now, names = time.time(), self.names()
        doomed: dict[str, None] = {}
        for path in files.walk(self.root):
            if os.path.basename(path).startswith((files.SCRATCH, _HASHES_SCRATCH)):
                # Of other places somebody may be writing one this moment, without the lock.
                ours = self._top(path) in (self.stamps, self.manifests, self.links)
                if ours or _age(path, now) > UNNAMED_SECONDS:
                    doomed[path] = None
        for path in files.walk(self.links):
            if os.path.relpath(os.path.dirname(path), self.links) not in names:
                doomed[path] = None
        named = self.claimed.union(*(model.blobs for model in self.held()))
        for sha256, info in self._blob_infos().items():
            if sha256 not in named and now - info.st_ctime > UNNAMED_SECONDS:
                doomed[os.path.join(self.blobs, sha256)] = None
        blobs = {sha256 for sha256 in self._blob_infos() if os.path.join(self.blobs, sha256) not in doomed}
        for path in files.walk(self.stamps):
            if os.path.basename(path)[: -len(".json")] not in blobs:
                doomed[path] = None
        # What is remembered of a file's tensors (_rpc_cache_list.py), also of one that the store only links to.
        manifests = [manifest for manifest in map(self.manifest, names) if manifest]
        known = {file.sha256 for manifest in manifests for file in manifest.files}
        for path in files.walk(os.path.join(self.root, "tensors")):
            sha256 = os.path.basename(path)[: -len(".json")]
            if sha256 not in known | blobs and _age(path, now) > PART_SECONDS:
                doomed[path] = None
        marks = {self._mark(name) for name in names}
        for directory, age in ((self.quarantine, QUARANTINE_SECONDS), (self.used, PART_SECONDS)):
            for path in files.walk(directory):
                if path not in marks and _age(path, now) > age:
                    doomed[path] = None
        sizes = {path: _bytes(path) for path in doomed}
        if not check:
            for path in doomed:
                files.forget(path)
                files.remove_empty(os.path.dirname(path), self._top(path))
        parts, part_bytes = self._sweep_parts(now, check)
        room = sum(size for path, size in sizes.items() if self._top(path) == self.blobs)
        removed = [os.path.relpath(path, self.root) for path in [*doomed, *parts]]
        return Swept(removed, sum(sizes.values()) + part_bytes, room + part_bytes)

    def _top(self, path: str) -> str:
        """Return the directory right below the root that a path is in; it stays, also when it is empty."""
        return os.path.join(self.root, os.path.relpath(path, self.root).split(os.sep)[0])

    def _sweep_parts(self, now: float, check: bool) -> tuple[list[str], int]:
        """Remove what belongs to transfers that nobody has gone on with, or whose blob is there already."""
        groups: dict[str, list[str]] = {}
        for entry in files.listing(self.incoming):
            match = _KEY.match(entry)
            groups.setdefault(match.group() if match else entry, []).append(os.path.join(self.incoming, entry))
        removed, freed = [], 0
        for key, entries in groups.items():
            within = [path for entry in entries for path in [entry, *files.walk(entry)]]
            idle = min(_age(path, now, "st_mtime") for path in within)
            there = _KEY.fullmatch(key) and files.status(self.blob(key)) is not None
            parts = [entry for entry in entries if not entry.endswith(".lock")]
            if not (idle > PART_SECONDS or (there and parts)):
                continue
            with contextlib.ExitStack() as held:
                lock = os.path.join(self.incoming, key + ".lock")
                if os.path.exists(lock):
                    try:
                        held.enter_context(locked(lock, "the sweep", 0.0, lambda other: None))
                    except BusyError:
                        continue
                # Of a lock that was used lately somebody may be about to make use: it stays.
                going = entries if idle > PART_SECONDS else parts
                freed += sum(_bytes(path) for entry in going for path in [entry, *files.walk(entry)])
                removed += going
                for entry in [] if check else going:
                    if os.path.isdir(entry) and not os.path.islink(entry):
                        shutil.rmtree(entry)
                    else:
                        files.forget(entry)
        return removed, freed


def _age(path: str, now: float, since: str = "st_ctime") -> float:
    """Return for how many seconds a file has been as it is; 0 when it has gone."""
    try:
        return now - float(getattr(os.lstat(path), since))
    except FileNotFoundError:
        return 0.0


def _bytes(path: str) -> int:
    """Return what the removal of a file gives back to the disk, roughly; 0 for links and directories."""
    info = files.status(path)
    return info.st_blocks * 512 if info is not None and info.st_nlink == 1 else 0
