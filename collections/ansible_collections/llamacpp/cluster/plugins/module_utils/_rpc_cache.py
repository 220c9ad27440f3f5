# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The cache of a node's RPC workers: entries that are what their names say, and no more of them than wanted.

``ggml-rpc-server -c`` (b11434, ggml/src/ggml-rpc/ggml-rpc.cpp) reads and writes ``$LLAMA_CACHE/rpc/<hash>``: a tensor's
bytes, under their FNV-1a-64 in 16 hexadecimal digits. It never verifies, never evicts, and writes in place, so an entry
that was cut short is served as if it were whole. Around that directory lie, out of the workers' reach:

  <directory>-incoming/<hash>            ranges on their way from peers; resumed, hashed, and only then renamed
  <directory>-quarantine/<hash>.<time>   what scrub found different
  <directory>-planned                    of role models: all was seeded that its plan needs; gone when an entry goes
  <directory>-record.json                by what an entry is recognised without reading it, and when it was needed
  <directory>.lock                       held by whoever changes entries

Workers may run meanwhile: they open entries when a head loads, and all that is done here is rename and remove.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import shutil
import signal
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import BusyError, locked
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import size_text
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import (
    NAME,
    Hasher,
    Range,
    RpcCacheError,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

SCHEMA = 1
# Left on the disk for others.
RESERVE = 256 << 20
# Seconds after which a quarantined file is of no use to anybody.
QUARANTINE_SECONDS = 7 * 86400
BEING_WRITTEN = "a worker is writing it"
_TEMPORARY = ".seed-"
# fcntl(2); Python's fcntl has the names, mypy's description of it not on every platform.
_F_SETLEASE, _F_RDLCK, _F_UNLCK = 1024, 0, 2


class Entry(NamedTuple):
    """What a worker will be asked for: ``hash`` names it; ``bytes`` at ``offset`` of the file with ``sha256``."""

    hash: str
    bytes: int
    sha256: str
    offset: int


class Finding(NamedTuple):
    """An entry that was not what its name says. ``path``: where it is now; empty where it was let be.

    ``why``: :data:`BEING_WRITTEN` of one that may well become right.
    """

    name: str
    bytes: int
    why: str
    path: str


class Sorted(NamedTuple):
    """Wanted entries: ``known`` are there, ``doubtful`` are there and nobody hashed them, ``missing`` are not."""

    known: list[Entry]
    doubtful: list[Entry]
    missing: list[Entry]


class Cache:
    """The cache in ``directory``. Methods raise :class:`RpcCacheError` and :class:`OSError`."""

    def __init__(self, directory: str, hasher: Hasher, owner: str = "") -> None:
        """``owner``: user of the workers, to whom the directory is given when it is made."""
        self.directory = directory.rstrip("/")
        self.incoming = self.directory + "-incoming"
        self.quarantined = self.directory + "-quarantine"
        self._planned = self.directory + "-planned"
        self._record_path = self.directory + "-record.json"
        self._hasher = hasher
        self._owner = owner
        self._record: dict[str, Any] = {}

    @contextlib.contextmanager
    def lock(self, holder: str, patience: float, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the cache; what is in it is read afresh."""
        self._make()
        try:
            with locked(self.directory + ".lock", holder, patience, lambda other: say("waiting for %s" % other)):
                self._record = self.record()
                for name in os.listdir(self.directory):
                    if name.startswith(_TEMPORARY):
                        _discard(os.path.join(self.directory, name))
                try:
                    yield
                finally:
                    # What was hashed before an error need not be hashed again.
                    self._save()
        except BusyError as error:
            raise RpcCacheError(
                "%s: gave up after %d s, %s holds it" % (self.directory, patience, error.holder)
            ) from error

    def _make(self) -> None:
        os.makedirs(os.path.dirname(self.directory), mode=0o755, exist_ok=True)
        if not os.path.isdir(self.directory):
            user = self._user()
            os.mkdir(self.directory, 0o750)
            if user:
                os.chown(self.directory, user.pw_uid, user.pw_gid)
        os.makedirs(self.incoming, mode=0o700, exist_ok=True)
        os.makedirs(self.quarantined, mode=0o700, exist_ok=True)

    def _user(self) -> pwd.struct_passwd | None:
        try:
            return pwd.getpwnam(self._owner) if self._owner else None
        except KeyError as error:
            raise RpcCacheError("owner = %s: this node has no such user" % self._owner) from error

    def record(self) -> dict[str, Any]:
        """Return what is remembered of entries; nothing when that cannot be read."""
        try:
            with open(self._record_path, encoding="utf-8") as stream:
                data = json.load(stream)
        except (FileNotFoundError, ValueError):
            return {}
        if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("entries"), dict):
            return {}
        return {name: item for name, item in data["entries"].items() if isinstance(item, dict)}

    def _save(self) -> None:
        there = self.entries()
        kept = {name: item for name, item in self._record.items() if name in there}
        bring(self._record_path, json.dumps({"schema": SCHEMA, "entries": kept}, indent=1, sort_keys=True) + "\n")

    def entries(self) -> dict[str, os.stat_result]:
        """Return what lies in the directory under names of entries, whatever it is."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                if NAME.fullmatch(name):
                    # A worker that runs may remove nothing, but who knows who else does.
                    with contextlib.suppress(FileNotFoundError):
                        found[name] = os.lstat(os.path.join(self.directory, name))
        return found

    def sort(self, wanted: Sequence[Entry], record: Mapping[str, Any]) -> Sorted:
        """Say which of the wanted entries are there, without reading one."""
        there = self.entries()
        found = Sorted([], [], [])
        for entry in {item.hash: item for item in wanted}.values():
            info = there.get(entry.hash)
            if info is None:
                found.missing.append(entry)
            elif info.st_size == entry.bytes and _same(record.get(entry.hash), info):
                found.known.append(entry)
            else:
                found.doubtful.append(entry)
        return found

    def verify(self, doubtful: Sequence[Entry]) -> list[Finding]:
        """Hash entries that nobody knows, once; what is wrong goes to quarantine."""
        return self._judge([entry.hash for entry in doubtful], check=False)

    def _judge(self, names: Sequence[str], check: bool) -> list[Finding]:
        checked = self._hasher.check(self.directory, names)
        wrong = {name for name, item in checked.items() if item.state == "bad"}
        busy = {name for name in wrong if being_written(os.path.join(self.directory, name))}
        # A worker may have written them while they were read, and be done by now.
        checked.update(self._hasher.check(self.directory, sorted(wrong - busy)))
        findings = []
        for name, (state, size) in checked.items():
            if state == "bad" and name in busy:
                findings.append(Finding(name, size, BEING_WRITTEN, ""))
            elif state == "bad":
                target = "" if check else self._quarantine(name)
                findings.append(Finding(name, size, "its bytes are not those that its name says", target))
            elif state == "ok" and not check:
                self.remember([name])
        return findings

    def _quarantine(self, name: str) -> str:
        """Take an entry away from the workers; return where it is."""
        target = os.path.join(self.quarantined, "%s.%d" % (name, time.time()))
        os.rename(os.path.join(self.directory, name), target)
        self._record.pop(name, None)
        _discard(self._planned)
        return target

    def remember(self, names: Iterable[str]) -> None:
        """Note that entries were hashed just now."""
        for name in names:
            info = os.lstat(os.path.join(self.directory, name))
            before = self._record.get(name) or {}
            self._record[name] = {
                "bytes": info.st_size,
                "mtime_ns": info.st_mtime_ns,
                "inode": info.st_ino,
                "needed": bool(before.get("needed")),
                "needed_at": before.get("needed_at") or int(time.time()),
            }

    def need(self, names: Collection[str]) -> None:
        """Note which entries the plan needs; the others have been needed until now."""
        for name, item in self._record.items():
            if name in names:
                item["needed_at"] = int(time.time())
            item["needed"] = name in names

    def needed(self) -> set[str]:
        """Return the entries that the plan needed when the cache was seeded last."""
        return {name for name, item in self.record().items() if item.get("needed")}

    def settled(self, wanted: Iterable[Entry], quota: int) -> bool:
        """Whether just these are noted as needed, and all entries are within the quota: nothing to change."""
        size = sum(info.st_size for info in self.entries().values())
        return self.needed() == {entry.hash for entry in wanted} and not 0 < quota < size

    def seed_from(self, file: str, entries: Sequence[Entry]) -> None:
        """Make entries of a file of this node."""
        names = self._hasher.seed(file, [Range(entry.offset, entry.bytes) for entry in entries], self.directory)
        wrong = [entry for name, entry in zip(names, entries) if name != entry.hash]
        self.remember(entry.hash for name, entry in zip(names, entries) if name == entry.hash)
        if wrong:
            raise RpcCacheError(
                "%s: %d bytes at %d are not those that the head hashed: scrub the store of this node"
                % (file, wrong[0].bytes, wrong[0].offset)
            )

    def arrived(self, names: Sequence[str]) -> list[str]:
        """Name what came in whole and right; return what did not, which is gone then."""
        wrong = []
        for name, (state, _size) in self._hasher.check(self.incoming, names).items():
            path = os.path.join(self.incoming, name)
            if state != "ok":
                os.unlink(path)
                wrong.append(name)
                continue
            os.chmod(path, 0o644)
            os.rename(path, os.path.join(self.directory, name))
            self.remember([name])
        return wrong

    def room(self, missing: Sequence[Entry], keep: Collection[str], quota: int, check: bool = False) -> list[str]:
        """Make room for entries: evict those that nobody needs, longest not needed first; return their names.

        ``keep``: entries that stay. ``quota``: bytes of all, 0 for none. ``check``: only say which would go. Raises
        :class:`RpcCacheError` when they do not fit; nothing is evicted then.
        """
        there = {name: info.st_size for name, info in self.entries().items()}
        parts = _sizes(self.incoming)
        coming = sum(entry.bytes for entry in missing)
        kept = sum(size for name, size in there.items() if name in keep) + coming
        if quota and kept > quota:
            raise RpcCacheError(
                "llamacpp_rpc_cache_quota = %s: the workers of this node need %s; raise it, or set "
                "llamacpp_rpc_cache: false" % (size_text(quota), size_text(kept))
            )
        stale = set(parts) - {entry.hash for entry in missing}
        to_write = coming - sum(min(parts.get(entry.hash, 0), entry.bytes) for entry in missing)
        if not check:
            self.forget_parts(stale)
        # Where nothing is to come, a full disk is no reason for anything to go.
        free = self._free() if to_write else 0
        if to_write > free and check:
            free += sum(parts[name] for name in stale) + sum(_sizes(self.quarantined).values())
        elif to_write > free:
            self.empty_quarantine(0)
            free = self._free()
        record = self.record() if check else self._record
        candidates = sorted(set(there).difference(keep), key=lambda name: (self._last_needed(name, record), name))
        too_much = max(sum(there.values()) + coming - quota if quota else 0, to_write - free)
        evicted: list[str] = []
        freed = 0
        for name in candidates:
            if freed >= too_much:
                break
            evicted.append(name)
            freed += there[name]
        if freed < too_much:
            raise RpcCacheError(
                "%s: %s are to come, and there is room for %s (%s stay free for others): free some space on that disk, "
                "or set llamacpp_rpc_cache: false"
                % (self.directory, size_text(to_write), size_text(max(free + freed, 0)), size_text(RESERVE))
            )
        for name in [] if check else evicted:
            _discard(os.path.join(self.directory, name))
            self._record.pop(name, None)
        return evicted

    def _free(self) -> int:
        top = os.path.abspath(self.directory)
        while not os.path.isdir(top):
            top = os.path.dirname(top)
        return shutil.disk_usage(top).free - RESERVE

    def _last_needed(self, name: str, record: Mapping[str, Any]) -> float:
        item = record.get(name)
        if item and isinstance(item.get("needed_at"), int):
            return float(item["needed_at"])
        # A worker wrote it by itself.
        return os.lstat(os.path.join(self.directory, name)).st_mtime

    def forget_parts(self, names: Iterable[str]) -> None:
        """Remove what is under way of some entries."""
        for name in names:
            _discard(os.path.join(self.incoming, name))

    def empty_quarantine(self, seconds: float) -> None:
        """Remove what has been in quarantine for so long."""
        for name in os.listdir(self.quarantined):
            path = os.path.join(self.quarantined, name)
            if time.time() - os.lstat(path).st_ctime >= seconds:
                _discard(path)

    def scrub(self, check: bool = False) -> list[Finding]:
        """Hash all entries; what is wrong goes to quarantine. ``check``: only say what is wrong."""
        if not check:
            self.empty_quarantine(QUARANTINE_SECONDS)
        return self._judge(sorted(self.entries()), check)


def _sizes(directory: str) -> dict[str, int]:
    """Return the sizes of the files in a directory, which need not be there."""
    try:
        return {name: os.lstat(os.path.join(directory, name)).st_size for name in os.listdir(directory)}
    except FileNotFoundError:
        return {}


def _discard(path: str) -> None:
    """Remove what is there, whatever it is."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _same(item: Any, info: os.stat_result) -> bool:
    """Whether an entry is what was hashed once."""
    if not isinstance(item, dict) or not stat.S_ISREG(info.st_mode):
        return False
    seen = {"bytes": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
    return all(item.get(key) == value for key, value in seen.items())


def being_written(path: str) -> bool:
    """Whether some process has a file open for writing: then nobody gets a read lease on it (fcntl(2)).

    File systems without leases say nothing; there it counts as not being written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    # Who opens it for writing while we hold the lease makes the kernel send this; it would end us.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(descriptor, _F_SETLEASE, _F_RDLCK)
        fcntl.fcntl(descriptor, _F_SETLEASE, _F_UNLCK)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        signal.signal(signal.SIGIO, before)
        os.close(descriptor)
    return False
