# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a bundle is: everything that a run would fetch, in one archive, described by its manifest.

The archive is a plain tar: ``manifest.json`` first, then the members as they lay on the disk, so that ``tar -x``
gets at the wheels before anything of this collection runs. Pure functions; :mod:`_bundle_archive` touches the disk.

The manifest, schema 1: ``schema``, ``created_at``, ``about`` (what it was made for; for people), and ``members``, a
list of ``path``, ``kind``, ``name``, ``bytes``, ``sha256`` and ``details`` (by kind, see :data:`DIRECTORIES`).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
MANIFEST = "manifest.json"
# More than any manifest has; a first member that is larger is no manifest.
MANIFEST_BYTES = 64 << 20

# Kind -> its directory in the bundle. Details by kind, besides ``needed_by`` (instances, or nodes):
# packages: ``requested`` (names), ``versions`` (name -> version). model: ``origin``, ``quant``, ``first``, see
# _bundle_models. release: ``inputs``. source: ``release``.
DIRECTORIES: Mapping[str, str] = {
    "source": "sources",
    "patch": "patches",
    "ui": "ui",
    "cuda": "cuda",
    "npm": "npm",
    "release": "releases",
    "packages": "packages",
    "wheel": "wheels",
    "model": "models",
}
# Kinds whose files lie in the control node's cache under the same path, where every role looks for them.
CACHED = ("source", "patch", "ui", "cuda", "release")
REMEDY = "run playbooks/bundle.yml for this inventory, on a machine with a network, and bring the new bundle here"


class BundleError(Exception):
    """A bundle cannot be made, read or used; the text says why and what to do."""


@dataclass(frozen=True)
class Member:
    """One file of a bundle. ``bytes``: its size; ``sha256``: 64 hexadecimal digits."""

    path: str
    kind: str
    name: str
    bytes: int
    sha256: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Return what people call it, and who needs it."""
        users = self.details.get("needed_by") or []
        return "%s %s%s" % (self.kind, self.name, " (for %s)" % ", ".join(users) if users else "")

    def as_dict(self) -> dict[str, Any]:
        """Return it as the manifest says it."""
        return {
            "path": self.path,
            "kind": self.kind,
            "name": self.name,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "details": dict(self.details),
        }


@dataclass(frozen=True)
class Manifest:
    """What a bundle has. ``about``: what it was made for, for people."""

    created_at: str
    about: Mapping[str, Any]
    members: tuple[Member, ...]

    @property
    def id(self) -> str:
        """Return a name that follows from the members alone: 16 hexadecimal digits."""
        listed = json.dumps([member.as_dict() for member in self.members], sort_keys=True)
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    @property
    def bytes(self) -> int:
        """Return the size of all members."""
        return sum(member.bytes for member in self.members)

    def of(self, kind: str) -> list[Member]:
        """Return the members of one kind."""
        return [member for member in self.members if member.kind == kind]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "schema": SCHEMA,
            "created_at": self.created_at,
            "about": dict(self.about),
            "members": [member.as_dict() for member in self.members],
        }

    def text(self) -> str:
        """Return the file's content."""
        return json.dumps(self.as_dict(), indent=1, sort_keys=True) + "\n"


def member_path(kind: str, name: str, folder: str = "") -> str:
    """Return where a file of that kind lies in a bundle, below a folder of its own if one is named.

    Raises :class:`BundleError` for a kind that does not exist and for a path that would lie elsewhere.
    """
    if kind not in DIRECTORIES:
        raise BundleError("there is no kind %s; the kinds are %s" % (kind, ", ".join(sorted(DIRECTORIES))))
    path = posixpath.join(DIRECTORIES[kind], folder, name)
    if not _inside(path, kind):
        raise BundleError("%s %s: %s is no path in a bundle" % (kind, name, path))
    return path


def parse_manifest(text: str) -> Manifest:
    """Read a manifest. Raises :class:`BundleError` when it is none, or one of another time."""
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise BundleError(
                "its manifest has schema %s, this version of the collection reads %d: %s"
                % (data["schema"], SCHEMA, REMEDY)
            )
        members = tuple(
            Member(item["path"], item["kind"], item["name"], item["bytes"], item["sha256"], item.get("details") or {})
            for item in data["members"]
        )
        manifest = Manifest(data["created_at"], data["about"], members)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError("its manifest cannot be read (%s): %s" % (error, REMEDY)) from error
    strays = [
        str(member.path)
        for member in members
        if member.kind not in DIRECTORIES or not _inside(member.path, member.kind)
    ]
    if strays or len({member.path for member in members}) != len(members):
        raise BundleError("its manifest names paths that no bundle has: %s" % ", ".join(strays or ["one path twice"]))
    return manifest


def damage(missing: Iterable[Member], different: Iterable[Member], count: int) -> str:
    """Return the message for members that a bundle lacks, or has with other bytes; empty when it is whole.

    ``count``: of all its members.
    """
    phrases = ["%s is not in it" % member.label for member in missing]
    phrases += ["%s has other bytes than its manifest says" % member.label for member in different]
    if not phrases:
        return ""
    return "%d of its %d members cannot be used: %s. The file is damaged or incomplete: copy it again, or %s" % (
        len(phrases),
        count,
        "; ".join(phrases),
        REMEDY,
    )


def shortage(path: str, needed: int, free: int) -> str:
    """Return the message for a disk that is too small (bytes); empty when it is not."""
    if needed <= free:
        return ""
    mib = 1 << 20
    return "%s: %d MiB are needed and %d MiB are free: make room, or write to another disk" % (
        path,
        needed // mib + 1,
        free // mib,
    )


def same_content(manifest: Manifest, members: Sequence[Member], about: Mapping[str, Any]) -> bool:
    """Whether a bundle that is there has these members and was made for this."""
    return manifest.members == tuple(members) and dict(manifest.about) == dict(about)


def _inside(path: object, kind: str) -> bool:
    """Whether ``path`` is a plain relative path below the directory of its kind."""
    return (
        isinstance(path, str)
        and posixpath.normpath(path) == path
        and path.startswith(DIRECTORIES[kind] + "/")
        and "\n" not in path
        and "\0" not in path
    )
