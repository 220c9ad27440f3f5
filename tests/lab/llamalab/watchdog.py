"""Taking a lab down when the process that wanted it is gone.

Tests pass their own pid with ``up --owner-pid``: then a test run that is killed in any way leaves
no lab behind. The watchdog is a small process that sleeps until the owner ends.

It holds a lock on a file for as long as it lives, and the kernel tells who holds a lock. So it is
found by what it holds, also when labctl died right after starting it, and a pid that was given
away anew cannot be mistaken for it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from . import host, record
from .names import Lab, LabError

LABCTL = Path(__file__).resolve().parents[1] / "labctl.py"
_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid


def _lock_file(lab: Lab) -> Path:
    return record.locks() / f"{lab.name}.watchdog"


def holder(lab: Lab) -> int | None:
    """The pid of the lab's watchdog, or None; not for use inside the watchdog itself."""
    try:
        with open(_lock_file(lab)) as file:
            question = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, question))
    except FileNotFoundError:
        return None
    return pid if kind != fcntl.F_UNLCK else None


def ensure(lab: Lab, owner_pid: int | None) -> None:
    """See that a watchdog waits for ``owner_pid``; without one, leave things as they are.

    Raises :class:`LabError` when there is no such process.
    """
    if owner_pid is None:
        return
    if not Path(f"/proc/{owner_pid}").exists():
        raise LabError(f"--owner-pid {owner_pid}: there is no such process")
    if holder(lab) is not None and _lock_file(lab).read_text() == f"{owner_pid}\n":
        return
    stop(lab)
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
    deadline = time.monotonic() + 10
    while holder(lab) != process.pid:
        if process.poll() is not None or time.monotonic() > deadline:
            raise LabError(f"the watchdog did not start: {log.read_text().strip()}")
        time.sleep(0.02)
    process.returncode = 0  # it outlives us: nobody is to wait for it


def stop(lab: Lab) -> None:
    """End the watchdog and wait until it is gone; no-op inside the watchdog itself."""
    while (pid := holder(lab)) is not None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if holder(lab) == pid:  # so the handle is the watchdog's, not a successor's
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], 10)
        finally:
            os.close(handle)


def watch(lab: Lab, owner_pid: int) -> bool:
    """Be the watchdog: sleep until the owner is gone; False when the lab is gone before that."""
    with open(_lock_file(lab), "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{owner_pid}\n")
        file.flush()
        try:
            handle = os.pidfd_open(owner_pid)
        except ProcessLookupError:
            return True
        try:
            while not select.select([handle], [], [], 2)[0]:
                if record.load(lab) is None:
                    return False
            return True
        finally:
            os.close(handle)
