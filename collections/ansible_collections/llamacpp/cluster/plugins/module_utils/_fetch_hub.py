# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A hub, asked by its own client, huggingface_hub 1.8 (Python 3.9) or 2.4.

``hf_hub_download`` of 2.4 downloads to a name of its own each time and throws that away when it fails
(file_download.py, _download_to_tmp_and_move), so nothing could be resumed. What is used here is what it is made of:
HfApi for the commit and the tree, get_hf_file_metadata for the place, http_get for the bytes, from any byte on.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import Remote
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_parts import (
    LONGEST_PAUSE,
    BrokenError,
    FetchError,
    UnreachableError,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import origin
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import DEFAULT_REVISION, check_repo
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import Window

# http_get hands on whole chunks; when a connection breaks, the one that has begun is lost.
CHUNK = 1 << 20
# Larger answers are refused by the client (constants.MAX_HTTP_DOWNLOAD_SIZE); a range is an answer of its own.
RANGE = 32 << 30
SECONDS = 30.0  # of silence
_LATER = (408, 425, 429, 500, 502, 503, 504)
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
# "api";r=0;t=55: no request left in this window, which ends in so many seconds (draft-ietf-httpapi-ratelimit-headers).
_LIMIT = re.compile(r"\br=0\s*;\s*t=([0-9]+)")
_SETTINGS = {
    # Xet's own protocol cannot go on with what came before, and mirrors do not speak it.
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DOWNLOAD_TIMEOUT": "%d" % SECONDS,
}


class Hub:
    """A hub at ``endpoint``, asked with ``token`` or without.

    The token is sent to the hub and to nobody else, and is in no message. Methods raise :class:`FetchError`, or
    :class:`BrokenError` for what another try may mend. Raises :class:`ImportError` where there is no huggingface_hub.
    """

    def __init__(self, endpoint: str, token: str | None) -> None:
        for name, value in _SETTINGS.items():
            os.environ[name] = value
        client = importlib.import_module("huggingface_hub")
        self._downloads = importlib.import_module("huggingface_hub.file_download")
        self._errors = importlib.import_module("huggingface_hub.errors")
        importlib.import_module("huggingface_hub.utils.logging").set_verbosity_error()
        setattr(importlib.import_module("huggingface_hub.constants"), "DOWNLOAD_CHUNK_SIZE", CHUNK)  # noqa: B010
        # 1.8 is made with httpx, 2.4 with httpx2: what their errors have in common.
        self._transport: Any = next(
            base for base in self._errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"
        )
        http = importlib.import_module("huggingface_hub.utils._http")

        def session() -> Any:
            made = http.default_client_factory()
            made.event_hooks = dict(made.event_hooks, response=[_not_now])
            return made

        client.set_client_factory(session)
        self.endpoint = endpoint.rstrip("/")
        # False: not the one that somebody saved on this machine either; who wants that one gives it.
        self._token: str | bool = token or False
        self._client: Any = client
        self._api: Any = client.HfApi(endpoint=self.endpoint, token=self._token, library_name="llamacpp.cluster")
        self.version: str = client.__version__

    def commit(self, repo: str, revision: str | None) -> str:
        """Return the commit that a revision is now."""
        with self._explained("hf://%s" % check_repo(repo), repo, revision):
            info = self._api.model_info(repo, revision=revision or DEFAULT_REVISION, timeout=SECONDS)
        if not info.sha:
            raise FetchError("%s names no commit for %s: is it a hub?" % (self.endpoint, repo))
        return str(info.sha)

    def files(self, repo: str, commit: str) -> list[Remote]:
        """Return all files of a commit."""
        with self._explained("hf://%s" % repo, repo, commit):
            try:
                entries = list(self._api.list_repo_tree(repo, revision=commit, recursive=True))
            except self._transport as error:
                if isinstance(error, self._errors.HfHubHTTPError):
                    raise
                # The client has tried six times already, within half a minute.
                raise UnreachableError(self._silent(error) + "; run again") from error
        files = [item for item in entries if hasattr(item, "blob_id")]
        return [
            Remote(
                item.path, item.lfs.size if item.lfs else item.size, item.lfs.sha256 if item.lfs else None, item.blob_id
            )
            for item in files
        ]

    def source(self, repo: str, commit: str) -> HubSource:
        """Return where the bytes of a commit's files come from."""
        return HubSource(self, repo, commit)

    def fetch(self, repo: str, commit: str, part: Remote, window: Window, have: int) -> None:
        """Write a file from byte ``have`` on into ``window``."""
        url = self._client.hf_hub_url(repo, part.name, revision=commit, endpoint=self.endpoint)
        with self._explained("hf://%s/%s" % (repo, part.name), repo, commit):
            place = self._client.get_hf_file_metadata(url, token=self._token, timeout=SECONDS, endpoint=self.endpoint)
            said = place.etag if part.sha256 else None
            # Mirrors have tags of their own; what is no sha256 says nothing.
            if said and _SHA256.match(said) and said != part.sha256:
                raise FetchError(
                    "hf://%s/%s: the hub lists the sha256 %s and would send %s; it may be at work: run again later"
                    % (repo, part.name, part.sha256, said)
                )
            headers = self._client.utils.build_hf_headers(token=self._token, library_name="llamacpp.cluster")
            if origin(place.location) != origin(url):
                # A signed address of a storage service, which a token is no business of.
                headers.pop("authorization", None)
            for first in range(have, part.size, RANGE):
                end = min(first + RANGE, part.size)
                if part.size > RANGE:
                    headers["Range"] = "bytes=%d-%d" % (first, end - 1)
                    self._range(place.location, window, headers, first, end)
                else:
                    self._downloads.http_get(
                        place.location, window, resume_size=have, headers=headers, expected_size=part.size
                    )

    def _range(self, url: str, window: Window, headers: dict[str, str], first: int, end: int) -> None:
        """Write one range of a large file behind what is there."""
        inner = window.inner(first, end - first)
        self._downloads.http_get(url, inner, headers=headers, expected_size=end - first)

    @contextmanager
    def _explained(self, what: str, repo: str, revision: str | None) -> Iterator[None]:
        """Put the client's errors in words for the operator; theirs have addresses with signatures in them."""
        errors = self._errors
        try:
            yield
        except errors.GatedRepoError as error:
            raise FetchError("%s: %s" % (what, self._gated(repo))) from error
        except errors.RepositoryNotFoundError as error:
            own = "this token may not see it" if self._token else "it is private and needs a token"
            raise FetchError(
                "%s: %s has no such repository, or %s; correct repo, or give llamacpp_hub_token_file"
                % (what, self.endpoint, own)
            ) from error
        except errors.RevisionNotFoundError as error:
            raise FetchError(
                "%s: it has no revision %s; correct revision, or leave it out" % (what, revision)
            ) from error
        except errors.EntryNotFoundError as error:
            raise FetchError("%s: the hub does not have it any more; run again" % what) from error
        except errors.HfHubHTTPError as error:
            raise self._refused(what, error.response) from error
        except self._transport as error:
            raise BrokenError(self._silent(error)) from error
        except errors.OfflineModeIsEnabled as error:
            raise FetchError("%s: HF_HUB_OFFLINE is set on this machine; unset it" % what) from error
        except (ValueError, KeyError, TypeError) as error:
            raise FetchError("%s: %s answers what no hub answers: see HF_ENDPOINT" % (what, self.endpoint)) from error
        except OSError as error:
            if error.errno is not None and not isinstance(error, ConnectionError):
                raise
            # http_get's word for fewer bytes than announced.
            raise BrokenError("the connection ended too early") from error

    def _gated(self, repo: str) -> str:
        page = "%s/%s" % (self.endpoint, repo)
        if self._token:
            return "it is gated, and the owner of this token may not have it yet: accept the conditions on %s" % page
        return (
            "it is gated: accept the conditions on %s with an account of the hub, make a token for reading there, and"
            " give it in a file by llamacpp_hub_token_file, or by HF_TOKEN" % page
        )

    def _refused(self, what: str, response: Any) -> Exception:
        """Return the error for an answer with a status."""
        status, place = int(response.status_code), str(response.url)
        if origin(place) != origin(self.endpoint):
            # It serves signed addresses, which end after an hour or so; the hub gives another one.
            return BrokenError("%s, where the hub sends us, says %d" % (urlsplit(place).netloc, status))
        if status == 401 and not self._token:
            return FetchError("%s: the hub says 401: it wants a token; give llamacpp_hub_token_file" % what)
        if status == 401:
            return FetchError("%s: the hub says 401: the token is wrong or expired; make a new one" % what)
        if status == 403:
            return FetchError("%s: the hub says 403: this token may not read it; make one that may" % what)
        return FetchError("%s: the hub says %d; see that %s is a hub" % (what, status, self.endpoint))

    def _silent(self, error: Exception) -> str:
        words = str(error) or type(error).__name__
        return "%s cannot be reached or broke off (%s)" % (self.endpoint, words.splitlines()[0][:200])


def _not_now(response: Any) -> None:
    """Take answers that ask for patience out of the client's hands, which would wait for hours and say nothing.

    Raises :class:`BrokenError`.
    """
    if response.status_code not in _LATER:
        return
    limit = _LIMIT.search(str(response.headers.get("RateLimit") or "")) if response.status_code == 429 else None
    wish = limit.group(1) if limit else str(response.headers.get("Retry-After") or "")
    pause = float(wish) if wish.isdigit() and len(wish) < 10 else None
    words = "the hub says %d" % response.status_code
    if pause is not None and pause > LONGEST_PAUSE:
        words += " and wants us to wait for %d s" % pause
    raise BrokenError(words, pause)


class HubSource:
    """Files of one commit, for :func:`_fetch_parts.bring`."""

    def __init__(self, hub: Hub, repo: str, commit: str) -> None:
        self._hub = hub
        self._repo = repo
        self._commit = commit

    def fetch(self, part: Remote, window: Window, have: int) -> None:
        """Write a part from byte ``have`` on."""
        self._hub.fetch(self._repo, self._commit, part, window, have)

    def origin(self, part: Remote) -> str:
        """Return where a part is from."""
        return "hf://%s/%s" % (self._repo, part.name)
