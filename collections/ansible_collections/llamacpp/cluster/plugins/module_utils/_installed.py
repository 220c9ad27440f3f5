# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The releases on a node: which are there, who uses them, which is current, and what has been tried.

<prefix>/releases/<id>/        a release, complete or not there; its time is that of its installation
<prefix>/releases/.<...>       what a killed run has left; the next one sweeps it away
<prefix>/current, previous     links to releases/<id>
<prefix>/validated/<id>.json   with which devices a release has been tried (see :meth:`Releases.tried`)
<prefix>/.lock                 held while something changes; its text says by whom
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils import _node
from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import BusyError, locked
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    MANIFEST,
    ReleaseError,
    complete,
    file_sha256,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

UNIT_DIRECTORY = "/etc/systemd/system"
UNITS = "llamacpp-*.service"
DRIVER = "/proc/driver/nvidia/version"
_ID = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$")


class Releases:
    """The releases below ``prefix``. ``units`` and ``proc`` are where users of releases are looked for."""

    def __init__(self, prefix: str, units: str = UNIT_DIRECTORY, proc: str = "/proc") -> None:
        self.prefix = prefix
        self.directory = os.path.join(prefix, "releases")
        self.incoming = os.path.join(prefix, "incoming")
        self.units = units
        self.proc = proc

    def path(self, release: str) -> str:
        """Return a release's directory. Raises :class:`ReleaseError` for an id that leads elsewhere."""
        if not _ID.match(release):
            raise ReleaseError("id = %r: write letters, digits and . _ + - alone" % release)
        return os.path.join(self.directory, release)

    def ids(self) -> list[str]:
        """Return the ids of all releases, whole or not, by name."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if _ID.match(name) and os.path.isdir(os.path.join(self.directory, name)))

    def complete(self, release: str) -> bool:
        """Whether a release is there with all its files."""
        return complete(self.path(release))

    def manifest(self, release: str) -> dict[str, Any]:
        """Return a release's manifest; empty when it cannot be read."""
        return read_manifest(self.path(release))

    def linked(self, name: str) -> str | None:
        """Return the id that ``current`` or ``previous`` leads to; None when there is no such link."""
        try:
            target = os.readlink(os.path.join(self.prefix, name))
        except OSError:
            return None
        return os.path.basename(target)

    def flip(self, release: str) -> None:
        """Make a release current, and the one that was current previous. Each link changes in one step."""
        before = self.linked("current")
        if before == release:
            return
        if before and os.path.isdir(self.path(before)):
            self._point("previous", before)
        self._point("current", release)

    def _point(self, name: str, release: str) -> None:
        link = os.path.join(self.prefix, name)
        temporary = os.path.join(self.prefix, ".%s.%d" % (name, os.getpid()))
        os.symlink(os.path.join("releases", release), temporary)
        os.rename(temporary, link)

    def remove(self, release: str) -> None:
        """Remove a release, what was tried of it, and ``previous`` when that was it. It is gone in one step."""
        if self.linked("previous") == release:
            os.unlink(os.path.join(self.prefix, "previous"))
        doomed = os.path.join(self.directory, ".removed.%s" % release)
        os.rename(self.path(release), doomed)
        shutil.rmtree(doomed)
        self.forget(release)

    def sweep(self) -> None:
        """Remove what killed runs have left. Only while :meth:`lock` is held: nobody else is at work then."""
        for name in os.listdir(self.directory):
            path = os.path.join(self.directory, name)
            if name.startswith(".") and os.path.isdir(path):
                shutil.rmtree(path)
        for path in glob.glob(os.path.join(glob.escape(self.incoming), "*.part")):
            os.unlink(path)

    def users(self) -> dict[str, list[str]]:
        """Return who uses which release: id -> units, or ``llama-server (process 12)`` where no unit does."""
        found: dict[str, list[str]] = {}
        for path in sorted(glob.glob(os.path.join(glob.escape(self.units), UNITS))):
            with open(path, encoding="utf-8", errors="replace") as stream:
                unit = _node.unit(stream.read())
            if unit and unit["release"]:
                found.setdefault(str(unit["release"]), []).append(os.path.basename(path))
        for release, processes in self._processes().items():
            found.setdefault(release, processes)
        return found

    def _processes(self) -> dict[str, list[str]]:
        """Return which processes run a file of which release."""
        found: dict[str, list[str]] = {}
        within = os.path.realpath(self.directory) + os.sep
        for number in filter(str.isdigit, os.listdir(self.proc)):
            try:
                target = os.readlink(os.path.join(self.proc, number, "exe"))
            except OSError:
                continue  # It ended, or is a thread of the kernel, or another user's.
            if target.startswith(within):
                release = target[len(within) :].split(os.sep, 1)[0]
                found.setdefault(release, []).append("%s (process %s)" % (os.path.basename(target), number))
        return found

    def describe(self, release: str, users: Sequence[str]) -> dict[str, Any]:
        """Return what module release_info says of a release. Sizes in bytes."""
        path = self.path(release)
        manifest = self.manifest(release)
        inputs = manifest.get("inputs", {})
        total, own = sizes(path)
        return {
            "id": release,
            "release": str(inputs.get("release", "")),
            "build_number": int(manifest.get("build_number") or 0),
            "commit": str(manifest.get("commit", "")),
            "backend": str(inputs.get("backend", "")),
            "architectures": [str(architecture) for architecture in inputs.get("architectures") or []],
            "kind": str(manifest.get("kind", "build")),
            "bytes": total,
            "own_bytes": own,
            "installed_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(os.stat(path).st_mtime)),
            "complete": self.complete(release),
            "current": self.linked("current") == release,
            "previous": self.linked("previous") == release,
            "used_by": list(users),
        }

    def tried(self, release: str, devices: Sequence[str]) -> str | None:
        """Return the version line when this release has been tried with these devices, as things are now; else None.

        Another manifest (it was installed anew) or another GPU driver makes it a thing to try again.
        """
        stamp = read_json(self._stamp(release))
        if stamp.get("manifest") != self._fingerprint(release) or stamp.get("driver") != _driver():
            return None
        return str(stamp["version"]) if set(devices) <= set(stamp["devices"]) else None

    def note_tried(self, release: str, devices: Sequence[str], version: str) -> None:
        """Remember that a release has been tried."""
        stamp = {
            "id": release,
            "devices": sorted(devices),
            "version": version,
            "manifest": self._fingerprint(release),
            "driver": _driver(),
            "tried_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        bring(self._stamp(release), json.dumps(stamp, indent=2, sort_keys=True) + "\n")

    def forget(self, release: str) -> None:
        """Forget that a release has been tried."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._stamp(release))

    def _stamp(self, release: str) -> str:
        return os.path.join(self.prefix, "validated", "%s.json" % release)

    def _fingerprint(self, release: str) -> str:
        return file_sha256(os.path.join(self.path(release), MANIFEST))

    @contextlib.contextmanager
    def lock(self, holder: str, wait: float, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the node's releases, so that one run at a time changes them.

        ``holder`` tells others who wait. Who holds it is told to ``say`` meanwhile and, after ``wait`` seconds,
        raised as :class:`ReleaseError`. A killed holder's lock is free.
        """
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        path = os.path.join(self.prefix, ".lock")
        try:
            with locked(path, holder, wait, lambda other: say("waiting for %s" % other)):
                yield
        except BusyError as error:
            raise ReleaseError(
                "%s is at work on %s, waited %d s for it: run again when it has ended"
                % (error.holder, self.directory, wait)
            ) from error


def sizes(path: str) -> tuple[int, int]:
    """Return the bytes of all files below a directory, and those that only it holds: what its removal would free."""
    return _sizes([path])


def total_own_bytes(paths: Sequence[str]) -> int:
    """Return the bytes that removing all of these directories would free."""
    return _sizes(paths)[1]


def _sizes(paths: Sequence[str]) -> tuple[int, int]:
    names: dict[int, int] = {}
    info: dict[int, os.stat_result] = {}
    for path in paths:
        for directory, _names, files in os.walk(path):
            for name in files:
                status = os.lstat(os.path.join(directory, name))
                names[status.st_ino] = names.get(status.st_ino, 0) + 1
                info[status.st_ino] = status
    total = sum(status.st_size for status in info.values())
    own = sum(status.st_size for inode, status in info.items() if status.st_nlink <= names[inode])
    return total, own


def to_prune(
    releases: Sequence[Mapping[str, Any]], keep: int, protect: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Choose which releases may go: the ids, oldest first, and why each of the others stays.

    ``releases``: of :meth:`Releases.describe`. ``keep``: how many stay that nobody uses, the newest first.
    """
    stays: dict[str, str] = {}
    unused = []
    for release in releases:
        if release["current"]:
            stays[release["id"]] = "current"
        elif release["used_by"]:
            stays[release["id"]] = "used by %s" % ", ".join(release["used_by"])
        elif release["previous"]:
            stays[release["id"]] = "previous, for rollback"
        elif release["id"] in protect:
            stays[release["id"]] = "protected"
        else:
            unused.append(release)
    # Half a release is of no use to anybody, however new it is.
    unused.sort(key=lambda release: (release["complete"], release["installed_at"], release["id"]))
    whole = sum(1 for release in unused if release["complete"])
    kept = unused[len(unused) - min(keep, whole) :]
    for release in kept:
        stays[release["id"]] = "one of the %d newest" % keep
    return [release["id"] for release in unused if release["id"] not in stays], stays


def read_manifest(root: str) -> dict[str, Any]:
    """Return the manifest of the release in a directory; empty when it cannot be read."""
    return read_json(os.path.join(root, MANIFEST))


def read_json(path: str) -> dict[str, Any]:
    """Return an object from a JSON file; empty when it is not there or is something else."""
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _driver() -> str:
    try:
        with open(DRIVER, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""
