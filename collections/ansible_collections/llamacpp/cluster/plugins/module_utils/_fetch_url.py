# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files at plain addresses, and files of this node that come in pieces."""

from __future__ import annotations

import http.client
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable
from urllib.parse import unquote, urlsplit

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import (
    Checksums,
    Remote,
    Wanted,
    beside,
    declare,
    role_of,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_parts import BLOCK, BrokenError, FetchError
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client, RemoteError, shown
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import Window, missing_pieces, piece, whole_files

_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.gguf$")
_CONTENT_RANGE = re.compile(r"^bytes (?:[0-9]+-[0-9]+|\*)/([0-9]+)$")


def name_of(address: str) -> str:
    """Return the name of the file at an address or path."""
    path = unquote(urlsplit(address).path) if "://" in address else address
    return posixpath.basename(path)


def gather(addresses: Sequence[str], look: Callable[[str], Remote], checksums: Checksums) -> list[Wanted]:
    """Return the files that addresses or paths become, shards and pieces in the order of their numbers.

    ``look`` finds out about one of them. Raises what it raises, :class:`FetchError`, and
    :class:`_fetch_choice.ChoiceError`.
    """
    by_name: dict[str, str] = {}
    for address in addresses:
        name = name_of(address)
        if not name or name in by_name:
            reason = "two files are called %s" % name if name else "it names no file"
            raise FetchError("%s: %s; every file needs a name of its own" % (shown(address), reason))
        by_name[name] = address
    gaps = missing_pieces(list(by_name))
    if gaps:
        whole, numbers = next(iter(gaps.items()))
        raise FetchError("%s: piece %s is missing; give all of them" % (whole, ", ".join(map(str, numbers))))
    sets = whole_files(list(by_name))
    wanted = []
    for whole in sorted(sets) if all(map(_SHARD.search, sets)) else sets:
        parts = tuple(look(by_name[name]) for name in sets[whole])
        known = parts[0].sha256 if len(parts) == 1 else None
        # One file alone is what somebody wants as a model, whatever its name.
        role = role_of(whole) if len(sets) > 1 and beside(whole) else "model"
        wanted.append(Wanted(whole, role, sum(part.size for part in parts), known, parts))
    if all(item.role != "model" for item in wanted):
        raise FetchError("%s: by their names, none of these files is a model; give it along" % ", ".join(sets))
    return declare(wanted, checksums)


class UrlSource:
    """Web servers, for :func:`_fetch_parts.bring`; a part's name is its address.

    ``declared``: whether the whole is compared with a checksum in the end.
    """

    def __init__(self, client: Client, declared: bool = False) -> None:
        self._client = client
        self._declared = declared
        self._versions: dict[str, str] = {}
        self._begun: set[str] = set()

    def look(self, url: str) -> Remote:
        """Return how large the file at an address is, and what tells it from another one there.

        Raises :class:`FetchError`.
        """
        answer = self._open(url, {"Range": "bytes=0-0"})
        with answer:
            size = _size(answer)
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            self._versions[url] = _version(answer)
        if size is None:
            raise FetchError("%s: the server does not say how large it is; copy it by hand and give path" % shown(url))
        return Remote(url, size, None, "%s %s" % (shown(url), tag))

    def fetch(self, part: Remote, window: Window, have: int) -> None:
        """Write a part from byte ``have`` on; from the start when the server does not know ranges.

        Where no checksum would tell, the rest has to be of the version that the beginning is of (RFC 9110, If-Range);
        what an earlier run has left is of no known version when the server names none.
        """
        version = "" if self._declared else self._versions.get(part.name, "")
        known = self._declared or version or part.name in self._begun
        headers = {"Range": "bytes=%d-" % have} if have and known else {}
        if headers and version:
            headers["If-Range"] = version
        self._begun.add(part.name)
        answer = self._open(part.name, headers)
        with answer:
            if have and answer.status != 206:
                window.seek(0)
                window.truncate()
            if _size(answer) not in (None, part.size):
                raise FetchError("%s: it changed while it was fetched; run again" % shown(part.name))
            while True:
                try:
                    block = answer.read(BLOCK)
                except (OSError, http.client.HTTPException) as error:
                    # What had come before it broke is in the exception at best; the next try asks for it again.
                    raise BrokenError("the connection broke (%s)" % (error or type(error).__name__)) from error
                if not block:
                    break
                window.write(block)
        if window.have() < part.size:
            raise BrokenError("the connection ended too early")

    def origin(self, part: Remote) -> str:
        """Return where a part is from."""
        return shown(part.name)

    def _open(self, url: str, headers: Mapping[str, str]) -> Any:
        try:
            return self._client.open(url, headers)[0]
        except RemoteError as error:
            raise FetchError(str(error)) from error


def _version(answer: Any) -> str:
    """Return what a server takes for If-Range; empty where it names no version that is exact to the byte."""
    tag = str(answer.headers.get("ETag") or "")
    return str(answer.headers.get("Last-Modified") or "") if not tag or tag.startswith("W/") else tag


def _size(answer: Any) -> int | None:
    """Return the size of the whole file that an answer is of, in bytes."""
    found = _CONTENT_RANGE.match(answer.headers.get("Content-Range") or "")
    if found:
        return int(found.group(1))
    length = answer.headers.get("Content-Length") or ""
    return int(length) if answer.status == 200 and length.isdigit() else None


class PathSource:
    """Files of this node, for :func:`_fetch_parts.bring`; a part's name is its path."""

    def look(self, path: str) -> Remote:
        """Return how large a file is, and what tells it from another one there. Raises :class:`FetchError`."""
        try:
            info = os.stat(path)
        except OSError as error:
            raise FetchError("%s: %s on this node; correct path" % (path, (error.strerror or "").lower())) from error
        return Remote(path, info.st_size, None, "%s %d %d" % (os.path.realpath(path), info.st_mtime_ns, info.st_ino))

    def fetch(self, part: Remote, window: Window, have: int) -> None:
        """Write a part from byte ``have`` on."""
        with open(part.name, "rb") as stream:
            stream.seek(have)
            for block in iter(lambda: stream.read(BLOCK), b""):
                window.write(block)
        if window.have() < part.size:
            raise FetchError("%s: it became shorter while it was read; run again" % part.name)

    def origin(self, part: Remote) -> str:
        """Return where a part is from."""
        return part.name


def in_pieces(paths: Sequence[str]) -> bool:
    """Whether files have to be joined."""
    return any(piece(name_of(path)) for path in paths)
