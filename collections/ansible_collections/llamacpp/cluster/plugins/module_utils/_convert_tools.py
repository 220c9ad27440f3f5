# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""llama.cpp's converter, which releases do not hold: taken out of the source that a release is made of.

A release is what nodes run: binaries. The converter is Python, and only the node that converts needs it, in the same
version: it writes what this llama.cpp reads. The control node has the source of each release as an archive
(module llama_source); the 2 MB of the converter go from there to the node, and nothing is fetched for it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile

from ansible_collections.llamacpp.cluster.plugins.module_utils._archive import pack, unpack
from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_source import ConvertError
from ansible_collections.llamacpp.cluster.plugins.module_utils._llama_source import NO_WHOLE_TAR, root_of
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

SCRIPT = "convert_hf_to_gguf.py"
# The script, what it imports beside itself (b11434; older ones are one file), and the library that it prefers to an
# installed one (unless NO_LOCAL_GGUF is set).
FOLDERS = ("conversion", os.path.join("gguf-py", "gguf"))


def pack_tools(archive: str, into: str) -> None:
    """Take the converter out of an archive of llama.cpp's source, into a small archive of its own.

    The same source gives the same bytes. Raises :class:`ConvertError` when there is none in it, and :class:`OSError`.
    """
    wanted = tuple(folder.replace(os.sep, "/") + "/" for folder in FOLDERS)
    with tempfile.TemporaryDirectory(prefix="llamacpp-convert-") as tree:
        try:
            with tarfile.open(archive) as tar:
                members = tar.getmembers()
                root = root_of(member.name for member in members)
                for member in members:
                    name = os.path.relpath(member.name, root or ".").replace(os.sep, "/")
                    if member.isfile() and (name == SCRIPT or (name.startswith(wanted) and name.endswith(".py"))):
                        _extract(tar, member, os.path.join(tree, name))
        except NO_WHOLE_TAR as error:
            raise ConvertError(
                "%s is not a whole tar archive: %s; remove it and run again" % (archive, error)
            ) from error
        if not os.path.isfile(os.path.join(tree, SCRIPT)):
            raise ConvertError("%s holds no %s: llama.cpp has it beside its CMakeLists.txt" % (archive, SCRIPT))
        pack(tree, into, SCRIPT)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    """Write one file of an archive, with a time that does not tell when."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise tarfile.ReadError("no data of %s" % member.name)
    with source, open(path, "wb") as stream:
        shutil.copyfileobj(source, stream)
    os.chmod(path, 0o644)
    os.utime(path, (0, 0))


def unpack_tools(packed: str, into: str) -> str:
    """Unpack what :func:`pack_tools` packed; return the script's path. Raises :class:`ConvertError`, OSError."""
    try:
        unpack(packed, into, "the converter")
    except ReleaseError as error:
        raise ConvertError(str(error)) from error
    return os.path.join(into, SCRIPT)


def tools_sha256(script: str) -> str:
    """Return a checksum of the converter with all that it imports of llama.cpp: names and bytes.

    Raises :class:`ConvertError` when the script is not there, and :class:`OSError`.
    """
    if not os.path.isfile(script):
        raise ConvertError("convert_script = %s: no such file on this node" % script)
    top = os.path.dirname(script)
    names = [os.path.basename(script)]
    for folder in FOLDERS:
        for directory, _directories, files in os.walk(os.path.join(top, folder)):
            names += [os.path.relpath(os.path.join(directory, name), top) for name in files if name.endswith(".py")]
    digest = hashlib.sha256()
    for name in sorted(names):
        with open(os.path.join(top, name), "rb") as stream:
            digest.update(("%s %s\n" % (name, hashlib.sha256(stream.read()).hexdigest())).encode())
    return digest.hexdigest()
