"""The host: where the lab keeps its things, how it runs commands and how it reports progress."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .names import LabError

STATE = Path("/var/lib/llamacpp-lab")
CACHE = Path("/var/cache/llamacpp-lab")
NETNS = Path("/run/netns")

#: Root's tools live in sbin, which is not on every user's PATH; nothing else of the caller's
#: environment may reach the nodes.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": os.path.expanduser("~root"),
}


def say(message: str) -> None:
    """Report progress on stderr, at once."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


class Pace:
    """When to report progress again: every three seconds, the first time after three."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time; then the next time is three seconds later."""
        now = time.monotonic()
        if now - self._last < 3:
            return False
        self._last = now
        return True


def run(
    argv: Sequence[str],
    *,
    text: str | None = None,
    check: bool = True,
    timeout: float = 120,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return it with its output as text.

    ``text`` is its standard input. Raises :class:`LabError` with the command and what it said
    on stderr when it fails (unless ``check`` is false) or takes longer than ``timeout`` seconds.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**ENVIRONMENT, **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(argv)}` did not end within {timeout:.0f} s") from None
    if check and done.returncode != 0:
        raise LabError(
            f"`{' '.join(argv)}` failed with status {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done


def owner() -> tuple[int, int] | None:
    """User and group of the person behind sudo, or None when root works in their own name."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if uid.isdecimal() and gid.isdecimal() and uid != "0":
        return int(uid), int(gid)
    return None


def make_directory(path: Path) -> None:
    """Make a directory that everyone may enter, whatever root's umask is."""
    for missing in reversed([parent for parent in (path, *path.parents) if not parent.exists()]):
        missing.mkdir(exist_ok=True)
        missing.chmod(0o755)


def write_text(path: Path, text: str, mode: int = 0o644, *, for_owner: bool = False) -> bool:
    """Write a file in one step and tell whether its content changed.

    With ``for_owner`` the file belongs to the person behind sudo, if there is one.
    """
    if path.is_file() and path.read_text() == text:
        return False
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, mode)
        if for_owner and (person := owner()) is not None:
            os.fchown(descriptor, *person)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    os.replace(temporary, path)
    return True
