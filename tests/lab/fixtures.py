"""A lab for tests: the session fixture ``lab``, and :func:`lab_of` for others.

Import it where tests need it (one conftest.py is enough for all of them)::

    from fixtures import lab

The lab is made anew, given to the tests, and taken down afterwards, also when pytest is
killed. With LAB_KEEP=1 it stays, and a lab that is there already is used as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from llamalab import inventory, names
from llamalab.record import state_directory

LABCTL = Path(__file__).resolve().parent / "labctl.py"

#: What the fixture brings up: every Debian release that the collection supports, Python 3.9 to 3.13.
NODES = 4
SUITES = {"node2": "bullseye", "node3": "trixie"}


class LabFailed(AssertionError):
    """A labctl command or a command on a node failed; the message holds what it said."""


class LiveLab:
    """A lab as tests see it. Every method that changes something works through labctl."""

    def __init__(self, name: str) -> None:
        self.lab = names.Lab(name)
        self.name = name

    @property
    def inventory(self) -> Path:
        """The inventory of the lab's nodes."""
        return state_directory(self.lab) / "inventory.yml"

    @property
    def private_key(self) -> Path:
        """The key of the nodes' user ``ops``."""
        return state_directory(self.lab) / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The nodes' host keys."""
        return state_directory(self.lab) / "ssh" / "known_hosts"

    def command(self, *words: str) -> list[str]:
        """labctl's command line for this lab."""
        return [sys.executable, str(LABCTL), "--name", self.name, *words]

    def ctl(self, *words: str, show: bool = False) -> dict[str, Any]:
        """Run labctl and return its JSON; with ``show`` its progress goes to our stderr.

        Raises :class:`LabFailed` with labctl's message.
        """
        done = subprocess.run(
            self.command(*words, "--json"),
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise LabFailed(f"labctl {' '.join(words)}: {done.stderr or 'see above'}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def up(self, nodes: int, *words: str, show: bool = False) -> dict[str, Any]:
        """Bring the lab to that many nodes."""
        return self.ctl("up", "--nodes", str(nodes), *words, show=show)

    def down(self) -> bool:
        """Take the lab down; tell whether there was one."""
        return bool(self.ctl("down")["changed"])

    def state(self, node: str) -> str:
        """``running``, ``frozen`` or ``dead``."""
        return str(self.ctl("status")["nodes"][node]["state"])

    def kill(self, node: str) -> bool:
        """Power loss."""
        return bool(self.ctl("kill", node)["changed"])

    def start(self, node: str) -> bool:
        """Boot a node that is off; returns when it answers."""
        return bool(self.ctl("start", node)["changed"])

    def freeze(self, node: str) -> bool:
        """Stop all of a node's processes where they stand."""
        return bool(self.ctl("freeze", node)["changed"])

    def thaw(self, node: str) -> bool:
        """Let them run on."""
        return bool(self.ctl("thaw", node)["changed"])

    def cut(self, node: str, network: str = "both") -> bool:
        """Pull cables: ``management``, ``fabric`` or ``both``."""
        return bool(self.ctl("cut", node, "--network", network)["changed"])

    def mend(self, node: str, network: str = "both") -> bool:
        """Plug cables in again."""
        return bool(self.ctl("mend", node, "--network", network)["changed"])

    def shape(self, rate: str, network: str = "fabric") -> bool:
        """Limit every node's bandwidth on a network; ``none`` lifts the limit."""
        return bool(self.ctl("shape", "--rate", rate, "--network", network)["changed"])

    def address(self, node: str, network: str = "management") -> str:
        """A node's address."""
        return self.lab.address(node, network)

    def ssh(
        self, node: str, argv: Sequence[str], *, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as ``ops`` over ssh; the words are joined by spaces, as ssh does."""
        done = subprocess.run(
            [*inventory.ssh_command(self.lab, node), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise LabFailed(f"{node}: `{' '.join(argv)}` ended with {done.returncode}: {done.stderr or done.stdout}")
        return done

    def root(
        self, node: str, argv: Sequence[str], *, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside a node, also one that is cut off."""
        done = subprocess.run(
            self.command("exec", node, "--", *argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise LabFailed(f"{node}: `{' '.join(argv)}` ended with {done.returncode}: {done.stderr or done.stdout}")
        return done


def greets(address: str, seconds: float = 1) -> bool:
    """Whether an ssh server at ``address`` sends its banner within ``seconds``."""
    try:
        with socket.create_connection((address, 22), timeout=seconds) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


@contextlib.contextmanager
def lab_of(
    request: pytest.FixtureRequest, name: str, nodes: int, suites: Mapping[str, str] | None = None
) -> Iterator[LiveLab]:
    """A lab that is made anew and gone afterwards, also when pytest is killed (but see LAB_KEEP above)."""
    live = LiveLab(name)
    keep = os.environ.get("LAB_KEEP") == "1"
    words = [f"--suite={node}={suite}" for node, suite in (suites or {}).items()]
    if not keep:
        words.append(f"--owner-pid={os.getpid()}")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # the first time takes a minute: show how far it is
        if not keep:
            live.down()
        live.up(nodes, *words, show=True)
    try:
        yield live
    finally:
        if not keep:
            live.down()


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[LiveLab]:
    """The lab ``test``: node1 and node4 run bookworm, node2 bullseye, node3 trixie."""
    with lab_of(request, "test", NODES, SUITES) as live:
        yield live
