# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring a file from a web server to a place where nobody sees half of it."""

from __future__ import annotations

import hashlib
import http.client
import time
from typing import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client, RemoteError
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress, amount

BLOCK = 1 << 20


def download(
    url: str,
    path: str,
    progress: Progress,
    what: str,
    client: Client | None = None,
    admit: Callable[[int], None] = lambda total: None,
) -> str:
    """Write what ``url`` has to ``path``; return its sha256. ``what`` names it in progress.

    ``admit`` is told how many bytes will come, where the server says it, before one is written; it may raise.
    Raises :class:`RemoteError`, also when the connection breaks on the way, and :class:`OSError`.
    """
    progress.say("asking for %s" % what, now=True)
    answer, _place = (client or Client()).open(url)
    digest, done, started = hashlib.sha256(), 0, time.monotonic()
    length = str(answer.headers.get("Content-Length") or "")
    total = int(length) if length.isdigit() else None
    with answer, open(path, "wb") as stream:
        if total is not None:
            admit(total)
        while True:
            try:
                block = answer.read(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise RemoteError(url, "the connection broke after %d bytes: %s" % (done, error)) from error
            if not block:
                break
            digest.update(block)
            stream.write(block)
            done += len(block)
            progress.say("downloading %s: %s" % (what, amount(done, total, started, time.monotonic())))
    if total is not None and done < total:
        raise RemoteError(url, "the connection broke after %d of %d bytes; run again" % (done, total))
    return digest.hexdigest()
