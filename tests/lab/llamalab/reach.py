"""Whether nodes answer."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

from . import host, inventory, node, supervise
from .names import Lab, LabError


def greets(lab: Lab, name: str, timeout: float) -> bool:
    """Whether the node's sshd sends its banner within ``timeout`` seconds."""
    try:
        address = (lab.address(name, "management"), 22)
        with socket.create_connection(address, timeout=timeout) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _logs_in(lab: Lab, name: str) -> bool:
    """Whether Ansible's user can log in; early in a boot sshd answers but lets nobody in."""
    # Killed with the thread that waits for it, so that a labctl that dies leaves no ssh behind.
    guard = ["setpriv", "--pdeathsig", "KILL", "--"]
    argv = [*guard, *inventory.ssh_command(lab, name, connect_timeout=2), "true"]
    try:
        return host.run(argv, check=False, timeout=10).returncode == 0
    except LabError:  # no end within 10 s
        return False


def wait(lab: Lab, names: list[str]) -> None:
    """Wait until every node lets Ansible's user in."""
    begin, pace = time.monotonic(), host.Pace()
    limit = 60 + 5 * len(names)
    pending = list(names)
    with ThreadPoolExecutor(4) as pool:
        while pending:
            ready = pool.map(lambda name: greets(lab, name, 1) and _logs_in(lab, name), pending)
            pending = [name for name, there in zip(pending, list(ready), strict=True) if not there]
            if pending and pace.due():
                host.say(f"{len(names) - len(pending)} of {len(names)} nodes answer ssh")
            for name in pending:
                if supervise.state(lab.unit(name)) == "dead":
                    raise LabError(f"{name} died while booting; {_last_words(lab, name)}")
            if pending and time.monotonic() - begin > limit:
                raise LabError(
                    f"{', '.join(pending)} did not answer ssh within {limit} s; {_last_words(lab, pending[0])}"
                )
            if pending:
                time.sleep(0.1)
    host.say(f"{len(names)} of {len(names)} nodes answer ssh ({time.monotonic() - begin:.1f} s)")


def _last_words(lab: Lab, name: str) -> str:
    """The end of a node's console log, with the path of the whole."""
    path = node.console(lab, name)
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return f"the last words on its console ({path}) are:\n" + "\n".join(lines[-5:])
