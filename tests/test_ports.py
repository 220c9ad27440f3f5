"""Ports that roles take by default are free on nodes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.llamacpp.cluster.plugins.module_utils._model_work import SWARM_PORTS

ROLES = Path(__file__).resolve().parents[1] / "collections" / "ansible_collections" / "llamacpp" / "cluster" / "roles"
# Linux gives ports from here on to whoever connects to somebody (net.ipv4.ip_local_port_range).
OUTGOING = 32768
# PyTorch, Kubernetes (node ports), FlexLM and MongoDB, GlusterFS.
OTHERS = [range(29400, 29401), range(29500, 29501), range(30000, 32768), range(27000, 27020), range(24007, 24009)]


def default(role: str, variable: str) -> int:
    """The number that a role takes where nobody says another one."""
    variables: dict[str, Any] = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    found = re.search(r"default\((\d+)\)", variables[variable])
    assert found, variables[variable]
    return int(found.group(1))


def test_a_swarm_takes_ports_that_nobody_else_has() -> None:
    first = default("models", "models_swarm_port")
    ports = range(first, first + SWARM_PORTS)
    assert ports.stop <= OUTGOING
    assert not [taken for taken in OTHERS if max(ports.start, taken.start) < min(ports.stop, taken.stop)]
    for base in ("preflight_http_port_base", "preflight_rpc_port_base"):
        assert default("preflight", base) not in ports
