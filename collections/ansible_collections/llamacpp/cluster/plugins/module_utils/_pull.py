# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One file from several web servers at once: whoever is free takes the next chunk, whoever fails is left out.

A chunk is asked for as a range and written where it belongs. When all have been given out, those who are free take over
what the slowest still have. Nothing here tells right bytes from wrong ones: that does whoever reads the whole file
afterwards, and :func:`liars` then tells who has sent others.
"""

from __future__ import annotations

import collections
import http.client
import os
import threading
import time
import zlib
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple
from urllib.parse import urlsplit

from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client, RemoteError
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull_map import PartMap

BLOCK = 1 << 20
# Two connections fill a cable also while one of them waits for its next answer.
CONNECTIONS = 2
MOST_CONNECTIONS = 16
SILENCE_SECONDS = 15.0
# Slower than this a source is no help: a chunk has to arrive within SILENCE_SECONDS and its bytes at this rate.
LEAST_RATE = 64 << 10
FAILURES = 3
SHOW_SECONDS = 0.25
SYNC_SECONDS = 2.0
# What takes so many times longer than any chunk before, and at least so long, is asked of somebody else as well.
PATIENCE_FACTOR = 2
PATIENCE_SECONDS = 1.0
POLL_SECONDS = 0.05


class SourceError(OSError):
    """A source does not give what was asked for."""


class Chunk(NamedTuple):
    """Who sent a chunk, and its CRC-32 as it arrived."""

    source: str
    crc: int


def called(url: str) -> str:
    """Return what people call a source: host and port, without the secret in its path."""
    return urlsplit(url).netloc.rpartition("@")[2]


class UnderWay:
    """A chunk that is being fetched: since when, and by whom."""

    def __init__(self, name: str) -> None:
        self.since = time.monotonic()
        self.names = [name]


class Pull:
    """The transfer of one file, from ``urls``, into a part."""

    def __init__(self, marks: PartMap, urls: list[str], silence: float = 0.0) -> None:
        self.marks = marks
        self.urls = urls
        self.silence = silence or SILENCE_SECONDS
        self.received: dict[int, Chunk] = {}
        # Why a source was left out, by what it is called.
        self.failed: dict[str, str] = {}
        self.fetched = 0
        self._waiting = collections.deque(index for index, done in enumerate(marks.done) if not done)
        self._under_way: dict[int, UnderWay] = {}
        self._longest = PATIENCE_SECONDS / PATIENCE_FACTOR
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._broken: list[OSError] = []

    def run(self, show: Callable[[int], None]) -> bool:
        """Fetch all that is not there; return whether all is there. ``show`` is told the bytes that are.

        Raises :class:`OSError` when the disk does not take it. What arrived stays in any case.
        """
        each = min(CONNECTIONS, max(1, MOST_CONNECTIONS // len(self.urls))) if self.urls else 0
        workers = [
            threading.Thread(target=self._work, args=(url,), daemon=True)
            for url in self.urls[:MOST_CONNECTIONS]
            for _number in range(each)
        ]
        before, synced_at = self.marks.here(), time.monotonic()
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                next((worker for worker in workers if worker.is_alive()), workers[0]).join(SHOW_SECONDS)
                show(min(self.marks.size, before + self.fetched))
                if time.monotonic() - synced_at >= SYNC_SECONDS:
                    self.marks.sync()
                    synced_at = time.monotonic()
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()
        if self._broken:
            raise self._broken[0]
        self.marks.sync()
        return all(self.marks.done)

    def _work(self, url: str) -> None:
        """Fetch chunks from one source until there are none, or it fails too often."""
        name, failures = called(url), 0
        while not self._stop.is_set() and name not in self.failed:
            index = self._take(name)
            if index is None:
                if not self._under_way:
                    return
                # Somebody may fail with what is left.
                self._stop.wait(POLL_SECONDS)
                continue
            try:
                self._fetch(url, name, index)
                failures = 0
            except SourceError as error:
                failures += 1
                if failures >= FAILURES:
                    self.failed.setdefault(name, str(error))
            except OSError as error:
                # The disk's own: there is no use in going on.
                self._broken.append(error)
                self._stop.set()
            finally:
                self._give_back(index, name)

    def _take(self, name: str) -> int | None:
        """Return the next chunk for a source; none when there is none for it now."""
        with self._guard:
            if self._waiting:
                index = self._waiting.popleft()
                self._under_way[index] = UnderWay(name)
                return index
            late = time.monotonic() - PATIENCE_FACTOR * self._longest
            for index, fetch in self._under_way.items():
                if fetch.since < late and name not in fetch.names and not self.marks.done[index]:
                    fetch.names.append(name)
                    return index
        return None

    def _give_back(self, index: int, name: str) -> None:
        """Note that a source does no more for a chunk; another one fetches it if it has not arrived."""
        with self._guard:
            fetch = self._under_way[index]
            fetch.names.remove(name)
            if self.marks.done[index]:
                self._longest = max(self._longest, time.monotonic() - fetch.since)
            if not fetch.names:
                del self._under_way[index]
                if not self.marks.done[index]:
                    self._waiting.append(index)

    def _fetch(self, url: str, name: str, index: int) -> None:
        """Bring one chunk. Raises :class:`SourceError`, and :class:`OSError` of the disk."""
        start, length = self.marks.span(index)
        deadline = time.monotonic() + self.silence + length / LEAST_RATE
        crc, at, counted = 0, start, 0
        answer = _ask(url, start, length, self.marks.size, self.silence)
        with answer:
            while at < start + length:
                if self._stop.is_set() or self.marks.done[index]:
                    self._uncount(counted)
                    return
                block = _read(answer, min(BLOCK, start + length - at))
                if not block or time.monotonic() > deadline:
                    self._uncount(counted)
                    raise SourceError("the connection broke" if not block else "it is too slow")
                _write(self.marks.file, block, at)
                crc = zlib.crc32(block, crc)
                at += len(block)
                counted += len(block)
                with self._guard:
                    self.fetched += len(block)
        with self._guard:
            if self.marks.done[index]:
                self.fetched -= counted
                return
            self.received[index] = Chunk(name, crc)
            self.marks.finish(index)

    def _uncount(self, count: int) -> None:
        with self._guard:
            self.fetched -= count


def liars(path: str, marks: PartMap, received: Mapping[int, Chunk]) -> list[str]:
    """Return who sent other bytes than the file ``path`` has, which are right; ``received`` is of an earlier try."""
    found = set()
    with open(path, "rb") as stream:
        for index, chunk in received.items():
            start, length = marks.span(index)
            stream.seek(start)
            if zlib.crc32(stream.read(length)) != chunk.crc:
                found.add(chunk.source)
    return sorted(found)


def _ask(url: str, start: int, length: int, size: int, silence: float) -> Any:
    """Ask for a range; return an answer that will have exactly that. Raises :class:`SourceError`."""
    client = Client(timeout=silence, sleep=lambda pause: None, proxy=False)
    try:
        answer, _place = client.open(url, {"Range": "bytes=%d-%d" % (start, start + length - 1)})
    except RemoteError as error:
        raise SourceError(error.message) from error
    wanted = "bytes %d-%d/%d" % (start, start + length - 1, size)
    said = str(answer.headers.get("Content-Range"))
    # A file of one chunk may as well come as a whole.
    whole = answer.getcode() == 200 and length == size == int(answer.headers.get("Content-Length") or -1)
    if not whole and (answer.getcode() != 206 or said != wanted):
        answer.close()
        raise SourceError("it has another file: asked for %s, it says %s" % (wanted, said))
    return answer


def _read(answer: Any, most: int) -> bytes:
    try:
        return bytes(answer.read1(most))
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(str(error) or type(error).__name__) from error


def _write(descriptor: int, block: bytes, at: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
