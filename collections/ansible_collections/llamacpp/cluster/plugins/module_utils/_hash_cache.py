# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checksums of large files, taken once and remembered until the file changes."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

BLOCK = 1 << 20


class HashCache:
    """Remembers sha256s of files that have not changed since."""

    def __init__(self, path: str | None) -> None:
        self.path = path

    def entries(self) -> dict[str, Any]:
        """Return what is remembered; nothing when the cache is missing or broken."""
        try:
            with open(self.path or "", encoding="utf-8") as stream:
                entries = json.load(stream)
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def sha256(self, path: str, write: bool) -> str:
        """Return the sha256 of a file, from memory when its size, time and inode are the same."""
        real = os.path.realpath(path)
        info = os.stat(real)
        seen = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
        entry = self.entries().get(real)
        if isinstance(entry, dict) and dict(entry, sha256=None) == dict(seen, sha256=None):
            return str(entry["sha256"])
        digest = hashlib.sha256()
        with open(real, "rb") as stream:
            for block in iter(lambda: stream.read(BLOCK), b""):
                digest.update(block)
        if self.path and write:
            self.remember(real, dict(seen, sha256=digest.hexdigest()))
        return digest.hexdigest()

    def remember(self, real: str, entry: dict[str, Any]) -> None:
        """Add an entry; files that are gone are forgotten."""
        entries = {key: value for key, value in self.entries().items() if os.path.exists(key)}
        entries[real] = entry
        bring(str(self.path), json.dumps(entries, indent=1, sort_keys=True))
