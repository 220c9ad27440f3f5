# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a model's name stands for: its files by sha256, where they came from, and which names there can be."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("model", "mmproj", "draft", "tokenizer", "imatrix", "other")
SCHEMA = 1

MAX_SEGMENTS = 4
MAX_NAME = 255
# A segment becomes the name of a file with ".json" behind it, and a file system takes 255 bytes.
MAX_SEGMENT = 250
MAX_FILE = 255
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_FILE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+ -]*[A-Za-z0-9._+-])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class StoreError(Exception):
    """The store cannot do it; the text tells the operator what, which value, and what to do."""


def check_name(name: str) -> str:
    """Return a model's name as it is. Raises :class:`StoreError` for one that is none, or would lead elsewhere."""
    segments = name.split("/")
    if not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise StoreError(
            "name = %s: write letters, digits and . _ + -, in parts joined by / that begin with a letter, digit or _"
            % ascii(name)
        )
    if len(segments) > MAX_SEGMENTS or len(name) > MAX_NAME or max(map(len, segments)) > MAX_SEGMENT:
        raise StoreError(
            "name = %s: write at most %d parts of %d characters, and %d characters in all"
            % (ascii(name), MAX_SEGMENTS, MAX_SEGMENT, MAX_NAME)
        )
    if any(segment.endswith(".json") for segment in segments):
        # manifests/a.json is the manifest of a, so it cannot be the directory of a.json/b.
        raise StoreError("name = %s: a part cannot end in .json; leave that out" % ascii(name))
    return name


def is_name(name: str) -> bool:
    """Whether a model can be called so."""
    try:
        check_name(name)
    except StoreError:
        return False
    return True


def check_file(name: str) -> str:
    """Return a file's name as it is. Raises :class:`StoreError` for one that is none, or would lead elsewhere."""
    if not _FILE.fullmatch(name) or len(name) > MAX_FILE:
        raise StoreError(
            "file name %s: it needs letters, digits, blanks inside and . _ + -, must begin with a letter, digit or _,"
            " and have at most %d characters: rename the file" % (ascii(name), MAX_FILE)
        )
    return name


def check_sha256(sha256: str) -> str:
    """Return a checksum as it is. Raises :class:`StoreError` when it is none."""
    if not _SHA256.fullmatch(sha256):
        raise StoreError("sha256 = %s: write 64 hexadecimal digits in lower case" % ascii(sha256))
    return sha256


def utc(moment: float) -> str:
    """Return a time, in seconds since the epoch, as ``2026-11-21T19:40:00Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _now() -> str:
    return utc(time.time())


@dataclass(frozen=True)
class File:
    """A file of a model. ``name``: one segment. ``bytes``: its size. ``role``: one of :data:`ROLES`.

    Raises :class:`StoreError` for what cannot be.
    """

    name: str
    sha256: str
    bytes: int
    role: str = "model"

    def __post_init__(self) -> None:
        check_file(self.name)
        check_sha256(self.sha256)
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 0:
            raise StoreError("file %s: bytes = %r: write its size, a whole number" % (self.name, self.bytes))
        if self.role not in ROLES:
            raise StoreError("file %s: role = %r: write one of %s" % (self.name, self.role, ", ".join(ROLES)))

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"name": self.name, "sha256": self.sha256, "bytes": self.bytes, "role": self.role}


@dataclass(frozen=True)
class Manifest:
    """A named model.

    ``files``: the shards of a split model in their order. ``source``: where they came from, for people and for whoever
    made them; the store does not read it. ``external``: file name -> absolute path of files that the store links
    to and does not hold.

    Raises :class:`StoreError` for what cannot be.
    """

    name: str
    files: tuple[File, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=_now)
    external: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        names = [file.name for file in self.files]
        if not names:
            raise StoreError("model %s: it has no file" % self.name)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise StoreError("model %s: the file %s is there twice" % (self.name, ", ".join(twice)))
        if not _CREATED.fullmatch(self.created):
            raise StoreError("model %s: created = %s is no time" % (self.name, ascii(self.created)))
        for name, path in self.external.items():
            if name not in names:
                raise StoreError("model %s: external = %s is none of its files" % (self.name, ascii(name)))
            if not os.path.isabs(path) or not path.isprintable():
                raise StoreError("model %s: external path %s: write an absolute path" % (self.name, ascii(path)))

    @property
    def first(self) -> File:
        """The file that ``--model`` gets. Raises :class:`StoreError` when no file is a model."""
        for file in self.files:
            if file.role == "model":
                return file
        raise StoreError("model %s: none of its files is a model" % self.name)

    @property
    def held(self) -> tuple[File, ...]:
        """The files that the store holds itself."""
        return tuple(file for file in self.files if file.name not in self.external)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "files": [file.as_dict() for file in self.files],
            "source": dict(self.source),
            "created": self.created,
            "external": dict(self.external),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Manifest:
        """Return a manifest from what :meth:`as_dict` gave. Raises :class:`StoreError` for anything else."""
        if not isinstance(data, Mapping):
            raise StoreError("a manifest is a dictionary, not %s" % type(data).__name__)
        if data.get("schema", SCHEMA) != SCHEMA:
            raise StoreError("a manifest of schema %r: this collection knows %d" % (data.get("schema"), SCHEMA))
        try:
            return cls(
                name=_text(data, "name"),
                files=tuple(_file(item) for item in _items(data, "files")),
                source=_mapping(data, "source"),
                created=_text(data, "created"),
                external={str(key): str(value) for key, value in _mapping(data, "external").items()},
            )
        except KeyError as error:
            raise StoreError("a manifest without %s" % error) from error


def _file(item: Any) -> File:
    if not isinstance(item, Mapping):
        raise StoreError("a file of a manifest is a dictionary, not %s" % type(item).__name__)
    return File(_text(item, "name"), _text(item, "sha256"), item["bytes"], _text(item, "role"))


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise StoreError("a manifest with %s = %r: write text" % (key, value))
    return value


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, Mapping):
        raise StoreError("a manifest with %s = %r: write a dictionary" % (key, value))
    return value


def _items(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data[key]
    if not isinstance(value, (list, tuple)):
        raise StoreError("a manifest with %s = %r: write a list" % (key, value))
    return list(value)
