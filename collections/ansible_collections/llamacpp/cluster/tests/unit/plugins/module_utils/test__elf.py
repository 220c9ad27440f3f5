# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading ELF files: Python's own, and some that gcc makes on the spot."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _elf

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


def test_the_interpreter_asks_for_a_c_library():
    elf = _elf.read_elf(sys.executable)
    assert elf is not None and "libc.so.6" in elf.needed
    assert _elf.version_key(_elf.libc_needed([elf])) >= (2, 2)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n" + b"# a long script\n" * 10, b"\x7fELF\x01" + bytes(200)])
def test_other_files_are_none(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert _elf.read_elf(str(path)) is None
    assert _elf.read_elf(str(tmp_path)) is None
    assert _elf.read_elf(str(tmp_path / "absent")) is None


@needs_gcc
def test_library_with_names_and_run_path(tmp_path):
    (tmp_path / "empty.c").write_text("int one(void) { return 1; }\n")
    library = tmp_path / "libone.so"
    linking = ["-Wl,-soname,libone.so.7", "-Wl,--no-as-needed", "-lm", "-Wl,-rpath,$ORIGIN/../lib:$ORIGIN"]
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "empty.c", *linking], check=True)
    elf = _elf.read_elf(str(library))
    assert elf is not None
    assert (elf.soname, elf.runpath) == ("libone.so.7", ("$ORIGIN/../lib", "$ORIGIN"))
    assert elf.needed[0] == "libm.so.6"


@needs_gcc
def test_static_program_asks_for_nothing(tmp_path):
    (tmp_path / "nothing.c").write_text("void _start(void) { for (;;) { } }\n")
    program = tmp_path / "nothing"
    subprocess.run(["gcc", "-static", "-nostdlib", "-o", program, tmp_path / "nothing.c"], check=True)
    assert _elf.read_elf(str(program)) == _elf.Elf()


def test_damaged_file_is_named(tmp_path):
    with open(sys.executable, "rb") as stream:
        head = stream.read(200)
    path = tmp_path / "half"
    path.write_bytes(head)
    with pytest.raises(_elf.ElfError, match="half is a damaged ELF file"):
        _elf.read_elf(str(path))


@pytest.mark.parametrize(
    ("names", "libc"),
    [
        ((), ""),
        (("GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.9"), "2.34"),
        (("GLIBC_PRIVATE", "GLIBC_2.2.5"), "2.2.5"),
        (("GLIBC_2.34", "GLIBC_ABI_DT_RELR"), "2.36"),
        (("GLIBCXX_3.4.30",), ""),
    ],
)
def test_the_highest_version_counts(names, libc):
    assert _elf.libc_needed([_elf.Elf(), _elf.Elf(versions={"libc.so.6": names})]) == libc
