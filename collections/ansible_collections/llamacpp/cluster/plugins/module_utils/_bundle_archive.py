# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write a bundle, and unpack one into the control node's cache; both whole or not at all, both going on after a break.

Every byte is compared with the manifest on its way. Members are stored as they are: models and packages are
compressed already, and a bundle of a hundred GiB would take hours to compress.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle import (
    CACHED,
    MANIFEST,
    MANIFEST_BYTES,
    REMEDY,
    BundleError,
    Manifest,
    Member,
    damage,
    parse_manifest,
    same_content,
    shortage,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._hash_cache import HashCache
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import amount
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

BLOCK = 1 << 20
Say = Callable[[str], None]


@dataclass
class Meter:
    """Says how many of ``total`` bytes are done."""

    total: int
    say: Say
    done: int = 0
    started: float = 0.0

    def count(self, size: int, name: str) -> None:
        """Count bytes of the member ``name``."""
        self.started = self.started or time.monotonic()
        self.done += size
        self.say("%s: %s" % (name, amount(self.done, self.total, self.started, time.monotonic())))


def read_manifest(bundle: str) -> Manifest:
    """Read the manifest of a bundle. Raises :class:`BundleError` when the file is none."""
    try:
        with tarfile.open(bundle, "r:") as tar:
            return _first(tar)
    except FileNotFoundError as error:
        raise BundleError("%s: no such file on the control node" % bundle) from error
    except (tarfile.TarError, OSError) as error:
        raise BundleError("%s is no bundle (%s): %s" % (bundle, error, REMEDY)) from error
    except BundleError as error:
        raise BundleError("%s: %s" % (bundle, error)) from error


def pack(
    bundle: str, files: Sequence[tuple[Member, str]], about: Mapping[str, Any], created_at: str, say: Say
) -> tuple[Manifest, bool]:
    """Write a bundle of members, each with the file that it is made from.

    Returns its manifest and whether it was written; a bundle with these very members stays as it is.
    Raises :class:`BundleError`, :class:`OSError`.
    """
    members = [member for member, _file in files]
    try:
        present = read_manifest(bundle)
        if same_content(present, members, about) and os.stat(bundle).st_size > present.bytes:
            return present, False
    except BundleError:
        pass  # There is none, or none that can be read: it is written.
    manifest = Manifest(created_at, about, tuple(members))
    directory = os.path.dirname(bundle) or "."
    os.makedirs(directory, exist_ok=True)
    _require(directory, manifest.bytes)
    meter, part = Meter(manifest.bytes, say), bundle + ".part"
    try:
        with tarfile.open(part, "w:", format=tarfile.PAX_FORMAT) as tar:
            text = manifest.text().encode()
            tar.addfile(_info(MANIFEST, len(text)), io.BytesIO(text))
            for member, file in files:
                with open(file, "rb") as stream:
                    reader = _Reader(stream, meter, member.name)
                    tar.addfile(_info(member.path, member.bytes), reader)
                if reader.digest.hexdigest() != member.sha256 or os.stat(file).st_size != member.bytes:
                    raise BundleError("%s changed while it was packed: run it again" % file)
        with open(part, "rb") as stream:
            os.fsync(stream.fileno())
        os.rename(part, bundle)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return manifest, True


def pack_directory(directory: str, archive: str) -> str:
    """Write a directory's files into an archive, the same bytes for the same files; return the archive."""
    part = archive + ".part"
    with tarfile.open(part, "w:", format=tarfile.PAX_FORMAT) as tar:
        for root, directories, names in os.walk(directory):
            directories.sort()
            for name in sorted(names):
                path = os.path.join(root, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as stream:
                        tar.addfile(_info(os.path.relpath(path, directory), os.stat(path).st_size), stream)
    os.rename(part, archive)
    return archive


def unpack(bundle: str, cache: str, say: Say) -> tuple[Manifest, str, bool]:
    """Unpack a bundle below ``cache`` and fill the cache from it; return manifest, directory and whether that changed
    anything.

    What was unpacked and verified before is not read again. Raises :class:`BundleError` with every member that is
    missing or damaged, and :class:`OSError`.
    """
    manifest = read_manifest(bundle)
    directory = unpacked_directory(manifest, cache)
    changed = False
    lacking = [member for member in manifest.members if not _there(directory, member)]
    if lacking or not os.path.exists(os.path.join(directory, MANIFEST)):
        os.makedirs(directory, exist_ok=True)
        needed = sum(member.bytes for member in lacking)
        _require(directory, needed)
        broken = _extract(bundle, directory, lacking, Meter(needed, say))
        if broken:
            raise BundleError("%s: %s" % (bundle, broken))
        bring(os.path.join(directory, MANIFEST), manifest.text())
        changed = True
    return manifest, directory, fill(manifest, directory, cache) or changed


def unpacked_directory(manifest: Manifest, cache: str) -> str:
    """Return where a bundle is unpacked."""
    return os.path.join(cache, "bundles", manifest.id)


def fill(manifest: Manifest, directory: str, cache: str) -> bool:
    """Put members where every role looks for them in the cache; return whether anything was put there.

    What is there already stays. A release counts when its checksum is there, so that comes last.
    """
    changed = False
    for member in manifest.members:
        source, target = os.path.join(directory, member.path), os.path.join(cache, member.path)
        if member.kind == "npm":
            changed = _npm(source, cache) or changed
        if member.kind not in CACHED or os.path.exists(target):
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _link(source, target)
        if member.kind == "release":
            bring(target + ".sha256", member.sha256 + "\n")
        changed = True
    _remember(manifest, directory, cache)
    return changed


def _extract(bundle: str, directory: str, wanted: Sequence[Member], meter: Meter) -> str:
    """Unpack members; return the message about those that cannot be used, empty when all can."""
    left = {member.path: member for member in wanted}
    different = []
    count = 0
    try:
        with tarfile.open(bundle, "r:") as tar:
            count = len(_first(tar).members)
            for info in iter(tar.next, None):
                member = left.get(info.name)
                stream = tar.extractfile(info) if member and info.isfile() else None
                if member is None or stream is None:
                    continue
                if _verified(stream, os.path.join(directory, member.path), member, meter):
                    del left[info.name]
                else:
                    different.append(left.pop(info.name))
    except tarfile.ReadError:
        pass  # The file ends early: what is left is missing.
    return damage(left.values(), different, count)


def _verified(stream: IO[bytes], target: str, member: Member, meter: Meter) -> bool:
    """Write a member to its place if its bytes are those of the manifest; return whether they are."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = target + ".part"
    reader = _Reader(stream, meter, member.name)
    try:
        with open(part, "wb") as output:
            shutil.copyfileobj(reader, output, BLOCK)
        good = reader.digest.hexdigest() == member.sha256
        if good:
            os.rename(part, target)
        return good
    finally:
        if os.path.exists(part):
            os.unlink(part)


def _first(tar: tarfile.TarFile) -> Manifest:
    info = tar.next()
    if info is None or info.name != MANIFEST or info.size > MANIFEST_BYTES:
        raise BundleError("its first member is not %s, so it is no bundle: %s" % (MANIFEST, REMEDY))
    stream = tar.extractfile(info)
    return parse_manifest(stream.read().decode("utf-8", "replace") if stream else "")


def _there(directory: str, member: Member) -> bool:
    """Whether a member was unpacked; it got its name after its bytes were compared."""
    try:
        return os.stat(os.path.join(directory, member.path)).st_size == member.bytes
    except FileNotFoundError:
        return False


def _require(directory: str, needed: int) -> None:
    message = shortage(directory, needed, shutil.disk_usage(directory).free)
    if message:
        raise BundleError(message)


def _info(name: str, size: int) -> tarfile.TarInfo:
    """Return a member that anybody may read, the same on every machine."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o644, "root", "root"
    return info


def _link(source: str, target: str) -> None:
    """Make ``target`` another name of ``source``, or a copy on another file system; whole or not at all."""
    temporary = target + ".part"
    if os.path.exists(temporary):
        os.unlink(temporary)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.rename(temporary, target)


def _npm(archive: str, cache: str) -> bool:
    """Unpack npm's cache where there is none; return whether it was unpacked."""
    target = os.path.join(cache, "npm")
    if os.path.exists(target):
        return False
    part = target + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    with tarfile.open(archive) as tar:
        for info in tar:
            # An archive of our own, and compared with the manifest; still nothing of it may leave the directory.
            if not info.isreg() or os.path.isabs(info.name) or ".." in info.name.split("/"):
                continue
            tar.extract(info, part)
    os.rename(part, target)
    return True


def _remember(manifest: Manifest, directory: str, cache: str) -> None:
    """Spare preflight the hashing of models that were compared a moment ago."""
    hashes = HashCache(os.path.join(cache, "sha256.json"))
    known = hashes.entries()
    for member in manifest.of("model"):
        real = os.path.realpath(os.path.join(directory, member.path))
        if real not in known:
            info = os.stat(real)
            seen = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
            hashes.remember(real, dict(seen, sha256=member.sha256))


class _Reader(io.RawIOBase):
    """Hashes and counts what is read through it."""

    def __init__(self, stream: IO[bytes], meter: Meter, name: str) -> None:
        super().__init__()
        self._stream = stream
        self._meter = meter
        self._name = name
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes."""
        block = self._stream.read(size)
        self.digest.update(block)
        self._meter.count(len(block), self._name)
        return block
