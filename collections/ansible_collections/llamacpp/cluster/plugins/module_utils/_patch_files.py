# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Patches of llama.cpp: kept by their sha256, so that what was built once can be built again."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._download import download
from ansible_collections.llamacpp.cluster.plugins.module_utils._keep import keep, scratch
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError, file_sha256

_FILE = re.compile(rb"^(?:diff --git |\+\+\+ )", re.MULTILINE)
_FILE_OF_PAGES = re.compile(rb"^(?:diff --git .*|(?:---|\+\+\+) )\"?(?:[^/\s]+/)?tools/ui/", re.MULTILINE)


class PatchFile:
    """One declared patch. ``name`` is for people, ``sha256`` is empty until it is known."""

    def __init__(self, declared: Mapping[str, Any], directory: str) -> None:
        self._path: str = declared.get("path") or ""
        self._url: str = declared.get("url") or ""
        self._directory = directory
        self.name = (self._path or self._url).rstrip("/").rsplit("/", 1)[-1].partition("?")[0]
        self.sha256: str = (declared.get("sha256") or "").lower()
        self._declared = self.sha256
        if not self.sha256 and self._path:
            self.sha256 = file_sha256(self._there())

    @property
    def kept(self) -> str:
        """Where it is, or will be, in the cache."""
        return os.path.join(self._directory, self.sha256 + ".patch")

    def missing(self) -> bool:
        """Whether it still has to be brought to the cache."""
        return not os.path.exists(self.kept)

    def check(self) -> None:
        """Look at a patch on this machine without keeping it. Raises :class:`ReleaseError`."""
        if self._path:
            self._judge(self._there(), file_sha256(self._path))

    def bring(self, progress: Progress) -> None:
        """Bring it to the cache. Raises :class:`ReleaseError` and :class:`OSError`."""
        with scratch(self._directory, progress) as work:
            temporary = os.path.join(work, "patch")
            if self._path:
                shutil.copyfile(self._there(), temporary)
                self._judge(temporary, file_sha256(temporary))
            else:
                self._judge(temporary, download(self._url, temporary, progress, self.name))
            keep(temporary, self.kept)

    def as_dict(self) -> dict[str, str]:
        """Return name, place in the cache and sha256."""
        return {"name": self.name, "path": self.kept, "sha256": self.sha256}

    def _there(self) -> str:
        if not os.path.isfile(self._path):
            raise ReleaseError("llamacpp_patches: %s: no such file on the control node" % self._path)
        return self._path

    def _judge(self, path: str, found: str) -> None:
        place = self._path or self._url
        if self._declared and found != self._declared:
            raise ReleaseError(
                "llamacpp_patches: sha256 = %s, but %s has %s: correct the checksum, or find out who changed the patch"
                % (self._declared, place, found)
            )
        with open(path, "rb") as stream:
            if not _FILE.search(stream.read()):
                raise ReleaseError(
                    "llamacpp_patches: %s is no patch: no line begins with 'diff --git' or '+++'" % place
                )


def touches_pages(path: str) -> bool:
    """Whether a patch changes the web UI. Raises :class:`OSError`."""
    with open(path, "rb") as stream:
        return bool(_FILE_OF_PAGES.search(stream.read()))
