# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an ELF file asks of the machine that runs it: libraries, where it looks for them, the C library's age.

Read from the file itself, because nodes and the control node need not have binutils, and because ``ldd`` runs
what it looks at. Layout: ELF-64 Object File Format 1.5; ``Elf64_Verneed`` as in the Linux Standard Base 5.0, Core,
"Symbol Versioning". Files of 32 bits are none that llama.cpp is built as here.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_HEADER_BYTES = 64
_PT_LOAD = 1
_PT_DYNAMIC = 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 14, 15, 29
_DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF

_GLIBC = re.compile(r"^GLIBC_(\d+(?:\.\d+)+)$")
# A mark that a file has relative relocations in a new form; the first C library that knows it is 2.36.
_RELR = ("GLIBC_ABI_DT_RELR", "2.36")


class ElfError(ValueError):
    """A file that begins like an ELF file of 64 bits and is none; the text names it."""


@dataclass(frozen=True)
class Elf:
    """A dynamically linked file; all empty for a static one.

    ``needed``: names of libraries. ``soname``: its own name as a library. ``runpath``: directories, as written
    (``$ORIGIN``). ``versions``: library -> versions of its symbols in use, as ``{"libc.so.6": ("GLIBC_2.34",)}``.
    """

    needed: tuple[str, ...] = ()
    soname: str = ""
    runpath: tuple[str, ...] = ()
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_elf(path: str) -> Elf | None:
    """Read a file; None when it is no ELF file of 64 bits (a script, a text, a link to nothing).

    Raises :class:`ElfError` for one that is damaged and :class:`OSError`.
    """
    if not os.path.isfile(path) or os.stat(path).st_size < _HEADER_BYTES:
        return None
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # 0x7f "ELF", then 2 for files of 64 bits
        if data[:5] != b"\x7fELF\x02":
            return None
        try:
            return _Reader(data).read()
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ElfError("%s is a damaged ELF file: %s" % (path, error)) from error


class _Reader:
    """Follows the tables of one file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._order = ">" if data[5] == 2 else "<"
        table, size, count = self._unpack("Q", 0x20)[0], *self._unpack("HH", 0x36)
        # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz
        self._segments = [self._unpack("IIQQQQ", table + number * size) for number in range(count)]
        self._strings = 0

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        """Read numbers at an offset of the file."""
        return struct.unpack_from(self._order + layout, self._data, offset)

    def _offset(self, address: int) -> int:
        """Return where in the file an address of the loaded program lies."""
        for kind, _flags, offset, start, _physical, length in self._segments:
            if kind == _PT_LOAD and start <= address < start + length:
                return offset + address - start
        raise IndexError("address 0x%x is in no segment" % address)

    def _string(self, index: int) -> str:
        """Return a string of the dynamic string table."""
        start = self._strings + index
        end = self._data.find(b"\0", start)
        if end < 0:
            raise IndexError("a string without an end")
        return self._data[start:end].decode()

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        """Go through tags and values of the dynamic section."""
        for kind, _flags, offset, _start, _physical, length in self._segments:
            if kind != _PT_DYNAMIC:
                continue
            for place in range(offset, offset + length, 16):
                tag, value = self._unpack("QQ", place)
                if tag == _DT_NULL:
                    return
                yield tag, value

    def read(self) -> Elf:
        """Read what is asked for."""
        tags = list(self._dynamic())
        single = dict(tags)
        if _DT_STRTAB not in single:
            return Elf()
        self._strings = self._offset(single[_DT_STRTAB])
        paths = [self._string(value) for tag, value in tags if tag in (_DT_RPATH, _DT_RUNPATH)]
        return Elf(
            needed=tuple(self._string(value) for tag, value in tags if tag == _DT_NEEDED),
            soname=self._string(single[_DT_SONAME]) if _DT_SONAME in single else "",
            runpath=tuple(part for path in paths for part in path.split(":") if part),
            versions=dict(self._needed_versions(single)),
        )

    def _needed_versions(self, single: Mapping[int, int]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Go through libraries and the versions of their symbols."""
        if _DT_VERNEED not in single:
            return
        place = self._offset(single[_DT_VERNEED])
        for _number in range(single.get(_DT_VERNEEDNUM, 0)):
            # vn_version, vn_cnt, vn_file, vn_aux, vn_next
            _version, count, library, auxiliary, following = self._unpack("HHIII", place)
            names = []
            entry = place + auxiliary
            for _index in range(count):
                # vna_hash, vna_flags, vna_other, vna_name, vna_next
                _hash, _flags, _other, name, step = self._unpack("IHHII", entry)
                names.append(self._string(name))
                entry += step
            yield self._string(library), tuple(names)
            place += following


def version_key(version: str) -> tuple[int, ...]:
    """Return numbers to compare a C library's version (``2.36``) by; empty for an empty text."""
    return tuple(int(part) for part in version.split(".") if part)


def libc_needed(files: Iterable[Elf]) -> str:
    """Return the oldest version of the GNU C library (``2.34``) that runs all of these files; empty when none asks."""
    found = [""]
    for elf in files:
        for names in elf.versions.values():
            for name in names:
                match = _GLIBC.match(name)
                if match:
                    found.append(match.group(1))
                elif name == _RELR[0]:
                    found.append(_RELR[1])
    return max(found, key=version_key)
