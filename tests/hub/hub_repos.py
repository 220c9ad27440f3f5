"""What a simulated hub holds (files, commits) and what may go wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_FROM = 1024  # bytes; the real one goes by patterns, and by 10 MiB
BLOCK = 1 << 14


@dataclass(frozen=True)
class Blob:
    """A file's content, in memory or on disk; ``oid`` is git's, ``sha256`` that of the bytes."""

    content: bytes | Path
    size: int
    sha256: str
    oid: str
    lfs: bool

    @classmethod
    def of(cls, content: bytes | Path, lfs_from: int = LFS_FROM) -> Blob:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        sha256, lfs = hashlib.sha256(), size >= lfs_from
        sha1 = hashlib.sha1(b"blob %d\0" % size)
        for block in blocks(content, 0, size):
            sha256.update(block)
            sha1.update(block)
        if lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256.hexdigest()}\nsize {size}\n"
            sha1 = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer.encode())
        return cls(content, size, sha256.hexdigest(), sha1.hexdigest(), lfs)


def blocks(content: bytes | Path, first: int, end: int) -> Iterator[bytes]:
    """Yield bytes ``first`` to ``end`` of a content, a block at a time."""
    if isinstance(content, bytes):
        for start in range(first, end, BLOCK):
            yield content[start : min(start + BLOCK, end)]
        return
    with content.open("rb") as stream:
        stream.seek(first)
        while first < end:
            block = stream.read(min(BLOCK, end - first))
            if not block:
                return
            first += len(block)
            yield block


@dataclass
class Repo:
    """Commits (``{commit: {path: blob}}``), names of commits, and who may have it.

    ``gated``: the only token that gets bytes. ``private``: the only token that sees it. ``moved``: its new name.
    """

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: str = ""
    private: str = ""
    moved: str = ""

    def commit_of(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Fault:
    """What goes wrong, ``times`` times (0: always), where ``path`` (a regular expression) is found in what is asked.

    ``kind``: ``status`` (answer ``status`` with ``headers``), ``cut`` (the connection ends before byte ``at`` of the
    file), ``flip`` (byte ``at`` is wrong), ``slow`` (``rate`` bytes a second), ``stall`` (nothing comes from byte
    ``at`` on, until ``rate`` is no longer 0), ``norange`` (ranges are ignored),
    ``drop`` (the connection ends without an answer), ``gone`` (at byte ``at`` the hub goes away: everything that is
    asked from then on is dropped, until the faults are replaced).
    """

    kind: str
    path: str = "/resolve/|/cdn/|/api/resolve-cache/"
    at: int = 0
    times: int = 1
    status: int = 503
    rate: int = 0
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request: ``place`` is ``hub`` or ``cdn``, ``token`` whether it carried one, ``first`` the range's begin."""

    place: str
    method: str
    path: str
    token: bool
    first: int | None


def entry_of(path: str, blob: Blob) -> dict[str, Any]:
    """Return a file as the tree speaks of it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
    return entry


def info_of(name: str, repo: Repo, commit: str, blobs: bool) -> dict[str, Any]:
    """Return a repository as model info speaks of it."""
    siblings: list[dict[str, Any]] = []
    for path, blob in repo.commits[commit].items():
        entry: dict[str, Any] = {"rfilename": path}
        if blobs:
            entry.update({"size": blob.size, "blobId": blob.oid})
            if blob.lfs:
                entry["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
        siblings.append(entry)
    return {
        "_id": hashlib.sha1(name.encode()).hexdigest()[:24],
        "id": name,
        "modelId": name,
        "author": name.split("/")[0],
        "sha": commit,
        "private": bool(repo.private),
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 1,
        "likes": 0,
        "tags": ["gguf"],
        "siblings": siblings,
    }
