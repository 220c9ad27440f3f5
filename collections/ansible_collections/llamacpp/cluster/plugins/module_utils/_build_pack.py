# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write a release's manifest and pack it."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import MANIFEST

# CUDA's libraries are most of a large release and hardly get smaller: with level 6 libcublasLt of 11.8 (575 MB) is
# 3 % smaller and takes three times as long.
COMPRESSION = 1


def write_manifest(stage: str, manifest: Mapping[str, Any]) -> None:
    """Write the manifest into a release."""
    with open(os.path.join(stage, MANIFEST), "w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=2, sort_keys=True)
        stream.write("\n")


def pack(stage: str, archive: str) -> None:
    """Pack a directory; the archive's name appears last, when all of it is on the disk.

    Raises :class:`OSError`, as for a full disk; nothing of the archive is left then.
    """
    temporary = archive + ".new"
    try:
        with open(temporary, "wb") as stream:
            with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=COMPRESSION) as tar:
                tar.add(stage, arcname=".", filter=_for_every_node)
            stream.flush()
            # Whoever logs in takes it away.
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        os.rename(temporary, archive)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _for_every_node(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whoever builds, with whatever umask: the files of a release belong to root and everybody may use them."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member
