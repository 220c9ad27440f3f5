# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The transient systemd unit in which the engine of a swarm runs, without privileges, and what it says."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils import _swarm
from ansible_collections.llamacpp.cluster.plugins.module_utils._transient import Run, TransientUnit

PROPERTIES = (
    "CapabilityBoundingSet=",
    "PrivateTmp=yes",
    # Netlink tells libtorrent the node's addresses.
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    "LimitNOFILE=65536",
)


class Status(NamedTuple):
    """What the unit says. ``active``: it runs. ``report``: the engine's last words, empty if there are none."""

    active: bool
    report: Mapping[str, Any]


class SwarmUnit(TransientUnit):
    """The unit ``llamacpp-swarm-NAME.service``."""

    def __init__(self, name: str, run: Run) -> None:
        super().__init__("swarm", name, run)

    def start(self, config: Mapping[str, Any], python: str, user: str, writable: Sequence[str]) -> None:
        """Let systemd run the engine, and wait until it listens. Raises :class:`UnitError` and :class:`OSError`."""
        properties = [
            *PROPERTIES,
            *(["User=" + user] if user else []),
            *("ReadWritePaths=" + path for path in writable),
        ]
        description = "Models from and for the peers of this node (llamacpp.cluster)"
        self.launch(description, _swarm, config, python, properties, secret=False)

    def status(self) -> Status:
        """Return what it is doing."""
        active, text = self.said()
        try:
            report = json.loads(text or "{}")
        except ValueError:
            report = {}
        return Status(active, report if isinstance(report, dict) else {})


# The engine talks to the network, so what it says is not trusted to be what it should be.


def number(report: Mapping[str, Any], key: str) -> int:
    """Return a number of a report; 0 when it is none."""
    value = report.get(key)
    return value if isinstance(value, int) else 0


def addresses(report: Mapping[str, Any], key: str) -> set[str]:
    """Return IP addresses of a report, and nothing else."""
    found = set()
    values = report.get(key)
    for value in values if isinstance(values, list) else []:
        with contextlib.suppress(ValueError):
            found.add(str(ipaddress.ip_address(value)))
    return found
