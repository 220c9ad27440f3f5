# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring the bytes of one file into the store's incoming directory, from wherever they are, and go on after any end.

What came stays in the part file, whatever ends the run, and the next run asks for the rest. A file that its publisher
cut in pieces is joined on the way: each piece is written behind the one before, so it needs its own size once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from typing import Callable, Protocol, TypeVar

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import Remote, Wanted
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import TooLongError, Window
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress, amount

ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds; doubles
# The public hub counts requests by windows of five minutes.
LONGEST_PAUSE = 330.0
BLOCK = 1 << 20
_OID = re.compile(r"^[0-9a-f]{40}$")

T = TypeVar("T")


class FetchError(Exception):
    """A file could not be brought; the text says why and what to do. What has come is kept, where it is right."""


class UnreachableError(FetchError):
    """Nobody answers, or nobody but to say that they cannot."""


class BrokenError(Exception):
    """It broke off, and another try may mend it. ``pause``: seconds that the other side wants us to wait."""

    def __init__(self, words: str, pause: float | None = None) -> None:
        super().__init__(words)
        self.pause = pause


class Source(Protocol):
    """Where files come from."""

    def fetch(self, part: Remote, window: Window, have: int) -> None:
        """Write a part from byte ``have`` on into ``window``, which stands there.

        Raises :class:`BrokenError`, :class:`FetchError`, and :class:`OSError` of the disk.
        """

    def origin(self, part: Remote) -> str:
        """Return where a part is from, for people, without secrets."""


class Counter:
    """Counts what comes, and shows it. ``done``: bytes of this run. ``total``: bytes that this run will bring."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0
        self.what = ""
        self._started = time.monotonic()

    def came(self, count: int) -> None:
        """Hear that ``count`` bytes more are there."""
        self.done += count
        # What had to be fetched again was not foreseen.
        total = max(self.total, self.done)
        self.progress.say("fetching %s: %s" % (self.what, amount(self.done, total, self._started, time.monotonic())))

    def say(self, line: str) -> None:
        """Say something that must not be dropped."""
        self.progress.say("fetching %s: %s" % (self.what, line), now=True)


def key_of(wanted: Wanted) -> str:
    """Return what the part file is called by: the sha256, or where nobody knows it, one of where the bytes are.

    A part that changes at its source gets another key, so no file is ever begun with bytes of another.
    """
    if wanted.sha256:
        return wanted.sha256
    return hashlib.sha256("\n".join(identity(part) for part in wanted.parts).encode()).hexdigest()


def identity(part: Remote) -> str:
    """Return what a part's bytes are known by before they are here."""
    return "%s:%s:%d" % ("sha256" if part.sha256 else "oid", part.sha256 or part.oid, part.size)


def came_already(path: str) -> int:
    """Return how many bytes of a part file are there."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def bring(
    wanted: Wanted, path: str, source: Source, counter: Counter, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Bring all parts of a file, one behind the other, into ``path``, beginning with what ``path`` has already.

    Each part of several is compared with its own checksum; that of the whole file is the store's matter, as it is
    hashed there anyway. Raises :class:`FetchError`.
    """
    counter.what = wanted.name
    try:
        with open(path, "r+b" if os.path.exists(path) else "w+b", buffering=0) as stream:
            have = os.fstat(stream.fileno()).st_size
            # With a hole it was written by a swarm or a pull, which do not go from the beginning to the end.
            if have > wanted.size or (have and os.lseek(stream.fileno(), 0, os.SEEK_HOLE) < have):
                stream.truncate(0)
            start = 0
            for part in wanted.parts:
                window = Window(stream, start, part.size, counter.came)
                _bring_part(part, window, source, counter, sleep)
                if len(wanted.parts) > 1 or not part.sha256:
                    _check(part, window, source, counter)
                start += part.size
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(
                "%s: the disk of %s is full: free some space and run again, what has come is kept"
                % (wanted.name, os.path.dirname(path))
            ) from error
        raise


def _bring_part(part: Remote, window: Window, source: Source, counter: Counter, sleep: Callable[[float], None]) -> None:
    """Bring one part; a try that brought something does not count as failed."""
    failures = 0
    while window.have() < part.size:
        before = window.have()
        window.seek(before)
        try:
            source.fetch(part, window, before)
        except TooLongError as error:
            window.seek(0)
            window.truncate()
            raise FetchError(
                "%s: more than its %d bytes were sent, they are thrown away; run again"
                % (source.origin(part), part.size)
            ) from error
        except BrokenError as error:
            failures = 1 if window.have() > before else failures + 1
            pause = pause_after(failures, error)
            if pause is None:
                raise FetchError(
                    "%s: %s; %d of its %d bytes are here and are kept: run again to go on"
                    % (source.origin(part), error, window.have(), part.size)
                ) from error
            counter.say("trying again in %d s: %s" % (pause, error))
            sleep(pause)


def pause_after(failures: int, error: BrokenError) -> float | None:
    """Return how many seconds to wait after so many failures in a row; None for no more tries."""
    pause = FIRST_PAUSE * (1 << (failures - 1)) if error.pause is None else error.pause
    return None if failures >= ATTEMPTS or pause > LONGEST_PAUSE else pause


def ask(question: Callable[[], T], progress: Progress, sleep: Callable[[float], None] = time.sleep) -> T:
    """Return what ``question`` answers, asked again when it breaks. Raises :class:`FetchError`."""
    failures = 0
    while True:
        try:
            return question()
        except BrokenError as error:
            failures += 1
            pause = pause_after(failures, error)
            if pause is None:
                raise UnreachableError(
                    "%s; run again later, set llamacpp_hub_endpoint to a mirror, or let the control node fetch"
                    " (llamacpp_models_fetcher: controller)" % error
                ) from error
            progress.say("trying again in %d s: %s" % (pause, error), now=True)
            sleep(pause)


def _check(part: Remote, window: Window, source: Source, counter: Counter) -> None:
    """Compare a part with what its publisher says of it; wrong bytes go, so that they come anew."""
    digest = hashlib.sha256() if part.sha256 else hashlib.sha1(b"blob %d\0" % part.size)
    expected = part.sha256 or part.oid
    if expected is None or not (part.sha256 or _OID.match(expected)):
        return  # Nobody says what it has to be: a plain address, or a file of this node.
    window.seek(0)
    started = time.monotonic()
    for block in iter(lambda: window.read(BLOCK), b""):
        digest.update(block)
        done = amount(window.tell(), part.size, started, time.monotonic())
        counter.progress.say("checking %s: %s" % (source.origin(part), done))
    if digest.hexdigest() != expected:
        window.seek(0)
        window.truncate()
        raise FetchError(
            "%s: its bytes have the checksum %s instead of %s; they are thrown away: run again, or ask who publishes it"
            % (source.origin(part), digest.hexdigest(), expected)
        )
