# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turn NVIDIA's wheels of CUDA 13.x into a directory that looks like an installed toolkit.

The wheels share one tree below ``nvidia/cu13``: ``bin``, ``nvvm``, ``include`` and ``lib`` with libraries by their full
name alone. What compilers look for besides is made here: ``lib64``, the links without a version, and a stub of
``libcuda.so``, which belongs to the driver and is in no wheel.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain_found import WHEELS_FILE

_TREE = re.compile(r"^nvidia/cu\d+/(.+)$")
_LICENCE = re.compile(r"^([^/]+)\.dist-info/licenses/(.+)$")
_EXECUTABLE = re.compile(r"^(bin|nvvm/bin)/[^/]+$")
_NOT_EXECUTABLE = (".profile", ".stub")
_FUNCTION = re.compile(r"^\s*CUresult\s+CUDAAPI\s+(cu\w+)\s*\(", re.MULTILINE)
_RENAMED = re.compile(r"^\s*#\s*define\s+(cu[A-Z]\w*)\s+(?:__CUDA_API_\w+\()?(cu[A-Z]\w*?)\)?\s*$", re.MULTILINE)

#: C libraries that NVIDIA's wheels may be made for, oldest first; pip takes the newest of them that there is.
_GLIBC_MINORS = (5, 12, 17, 24, 27, 28, 31, 34, 35)


class WheelError(Exception):
    """The wheels do not make a toolkit; the text says why."""


def platforms(machine: str) -> list[str]:
    """Return pip's names of the platforms that a Linux of this machine (``x86_64``, ``aarch64``) can be."""
    return ["manylinux2014_" + machine] + ["manylinux_2_%d_%s" % (minor, machine) for minor in _GLIBC_MINORS]


def requirements(wheels: Iterable[dict[str, Any]], machine: str) -> str:
    """Return the text of a requirements file with hashes.

    ``wheels``: ``name``, ``version`` and ``sha256`` by machine of each. Raises :class:`WheelError` for a machine that
    there is no wheel for.
    """
    lines = []
    for wheel in wheels:
        digest = wheel["sha256"].get(machine)
        if not digest:
            raise WheelError("%s %s has no wheel for %s" % (wheel["name"], wheel["version"], machine))
        lines.append("%s==%s --hash=sha256:%s\n" % (wheel["name"], wheel["version"], digest))
    return "".join(lines)


def file_pattern(wheel: dict[str, Any], machine: str) -> str:
    """Return the pattern that a wheel's file name matches."""
    return "%s-%s-*%s.whl" % (wheel["name"].replace("-", "_"), wheel["version"], machine)


def unpack(wheels: Sequence[str], target: str, say: Callable[[str], None]) -> None:
    """Unpack wheels into ``target``, which is made; raises :class:`WheelError` and OSError."""
    os.makedirs(target)
    for number, path in enumerate(wheels, 1):
        say("unpacking %d of %d: %s" % (number, len(wheels), os.path.basename(path)))
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    _extract(archive, member, target)
        except zipfile.BadZipFile as error:
            raise WheelError("%s is no wheel: %s" % (path, error)) from error


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: str) -> None:
    tree, licence = _TREE.match(member.filename), _LICENCE.match(member.filename)
    if tree:
        relative = tree.group(1)
    elif licence:
        relative = "licenses/%s/%s" % licence.groups()
    else:
        return
    path = os.path.normpath(os.path.join(target, relative))
    if member.is_dir() or not path.startswith(target + os.sep):
        return
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    with archive.open(member) as source, open(path, "wb") as stream:
        shutil.copyfileobj(source, stream, 1 << 20)
    runs = _EXECUTABLE.match(relative) and not relative.endswith(_NOT_EXECUTABLE)
    os.chmod(path, 0o755 if runs else 0o644)


def complete(target: str, compile_stub: Callable[[str, str], None]) -> None:
    """Add ``lib64``, links without a version, and the stub of the driver's library.

    ``compile_stub`` gets C source and the file that it becomes. Raises :class:`WheelError` and OSError.
    """
    os.symlink("lib", os.path.join(target, "lib64"))
    for path in sorted(glob.glob(os.path.join(target, "lib", "lib*.so.*"))):
        name = os.path.basename(path)
        short = os.path.join(target, "lib", name.partition(".so.")[0] + ".so")
        if not os.path.lexists(short):
            os.symlink(name, short)
    header = os.path.join(target, "include", "cuda.h")
    try:
        with open(header, encoding="utf-8", errors="replace") as stream:
            source = stub_source(stream.read())
    except FileNotFoundError as error:
        raise WheelError("the wheels hold no include/cuda.h: nvidia-cuda-runtime is not among them") from error
    stubs = os.path.join(target, "lib", "stubs")
    os.makedirs(stubs)
    compile_stub(source, os.path.join(stubs, "libcuda.so"))
    # What links against a library that needs libcuda.so.1 looks for that name.
    os.symlink("libcuda.so", os.path.join(stubs, "libcuda.so.1"))


def stub_source(header: str) -> str:
    """Return C that defines every function that ``cuda.h`` declares, by all its names (``cuMemAlloc_v2``)."""
    names = set(_FUNCTION.findall(header))
    for name, other in _RENAMED.findall(header):
        if name in names or other in names:
            names |= {name, other}
    if not names:
        raise WheelError("include/cuda.h declares no function of the driver")
    return "".join("int %s(void) { return 999; }\n" % name for name in sorted(names))


def installed(target: str, pins: Sequence[str]) -> bool:
    """Whether ``target`` is a toolkit made of these pins (``NAME==VERSION`` each)."""
    try:
        with open(os.path.join(target, WHEELS_FILE), encoding="utf-8") as stream:
            there = stream.read().split()
        runs = os.stat(os.path.join(target, "bin", "nvcc")).st_mode & stat.S_IXUSR
    except OSError:
        return False
    return bool(runs) and there == list(pins)
