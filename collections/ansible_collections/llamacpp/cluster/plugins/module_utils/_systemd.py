# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decide what a systemd service needs, from what is on disk and what runs.

Ansible's handlers forget: a run that is killed between writing a unit file and
restarting its service leaves the old process running, and the next run sees
nothing to do. Here the question is asked of the node itself: did the running
process start before the newest of its files was written? So any run, at any
time, ends in the declared state. Pure functions; the module does the I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Asked of `systemctl show`; the order is that of systemd's manual.
PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "UnitFileState",
    "NeedDaemonReload",
    "MainPID",
    "InvocationID",
    "ExecMainStartTimestampMonotonic",
)


@dataclass(frozen=True)
class UnitState:
    """What systemd says of a unit. Times are seconds on the wall clock, 0.0 when never started."""

    loaded: bool
    active: str
    sub: str
    result: str
    enabled: bool
    needs_reload: bool
    main_pid: int
    invocation: str
    started_at: float

    @property
    def running(self) -> bool:
        """Whether the service runs or is on its way up (``activating`` covers a model load)."""
        return self.active in ("active", "activating", "reloading")


@dataclass(frozen=True)
class Actions:
    """What to do, in this order; ``reason`` says in a few words why the service is touched."""

    reload: bool
    enable: bool
    start: bool
    restart: bool
    reason: str

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return self.reload or self.enable or self.start or self.restart


def parse_show(text: str, wall_minus_monotonic: float) -> UnitState:
    """Read the output of ``systemctl show`` for :data:`PROPERTIES`.

    ``wall_minus_monotonic``: seconds to add to a CLOCK_MONOTONIC time to get a wall clock time.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key] = value
    started = int(values.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
    return UnitState(
        loaded=values.get("LoadState") == "loaded",
        active=values.get("ActiveState", "inactive"),
        sub=values.get("SubState", "dead"),
        result=values.get("Result", ""),
        enabled=values.get("UnitFileState") in ("enabled", "enabled-runtime"),
        needs_reload=values.get("NeedDaemonReload") == "yes",
        main_pid=int(values.get("MainPID") or 0),
        invocation=values.get("InvocationID", ""),
        started_at=started + wall_minus_monotonic if started else 0.0,
    )


def decide(state: UnitState, files_changed: bool, watched_mtimes: Mapping[str, float]) -> Actions:
    """Decide how to bring a service to what its files say.

    ``files_changed``: this run wrote (or, in check mode, would write) one of the files.
    ``watched_mtimes``: path -> modification time of the files that the process reads at start.
    """
    reload = files_changed or state.needs_reload or not state.loaded
    newer = [path for path, mtime in sorted(watched_mtimes.items()) if mtime > state.started_at]
    if not state.running:
        why = "it failed (%s)" % state.result if state.active == "failed" else "it was not running"
        return Actions(reload, not state.enabled, True, False, why)
    if files_changed:
        return Actions(reload, not state.enabled, False, True, "its configuration changed")
    if state.needs_reload:
        return Actions(reload, not state.enabled, False, True, "its unit file changed since it was loaded")
    if newer and state.started_at > 0.0:
        return Actions(reload, not state.enabled, False, True, "%s is newer than its process" % newer[0])
    return Actions(reload, not state.enabled, False, False, "")
