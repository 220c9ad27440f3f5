"""Taking a lab down when the process that wanted it is gone.

Tests pass their own pid with ``up --owner-pid``: then a test run that is killed in any way leaves
no lab behind. The watchdog is a small process that sleeps until the owner ends.
"""
from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from . import host, record, supervise
from .names import Lab, LabError
from .record import LabRecord, Watchdog

LABCTL = Path(__file__).resolve().parents[1] / "labctl.py"


def ensure(lab: Lab, known: LabRecord, owner_pid: int | None) -> None:
    """See that a watchdog waits for ``owner_pid``; without one, leave things as they are."""
    if owner_pid is None:
        return
    if _alive(known.watchdog) and known.watchdog is not None:
        if known.watchdog.owner_pid == owner_pid:
            return
        stop(known)
    if supervise.start_ticks(owner_pid) is None:
        raise LabError(f"--owner-pid {owner_pid}: there is no such process")
    log = record.state_directory(lab) / "watchdog.log"
    with open(log, "a") as output:
        process = subprocess.Popen(
            [sys.executable, str(LABCTL), "--name", lab.name, "_watch", str(owner_pid)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=host.ENVIRONMENT,
        )
    ticks = supervise.start_ticks(process.pid)
    if ticks is None:
        raise LabError(f"the watchdog ended at once; see {log}")
    known.watchdog = Watchdog(process.pid, ticks, owner_pid)
    known.save()
    process.returncode = 0  # it outlives us: nobody is to wait for it


def _alive(dog: Watchdog | None) -> bool:
    return dog is not None and supervise.start_ticks(dog.pid) == dog.start_ticks


def stop(known: LabRecord) -> None:
    """End the watchdog and wait for it, unless it is this very process."""
    dog = known.watchdog
    if dog is not None and dog.pid != os.getpid() and _alive(dog):
        handle = os.pidfd_open(dog.pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], 10)
        finally:
            os.close(handle)
    known.watchdog = None
    known.save()


def wait(lab: Lab, owner_pid: int) -> bool:
    """Sleep until the owner is gone; False when the lab has no use for this watchdog any more."""
    try:
        handle = os.pidfd_open(owner_pid)
    except ProcessLookupError:
        return True
    try:
        while not select.select([handle], [], [], 2)[0]:
            known = record.load(lab)
            if known is None or (known.watchdog and known.watchdog.pid != os.getpid()):
                return False
        return True
    finally:
        os.close(handle)
