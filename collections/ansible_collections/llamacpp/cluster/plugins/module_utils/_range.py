# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The beginning of a file on a web server, by ranges: no more than what is read, and 1 MiB."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf_cursor import ChainedSource, Source
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import ATTEMPTS, FIRST_PAUSE, Client, RemoteError

# What is fetched beyond what is needed for sure. Small headers, of adapters and further shards, take one request;
# more than LARGEST is never fetched in vain.
SMALLEST = 1 << 18
LARGEST = 1 << 20
# Headers have 16 MiB at most; this bounds what a server can make us read.
LIMIT = 256 << 20
_CONTENT_RANGE = re.compile(r"^bytes ([0-9]+)-([0-9]+)/([0-9]+)$")


class RangeSource(Source):
    """Reads an address from its beginning; what is passed over is not fetched.

    A server that ignores ranges is read as it sends, and hung up on. ``fetched``: bytes that were sent, as
    far as they were asked for.
    Raises :class:`RemoteError` when the server does not say how large the file is, when it changes in
    between, or when the connection breaks again and again.
    """

    def __init__(self, client: Client, url: str) -> None:
        self.fetched = 0
        self._client = client
        self._url = url
        self._place = url
        self._at = 0
        self._chunk = SMALLEST
        self._sure = 0
        self._answer: Any = None
        self._left = 0  # bytes that the answer still has
        self._ranges = True
        self._tag: str | None = None
        self._deadline = 0.0
        self.size = -1
        self._request()

    def close(self) -> None:
        """Hang up."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None
            self._left = 0

    def __enter__(self) -> RangeSource:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def expect(self, size: int) -> None:
        """Hear that ``size`` more bytes will be read for sure."""
        self._sure = size

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most ``size``; nothing at the end."""
        pause = FIRST_PAUSE
        for _attempt in range(ATTEMPTS):
            if self._at >= self.size:
                return b""
            if not self._left:
                self._request()
            try:
                part: bytes = self._answer.read1(min(size, self._left))
            except (OSError, http.client.HTTPException):
                part = b""  # the connection broke; go on from here
            if self.fetched > LIMIT:
                raise RemoteError(self._url, "its header has more than %d MiB: not believable" % (LIMIT >> 20))
            if time.monotonic() > self._deadline:
                raise RemoteError(self._url, "the server sends too slowly; try again later, or raise timeout")
            if part:
                self._took(len(part))
                return part
            self.close()
            self._client.sleep(pause)
            pause *= 2
        raise RemoteError(self._url, "the connection broke %d times at byte %d; try again later" % (ATTEMPTS, self._at))

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes, by asking for what comes after them where that is possible."""
        if self._ranges and size > self._left:
            self.close()
            self._at += size
            self._sure = max(0, self._sure - size)
            return
        super().skip(size)

    def _took(self, size: int) -> None:
        self._at += size
        self._left -= size
        self.fetched += 0 if self._ranges else size
        self._sure = max(0, self._sure - size)

    def _request(self) -> None:
        """Ask for what comes next: what is needed for sure, and a little more each time."""
        end = self._at + self._sure + self._chunk
        if self.size >= 0:
            end = min(end, self.size)
        self._chunk = min(self._chunk * 2, LARGEST)
        headers = {"Range": "bytes=%d-%d" % (self._at, end - 1)}
        try:
            self._answer, self._place = self._client.open(self._place, headers)
        except RemoteError as error:
            # Addresses that redirects lead to are valid for a while only.
            if self._place == self._url or error.status not in (401, 403, 404, 410):
                raise
            self._answer, self._place = self._client.open(self._url, headers)
        self._deadline = self._client.deadline()
        tag = self._answer.headers.get("ETag")
        if self._answer.status == 206:
            first, last, total = self._content_range()
            self._left = last - first + 1
            self.fetched += self._left
        else:
            total = self._whole_size()
            first, self._left, self._ranges = 0, total, False
        if self.size >= 0 and (total != self.size or tag != self._tag):
            raise RemoteError(self._url, "the file was changed while it was read; try again")
        self.size, self._tag = total, tag
        if first != self._at:
            raise RemoteError(
                self._url, "the server cannot go on in the middle of the file; download it and give its path"
            )

    def _content_range(self) -> tuple[int, int, int]:
        text = str(self._answer.headers.get("Content-Range", ""))
        match = _CONTENT_RANGE.match(text)
        if not match:
            raise RemoteError(
                self._url, "the server does not say how large the file is; download the file and give its path"
            )
        first, last, total = (int(group) for group in match.groups())
        if not first <= last < total:
            raise RemoteError(self._url, "the server speaks of an impossible range, %s" % text)
        return first, last, total

    def _whole_size(self) -> int:
        text = str(self._answer.headers.get("Content-Length", ""))
        if self._answer.status != 200 or not text.isdigit() or self._answer.headers.get("Content-Encoding"):
            raise RemoteError(
                self._url, "the server does not say how large the file is; download the file and give its path"
            )
        return int(text)


class JoinedSource(ChainedSource):
    """Reads a file that is cut into pieces, each at an address of its own.

    Raises what :class:`RangeSource` does.
    """

    def __init__(self, client: Client, urls: Sequence[str]) -> None:
        self._ranges = [RangeSource(client, url) for url in urls]
        super().__init__(self._ranges)

    @property
    def fetched(self) -> int:
        """Bytes that were sent, as far as they were asked for."""
        return sum(source.fetched for source in self._ranges)

    def __enter__(self) -> JoinedSource:
        return self

    def __exit__(self, *_error: object) -> None:
        for source in self._ranges:
            source.close()
