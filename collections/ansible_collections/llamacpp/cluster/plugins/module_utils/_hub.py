# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models on a hub: addresses, tokens, and which files and quantisations a repository has.

Addresses, environment variables and answers are those of huggingface_hub 2.4 (constants.py,
hf_api.py), which nodes do not have.
"""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import FILE_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client, RemoteError

DEFAULT_ENDPOINT = "https://huggingface.co"
DEFAULT_REVISION = "main"
PREFIX = "hf://"
_FORM = "write hf://owner/repo/file.gguf, and @revision behind it where it is not main"
_ADDRESS = re.compile(r"^hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>.+?\.gguf)(?:@(?P<revision>.+))?$")
_REPO = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*$")
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")
# Pages of a listing: a thousand files each; a page and all pages have bounds so that no server can fill memory.
_PAGE_BYTES = 8 << 20
_PAGES = 50

# What names of files call a quantisation: llama.cpp's file types, and what publishers made up.
_SPELLINGS = {name: name for name in FILE_TYPES.values()}
_SPELLINGS.update({"MXFP4": "MXFP4_MOE", "FP16": "F16", "FP32": "F32"})
for _bits in (2, 3, 4, 5, 6, 8):
    _SPELLINGS.update({"Q%d_K_%s" % (_bits, _size): "Q%d_K_%s" % (_bits, _size) for _size in ("L", "XL")})
_QUANT = re.compile(
    r"(?:^|[-._ ])(UD-)?(%s)(?=$|[-._ ])" % "|".join(sorted(_SPELLINGS, key=len, reverse=True)), re.IGNORECASE
)
# GGUF files that are no language model by themselves.
_BESIDE = re.compile(r"mmproj|imatrix|(?:^|[-._/])mtp[-._]", re.IGNORECASE)


class HubFile(NamedTuple):
    """A file of a repository: ``name`` with folders, ``size`` in bytes, ``sha256`` where the hub keeps one."""

    name: str
    size: int
    sha256: str | None


class Address(NamedTuple):
    """A file on the hub."""

    repo: str
    file: str
    revision: str

    def url(self) -> str:
        """Return where it is fetched from."""
        return "%s/%s/resolve/%s/%s" % (endpoint(), self.repo, quote(self.revision, safe=""), quote(self.file))


def parse_address(text: str, revision: str | None = None) -> Address:
    """Take ``hf://owner/repo/folder/file.gguf@revision`` apart; ``revision`` is for an address without one.

    Raises :class:`RemoteError` for another form, and for two revisions that differ.
    """
    match = _ADDRESS.match(text)
    if not match or ".." in match.group("file").split("/"):
        raise RemoteError(text, _FORM)
    own = match.group("revision")
    if own and revision and own != revision:
        raise RemoteError(text, "it names the revision %s, revision is %s; leave one out" % (own, revision))
    return Address(check_repo(match.group("repo")), match.group("file"), own or revision or DEFAULT_REVISION)


def check_repo(repo: str) -> str:
    """Return ``repo``; raises :class:`RemoteError` when it is not owner/name."""
    if not _REPO.match(repo):
        raise RemoteError(PREFIX + repo, "a repository is written owner/name")
    return repo


def endpoint() -> str:
    """Return the hub's address, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def find_token(given: str | None = None) -> str | None:
    """Return the token: what is given, else HF_TOKEN's, else what was saved by logging in on this machine."""
    token = given or os.environ.get("HF_TOKEN")
    if token:
        return token.strip() or None
    home = os.environ.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
    path = os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as stream:
            return stream.read(4096).strip() or None
    except (OSError, ValueError):
        return None


def hub_client(token: str | None = None, timeout: float = 30) -> Client:
    """Return how to ask the hub, with the token that :func:`find_token` finds."""
    return Client(find_token(token), endpoint(), timeout)


def hub_files(repo: str, revision: str | None = None, client: Client | None = None) -> list[HubFile]:
    """Return all files of a repository, by name.

    Raises :class:`RemoteError`: no such repository or revision, a licence to accept, no answer.
    """
    client = client or hub_client()
    url = "%s/api/models/%s/tree/%s?recursive=true" % (
        endpoint(),
        check_repo(repo),
        quote(revision or DEFAULT_REVISION, safe=""),
    )
    files: list[HubFile] = []
    for _number in range(_PAGES):
        answer, place = client.open(url)
        files.extend(_entries(url, _body(url, answer)))
        following = _next_page(answer.headers.get("Link"))
        if not following:
            return sorted(files)
        url = urljoin(place, following)
    raise RemoteError(url, "the repository has more than %d pages of files" % _PAGES)


def hub_commit(repo: str, revision: str | None = None, client: Client | None = None) -> str:
    """Return the commit that a revision of a repository is now; raises :class:`RemoteError`."""
    client = client or hub_client()
    url = "%s/api/models/%s/revision/%s" % (
        endpoint(),
        check_repo(repo),
        quote(revision or DEFAULT_REVISION, safe=""),
    )
    answer, _place = client.open(url)
    found = _json(url, _body(url, answer))
    commit = found.get("sha") if isinstance(found, dict) else None
    if not isinstance(commit, str):
        raise RemoteError(url, "the answer names no commit; see that HF_ENDPOINT is a hub")
    return commit


def is_away(error: RemoteError) -> bool:
    """Whether a hub did not get to answer; not where it refused, or knows of nothing."""
    if error.status is not None:
        return error.status >= 500 or error.status in (408, 425, 429)
    return isinstance(error.__cause__, (OSError, http.client.HTTPException))


def _body(url: str, answer: Any) -> bytes:
    """Read an answer, and close it. One that a broken connection cut short reads as if it were whole."""
    try:
        with answer:
            body: bytes = answer.read(_PAGE_BYTES + 1)
        length = str(answer.headers.get("Content-Length") or "")
        if length.isdigit() and len(body) < min(int(length), _PAGE_BYTES):
            raise http.client.IncompleteRead(body, int(length) - len(body))
    except (OSError, http.client.HTTPException) as error:
        raise RemoteError(url, "the connection broke: %s; try again later" % error) from error
    return body


def _json(url: str, body: bytes) -> Any:
    """Return what a hub answered; the interpreter's limit bounds how deep it may be nested."""
    if len(body) > _PAGE_BYTES:
        raise RemoteError(url, "the answer has more than %d MiB" % (_PAGE_BYTES >> 20))
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RemoteError(url, "the answer is no JSON: %s; see that HF_ENDPOINT is a hub" % error) from error


def _entries(url: str, body: bytes) -> list[HubFile]:
    entries = _json(url, body)
    if not isinstance(entries, list):
        raise RemoteError(url, "the answer is no list of files; see that HF_ENDPOINT is a hub")
    return [_file(item) for item in entries if isinstance(item, dict) and item.get("type") == "file"]


def _file(item: Mapping[str, Any]) -> HubFile:
    lfs = item.get("lfs")
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    size = item.get("size")
    return HubFile(
        str(item.get("path")), size if isinstance(size, int) else 0, sha256 if isinstance(sha256, str) else None
    )


def _next_page(link: str | None) -> str | None:
    """Return the address of the next page from a Link header (RFC 8288)."""
    for part in (link or "").split(","):
        address, _semicolon, parameters = part.strip().partition(">")
        if address.startswith("<") and 'rel="next"' in parameters:
            return address[1:]
    return None


def quantisation_name(name: str) -> str | None:
    """Return the quantisation that a file's name speaks of, as llama.cpp writes it; None where it speaks of none.

    ``x-Q4_K_M.gguf``, ``x.i1-IQ3_XS.gguf``, ``UD-Q4_K_XL/x-UD-Q4_K_XL-00001-of-00003.gguf``, ``x.f16.gguf``.
    """
    folder, _slash, base = name.rpartition("/")
    stem = _SHARD.sub("", base[: -len(".gguf")] if base.endswith(".gguf") else base)
    found = _QUANT.findall(stem) or _QUANT.findall(folder.rpartition("/")[2])
    if not found:
        return None
    prefix, spelling = found[-1]
    return str(prefix).upper() + _SPELLINGS[str(spelling).upper()]


def quantisations(files: Sequence[HubFile]) -> dict[str, dict[str, Any]]:
    """Return the quantisations of a repository: ``{"Q4_K_M": {"files": [...], "bytes": n, "sha256": [...]}}``.

    ``files`` in the order of their parts, ``sha256`` of each of them, or None. Of several sets of one
    quantisation, the one that is nearest to the top of the repository; projectors and importance matrices
    are left out, and so are incomplete sets.
    """
    sets: dict[tuple[str, str], list[HubFile]] = {}
    for item in files:
        quant = quantisation_name(item.name)
        if quant and item.name.endswith(".gguf") and not _BESIDE.search(item.name):
            sets.setdefault((quant, _SHARD.sub("", item.name[: -len(".gguf")])), []).append(item)
    found: dict[str, dict[str, Any]] = {}
    for (quant, stem), parts in sorted(sets.items(), key=lambda entry: (entry[0][1].count("/"), entry[0])):
        parts = sorted(parts)
        if quant in found or not _complete(stem, parts):
            continue
        found[quant] = {
            "files": [item.name for item in parts],
            "bytes": sum(item.size for item in parts),
            "sha256": [item.sha256 for item in parts],
        }
    return found


def _complete(stem: str, parts: Sequence[HubFile]) -> bool:
    names = [item.name for item in parts]
    if names == [stem + ".gguf"]:
        return True
    count = len(names)
    return names == ["%s-%05d-of-%05d.gguf" % (stem, number, count) for number in range(1, count + 1)]
