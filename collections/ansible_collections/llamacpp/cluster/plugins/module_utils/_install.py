# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From an archive, here or at a peer, to a verified directory with the files of a release.

A release costs only what no other one has: equal files are one file with several names.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.client
import json
import os
import struct
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._installed import Releases
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import amount
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    MANIFEST,
    ReleaseError,
    describe_tree,
    differences,
    file_sha256,
)

BLOCK = 1 << 20
MIB = 1 << 20
DISK_BLOCK = 4096
# A peer is on the fabric: who does not take a connection at once is behind a packet filter.
ANSWER_SECONDS = 10.0
_GZIP = b"\x1f\x8b"

Say = Callable[[str], None]


class UnreachableError(ReleaseError):
    """None of the addresses gave anything; the caller may bring the archive another way."""


def room(directory: str, needed: int, what: str) -> None:
    """Raise :class:`ReleaseError` when the disk of a directory has fewer than ``needed`` bytes left."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise ReleaseError(full(directory, needed, free, what))


def full(directory: str, needed: int, free: int, what: str) -> str:
    """Return the message for a disk that is too full."""
    return (
        "%s needs %d bytes (%d MiB) and the disk of %s has %d MiB left: %d bytes are missing; free them, lower "
        "llamacpp_keep_releases, or set llamacpp_prefix to another disk"
        % (what, needed, -(-needed // MIB), directory, free // MIB, max(needed - free, 1))
    )


@contextlib.contextmanager
def disk_full(directory: str, needed: Callable[[], int], what: str) -> Iterator[None]:
    """Turn a full disk into a :class:`ReleaseError` that says how much is missing.

    What was written is to be removed inside of it. ``needed()``: bytes in all, asked when the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        disk = os.statvfs(directory)
        raise ReleaseError(full(directory, needed(), disk.f_bavail * disk.f_frsize, what)) from error


def fetch(urls: Sequence[str], sha256: str, target: str, say: Say) -> int:
    """Bring an archive from the first address that has it; return its bytes.

    Raises :class:`UnreachableError` when no address answers, and :class:`ReleaseError` for wrong bytes.
    """
    part = target + ".part"
    trouble: list[str] = []
    for url in urls:
        try:
            try:
                size, found = _download(url, part, say)
            except ReleaseError:
                raise
            except urllib.error.HTTPError as error:
                with error:
                    trouble.append("%s: %s" % (_where(url), error))
                continue
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                cause = error.reason if isinstance(error, urllib.error.URLError) else error
                trouble.append("%s: %s" % (_where(url), cause))
                continue
            if found != sha256:
                raise ReleaseError("%s gave an archive with sha256 %s instead of %s" % (_where(url), found, sha256))
            os.rename(part, target)
            return size
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
    raise UnreachableError("no address gave the archive: %s" % "; ".join(trouble))


def _where(url: str) -> str:
    """Return an address without its path, which is a secret between peers."""
    parts = urllib.parse.urlsplit(url)
    return "%s://%s" % (parts.scheme, parts.netloc.rpartition("@")[2])


def _download(url: str, part: str, say: Say) -> tuple[int, str]:
    """Write what an address gives into ``part``; return bytes and sha256."""
    # Not through a proxy of the node: the address is a peer's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    digest, done, started = hashlib.sha256(), 0, time.monotonic()
    with opener.open(url, timeout=ANSWER_SECONDS) as answer, open(part, "wb") as stream:
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        if total is not None:
            room(os.path.dirname(part), total, "the archive")
        for block in iter(lambda: answer.read(BLOCK), b""):
            stream.write(block)
            digest.update(block)
            done += len(block)
            say("fetching from %s: %s" % (_where(url), amount(done, total, started, time.monotonic())))
    if total is not None and done < total:
        raise ConnectionResetError(errno.ECONNRESET, "the connection broke after %d of %d bytes" % (done, total))
    return done, digest.hexdigest()


def unpacked_bytes(archive: str) -> int:
    """Return how many bytes an archive is when it is unpacked: gzip keeps that, modulo 4 GiB, at the end (RFC 1952)."""
    packed = os.stat(archive).st_size
    with open(archive, "rb") as stream:
        if stream.read(2) != _GZIP or packed < 18:
            return packed
        stream.seek(-4, os.SEEK_END)
        (size,) = struct.unpack("<I", stream.read(4))
    # Binaries become smaller by packing, so a smaller number has gone round.
    while size < packed - BLOCK:
        size += 1 << 32
    return int(size)


def blocks_bytes(archive: str) -> int:
    """Return how many bytes of a disk an archive takes when it is unpacked: whole blocks, a block a directory."""
    with tarfile.open(archive) as tar:
        return sum(max(1, -(-member.size // DISK_BLOCK)) * DISK_BLOCK for member in tar)


def unpack(archive: str, into: str, say: Say) -> None:
    """Unpack a release's archive as root's files; refuse members that would land elsewhere.

    Raises :class:`ReleaseError` for a broken archive.
    """
    done, started, total = 0, time.monotonic(), unpacked_bytes(archive)
    try:
        with tarfile.open(archive, "r|*") as tar:
            # Python since 3.12 has a check of its own, besides the one below.
            if hasattr(tarfile, "data_filter"):
                tar.extraction_filter = tarfile.data_filter
            for member in tar:
                _check_member(member, archive, into)
                member.uid = member.gid = 0
                member.uname = member.gname = "root"
                tar.extract(member, into)
                done += member.size
                say("unpacking: %s" % amount(done, total, started, time.monotonic()))
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ReleaseError("%s is not a whole archive: %s" % (archive, error)) from error


def _check_member(member: tarfile.TarInfo, archive: str, into: str) -> None:
    target = os.path.normpath(os.path.join(into, member.name))
    if not (target + os.sep).startswith(into + os.sep):
        raise ReleaseError("%s: member %s leaves the directory" % (archive, member.name))
    if member.issym() and (os.path.isabs(member.linkname) or ".." in member.linkname.split("/")):
        raise ReleaseError("%s: link %s leaves the directory" % (archive, member.name))
    if not (member.isreg() or member.issym() or member.isdir()):
        raise ReleaseError("%s: %s is neither a file, a directory nor a symbolic link" % (archive, member.name))


def verify(root: str, release: str) -> dict[str, Any]:
    """Compare every file with the manifest; return the manifest. Raises :class:`ReleaseError`."""
    try:
        with open(os.path.join(root, MANIFEST), encoding="utf-8") as stream:
            manifest: dict[str, Any] = json.load(stream)
        files = manifest["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError("its archive has no usable %s (%s)" % (MANIFEST, error)) from error
    if manifest.get("id", release) != release:
        raise ReleaseError("its archive holds the release %s" % manifest["id"])
    wrong = differences(files, describe_tree(root))
    if wrong:
        raise ReleaseError("it does not match its manifest: %s" % "; ".join(wrong[:5]))
    return manifest


def share_files(root: str, manifest: Mapping[str, Any], releases: Releases) -> int:
    """Replace files that another whole release has by links to that release's; return the bytes that this saves.

    What another manifest promises is hashed once more: a file that rotted shall not spread.
    """
    donors: dict[tuple[str, bool], str] = {}
    for other in releases.ids():
        if os.path.realpath(releases.path(other)) != os.path.realpath(root) and releases.complete(other):
            for name, facts in releases.manifest(other)["files"].items():
                if "sha256" in facts:
                    donors[(facts["sha256"], facts["executable"])] = os.path.join(releases.path(other), name)
    saved = 0
    for name, facts in manifest["files"].items():
        donor = donors.get((facts["sha256"], facts["executable"])) if "sha256" in facts else None
        if donor and facts["bytes"] and file_sha256(donor) == facts["sha256"]:
            path = os.path.join(root, name)
            os.link(donor, path + ".link")
            os.rename(path + ".link", path)
            saved += facts["bytes"]
    return saved
