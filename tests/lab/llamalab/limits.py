"""Limits of the host that many nodes run into, raised while labs are up and put back after.

Every booted node holds about seven inotify instances of root's, and kernels allow 128 by default: the
twentieth node would die while booting with "Too many open files".
"""

from __future__ import annotations

from pathlib import Path

from . import host
from .record import locks

INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
PER_NODE = 16  # seven for an idle node, and as much again for what is deployed to it
SPARE = 64  # for everything else on the host that runs as root


def wanted(nodes: int, now: int) -> int:
    """The limit for that many nodes of all labs: never less than what the host has ``now``."""
    return max(now, SPARE + PER_NODE * nodes)


def raise_for(nodes: int) -> None:
    """Make room for that many nodes of all labs; the caller holds the lock ``shared``."""
    now = int(INSTANCES.read_text())
    target = wanted(nodes, now)
    if target == now:
        return
    if not _note().exists():
        host.write_text(_note(), f"{now}\n")
    host.say(f"raising fs.inotify.max_user_instances from {now} to {target} until the last lab is down")
    INSTANCES.write_text(f"{target}\n")


def restore() -> None:
    """Put the host's own limit back; the caller holds the lock ``shared`` and knows that no lab is left."""
    if _note().exists():
        INSTANCES.write_text(_note().read_text())
        _note().unlink()


def _note() -> Path:
    return locks() / "inotify-instances"
