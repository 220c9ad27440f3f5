# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Shorten the run path of an ELF file in its place, as chrpath(1) and CMake's ``file(RPATH_CHANGE)`` do.

The dynamic string table cannot grow, so a new run path is at most as long as the old one. Layout: ELF-64 Object File
Format 1.5.
"""

from __future__ import annotations

import os
import struct

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 5, 15, 29
# e_machine -> what uname says
_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64", 22: "s390x", 21: "ppc64le"}


def machine_of(path: str) -> str:
    """Return the kind of CPU that an ELF file is for; ``machine N`` for one without a name here."""
    with open(path, "rb") as stream:
        head = stream.read(20)
    (number,) = struct.unpack_from((">" if head[5] == 2 else "<") + "H", head, 18)
    return _MACHINES.get(number, "machine %d" % number)


def shorten(path: str, wanted: str) -> bool:
    """Write ``wanted`` over every run path of a file; False, and nothing written, when there is none or no room.

    The file has to be an ELF file that ``_elf.read_elf`` reads; it keeps its time. Raises :class:`OSError`.
    """
    times = os.stat(path)
    with open(path, "r+b") as stream:
        data = stream.read()
        places = _places(data)
        new = wanted.encode()
        olds = [data[place : data.index(b"\0", place)] for place in places]
        if not olds or any(len(old) < len(new) for old in olds):
            return False
        for place, old in zip(places, olds):
            stream.seek(place)
            stream.write(new.ljust(len(old), b"\0"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return True


def _places(data: bytes) -> list[int]:
    """Return where in the file the strings of DT_RPATH and DT_RUNPATH begin."""
    order = ">" if data[5] == 2 else "<"
    (table,) = struct.unpack_from(order + "Q", data, 0x20)
    size, count = struct.unpack_from(order + "HH", data, 0x36)
    # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz
    segments = [struct.unpack_from(order + "IIQQQQ", data, table + number * size) for number in range(count)]
    tags: list[tuple[int, int]] = []
    for kind, _flags, offset, _start, _physical, length in segments:
        if kind == _PT_DYNAMIC:
            tags += struct.iter_unpack(order + "QQ", data[offset : offset + length])
    if (_DT_NULL, 0) in tags:
        del tags[tags.index((_DT_NULL, 0)) :]
    address = dict(tags).get(_DT_STRTAB, 0)
    for kind, _flags, offset, start, _physical, length in segments:
        if kind == _PT_LOAD and start <= address < start + length:
            strings = offset + address - start
            return [strings + value for tag, value in tags if tag in (_DT_RPATH, _DT_RUNPATH)]
    return []
