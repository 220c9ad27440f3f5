"""Inventories and SSH files that lead to a lab's nodes: text, no access to the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from .names import NETWORKS, NODE_USER, Lab
from .record import state_directory

HEADER = "# Written by tests/lab/labctl.py; do not edit.\n"

#: The file beside inventories/lab/hosts.yml that holds the nodes it does not name.
REPOSITORY = Path(__file__).resolve().parents[3]
MORE_NODES = REPOSITORY / "inventories" / "lab" / "more_nodes.yml"
STATIC_NODES = 3


def inventory(lab: Lab, nodes: Iterable[str], *, builders: Iterable[str]) -> str:
    """A YAML inventory of ``nodes`` in the group llamacpp_nodes."""
    ssh = state_directory(lab) / "ssh"
    lines = ["---", "llamacpp_nodes:", "  hosts:"]
    for node in nodes:
        lines += [
            f"    {node}:",
            f"      ansible_host: {lab.address(node, 'management')}",
            f"      llamacpp_fabric_address: {lab.address(node, 'fabric')}",
        ]
    lines += [
        "  vars:",
        f"    ansible_user: {NODE_USER}",
        f"    ansible_ssh_private_key_file: {ssh / 'id_ed25519'}",
        "    ansible_ssh_common_args: >-",
        f"      -o UserKnownHostsFile={ssh / 'known_hosts'}",
        "      -o StrictHostKeyChecking=yes",
        "      -o IdentitiesOnly=yes",
        # A node that was killed, frozen or cut off is noticed within 15 s, also in the middle of a task.
        "      -o ServerAliveInterval=5",
        "      -o ServerAliveCountMax=3",
        "    ansible_python_interpreter: /usr/bin/python3",
    ]
    names = list(builders)
    if names:
        lines += ["llamacpp_builders:", "  hosts:", *(f"    {node}:" for node in names)]
    return HEADER + "\n".join(lines) + "\n"


def known_hosts(lab: Lab, keys: Mapping[str, str]) -> str:
    """known_hosts for nodes by name with their public host keys (``ssh-ed25519 AAAA...``)."""
    lines = []
    for node, key in keys.items():
        names = ",".join([node, *(lab.address(node, network) for network in NETWORKS)])
        lines.append(f"{names} {' '.join(key.split()[:2])}")
    return "\n".join(lines) + "\n"


def ssh_command(lab: Lab, node: str, *, connect_timeout: int = 5) -> list[str]:
    """The ssh command that logs in to a node and asks nothing."""
    ssh = state_directory(lab) / "ssh"
    return [
        *("ssh", "-F", "none", "-i", str(ssh / "id_ed25519")),
        *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"),
        *("-o", f"UserKnownHostsFile={ssh / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"),
        *("-o", f"ConnectTimeout={connect_timeout}"),
        f"{NODE_USER}@{lab.address(node, 'management')}",
    ]
