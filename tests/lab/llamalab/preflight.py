"""What the host must offer before a lab is made, asked before anything is changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import host, network, supervise
from .names import Lab, LabError

#: Tool -> Debian package that holds it.
TOOLS = {
    "apt-cacher-ng": "apt-cacher-ng",
    "ip": "iproute2",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "systemd-nspawn": "systemd-container",
    "tc": "iproute2",
    "unshare": "util-linux",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

GIB = 2**30
ROOT_BYTES = GIB  # a root and the packages that it is made from
NODE_BYTES = GIB // 2  # what a node writes before anything large is put on it


def missing_packages() -> list[str]:
    """Debian packages that hold tools this host lacks."""
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool, path=host.ENVIRONMENT["PATH"]) is None}
    if not KEYRING.exists():
        missing.add("debian-archive-keyring")
    return sorted(missing)


def check(lab: Lab, *, new_roots: int, new_nodes: int) -> None:
    """Raise :class:`LabError` with everything that has to be done, if something has."""
    missing = missing_packages()
    if missing:
        raise LabError(f"this host lacks tools; install them: apt-get install {' '.join(missing)}")
    filesystems = Path("/proc/filesystems").read_text().split()
    if "overlay" not in filesystems:
        host.run(["modprobe", "overlay"], check=False)
        if "overlay" not in Path("/proc/filesystems").read_text().split():
            raise LabError("this kernel has no overlay file system; load it (`modprobe overlay`)")
    supervise.hierarchies()
    _check_disk(host.CACHE, new_roots * ROOT_BYTES, "the cached Debian roots")
    _check_disk(host.STATE, new_nodes * NODE_BYTES, "the nodes' disks")
    network.check_addresses(
        lab,
        host.run(["ip", "-j", "-4", "addr", "show"]).stdout,
        host.run(["ip", "-j", "-4", "route", "show", "table", "all"]).stdout,
    )


def _check_disk(place: Path, needed: int, purpose: str) -> None:
    while not place.exists():
        place = place.parent
    info = os.statvfs(place)
    free = info.f_bavail * info.f_frsize
    if free < needed:
        raise LabError(
            f"{purpose} need {needed / GIB:.1f} GiB at {place}, but {free / GIB:.1f} GiB are free;"
            " make room there or start fewer nodes"
        )
