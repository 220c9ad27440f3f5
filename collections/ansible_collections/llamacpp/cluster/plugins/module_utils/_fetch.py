# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring a model into the store of this machine: from a hub, from addresses, or from files that are here already."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple
from urllib.parse import urlsplit

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import (
    Checksums,
    Selection,
    Wanted,
    choose,
    choose_name,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_hub import Hub
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_parts import (
    Counter,
    FetchError,
    Source,
    UnreachableError,
    ask,
    bring,
    came_already,
    identity,
    key_of,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_url import (
    PathSource,
    UrlSource,
    gather,
    in_pieces,
    name_of,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, read_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client, shown
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import DEFAULT_REVISION
from ansible_collections.llamacpp.cluster.plugins.module_utils._model_name import name_of_file
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._split import check_set
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import (
    File,
    Manifest,
    Store,
    check_file,
    check_name,
)

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
# What of a manifest's source says which files are meant; with the commit, it says which bytes.
_MEANT = ("repo", "quant", "folder", "file", "beside")


class Outcome(NamedTuple):
    """What became of it. ``manifest``: None in check mode when a checksum is not known before the bytes are here.

    ``fetched``: bytes that came (in check mode: that would come). ``evicted``: names that went for it.
    """

    name: str
    manifest: Manifest | None
    changed: bool
    fetched: int = 0
    evicted: tuple[str, ...] = ()
    commit: str = ""
    warnings: tuple[str, ...] = ()


class Fetch:
    """How to bring models into ``store``.

    ``quota``: bytes that the store may hold, 0 for no limit. ``keep``: names that may not go for a new one.
    ``patience``: seconds to wait for another run. ``check``: change nothing. Methods raise :class:`FetchError`,
    :class:`_fetch_choice.ChoiceError`, :class:`_manifest.StoreError`, :class:`_problem.Rejected`, :class:`OSError`.
    """

    def __init__(
        self,
        store: Store,
        progress: Progress,
        quota: int = 0,
        keep: Iterable[str] = (),
        patience: float = 3600.0,
        check: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.store = store
        self.progress = progress
        self.quota = quota
        self.keep = tuple(keep)
        self.patience = patience
        self.check = check
        self.sleep = sleep

    def from_hub(
        self,
        hub: Callable[[], Hub],
        repo: str,
        revision: str | None,
        selection: Selection,
        checksums: Checksums = None,
        name: str | None = None,
    ) -> Outcome:
        """Bring a model of a repository; a commit that is here already is not asked for again."""
        meant, revision = _meant(repo, selection), revision or DEFAULT_REVISION
        if _COMMIT.match(revision):
            found = self._settled(meant, "commit", revision, name, checksums)
            if found:
                return self._kept(found, commit=revision)
        client = hub()
        self.progress.say("asking %s for %s" % (client.endpoint, repo), now=True)
        try:
            commit = ask(lambda: client.commit(repo, revision), self.progress, self.sleep)
        except UnreachableError as error:
            found = self._settled(meant, "revision", revision, name, checksums)
            if found is None:
                raise
            kept = str(found.source.get("commit"))
            words = "%s: %s; the model that is here is kept (commit %s)" % (found.name, error, kept)
            return self._kept(found, words, kept)
        found = self._settled(meant, "commit", commit, name, checksums)
        if found:
            return self._kept(found, commit=commit)
        files = ask(lambda: client.files(repo, commit), self.progress, self.sleep)
        wanted = choose(repo, files, selection, checksums)
        record = dict(meant, revision=revision, commit=commit)
        outcome = self._bring(name or choose_name(repo, selection, wanted), wanted, client.source(repo, commit), record)
        return outcome._replace(commit=commit)

    def from_urls(
        self, client: Client, urls: Sequence[str], checksums: Checksums = None, name: str | None = None
    ) -> Outcome:
        """Bring a model from plain addresses: the files of one set, or pieces of one file."""
        record = {"urls": [shown(url) for url in urls]}
        found = self._settled(record, "urls", record["urls"], name, checksums)
        # What is kept of an address has no query, which may be a signature, but may also say which file is meant.
        if found and (checksums or not any(urlsplit(url).query for url in urls)):
            return self._kept(found)
        source = UrlSource(client, bool(checksums))
        try:
            wanted = gather(urls, source.look, checksums)
        except FetchError as error:
            if found is None:
                raise
            return self._kept(found, "%s: %s; the model that is here is kept" % (found.name, error))
        outcome = self._bring(name or name_of_file(wanted[0].name), wanted, source, record)
        return outcome._replace(warnings=tuple(self._unsaid(outcome, wanted)))

    def from_paths(
        self, paths: Sequence[str], checksums: Checksums = None, name: str | None = None, external: bool = False
    ) -> Outcome:
        """Take files of this node over: linked, or copied where that cannot be; pieces are joined.

        ``external``: their places stay the only ones, and the store links there.
        """
        source, record = PathSource(), {"paths": list(paths)}
        try:
            wanted = gather(paths, source.look, checksums)
        except FetchError as error:
            found = self._settled(record, "paths", record["paths"], name, checksums)
            if found is None:
                raise
            return self._kept(found, "%s: %s; the model that is here is kept" % (found.name, error))
        called = name or name_of_file(wanted[0].name)
        if in_pieces(paths):
            if external:
                raise FetchError("%s: pieces have to be joined, so they cannot be used where they are" % paths[0])
            return self._bring(called, wanted, source, record)
        return self._adopt(called, {name_of(path): path for path in paths}, wanted, record, external)

    def remove(self, name: str) -> tuple[bool, int]:
        """Take a name away, and what nobody else names; return whether it was there, and the bytes that this frees."""
        there = check_name(name) in self.store.names()
        if self.check:
            return there, self.store.own_bytes([name]) if there else 0
        freed = self.store.remove(name)
        return there or freed > 0, freed

    def _settled(
        self, meant: Mapping[str, Any], key: str, value: Any, name: str | None, checksums: Checksums
    ) -> Manifest | None:
        """Return the model that is here, whole, and came from what is meant; ``source[key]`` has to be ``value``."""
        for each in [name] if name else self.store.names():
            manifest = self.store.manifest(each)
            if (
                manifest is not None
                and manifest.source.get(key) == value
                and all(manifest.source.get(word) == meant.get(word) for word in _MEANT)
                and _agrees(manifest, checksums)
                and self.store.present(manifest)
            ):
                return manifest
        return None

    def _kept(self, manifest: Manifest, warning: str = "", commit: str = "") -> Outcome:
        """Return that a model is here already, and note that it is still wanted."""
        # Who cannot write there may still ask whether all is in its place.
        with contextlib.suppress(OSError):
            self.store.note_still_used([manifest.name], self.check)
        return Outcome(manifest.name, manifest, False, commit=commit, warnings=(warning,) if warning else ())

    def _bring(self, name: str, wanted: Sequence[Wanted], source: Source, record: Mapping[str, Any]) -> Outcome:
        """Bring what is lacking, see that it belongs together, and give it its name."""
        for item in wanted:
            check_file(item.name)
        stored = self.store.manifest(name)
        known = {item.name: self._known(item, stored) for item in wanted}
        lacking = self._lacking(name, wanted, known)
        to_come = sum(max(0, item.size - came_already(self.store.part(key_of(item)))) for item in lacking)
        evicted = self.store.room(to_come, self.quota, (*self.keep, name), check=self.check)
        if self.check:
            planned = [file for file in known.values() if file]
            manifest = self._manifest(name, planned, wanted, record) if len(planned) == len(wanted) else None
            changed = bool(lacking) or manifest is None or self._differs(manifest)
            return Outcome(name, manifest, changed, to_come, tuple(evicted))
        counter = Counter(self.progress, to_come)
        for item in lacking:
            known[item.name] = self._bring_one(name, item, known[item.name], source, counter)
        here = [file for file in (known[item.name] for item in wanted) if file]
        self._check_set({file.name: self.store.blob(file.sha256) for file in here if file.role == "model"})
        manifest = self._manifest(name, here, wanted, record)
        changed = self.store.name(manifest)
        return Outcome(name, manifest, changed, counter.done, tuple(evicted))

    def _known(self, item: Wanted, stored: Manifest | None) -> File | None:
        """Return what a file will be, by its checksum or as the same parts were before; None if nobody knows."""
        if item.sha256:
            return File(item.name, item.sha256, item.size, item.role)
        if stored and stored.source.get("parts", {}).get(item.name) == _identities(item):
            for file in stored.files:
                if file.name == item.name and file.bytes == item.size:
                    return File(item.name, file.sha256, item.size, item.role)
        return None

    def _lacking(self, name: str, wanted: Sequence[Wanted], known: Mapping[str, File | None]) -> list[Wanted]:
        files = tuple(file for file in (known[item.name] for item in wanted) if file)
        if not files:
            return list(wanted)
        manifest = Manifest(name, files)
        self.store.claim(manifest)
        absent = self.store.missing(manifest) if self.check else self.store.lacking(manifest, self.progress)
        lacking = {file.name for file in absent}
        return [item for item in wanted if known[item.name] is None or item.name in lacking]

    def _bring_one(self, name: str, item: Wanted, file: File | None, source: Source, counter: Counter) -> File:
        key = key_of(item)
        with self.store.transfer_lock(key, "a run that fetches %s" % name, self.patience, self.progress.say):
            # Another run may have brought it while this one waited.
            if file and self.store.trusted(file):
                return file
            part = self.store.part(key)
            bring(item, part, source, counter, self.sleep)
            origin = source.origin(item.parts[0])
            if file:
                self.store.admit(part, file, self.progress, origin)
                return file
            return self.store.take(part, item.name, item.role, self.progress, origin, item.sha256)

    def _adopt(
        self,
        name: str,
        places: Mapping[str, str],
        wanted: Sequence[Wanted],
        record: Mapping[str, Any],
        external: bool,
    ) -> Outcome:
        needed = self._to_copy(name, places, wanted, external)
        evicted = tuple(self.store.room(needed, self.quota, (*self.keep, name), check=self.check))
        if self.check:
            found = [self.store.hashes.sha256(places[item.name], write=False) for item in wanted]
            files = [File(item.name, sha256, item.size, item.role) for item, sha256 in zip(wanted, found)]
        else:
            files = [
                self.store.adopt(places[item.name], item.name, item.role, self.progress, item.sha256, external)
                for item in wanted
            ]
        self._check_set({file.name: places[file.name] for file in files if file.role == "model"})
        manifest = Manifest(name, tuple(files), record, external=places if external else {})
        changed = self._differs(manifest) if self.check else self.store.name(manifest)
        return Outcome(name, manifest, changed, evicted=evicted)

    def _to_copy(self, name: str, places: Mapping[str, str], wanted: Sequence[Wanted], external: bool) -> int:
        """Return how many bytes cannot be linked and are not here yet."""
        stored = self.store.manifest(name)
        here = {(file.name, file.bytes) for file in stored.files} if stored else set()
        new = [item for item in wanted if (item.name, item.size) not in here and not external]
        return sum(item.size for item in new if not self.store.linkable(places[item.name]))

    def _manifest(
        self, name: str, files: Sequence[File], wanted: Sequence[Wanted], record: Mapping[str, Any]
    ) -> Manifest:
        # Of what has no checksum at its source, the next run has to know that it is the same.
        parts = {item.name: _identities(item) for item in wanted if not item.sha256}
        return Manifest(name, tuple(files), dict(record, parts=parts) if parts else dict(record))

    def _differs(self, manifest: Manifest) -> bool:
        stored = self.store.manifest(manifest.name)
        return (
            stored is None
            or not self.store.present(manifest)
            or (stored.source, stored.external) != (manifest.source, manifest.external)
        )

    def _check_set(self, paths: Mapping[str, str]) -> None:
        """See that the files are one whole model, as llama.cpp will read it. Other formats are not looked into."""
        names = [name for name in paths if name.endswith(".gguf")]
        if names:
            try:
                check_set([read_header(paths[name]) for name in names], names)
            except GgufError as error:
                raise FetchError("%s: these files are no whole model: %s" % (", ".join(names), error)) from error

    def _unsaid(self, outcome: Outcome, wanted: Sequence[Wanted]) -> list[str]:
        """Return warnings for files that were taken as they came."""
        unsaid = [item.name for item in wanted if not item.sha256]
        if not outcome.manifest:
            return []
        return [
            "%s: nobody said which sha256 it must have; it has %s: compare it with the publisher's, and declare it"
            % (file.name, file.sha256)
            for file in outcome.manifest.files
            if file.name in unsaid
        ]


def _meant(repo: str, selection: Selection) -> dict[str, Any]:
    values = {"repo": repo, **selection._asdict(), "beside": list(selection.beside)}
    return {key: value for key, value in values.items() if value}


def _identities(item: Wanted) -> list[str]:
    return [identity(part) for part in item.parts]


def _agrees(manifest: Manifest, checksums: Checksums) -> bool:
    """Whether the files of a manifest have the checksums that are declared."""
    own = {file.name: file.sha256 for file in manifest.files}
    if isinstance(checksums, str):
        return [file.sha256 for file in manifest.files if file.role == "model"] == [checksums.lower()]
    return all(own.get(name) == text.lower() for name, text in (checksums or {}).items())
