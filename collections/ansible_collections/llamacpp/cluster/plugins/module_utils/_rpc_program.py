# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""FNV-1a-64 of ranges of files, by the program of a release, or by Python where that is little.

A release that this collection compiled has ``bin/llamacpp-rpc-cache`` (source: roles/llama_cpp/files/rpc_cache.c,
which says what it reads and writes). Python does 8 MB/s where the program does 5 GB/s a core.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Union

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress, amount

PROGRAM = "llamacpp-rpc-cache"
# VERSION of rpc_cache.c: what the lines mean.
PROGRAM_VERSION = "1"
# What Python does in some eight seconds.
PYTHON_BYTES = 64 << 20

NAME = re.compile(r"[0-9a-f]{16}")
# fnv_hash in ggml/src/ggml-rpc/ggml-rpc.cpp (b11434).
_BASIS, _PRIME, _MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1
_BLOCK = 1 << 20


class RpcCacheError(Exception):
    """The cache cannot be listed, seeded or scrubbed; the text says why and what to do."""


class NoProgramError(RpcCacheError):
    """There is more to hash than Python should, and no program for it."""


class Range(NamedTuple):
    """Some bytes of a file."""

    offset: int
    bytes: int


class Checked(NamedTuple):
    """What an entry is: ``state`` ok, bad or gone; ``bytes`` of its file."""

    state: str
    bytes: int


def fnv1a64(data: bytes, value: int = _BASIS) -> int:
    """Go on from ``value`` over ``data``."""
    for byte in data:
        value = ((value ^ byte) * _PRIME) & _MASK
    return value


class Program:
    """The program of a release. ``threads``: 0 is one a processor."""

    def __init__(self, path: str, progress: Progress, threads: int = 0) -> None:
        self.path = path
        self._progress = progress
        self._threads = threads

    def hash(self, file: str, ranges: Sequence[Range]) -> list[str]:
        """Return the hash of each range, as 16 hexadecimal digits. Raises :class:`RpcCacheError`."""
        return self._run(["hash", file], ranges, "hashing tensors")

    def seed(self, file: str, ranges: Sequence[Range], directory: str) -> list[str]:
        """Make entries in ``directory`` of ranges of a file; return their names. Raises :class:`RpcCacheError`."""
        lines = self._run(["seed", file, directory], ranges, "seeding the RPC cache")
        return [line.split(" ")[0] for line in lines]

    def check(self, directory: str, names: Iterable[str]) -> dict[str, Checked]:
        """Say of entries whether their bytes are what their names say. Raises :class:`RpcCacheError`."""
        lines = self._run(["check", directory], list(names), "checking the RPC cache", directory)
        found = {}
        for line in lines:
            name, state, size = line.split(" ")
            found[name] = Checked(state, int(size))
        return found

    def _run(self, words: Sequence[str], wanted: Sequence[Range | str], what: str, directory: str = "") -> list[str]:
        if not wanted:
            return []
        total = 0
        for item in wanted:
            total += _size(os.path.join(directory, item)) if isinstance(item, str) else item.bytes
        threads = ["--threads", str(self._threads)] if self._threads else []
        started = time.monotonic()
        answers = []
        with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+", errors="replace") as errors:
            asked.writelines(
                "%s\n" % (item if isinstance(item, str) else "%d %d" % (item.offset, item.bytes)) for item in wanted
            )
            asked.seek(0)
            with subprocess.Popen(
                [self.path, *threads, *words],
                stdin=asked,
                stdout=subprocess.PIPE,
                stderr=errors,
                universal_newlines=True,
            ) as process:
                for line in process.stdout or ():
                    word, _blank, rest = line.rstrip("\n").partition(" ")
                    if word == "=":
                        self._progress.say("%s: %s" % (what, amount(int(rest), total, started, time.monotonic())))
                    else:
                        answers.append(line.rstrip("\n"))
            errors.seek(0)
            said = errors.read().strip()
        if process.returncode or len(answers) != len(wanted):
            raise RpcCacheError(said or "%s ended with %d" % (self.path, process.returncode))
        return answers


class Python:
    """Does what :class:`Program` does, in Python, for little. Raises :class:`NoProgramError` for much."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def hash(self, file: str, ranges: Sequence[Range]) -> list[str]:
        """See :meth:`Program.hash`."""
        self._bound(sum(item.bytes for item in ranges))
        with open(file, "rb") as stream:
            return ["%016x" % fnv1a64(_read(stream.fileno(), item, file)) for item in ranges]

    def seed(self, file: str, ranges: Sequence[Range], directory: str) -> list[str]:
        """See :meth:`Program.seed`."""
        names = self.hash(file, ranges)
        with open(file, "rb") as stream:
            for name, item in zip(names, ranges):
                self._write(directory, name, _read(stream.fileno(), item, file))
        return names

    def check(self, directory: str, names: Iterable[str]) -> dict[str, Checked]:
        """See :meth:`Program.check`."""
        wanted = list(names)
        self._bound(sum(_size(os.path.join(directory, name)) for name in wanted))
        return {name: self._check(os.path.join(directory, name), name) for name in wanted}

    def _bound(self, count: int) -> None:
        if count > PYTHON_BYTES:
            raise NoProgramError(
                "%s, and %d MiB are too much to hash without it: deploy a release that this collection compiles"
                % (self._missing, count >> 20)
            )

    @staticmethod
    def _check(path: str, name: str) -> Checked:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return Checked("gone", 0)
        except OSError:
            # A symbolic link: nobody's entry.
            return Checked("bad", 0)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                return Checked("bad", 0)
            value = fnv1a64(_read(descriptor, Range(0, info.st_size), path))
        except RpcCacheError:
            # A worker began to write it again.
            return Checked("bad", info.st_size)
        finally:
            os.close(descriptor)
        return Checked("ok" if "%016x" % value == name else "bad", info.st_size)

    @staticmethod
    def _write(directory: str, name: str, data: bytes) -> None:
        path = os.path.join(directory, name)
        if os.path.isfile(path) and not os.path.islink(path) and os.stat(path).st_size == len(data):
            return
        handle, temporary = tempfile.mkstemp(prefix=".seed-", dir=directory)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fchmod(stream.fileno(), 0o644)
                os.fdatasync(stream.fileno())
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


Hasher = Union[Program, Python]


def hasher(path: str, progress: Progress, threads: int = 0) -> Hasher:
    """Return the program at ``path``, or Python where there is none that understands us."""
    try:
        said = subprocess.run([path, "version"], stdout=subprocess.PIPE, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return Python("%s does not run here (%s)" % (path, error))
    if said.strip() != PROGRAM_VERSION:
        return Python("%s speaks version %s, not %s" % (path, said.strip(), PROGRAM_VERSION))
    return Program(path, progress, threads)


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except FileNotFoundError:
        return 0


def _read(descriptor: int, wanted: Range, path: str) -> bytes:
    parts = []
    at, end = wanted.offset, wanted.offset + wanted.bytes
    while at < end:
        part = os.pread(descriptor, min(_BLOCK, end - at), at)
        if not part:
            raise RpcCacheError("%s: the file ends at byte %d, %d bytes were to come" % (path, at, end - at))
        parts.append(part)
        at += len(part)
    return b"".join(parts)
