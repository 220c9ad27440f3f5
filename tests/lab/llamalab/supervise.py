"""Long-lived processes of the lab, each in a control group of its own.

A process can leave neither its control group (nodes see only their own part of the tree) nor
escape ``cgroup.kill`` and ``cgroup.freeze``, so "every process of node2" is a question with an
exact answer, also after labctl was killed half-way. Process names are never looked at.

Two ways to start one:

* PID 1 is systemd: a transient unit through ``systemd-run`` with ``Delegate=yes``, because
  systemd owns the tree and wants to be asked. This way is not covered by the project's tests,
  which run where PID 1 is something else.
* otherwise: a directory below ``lclab/`` in the unified hierarchy, and, where a v1 hierarchy
  named systemd exists too ("hybrid"), one of the same name there. Without a group of its own
  every systemd-nspawn would use ``/payload`` and nodes would stop each other's services.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from . import host
from .names import LabError

#: Detaches from whoever called and becomes "$@": first the output, then the groups.
_ENTER = """
exec >>"$LAB_LOG" 2>&1 </dev/null
for procs in $LAB_PROCS; do echo "$$" >"$procs"; done
unset LAB_LOG LAB_PROCS
exec "$@"
"""


@cache
def systemd_host() -> bool:
    """Whether PID 1 is systemd (the check of sd_booted(3))."""
    return Path("/run/systemd/system").is_dir() and Path("/proc/1/comm").read_text() == "systemd\n"


def parse_hierarchies(mountinfo: str) -> list[Path]:
    """Mount points of the cgroup trees that matter: unified first, then v1 ``name=systemd``."""
    unified: list[Path] = []
    named: list[Path] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        mount_point = Path(left.split(" ")[4])
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            unified.append(mount_point)
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            named.append(mount_point)
    return unified[:1] + named[:1]


@cache
def hierarchies() -> list[Path]:
    """This host's :func:`parse_hierarchies`; raises when there is no unified one."""
    found = parse_hierarchies(Path("/proc/self/mountinfo").read_text())
    if not found or not (any(found[0].glob("*/cgroup.kill")) or _can_kill(found[0])):
        raise LabError(
            "this kernel offers no unified cgroup hierarchy with cgroup.kill; the lab needs"
            " Linux 5.14 or newer with cgroup2 mounted (Debian 12 and Ubuntu 22.04 have it)"
        )
    return found


def _can_kill(root: Path) -> bool:
    probe = root / f"lclab-probe-{os.getpid()}"
    probe.mkdir()
    try:
        return (probe / "cgroup.kill").exists()
    finally:
        probe.rmdir()


def _groups(unit: str) -> list[Path]:
    """The control groups of a unit, unified first; they need not exist."""
    if systemd_host():
        shown = host.run(["systemctl", "show", "--value", "--property=ControlGroup", f"{unit}.service"])
        path = shown.stdout.strip()
        return [hierarchies()[0] / path.lstrip("/")] if path not in ("", "/") else []
    return [root / "lclab" / unit for root in hierarchies()]


def _events(group: Path) -> dict[str, str]:
    try:
        words = (group / "cgroup.events").read_text().split()
    except OSError:
        return {}  # gone, or going while we looked
    return dict(zip(words[::2], words[1::2], strict=True))


def state(unit: str) -> str:
    """``running``, ``frozen`` or ``dead``."""
    groups = _groups(unit)
    events = _events(groups[0]) if groups else {}
    if events.get("populated") != "1":
        return "dead"
    return "frozen" if events.get("frozen") == "1" else "running"


def spawn(unit: str, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Start ``argv`` in a control group of its own; it outlives this process.

    Its output is appended to ``log``. The shell that becomes ``argv`` enters the group before
    anything else, so that a group that :func:`kill` has removed cannot be populated late.
    """
    if systemd_host():
        settings = [f"--setenv={name}={value}" for name, value in environment.items()]
        host.run(
            [
                *("systemd-run", "--quiet", "--collect", f"--unit={unit}"),
                *("--property=Delegate=yes", "--property=KillMode=mixed"),
                *(f"--property=StandardOutput=append:{log}", "--property=StandardError=inherit"),
                *settings,
                *("--", *argv),
            ]
        )
        return
    groups = _groups(unit)
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    procs = " ".join(str(group / "cgroup.procs") for group in groups)
    host.run(
        ["setsid", "--fork", "sh", "-euc", _ENTER, "lab", *argv],
        environment={**environment, "LAB_PROCS": procs, "LAB_LOG": str(log)},
    )


def wait_populated(unit: str, seconds: float = 10) -> bool:
    """Wait until a spawned unit has entered its group; False when it has not by then."""
    deadline = time.monotonic() + seconds
    while state(unit) == "dead":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill(unit: str) -> bool:
    """Kill every process of a unit at once and remove its groups; False if there was nothing."""
    groups = [group for group in _groups(unit) if group.is_dir()]
    for group in groups:
        _kill_group(group)
        if not systemd_host():
            _remove_group(group)
    if systemd_host():  # returns when systemd has noticed, so that the name is free again
        host.run(["systemctl", "stop", f"{unit}.service"], check=False)
    return bool(groups)


def _kill_group(group: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while _events(group).get("populated") == "1":
        try:
            (group / "cgroup.kill").write_text("1")
        except FileNotFoundError:
            return
        if time.monotonic() > deadline:
            raise LabError(
                f"the processes in {group} survive SIGKILL for {seconds:.0f} s;"
                " look at what they wait for (`ps -o pid,stat,wchan,args`) and run it again"
            )
        time.sleep(0.01)


def _remove_group(group: Path) -> None:
    for _ in range(500):
        try:
            for directory, _names, _files in os.walk(group, topdown=False):
                os.rmdir(directory)
            break
        except FileNotFoundError:
            break
        except OSError:  # busy: a dying process is still accounted, or a late one slipped in
            _kill_group(group)
            time.sleep(0.01)
    else:
        raise LabError(f"cannot remove the control group {group}: it stays busy")
    with contextlib.suppress(OSError):  # while another unit lives in it
        group.parent.rmdir()


def freeze(unit: str, frozen: bool) -> bool:
    """Stop every process of a unit where it stands, or let them run on; False if it was so."""
    group = _groups(unit)[0]
    wanted = "1" if frozen else "0"
    if _events(group).get("frozen") == wanted:
        return False
    (group / "cgroup.freeze").write_text(wanted)
    deadline = time.monotonic() + 10
    while _events(group).get("frozen") != wanted:
        if time.monotonic() > deadline:
            raise LabError(f"{unit} did not {'freeze' if frozen else 'thaw'} within 10 s")
        time.sleep(0.01)
    return True


def pids(unit: str) -> list[int]:
    """Every process of a unit, on the host's count."""
    groups = _groups(unit)
    found: list[int] = []
    for directory, _names, _files in os.walk(groups[0]) if groups else ():
        with contextlib.suppress(OSError):  # a group that goes while we look has no processes
            found += [int(word) for word in Path(directory, "cgroup.procs").read_text().split()]
    return sorted(found)


def parse_namespaced_pids(status: str) -> list[int]:
    """The pids of a process in nested pid namespaces, outermost first (/proc/PID/status)."""
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    return []


def leader(unit: str) -> int | None:
    """The host's pid of a node's PID 1, or None.

    There is a moment in every boot when that process still has the host's root directory. Whoever entered
    it then would be changing the host; so it does not count until it stands on a root of its own.
    """
    for pid in pids(unit):
        try:
            numbers = parse_namespaced_pids(Path(f"/proc/{pid}/status").read_text())
            own_root = not os.path.samefile(f"/proc/{pid}/root", "/")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(numbers) == 2 and numbers[1] == 1 and own_root:
            return pid
    return None
