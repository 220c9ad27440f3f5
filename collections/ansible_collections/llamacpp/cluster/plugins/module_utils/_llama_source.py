# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sources of llama.cpp: which names they have, which of them a release may have, and what an archive must hold."""

from __future__ import annotations

import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError, build_number

NAMES_SHOWN = 8
# As many digits of a commit as llama.cpp's own builds show.
COMMIT_DIGITS = 9
# llama.cpp may lie this many directories deep: NAME-VERSION/llama.cpp in a source distribution.
MAX_DEPTH = 2

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_PART_OF_COMMIT = re.compile(r"^[0-9a-f]{7,39}$")
_SUFFIXES = ((".tar.xz", ".tar.xz"), (".txz", ".tar.xz"), (".tar.bz2", ".tar.bz2"), (".tbz2", ".tar.bz2"))
# OSError: what gzip and bz2 raise for damaged data.
NO_WHOLE_TAR = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
# What pip says on its way that an operator wants to see.
_PIP_STEPS = re.compile(
    r"^\s*(Downloading \S+ \([^)]*\)|Using cached \S+|Installing build dependencies|Preparing metadata)"
)
_PIP_BYTES = re.compile(r"^Progress (\d+) of (\d+)")


class Refs(NamedTuple):
    """Names in a repository, each with its commit."""

    tags: Mapping[str, str]
    branches: Mapping[str, str]


def archive_name(kind: str, release: str, sha256: str, source: str) -> str:
    """Return the file's name in the cache. ``source``: address or path that it comes from, for how it is compressed.

    The checksum is in the name: another archive under the same release is another file.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", release)
    tail = "-" + sha256[:12] if sha256 else ""
    suffix = next((known for ending, known in _SUFFIXES if source.lower().endswith(ending)), ".tar.gz")
    return "llama.cpp-%s-%s%s%s" % (kind, safe, tail, suffix)


def parse_refs(text: str) -> Refs:
    """Read what ``git ls-remote --tags --heads`` says. An annotated tag counts as the commit that it is on."""
    tags: dict[str, str] = {}
    branches: dict[str, str] = {}
    for line in text.splitlines():
        commit, _tab, ref = line.partition("\t")
        if ref.startswith("refs/heads/"):
            branches[ref[len("refs/heads/") :]] = commit
        elif ref.endswith("^{}"):
            tags[ref[len("refs/tags/") : -len("^{}")]] = commit
        elif ref.startswith("refs/tags/"):
            tags.setdefault(ref[len("refs/tags/") :], commit)
    return Refs(tags, branches)


def what_to_fetch(release: str, refs: Refs, url: str) -> tuple[str, str]:
    """Return the ref to ask a repository for, and the commit that it has to be.

    Raises :class:`ReleaseError` for what is not there, and for a branch: a release never changes, a branch does.
    """
    if release in refs.tags:
        return "refs/tags/" + release, refs.tags[release]
    if _COMMIT.match(release):
        return release, release
    if release in refs.branches:
        raise ReleaseError(
            "llamacpp_release = %s: this is a branch of %s, which moves, and a release does not: write the commit that "
            "it is at now, %s, or a tag" % (release, url, refs.branches[release])
        )
    if _PART_OF_COMMIT.match(release):
        known = [commit for commit in (*refs.tags.values(), *refs.branches.values()) if commit.startswith(release)]
        raise ReleaseError(
            "llamacpp_release = %s: git fetches commits by all 40 digits: write %s"
            % (release, known[0] if known else "all of them")
        )
    raise ReleaseError(unknown(release, url, [*refs.tags, *refs.branches], "a tag, or a commit with all 40 digits"))


def unknown(release: str, where: str, names: Sequence[str], write: str) -> str:
    """Return the message for a release that is not there, with the names nearest to it."""
    number = build_number(release)
    if number is not None:
        builds = {name: build for name, build in ((name, build_number(name)) for name in names) if build is not None}
        near = sorted(builds, key=lambda name: (abs(builds[name] - number), -builds[name]))[:NAMES_SHOWN]
    else:
        near = list(names[-NAMES_SHOWN:])
    return "llamacpp_release = %s: %s has no such release; the nearest are %s: write %s" % (
        release,
        where,
        ", ".join(near) or "none",
        write,
    )


def root_of(names: Iterable[str]) -> str | None:
    """Return the directory among an archive's members that is llama.cpp (``""`` for the top); None without one."""
    seen: dict[str, set[str]] = {}
    for name in names:
        parts = posixpath.normpath(name).split("/")
        if parts[0] == ".":
            parts = parts[1:]
        for depth in range(min(len(parts), MAX_DEPTH + 1)):
            seen.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    found = [directory for directory, entries in seen.items() if {"CMakeLists.txt", "ggml"} <= entries]
    return min(found, key=lambda directory: directory.count("/"), default=None)


def examine(path: str, what: str) -> None:
    """Read an archive to its end. ``what`` names it in messages.

    Raises :class:`ReleaseError` when it is cut, no tar, or not llama.cpp.
    """
    try:
        with tarfile.open(path) as tar:
            root = root_of(member.name for member in tar)
    except NO_WHOLE_TAR as error:
        raise ReleaseError("%s is not a whole tar archive: %s" % (what, error)) from error
    if root is None:
        raise ReleaseError("%s holds no llama.cpp: no CMakeLists.txt beside ggml/" % what)


def commit_in(path: str) -> str:
    """Return the commit that an archive says it is, shortened; empty when it does not say.

    ``git archive``, and so GitHub's tarballs, write it as comment of the global header (git-archive(1)).
    """
    try:
        with tarfile.open(path) as tar:
            comment = tar.pax_headers.get("comment", "")
    except NO_WHOLE_TAR as error:
        raise ReleaseError("%s is not a whole tar archive: %s; remove it and run again" % (path, error)) from error
    return comment[:COMMIT_DIGITS] if _COMMIT.match(comment) else ""


def pip_progress(version: str) -> list[str]:
    """Return the option that makes pip write its progress for programs, which it can since 24.1.

    ``version``: what ``pip --version`` says, ``pip 23.2.1 from ...``.
    """
    match = re.match(r"pip (\d+)\.(\d+)", version)
    known = match is not None and (int(match.group(1)), int(match.group(2))) >= (24, 1)
    return ["--progress-bar", "raw"] if known else []


def pip_says(line: str) -> str:
    """Return a line of pip's as progress; empty for one that nobody needs."""
    counted = _PIP_BYTES.match(line)
    if counted:
        done, total = int(counted.group(1)), int(counted.group(2))
        return "downloading: %d of %d MiB" % (done >> 20, total >> 20)
    step = _PIP_STEPS.match(line)
    return "pip: %s" % step.group(1) if step else ""


def builds_of(listing: str) -> list[str]:
    """Return the builds (``b11434``) that ``pip index versions`` lists, each once, in its order."""
    return ["b%s" % number for number in dict.fromkeys(re.findall(r"\b(\d+)\.0\.0\b", listing))]
