# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Transient systemd units: a script of this collection that runs for a while in a sandbox, and what it says."""

from __future__ import annotations

import inspect
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Callable

RUNTIME = "/run"
LOG_LINES = "20"
# As narrow as systemd 239 (EL 8) and newer have in common; capabilities and address families are each unit's own.
SANDBOX = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateDevices=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "MemoryDenyWriteExecute=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "TasksMax=256",
)
# Runs a command; returns exit status, output and errors.
Run = Callable[[Sequence[str]], tuple[int, str, str]]


class UnitError(Exception):
    """systemd does not do it; the text says why and what to do."""


class TransientUnit:
    """The unit ``llamacpp-KIND-NAME.service``. Raises :class:`UnitError` for a name that no unit can have."""

    def __init__(self, kind: str, name: str, run: Run) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
            raise UnitError("name = %r: write letters, digits and hyphens alone" % name)
        self.prefix = "llamacpp-%s-%s" % (kind, name)
        self.unit = self.prefix + ".service"
        self.run = run

    def launch(
        self,
        description: str,
        script: ModuleType,
        config: Mapping[str, Any],
        python: str,
        properties: Sequence[str],
        secret: bool,
    ) -> None:
        """Let systemd run the source of a module with a configuration, and wait until it says that it is ready.

        ``secret``: only root may read the configuration. It is a file, as every user of the node can read command
        lines, and gone as soon as the script has started. Raises :class:`UnitError` and :class:`OSError`.
        """
        with tempfile.TemporaryDirectory(prefix=self.prefix + "-", dir=RUNTIME) as work:
            program, settings = os.path.join(work, "script.py"), os.path.join(work, "config.json")
            for path, text in ((program, inspect.getsource(script)), (settings, json.dumps(config))):
                with open(path, "w", encoding="utf-8") as stream:
                    stream.write(text)
                os.chmod(path, 0o600 if secret else 0o644)
            os.chmod(work, 0o700 if secret else 0o755)
            argv = ["systemd-run", "--collect", "--quiet", "--unit", self.unit, "--description", description]
            for item in ("Type=notify", "NotifyAccess=main", *SANDBOX, *properties):
                argv += ["--property", item]
            rc, _out, err = self.run([*argv, python, "-I", "-B", program, settings])
        if rc != 0:
            raise UnitError("%s does not start: %s\n%s" % (self.unit, err.strip(), self.log()))

    def said(self) -> tuple[bool, str]:
        """Return whether it runs, and what it last said of itself (``STATUS``, sd_notify(3))."""
        _rc, out, _err = self.run(["systemctl", "show", "--property", "ActiveState,StatusText", self.unit])
        values = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
        return values.get("ActiveState") in ("active", "activating", "deactivating"), values.get("StatusText", "")

    def stop(self) -> bool:
        """Stop it and wait until it has; return whether it ran. Raises :class:`UnitError`."""
        active, _text = self.said()
        if active:
            rc, _out, err = self.run(["systemctl", "stop", self.unit])
            if rc != 0:
                raise UnitError("systemctl cannot stop %s: %s" % (self.unit, err.strip()))
        # One that failed keeps its name until somebody says so.
        self.run(["systemctl", "reset-failed", self.unit])
        return active

    def log(self) -> str:
        """Return the last lines that it wrote."""
        argv = ["journalctl", "--unit", self.unit, "--lines", LOG_LINES, "--no-pager", "--output", "cat"]
        return self.run(argv)[1].strip()
