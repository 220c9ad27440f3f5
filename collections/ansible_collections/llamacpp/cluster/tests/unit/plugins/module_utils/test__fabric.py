# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The address that nodes speak RPC on."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._fabric import fabric_addresses
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, instance, link, node


def choose(addresses, declared=None, static=False, names=("node1", "node2")):
    """``addresses``: by node. Return (chosen, messages)."""
    parsed = accept(instance(nodes=list(names)), nodes=declared or {}, static=static)
    found = {name: NodeFacts.from_dict(node(addresses=links)) for name, links in addresses.items()}
    chosen, problems = fabric_addresses(parsed, parsed.instances[0], found)
    return chosen, [str(problem) for problem in problems]


def pair(*links):
    """Give node1 and node2 the links (interface, network, speed, kind); host parts .1 and .2."""
    return {
        "node%d" % number: [
            link(interface, "%s.%d" % (network, number), speed=speed, kind=kind)
            for interface, network, speed, kind in links
        ]
        for number in (1, 2)
    }


def test_the_fastest_network_that_all_share():
    chosen, messages = choose(pair(("eth0", "10.0.0", 1000, "ethernet"), ("eth1", "10.0.9", 25000, "ethernet")))
    assert chosen == {"node1": "10.0.9.1", "node2": "10.0.9.2"}
    assert messages == []


def test_a_network_is_as_fast_as_its_slowest_link():
    links = pair(("eth0", "10.0.0", 1000, "ethernet"), ("eth1", "10.0.9", 25000, "ethernet"))
    links["node2"][1]["speed_mbit"] = 100
    assert choose(links)[0]["node1"] == "10.0.0.1"


def test_among_equals_the_first_interface_name():
    links = pair(("mgmt0", "10.0.0", 10000, "ethernet"), ("fab0", "10.0.9", 10000, "ethernet"))
    assert choose(links)[0] == {"node1": "10.0.9.1", "node2": "10.0.9.2"}


def test_infiniband_before_ethernet_of_unknown_speed():
    links = pair(("eth0", "10.0.0", None, "ethernet"), ("ib0", "10.0.9", None, "infiniband"))
    assert choose(links)[0]["node1"] == "10.0.9.1"


def test_loopback_and_link_local_never():
    links = pair(("lo", "127.0.0", None, "loopback"), ("eth9", "169.254.0", 100000, "ethernet"))
    chosen, messages = choose(links)
    assert chosen == {}
    assert len(messages) == 1


def test_a_container_bridge_is_no_network_between_nodes():
    links = pair(("eth0", "10.0.0", 1000, "ethernet"))
    for name in links:
        links[name].append(link("docker0", "172.17.0.1", 16, 100000, "other"))
    assert choose(links)[0] == {"node1": "10.0.0.1", "node2": "10.0.0.2"}


def test_no_shared_network():
    links = {"node1": [link("eth0", "10.0.0.1")], "node2": [link("eth0", "10.0.5.2")]}
    assert choose(links)[1] == [
        "llamacpp_fabric_address of node1, node2 = (not set): the nodes of demo share no network "
        "(node1 has 10.0.0.1/24; node2 has 10.0.5.2/24); set the address on each"
    ]


def test_declared_addresses_are_taken_as_they_are():
    links = {"node1": [link("eth0", "10.0.0.1")], "node2": [link("eth0", "10.0.5.2")]}
    declared = {"node1": {"fabric_address": "10.0.0.1"}, "node2": {"fabric_address": "10.0.5.2"}}
    assert choose(links, declared) == ({"node1": "10.0.0.1", "node2": "10.0.5.2"}, [])


def test_one_declared_address_names_the_network():
    links = pair(("eth0", "10.0.0", 1000, "ethernet"), ("eth1", "10.0.9", 25000, "ethernet"))
    assert choose(links, {"node1": {"fabric_address": "10.0.0.1"}})[0] == {"node1": "10.0.0.1", "node2": "10.0.0.2"}


def test_one_node_needs_none():
    assert choose({"node1": []}, names=("node1",)) == ({}, [])
    assert choose({"node1": []}, {"node1": {"fabric_address": "10.0.0.1"}}, names=("node1",)) == (
        {"node1": "10.0.0.1"},
        [],
    )


def test_a_static_plan_needs_declared_addresses():
    chosen, messages = choose({}, {"node1": {"fabric_address": "10.0.0.1"}}, static=True)
    assert chosen == {"node1": "10.0.0.1"}
    assert messages == [
        "llamacpp_fabric_address of node2 = (not set): set it: without asking the node it cannot be found"
    ]
