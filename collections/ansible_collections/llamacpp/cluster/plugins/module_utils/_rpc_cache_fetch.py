# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring tensors into a cache from the nodes that have the model: ranges of its files, from several of them at once."""

from __future__ import annotations

import errno
import http.client
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from urllib.parse import urlsplit

from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client, RemoteError
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress, amount
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache import Cache, Entry
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import RpcCacheError

# Ranges under way at a time.
STREAMS = 4
# So often a source may break off; then the others do without it.
STRIKES = 3
_BLOCK = 1 << 20


class _StoppedError(Exception):
    """Another transfer failed for good."""


class Fetch:
    """Brings entries from ``sources``, each a map from the sha256 of a file to its address there."""

    def __init__(
        self, cache: Cache, sources: Sequence[Mapping[str, str]], progress: Progress, client: Client | None = None
    ) -> None:
        self.fetched = 0
        self._cache = cache
        self._sources = sources
        self._progress = progress
        # Peers are on the fabric; a proxy leads elsewhere.
        self._client = client or Client(proxy=False)
        self._strikes = [0] * len(sources)
        self._said = [""] * len(sources)
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._turn = 0

    def run(self, entries: Sequence[Entry]) -> None:
        """Bring entries, and name each that is right. What was brought by the time of an error stays for the next run.

        When the disk is full, nothing stays. Raises :class:`RpcCacheError`.
        """
        try:
            self._run(entries)
        except RpcCacheError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._cache.forget_parts(entry.hash for entry in entries)
            raise RpcCacheError("%s: %s" % (self._cache.incoming, error.strerror or error)) from error

    def _run(self, entries: Sequence[Entry]) -> None:
        total = sum(entry.bytes for entry in entries)
        started = time.monotonic()
        # The large ones first, so that none comes alone in the end.
        waiting = deque(sorted(entries, key=lambda entry: -entry.bytes))
        running: dict[Future[None], tuple[Entry, int]] = {}
        done = 0
        with ThreadPoolExecutor(max_workers=STREAMS) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < STREAMS:
                        entry = waiting.popleft()
                        source = self._source(entry)
                        running[pool.submit(self._bring, entry, source)] = (entry, source)
                    finished, _others = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    arrived = {}
                    for future in finished:
                        entry, source = running.pop(future)
                        if self._ended(future, source):
                            arrived[entry.hash] = (entry, source)
                        else:
                            waiting.append(entry)
                    for name in self._cache.arrived(list(arrived)):
                        entry, source = arrived.pop(name)
                        # It does not have what the head has, or sends other bytes than it has.
                        self._strikes[source], self._said[source] = STRIKES, "it sent wrong bytes"
                        waiting.append(entry)
                    done += sum(entry.bytes for entry, _source in arrived.values())
                    self._progress.say(
                        "seeding the RPC cache: " + amount(max(done, self.fetched), total, started, time.monotonic())
                    )
            finally:
                self._stop.set()

    def _source(self, entry: Entry) -> int:
        """Return who shall send an entry: one after the other, of those that can."""
        count = len(self._sources)
        for step in range(count):
            source = (self._turn + step) % count
            if self._strikes[source] < STRIKES and entry.sha256 in self._sources[source]:
                self._turn = source + 1
                return source
        said = ["%s: %s" % (_host(source), text) for source, text in zip(self._sources, self._said) if text]
        raise RpcCacheError(
            "no node gives the file %s for the RPC cache%s: run again" % (entry.sha256, "".join("; " + x for x in said))
        )

    def _ended(self, future: Future[None], source: int) -> bool:
        """Whether a transfer went well; a broken one is noted. Raises what no other source can mend."""
        try:
            future.result()
        except RemoteError as error:
            self._strikes[source] += 1
            self._said[source] = error.message
            return False
        return True

    def _bring(self, entry: Entry, source: int) -> None:
        """Bring the bytes of an entry that are not there yet (in a thread of its own)."""
        path = os.path.join(self._cache.incoming, entry.hash)
        url = self._sources[source][entry.sha256]
        with open(path, "ab") as stream:
            have = stream.tell()
            if have > entry.bytes:
                stream.truncate(0)
                have = 0
            if have < entry.bytes:
                self._take(url, entry, have, stream.fileno())
            os.fdatasync(stream.fileno())

    def _take(self, url: str, entry: Entry, have: int, descriptor: int) -> None:
        first, last = entry.offset + have, entry.offset + entry.bytes - 1
        answer, _place = self._client.open(url, {"Range": "bytes=%d-%d" % (first, last)})
        with answer:
            if answer.status != 206 or not str(answer.headers.get("Content-Range", "")).startswith(
                "bytes %d-%d/" % (first, last)
            ):
                raise RemoteError(url, "it has no bytes %d to %d of the file" % (first, last))
            left = last - first + 1
            while left:
                if self._stop.is_set():
                    raise _StoppedError()
                try:
                    block = answer.read(min(_BLOCK, left))
                except (OSError, http.client.HTTPException) as error:
                    raise RemoteError(url, "the connection broke: %s" % error) from error
                if not block:
                    raise RemoteError(url, "the connection broke, %d bytes were to come" % left)
                while block:
                    count = os.write(descriptor, block)
                    block = block[count:]
                    left -= count
                    with self._guard:
                        self.fetched += count


def _host(source: Mapping[str, str]) -> str:
    """Return who a source is, without the secret in its addresses."""
    return next((urlsplit(url).netloc.rpartition("@")[2] for url in source.values()), "a source without files")
