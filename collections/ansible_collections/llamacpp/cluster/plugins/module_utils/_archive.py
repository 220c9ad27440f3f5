# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Archives of others, unpacked without letting them out of their directory, and our own, packed the same every time."""

from __future__ import annotations

import calendar
import gzip
import io
import lzma
import os
import posixpath
import shutil
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Callable, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import amount
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

BLOCK = 1 << 20
# CUDA's libraries are hundreds of MB: level 6 takes three times as long for 3 % less (docs/decisions, 0013).
COMPRESSION = 1
_GZIP = b"\x1f\x8b"


class _Member(NamedTuple):
    """One file or link of an archive. ``size``: bytes. ``mode``: permission bits. ``link``: what a link leads to."""

    name: str
    size: int
    mode: int
    time: int
    link: str
    stream: IO[bytes] | None


def unpack(archive: str, into: str, what: str, say: Callable[[str], None] = lambda line: None) -> int:
    """Unpack a tar or zip archive; return the time of its newest file, in seconds since the epoch.

    ``what`` names the archive in messages, ``say`` gets how far it is. Files and directories are the caller's, and
    may be read by everybody. Raises :class:`ReleaseError` for an archive that is cut or neither of both, for members
    that would land elsewhere, and for what is neither file, directory nor link. Raises :class:`OSError`.
    """
    newest = done = 0
    started, total = time.monotonic(), _gzip_bytes(archive)
    try:
        members = _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive, what)
        for member in members:
            name = _inside(member.name, member.name, what)
            path = os.path.join(into, name)
            if _through_link(into, name):
                raise ReleaseError("%s: member %s goes through a link" % (what, member.name))
            _directory(os.path.dirname(path))
            newest = max(newest, member.time)
            if member.stream is None:
                _inside(posixpath.join(posixpath.dirname(name), member.link), member.name, what)
                os.symlink(member.link, path)
                continue
            with open(path, "wb") as stream:
                shutil.copyfileobj(member.stream, stream, BLOCK)
            os.chmod(path, 0o755 if member.mode & 0o111 else 0o644)
            os.utime(path, (member.time, member.time))
            done += member.size
            say("unpacking: %s" % amount(done, total, started, time.monotonic()))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ReleaseError("%s is not a whole archive (tar or zip): %s" % (what, error)) from error
    return newest


def unpacked_bytes(archive: str) -> int:
    """Return how many bytes an archive is when it is unpacked; of one that does not say so, how many it is as it is."""
    known = _gzip_bytes(archive)
    return os.stat(archive).st_size if known is None else known


def _gzip_bytes(archive: str) -> int | None:
    """Return how many bytes an archive is when it is unpacked: gzip keeps that, modulo 4 GiB, at the end (RFC 1952)."""
    packed = os.stat(archive).st_size
    with open(archive, "rb") as stream:
        if stream.read(2) != _GZIP or packed < 18:
            return None
        stream.seek(-4, os.SEEK_END)
        (size,) = struct.unpack("<I", stream.read(4))
    # Binaries become smaller by packing, so a smaller number has gone round.
    while size < packed - BLOCK:
        size += 1 << 32
    return int(size)


def _directory(path: str) -> None:
    """Make a directory and those above it, for everybody to enter, whatever the umask."""
    if not os.path.isdir(path):
        _directory(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def _inside(path: str, member: str, what: str) -> str:
    """Return a normal relative path. Raises :class:`ReleaseError` when it leaves the directory."""
    normal = posixpath.normpath(path)
    if normal.startswith(("/", "../")) or normal == "..":
        raise ReleaseError("%s: member %s leaves the directory" % (what, member))
    return normal


def _through_link(into: str, name: str) -> bool:
    """Whether a link of the archive itself stands on the way to a member, or in its place."""
    parts = name.split("/")
    return any(os.path.islink(os.path.join(into, *parts[: depth + 1])) for depth in range(len(parts)))


def _tar_members(archive: str, what: str) -> Iterator[_Member]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                continue
            if not (member.isfile() or member.issym() or member.islnk()):
                raise ReleaseError("%s: member %s is neither file, directory nor link" % (what, member.name))
            stream = None if member.issym() else tar.extractfile(member)
            yield _Member(member.name, member.size, member.mode, int(member.mtime), member.linkname, stream)


def _zip_members(archive: str) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            if member.is_dir():
                continue
            mode, moment = member.external_attr >> 16, calendar.timegm((*member.date_time, 0, 0, 0))
            if stat.S_ISLNK(mode):
                yield _Member(member.filename, member.file_size, mode, moment, packed.read(member).decode(), None)
                continue
            with packed.open(member) as stream:
                yield _Member(member.filename, member.file_size, mode, moment, "", stream)


def pack(tree: str, archive: str, first: str) -> None:
    """Pack a directory as ``.tar.gz``: members ``./NAME`` by name after ``first``, owner root.

    The same files give the same bytes, whoever packs them and whenever. Raises :class:`OSError`.
    """
    names = sorted(
        os.path.relpath(os.path.join(directory, name), tree)
        for directory, directories, files in os.walk(tree)
        for name in [*directories, *files]
    )
    with (
        open(archive, "wb") as raw,
        gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as packed,
        tarfile.open(mode="w", fileobj=packed, format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in [first, *(name for name in names if name != first)]:
            tar.add(os.path.join(tree, name), arcname="./" + name, recursive=False, filter=_as_root)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whoever packs, the files belong to root."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    # Whole seconds: a fraction would need a header of its own. Directories have the time of the unpacking.
    member.mtime = 0 if member.isdir() or member.issym() else int(member.mtime)
    return member


def read_member(archive: str, name: str) -> bytes:
    """Return one file of an archive that :func:`pack` made. Raises :class:`ReleaseError` when it is damaged."""
    try:
        with tarfile.open(archive) as tar:
            return (tar.extractfile("./" + name) or io.BytesIO()).read()
    except (tarfile.TarError, EOFError, zlib.error, KeyError, gzip.BadGzipFile) as error:
        raise ReleaseError("%s is damaged: %s; remove it and run again" % (archive, error)) from error
