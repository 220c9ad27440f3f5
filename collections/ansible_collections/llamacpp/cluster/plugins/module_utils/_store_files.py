# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files of the store on the disk: written so that a power cut leaves the old state or the new one, hashed, copied."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import amount

# What a killed run leaves under such a name is nobody's; no model and no file can be called so.
SCRATCH = ".new-"
BLOCK = 1 << 20
# FICLONE of linux/fs.h as most machines number it. Others answer that there is no such thing, and the bytes are copied.
_FICLONE = 0x40049409


def make_directory(path: str) -> None:
    """Make a directory and those above it, readable by everybody whatever the umask. Raises :class:`OSError`."""
    absent = []
    while not os.path.isdir(path):
        absent.append(path)
        path = os.path.dirname(path)
    for made in reversed(absent):
        try:
            os.mkdir(made)
        except FileExistsError:
            if not os.path.isdir(made):
                raise
        os.chmod(made, 0o755)
        sync_directory(os.path.dirname(made))


def sync_directory(path: str) -> None:
    """Bring what changed in a directory to the disk (fsync(2)). Raises :class:`OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: str) -> None:
    """Bring a file's bytes to the disk. Raises :class:`OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: str, content: bytes) -> None:
    """Bring a small file to a content, whole or not at all, mode 0644. Raises :class:`OSError`."""
    directory = os.path.dirname(path)
    make_directory(directory)
    handle, temporary = tempfile.mkstemp(prefix=SCRATCH, dir=directory)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    sync_directory(directory)


def give_name(path: str, link: str, symbolic: bool) -> None:
    """Make ``link`` another name of the file ``path``, in one step, also where ``link`` was something else.

    Raises :class:`OSError`.
    """
    # mkstemp() would make the file; a name that nobody has is enough here, as the store's lock is held.
    temporary = os.path.join(os.path.dirname(link), "%slink" % SCRATCH)
    forget(temporary)
    if symbolic:
        os.symlink(path, temporary)
    else:
        os.link(path, temporary)
    os.rename(temporary, link)


def forget(path: str) -> None:
    """Remove a file that need not be there. Raises :class:`OSError`."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_empty(path: str, top: str) -> None:
    """Remove a directory and those above it, up to and without ``top``, as far as they are empty."""
    while path != top:
        try:
            os.rmdir(path)
        except OSError:
            return
        path = os.path.dirname(path)


def status(path: str) -> os.stat_result | None:
    """Return what a regular file is; None when there is none (a link is none)."""
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info if stat.S_ISREG(info.st_mode) else None


def marks(info: os.stat_result) -> dict[str, int]:
    """Return by what a file is recognised without reading it: as long as these are the same, so are its bytes."""
    return {"bytes": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}


def listing(directory: str) -> list[str]:
    """Return the names in a directory, sorted; none when it is not there."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def walk(directory: str) -> Iterator[str]:
    """Go through the paths of all files and links below a directory."""
    for within, _directories, files in os.walk(directory):
        for name in sorted(files):
            yield os.path.join(within, name)


def sha256_of(path: str, say: Callable[[str], None], what: str = "", copy: str | None = None) -> str:
    """Hash a file and say how far it is; ``copy``: a new file that gets the same bytes on the way.

    ``what`` is what people call the file; by its name if empty.
    The hash is that of the copy also where the file system clones it without a copy of the bytes.
    Raises :class:`StoreError` when the file changes meanwhile, and :class:`OSError`.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    name = what or os.path.basename(path)
    with contextlib.ExitStack() as stack:
        source: Any = stack.enter_context(open(path, "rb", buffering=0))
        target: Any = stack.enter_context(open(copy, "wb", buffering=0)) if copy else None
        before = os.fstat(source.fileno())
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        cloned = target is not None and _cloned(source.fileno(), target.fileno())
        started, done = time.monotonic(), 0
        # A file that somebody is still writing would not end.
        while done <= before.st_size:
            count = source.readinto(buffer)
            if not count:
                break
            digest.update(buffer[:count])
            if target is not None and not cloned:
                _write_all(target.fileno(), buffer[:count])
            done += count
            doing = "copying" if target is not None and not cloned else "checking sha256 of"
            say("%s %s: %s" % (doing, name, amount(done, before.st_size, started, time.monotonic())))
        if marks(os.fstat(source.fileno())) != marks(before):
            raise StoreError("%s changed while it was read: wait until it is complete, and run again" % path)
    return digest.hexdigest()


def _cloned(source: int, target: int) -> bool:
    """Let the file system share the bytes of a file with a new one (XFS and Btrfs can)."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _write_all(descriptor: int, block: memoryview) -> None:
    while block:
        block = block[os.write(descriptor, block) :]


def key_of(text: str) -> str:
    """Return a key in the form of a sha256 for a part whose own is not known yet."""
    return hashlib.sha256(text.encode()).hexdigest()
