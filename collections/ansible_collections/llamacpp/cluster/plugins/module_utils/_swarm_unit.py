# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The transient systemd unit in which the engine of a swarm runs, without privileges, and what it says."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils import _swarm

RUNTIME = "/run"
LOG_LINES = "20"
# As narrow as systemd 239 (EL 8) and newer have in common. Netlink tells libtorrent the node's addresses.
SANDBOX = (
    "CapabilityBoundingSet=",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    "MemoryDenyWriteExecute=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "TasksMax=256",
    "LimitNOFILE=65536",
)
# Runs a command; returns exit status, output and errors.
Run = Callable[[Sequence[str]], tuple[int, str, str]]


class UnitError(Exception):
    """systemd does not do it; the text says why and what to do."""


class Status(NamedTuple):
    """What the unit says. ``active``: it runs. ``report``: the engine's last words, empty if there are none."""

    active: bool
    report: Mapping[str, Any]


class SwarmUnit:
    """The unit ``llamacpp-swarm-NAME.service``."""

    def __init__(self, name: str, run: Run) -> None:
        self.unit = "llamacpp-swarm-%s.service" % name
        self.run = run

    def start(self, config: Mapping[str, Any], python: str, user: str, writable: Sequence[str]) -> None:
        """Let systemd run the engine, and wait until it listens. Raises :class:`UnitError` and :class:`OSError`."""
        properties = ["Type=notify", "NotifyAccess=main", *SANDBOX]
        properties += ["User=" + user] if user else []
        properties += ["ReadWritePaths=" + path for path in writable]
        # Both are read before systemd-run returns; there is no secret in them.
        with tempfile.TemporaryDirectory(prefix="llamacpp-swarm-", dir=RUNTIME) as work:
            os.chmod(work, 0o755)
            script, settings = os.path.join(work, "swarm.py"), os.path.join(work, "config.json")
            for path, text in ((script, inspect.getsource(_swarm)), (settings, json.dumps(config))):
                with open(path, "w", encoding="utf-8") as stream:
                    stream.write(text)
                os.chmod(path, 0o644)
            argv = ["systemd-run", "--collect", "--quiet", "--unit", self.unit]
            argv += ["--description", "Models from and for the peers of this node (llamacpp.cluster)"]
            argv += [word for item in properties for word in ("--property", item)]
            rc, _out, err = self.run([*argv, python, "-I", "-B", script, settings])
        if rc != 0:
            raise UnitError("%s does not start: %s\n%s" % (self.unit, err.strip(), self.log()))

    def stop(self) -> bool:
        """Stop it and wait until it has; return whether it ran. Raises :class:`UnitError`."""
        active = self.status().active
        if active:
            rc, _out, err = self.run(["systemctl", "stop", self.unit])
            if rc != 0:
                raise UnitError("systemctl cannot stop %s: %s" % (self.unit, err.strip()))
        # One that failed keeps its name until somebody says so.
        self.run(["systemctl", "reset-failed", self.unit])
        return active

    def status(self) -> Status:
        """Return what it is doing."""
        _rc, out, _err = self.run(["systemctl", "show", "--property", "ActiveState,StatusText", self.unit])
        values = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        try:
            report = json.loads(values.get("StatusText") or "{}")
        except ValueError:
            report = {}
        active = values.get("ActiveState") in ("active", "activating", "deactivating")
        return Status(active, report if isinstance(report, dict) else {})

    def log(self) -> str:
        """Return the last lines that it wrote."""
        argv = ["journalctl", "--unit", self.unit, "--lines", LOG_LINES, "--no-pager", "--output", "cat"]
        return self.run(argv)[1].strip()
