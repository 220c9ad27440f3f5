# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From an archive, here or at a peer, to a verified directory with the files of a release.

A release costs only what no other one has: equal files are one file with several names.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tarfile
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._download import download
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client, RemoteError
from ansible_collections.llamacpp.cluster.plugins.module_utils._installed import Releases
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    MANIFEST,
    ReleaseError,
    describe_tree,
    differences,
    file_sha256,
)

MIB = 1 << 20
DISK_BLOCK = 4096
# A peer is on the fabric: who does not take a connection at once is behind a packet filter.
ANSWER_SECONDS = 10.0


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


def fetch(urls: Sequence[str], sha256: str, target: str, progress: Progress) -> int:
    """Bring an archive from the first address that has it; return its bytes.

    Raises :class:`UnreachableError` when no address answers, and :class:`ReleaseError` for wrong bytes.
    """
    part = target + ".part"
    trouble: list[str] = []
    # Not through a proxy of the node: the addresses are peers'.
    client = Client(timeout=ANSWER_SECONDS, proxy=False)
    for url in urls:
        try:
            found = download(
                url,
                part,
                progress,
                "the archive from %s" % _where(url),
                client,
                lambda total: room(os.path.dirname(part), total, "the archive"),
            )
            if found != sha256:
                raise ReleaseError("%s gave an archive with sha256 %s instead of %s" % (_where(url), found, sha256))
            size = os.stat(part).st_size
            os.rename(part, target)
            return size
        except RemoteError as error:
            trouble.append("%s: %s" % (_where(url), error.message))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
    raise UnreachableError("no address gave the archive: %s" % "; ".join(trouble))


def _where(url: str) -> str:
    """Return an address without its path, which is a secret between peers."""
    parts = urllib.parse.urlsplit(url)
    return "%s://%s" % (parts.scheme, parts.netloc.rpartition("@")[2])


def blocks_bytes(archive: str) -> int:
    """Return how many bytes of a disk an archive takes when it is unpacked: whole blocks, a block a directory."""
    with tarfile.open(archive) as tar:
        return sum(max(1, -(-member.size // DISK_BLOCK)) * DISK_BLOCK for member in tar)


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
