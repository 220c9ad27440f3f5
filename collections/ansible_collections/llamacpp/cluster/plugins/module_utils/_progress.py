# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A file through which a module that works for minutes says how far it is.

The module's action plugin runs it in the background and reads the file while it
works. One line of text; replaced whole, so a reader never sees half of it.
"""

from __future__ import annotations

import os
import time

INTERVAL = 0.5


class Progress:
    """Writes one line of progress, at most every half second. Without a path does nothing."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._last = 0.0

    def say(self, line: str, now: bool = False) -> None:
        """Say how far the work is; ``now`` for a line that must not be dropped."""
        moment = time.monotonic()
        if not self.path or (moment - self._last < INTERVAL and not now):
            return
        self._last = moment
        temporary = self.path + ".new"
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(line.replace("\n", " ")[:200] + "\n")
        os.rename(temporary, self.path)

    def close(self) -> None:
        """Remove the file."""
        if self.path and os.path.exists(self.path):
            os.unlink(self.path)


def amount(count: int, total: int | None, started: float, now: float) -> str:
    """Return bytes done as text: ``120 of 480 MiB, 25 %, 60 MiB/s, 6 s left``.

    ``started`` and ``now``: seconds on any one clock.
    """
    mib = 1 << 20
    rate = count / (now - started) if now > started else 0.0
    if not total:
        return "%d MiB, %.0f MiB/s" % (count // mib, rate / mib)
    left = (total - count) / rate if rate > 0 else 0.0
    return "%d of %d MiB, %d %%, %.0f MiB/s, %.0f s left" % (
        count // mib,
        total // mib,
        100 * count // total,
        rate / mib,
        left,
    )
