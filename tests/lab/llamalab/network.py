"""The lab's networks.

Both bridges (management, fabric) live in a network namespace of their own, the switch, and a
pair of veth links connects it to the host. So the host sees two links a lab, its firewall and
its network manager have no say over the traffic between nodes, and deleting the switch deletes
bridges and ports with it::

    host                switch: lclab-test          node: lclab-test-node1
    lclab1m 10.214.0.1 -- host  [mgmt] mgmt-node1 -- mgmt0 10.214.0.11
    lclab1f 10.214.1.1 -- host  [fab]  fab-node1  -- fab0  10.214.1.11

A host link is made inside the switch, given the alias that marks it as ours and only then moved
to the host, where the kernel refuses it if the name is taken. So what carries the alias is ours,
and what does not never was.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import host
from .names import LABS, NETWORKS, PROXY_ADDRESS, Lab, LabError, port, rate_bits
from .record import LabRecord, locks


def ip(commands: Iterable[str], namespace: str | None = None) -> None:
    """Run a batch of ip(8) commands, in a network namespace if one is named."""
    argv = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    done = host.run(argv, text="\n".join(commands) + "\n", check=False)
    if done.returncode == 0:
        return
    said = done.stderr.strip()
    if "Unknown device type" in said:
        said += " -- this kernel lacks bridge or veth links; load them (`modprobe bridge veth`)"
    raise LabError(f"`{' '.join(argv)}`: {said}")


def links(namespace: str | None = None) -> dict[str, dict[str, Any]]:
    """Links by name, as ``ip -j link`` tells them."""
    argv = ["ip", *(["-n", namespace] if namespace else []), "-j", "link", "show"]
    return {link["ifname"]: link for link in json.loads(host.run(argv).stdout or "[]")}


def namespace_exists(name: str) -> bool:
    """Whether a network namespace of that name exists."""
    return (host.NETNS / name).exists()


def claim_namespaces_directory() -> None:
    """Let ip(8) set up /run/netns if nobody has, and remember that this was us.

    The first ``ip netns add`` on a machine mounts a directory over itself. The caller holds the
    lock ``shared``.
    """
    if not _mounted(host.NETNS):
        _netns_mark().touch()


def release_namespaces_directory() -> None:
    """Undo :func:`claim_namespaces_directory` if it was us and nobody else's namespaces are there.

    The caller holds the lock ``shared`` and knows that no lab is left.
    """
    if not _netns_mark().exists():
        return
    if host.NETNS.is_dir() and not any(host.NETNS.iterdir()):
        while _mounted(host.NETNS):
            host.run(["umount", str(host.NETNS)])
        host.NETNS.rmdir()
    _netns_mark().unlink()


def _mounted(path: Path) -> bool:
    """Whether something is mounted there; os.path.ismount does not see a directory bound to itself."""
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _netns_mark() -> Path:
    return locks() / "made-run-netns"


def make_namespace(record: LabRecord, name: str) -> None:
    """Create a network namespace, written down first; what a crash left of ours is replaced.

    :func:`check_namespaces` has asked before whose it is; where both failed, ip(8) refuses.
    """
    delete_namespace(record, name)
    if name not in record.namespaces:
        record.namespaces.append(name)
        record.save()
    host.run(["ip", "netns", "add", name])


def delete_namespace(record: LabRecord, name: str) -> None:
    """Delete a network namespace that the record knows; no-op when it does not."""
    if name not in record.namespaces:
        return
    path = host.NETNS / name
    if path.exists():
        # A crash between creating the file and mounting the namespace on it leaves a plain
        # file, which `ip netns delete` fails to unmount but removes all the same.
        done = host.run(["ip", "netns", "delete", name], check=False)
        if path.exists():
            raise LabError(f"cannot delete the network namespace {name}: {done.stderr.strip()}")
    record.namespaces.remove(name)
    record.save()


def check_host_links(lab: Lab) -> None:
    """Refuse when a link of our name is someone else's."""
    present = links()
    for network in NETWORKS:
        name = lab.host_link(network)
        if name in present and present[name].get("ifalias") != lab.alias:
            raise LabError(
                f"the network interface {name} exists and the lab did not make it;"
                f" find out whose it is, then remove it (`ip link delete {name}`)"
            )


def check_namespaces(lab: Lab, record: LabRecord, nodes: Iterable[str]) -> None:
    """Refuse when a network namespace of our name is someone else's."""
    for name in (lab.switch_namespace, *(lab.node_namespace(node) for node in nodes)):
        if namespace_exists(name) and name not in record.namespaces:
            raise LabError(
                f"the network namespace {name} exists, but no record says that the lab made it;"
                f" find out whose it is, then remove it (`ip netns delete {name}`)"
            )


def check_addresses(lab: Lab, addresses: str, routes: str) -> None:
    """Refuse when the host already uses the lab's addresses for something else.

    A wider network (a VPN's 10.0.0.0/8) is no obstacle: the lab's routes are more specific.

    ``addresses`` and ``routes`` are what ``ip -j addr show`` and ``ip -j route show table all``
    print.
    """
    ours = {Lab(name).host_link(network) for name in LABS for network in NETWORKS}
    wanted = [ipaddress.ip_network(f"{lab.prefix(network)}.0/24") for network in NETWORKS]
    wanted.append(ipaddress.ip_network(f"{PROXY_ADDRESS}/32"))
    used = [
        (link["ifname"], f"{entry['local']}/{entry['prefixlen']}")
        for link in json.loads(addresses)
        if link.get("ifname") not in ours
        for entry in link.get("addr_info", [])
        if entry.get("family") == "inet"
    ] + [
        (route["dev"], route["dst"])
        for route in json.loads(routes)
        if route.get("dev") not in ours | {None}
        and route.get("dst", "default") != "default"
        and ":" not in route["dst"]
    ]
    for device, text in used:
        network = ipaddress.ip_network(text, strict=False)
        for mine in wanted:
            if network.version == 4 and network.prefixlen >= 16 and network.overlaps(mine):
                raise LabError(
                    f"the lab {lab.name!r} needs {mine}, but {device} of this host uses {text};"
                    " take that down, or use a machine where it is free"
                )


def switch_is_up(lab: Lab, record: LabRecord) -> bool:
    """Whether the switch is complete: bridges, and links to the host that are ours and up."""
    if lab.switch_namespace not in record.namespaces or not namespace_exists(lab.switch_namespace):
        return False
    inside, outside = links(lab.switch_namespace), links()
    for network, (interface, _, _) in NETWORKS.items():
        if interface.rstrip("0") not in inside:
            return False
        link = outside.get(lab.host_link(network), {})
        if link.get("ifalias") != lab.alias or "LOWER_UP" not in link.get("flags", []):
            return False
    return True


def make_switch(lab: Lab, record: LabRecord) -> None:
    """Build the switch and connect it to the host, replacing what a crash left of it."""
    check_host_links(lab)
    delete_host_links(lab)
    make_namespace(record, lab.switch_namespace)
    inside = ["link set lo up"]
    outside = []
    for network, (interface, _, letter) in NETWORKS.items():
        bridge, cable, link = interface.rstrip("0"), f"host-{letter}", lab.host_link(network)
        inside += [
            f"link add {bridge} type bridge",
            f"link add {cable} type veth peer name {link}",
            f'link set dev {link} alias "{lab.alias}"',
            f"link set {cable} master {bridge} up",
            f"link set {bridge} up",
            f"link set {link} netns {os.getpid()}",
        ]
        outside += [
            f"addr add {lab.host_address(network)}/24 dev {link}",
            f"link set {link} up",
        ]
    # Every lab's link carries the proxy's address; it lives as long as the last of them.
    outside.append(f"addr add {PROXY_ADDRESS}/32 dev {lab.host_link('management')}")
    ip(inside, lab.switch_namespace)
    ip(outside)


def delete_host_links(lab: Lab) -> None:
    """Delete the host's links that carry this lab's alias."""
    ip([f"link delete {name}" for name, link in links().items() if link.get("ifalias") == lab.alias])


def attach(lab: Lab, record: LabRecord, node: str) -> None:
    """Give a node its network namespace, both cables, its addresses, shapes and cuts."""
    namespace = lab.node_namespace(node)
    remains = {port(node, network) for network in NETWORKS} & set(links(lab.switch_namespace))
    ip([f"link delete {name}" for name in sorted(remains)], lab.switch_namespace)
    make_namespace(record, namespace)
    plug, inside = [], ["link set lo up"]
    for network, (interface, _, _) in NETWORKS.items():
        name = port(node, network)
        plug += [
            f"link add {name} type veth peer name {interface} address {lab.mac(node, network)} netns {namespace}",
            f"link set {name} master {interface.rstrip('0')}",
            f"link set {name} {'down' if network in record.nodes[node].cut else 'up'}",
        ]
        inside += [
            f"addr add {lab.address(node, network)}/24 dev {interface}",
            f"link set {interface} up",
        ]
    ip(plug, lab.switch_namespace)
    ip(inside, namespace)
    ip([f"route add {PROXY_ADDRESS}/32 via {lab.host_address('management')}"], namespace)
    for network, rate in record.shapes.items():
        shape_node(lab, node, network, rate)


def detach(lab: Lab, record: LabRecord, node: str) -> None:
    """Pull both cables at once and delete the node's namespace with its open connections.

    This comes before the node's processes are killed, so that its peers see what they see when
    a machine loses power: silence, no FIN and no RST.
    """
    namespace = lab.node_namespace(node)
    if namespace_exists(lab.switch_namespace) and lab.switch_namespace in record.namespaces:
        present = links(lab.switch_namespace)
        ip(
            [f"link delete {port(node, network)}" for network in NETWORKS if port(node, network) in present],
            lab.switch_namespace,
        )
    delete_namespace(record, namespace)


def abort_connections(lab: Lab, node: str) -> None:
    """End the host's own TCP connections to a node, such as those that ssh keeps open for Ansible.

    The node at the other end is gone for good; without this a new node at its address would be talked to
    through a connection that hangs. A no-op on kernels that cannot do it.
    """
    host.run(["ss", "--tcp", "--kill", "dst", lab.address(node, "management")], check=False)


def set_cable(lab: Lab, node: str, network: str, up: bool) -> None:
    """Plug in or pull a node's cable; the node sees its carrier come or go."""
    ip([f"link set {port(node, network)} {'up' if up else 'down'}"], lab.switch_namespace)


def shape_node(lab: Lab, node: str, network: str, rate: str) -> None:
    """Limit a node's cable to ``rate`` in each direction; ``none`` lifts the limit."""
    ends = (
        (lab.switch_namespace, port(node, network)),
        (lab.node_namespace(node), NETWORKS[network][0]),
    )
    for namespace, interface in ends:
        change = ["tc", "-n", namespace, "qdisc"]
        if rate == "none":
            host.run([*change, "delete", "dev", interface, "root"], check=False)
            continue
        burst = max(16 * 1024, rate_bits(rate) // 8 // 200)  # what 5 ms carry, and an MTU's worth
        host.run(
            [
                *change,
                "replace",
                "dev",
                interface,
                "root",
                "tbf",
                *("rate", rate, "burst", str(burst), "latency", "50ms"),
            ]
        )
