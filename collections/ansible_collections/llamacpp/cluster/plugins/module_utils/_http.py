# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask web servers: redirects that do not leak a token, retries, and errors that say what to do.

Goes through Ansible's ``open_url``, so proxies and certificate authorities are those of the machine.
"""

from __future__ import annotations

import email.utils
import http.client
import time
import urllib.error
from collections.abc import Mapping
from typing import Any, Callable
from urllib.parse import urljoin, urlsplit, urlunsplit

from ansible.module_utils.urls import open_url  # type: ignore[import-untyped]

ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds; doubles
LONGEST_PAUSE = 60.0
MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
# Connections that another try may mend; not a silent server, which took its time already.
_BROKEN = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, http.client.BadStatusLine)
# What a hub says that is more than the number (huggingface_hub/utils/_http.py reads the same header).
_REASONS = {
    "RepoNotFound": "there is no such repository, or it is private; correct its name, or set HF_TOKEN",
    "RevisionNotFound": "the repository has no such revision; correct it, or leave it out",
    "EntryNotFound": "the repository has no such file; correct its name",
    "GatedRepo": "its licence has to be accepted on its page, by the owner of the token; then set HF_TOKEN",
}
_STATUS = {
    401: "the server wants a token; set HF_TOKEN, or the option token",
    403: "the server does not let you have it; accept the licence on its page, or use another token",
    404: "the server says 404 Not Found; correct the address",
    410: "the server says 410 Gone; correct the address",
    416: "the server says 416 Range Not Satisfiable: the file is empty or was cut; correct the address",
}


class RemoteError(OSError):
    """A server did not give what was asked for. ``message`` says why and what to do, ``status`` is HTTP's or None."""

    def __init__(self, url: str, message: str, status: int | None = None) -> None:
        super().__init__("%s: %s" % (shown(url), message))
        self.message = message
        self.status = status


class Client:
    """How to ask: with which token, and how patiently.

    ``token`` goes to ``token_origin`` (scheme, host and port) alone, whatever redirects say.
    ``timeout``: seconds of silence; twenty times of that for one answer to be read.
    ``proxy``: whether to go through the machine's proxy, where it has one.
    """

    def __init__(
        self,
        token: str | None = None,
        token_origin: str = "",
        timeout: float = 30,
        sleep: Callable[[float], None] = time.sleep,
        proxy: bool = True,
    ) -> None:
        self.token = token
        self.token_origin = origin(token_origin) if token_origin else ("", "", 0)
        self.timeout = timeout
        self.sleep = sleep
        self.proxy = proxy

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> tuple[Any, str]:
        """Return the answer, and the address that it came from in the end; the caller closes the answer.

        Raises :class:`RemoteError`.
        """
        for attempt in range(ATTEMPTS):
            try:
                return self._follow(url, dict(headers or {}))
            except urllib.error.HTTPError as error:
                with error:
                    pause = _pause(error, attempt)
                    if error.code not in _PASSING or attempt == ATTEMPTS - 1 or pause > LONGEST_PAUSE:
                        raise RemoteError(url, _explain(error, pause), error.code) from error
            except RemoteError:
                raise
            except (OSError, http.client.HTTPException) as error:
                cause = error.reason if isinstance(error, urllib.error.URLError) else error
                if not isinstance(cause, _BROKEN) or attempt == ATTEMPTS - 1:
                    raise RemoteError(url, _unreachable(cause)) from error
                pause = FIRST_PAUSE * (1 << attempt)
            except ValueError as error:
                raise RemoteError(url, "%s; correct the address" % error) from error
            self.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _follow(self, url: str, headers: dict[str, str]) -> tuple[Any, str]:
        headers = dict(headers, **{"Accept-Encoding": "identity"})
        for _number in range(MAX_REDIRECTS):
            if urlsplit(url).scheme not in ("http", "https"):
                raise RemoteError(url, "only http and https are read; correct the address")
            sent = dict(headers)
            if self.token and origin(url) == self.token_origin:
                sent["Authorization"] = "Bearer " + self.token
            try:
                answer = open_url(
                    url,
                    headers=sent,
                    timeout=self.timeout,
                    follow_redirects="no",
                    decompress=False,
                    use_netrc=not self.token,
                    use_proxy=self.proxy,
                    http_agent="llamacpp.cluster",
                )
            except urllib.error.HTTPError as error:
                place = error.headers.get("Location") if error.code in _REDIRECTS else None
                if not place:
                    raise
                error.close()
                following = urljoin(url, place)
                if urlsplit(url).scheme == "https" and urlsplit(following).scheme != "https":
                    raise RemoteError(url, "the server sends us on to a place without encryption") from None
                url = following
            else:
                return answer, url
        raise RemoteError(url, "the server sends us round in circles; correct the address")

    def deadline(self) -> float:
        """Return when an answer that begins now has to be read, on the clock of ``time.monotonic``."""
        return time.monotonic() + 20 * self.timeout


def origin(url: str) -> tuple[str, str, int]:
    """Return what decides who hears a secret: scheme, host and port."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return parts.scheme, (parts.hostname or "").lower(), port


def shown(url: str) -> str:
    """Return an address without what is secret in it: password, and the query where signatures stand."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _pause(error: urllib.error.HTTPError, attempt: int) -> float:
    """Return how long to wait, in seconds: what the server wishes, or longer each time."""
    wish = str(error.headers.get("Retry-After") or "").strip()
    if wish.isdigit() and len(wish) < 10:
        return float(wish)
    if wish and email.utils.parsedate_tz(wish):
        return max(0.0, email.utils.parsedate_to_datetime(wish).timestamp() - time.time())
    return FIRST_PAUSE * (1 << attempt)


def _explain(error: urllib.error.HTTPError, pause: float) -> str:
    reason = _REASONS.get(str(error.headers.get("X-Error-Code")))
    if reason:
        return reason
    if error.code in _PASSING and pause > LONGEST_PAUSE:
        return "the server says %d %s and wants us to wait for %d s; try again then" % (error.code, error.reason, pause)
    if error.code in _PASSING:
        return "the server says %d %s, %d times; try again later" % (error.code, error.reason, ATTEMPTS)
    return _STATUS.get(error.code, "the server says %d %s; correct the address" % (error.code, error.reason))


def _unreachable(reason: object) -> str:
    return "%s; correct the address, or see that the server can be reached" % (reason,)
