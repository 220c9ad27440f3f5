# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One file from several web servers at once: whoever is free takes the next chunk, whoever fails is left out.

A chunk is asked for as a range and written where it belongs. When all have been given out, those who are free take over
what the slowest still have. Nothing here tells right bytes from wrong ones: that does whoever reads the whole file
afterwards, and :func:`liars` then tells who has sent others.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import os
import threading
import time
import zlib
from collections.abc import Mapping
from typing import Callable, NamedTuple
from urllib.parse import urlsplit

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
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2] or "a source without a host"


class Source:
    """A connection to a web server for one file, kept from one range to the next. Raises :class:`SourceError`.

    Not by :class:`_http.Client`: that connects anew for each answer, and makes ready for https each time (25 ms).
    """

    def __init__(self, url: str, silence: float) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise SourceError("its address is none: %s" % error) from error
        if parts.scheme != "http" or not host:
            raise SourceError("its address is not one of http")
        self.path = parts.path
        self.connection = http.client.HTTPConnection(host, port, timeout=silence)
        self.answer: http.client.HTTPResponse | None = None

    def ask(self, start: int, length: int, size: int) -> None:
        """Ask for a range of a file of ``size`` bytes."""
        wanted = "bytes %d-%d/%d" % (start, start + length - 1, size)
        try:
            self.connection.request("GET", self.path, headers={"Range": "bytes=%d-%d" % (start, start + length - 1)})
            answer = self.answer = self.connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise SourceError(str(error) or type(error).__name__) from error
        said = answer.getheader("Content-Range")
        # A file of one chunk may as well come as a whole.
        whole = answer.status == 200 and length == size and answer.getheader("Content-Length") == str(size)
        if not whole and (answer.status != 206 or said != wanted):
            self.close()
            if answer.status not in (200, 206, 416):
                raise SourceError("it says %d %s" % (answer.status, answer.reason))
            raise SourceError("it has another file: asked for %s, it says %s" % (wanted, said))

    def read(self, most: int) -> bytes:
        """Return the next bytes of the answer, at least one."""
        block = b""
        try:
            if self.answer is not None:
                block = self.answer.read1(most)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise SourceError(str(error) or type(error).__name__) from error
        if not block:
            self.close()
            raise SourceError("the connection broke")
        return block

    def close(self) -> None:
        """Hang up; the next question connects again."""
        self.connection.close()


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
        name = called(url)
        try:
            source = Source(url, self.silence)
        except SourceError as error:
            self.failed.setdefault(name, str(error))
            return
        with contextlib.closing(source):
            self._serve(source, name)

    def _serve(self, source: Source, name: str) -> None:
        failures = 0
        while not self._stop.is_set() and name not in self.failed:
            index = self._take(name)
            if index is None:
                if self._over():
                    return
                # Somebody may fail with what is left.
                self._stop.wait(POLL_SECONDS)
                continue
            try:
                self._fetch(source, name, index)
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

    def _over(self) -> bool:
        """Whether nobody has anything left to do. What a source gave back a moment ago is somebody's to do."""
        with self._guard:
            return not self._waiting and not self._under_way

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

    def _fetch(self, source: Source, name: str, index: int) -> None:
        """Bring one chunk. Raises :class:`SourceError`, and :class:`OSError` of the disk."""
        start, length = self.marks.span(index)
        deadline = time.monotonic() + self.silence + length / LEAST_RATE
        crc, at = 0, start
        try:
            source.ask(start, length, self.marks.size)
            while at < start + length:
                block = source.read(min(BLOCK, start + length - at))
                # What another source has brought meanwhile may be right where this is wrong.
                if self._stop.is_set() or self.marks.done[index]:
                    source.close()
                    return
                if time.monotonic() > deadline:
                    source.close()
                    raise SourceError("it is too slow")
                _write(self.marks.file, block, at)
                crc = zlib.crc32(block, crc)
                at += len(block)
                self._count(len(block))
            with self._guard:
                if not self.marks.done[index]:
                    self.received[index] = Chunk(name, crc)
                    self.marks.finish(index)
                    at = start
        finally:
            # What does not count in the end: all of it, unless the chunk is there thanks to it.
            self._count(start - at)

    def _count(self, more: int) -> None:
        with self._guard:
            self.fetched += more


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


def _write(descriptor: int, block: bytes, at: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
