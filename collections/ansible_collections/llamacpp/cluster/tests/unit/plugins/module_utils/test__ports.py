# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ports: free, and never moved by another instance."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._ports import Ports, assign_ports
from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, instance, node

NAMES = ["node%d" % number for number in range(1, 7)]


def unit(role, name, port, active=True):
    return {"role": role, "instance": name, "port": port, "active": active, "release": "b11434"}


def found(units=None, listening=None):
    """``units``: by node, {unit name: facts}. Return facts of all six nodes."""
    units, listening = units or {}, listening or {}
    return {
        name: NodeFacts.from_dict(node(units=units.get(name, {}), listening=listening.get(name, []))) for name in NAMES
    }


def assign(*instances, units=None, listening=None, settings=None):
    declared = accept(*instances, settings=settings or {})
    ports, problems = assign_ports(declared.settings, declared.instances, found(units, listening))
    return ports, [str(problem) for problem in problems]


def deployed(declared_instances, ports):
    """Return the units that a cluster has after the ports were deployed."""
    units: dict[str, dict[str, dict[str, object]]] = {name: {} for name in NAMES}
    for item in accept(*declared_instances).instances:
        units[item.head]["llamacpp-%s.service" % item.name] = unit("head", item.name, ports[item.name].http)
        for worker in item.workers:
            units[worker]["llamacpp-rpc-%s.service" % item.name] = unit("worker", item.name, ports[item.name].rpc)
    return units


def test_from_the_base_in_order():
    ports, problems = assign(instance("a"), instance("b"), instance("c", nodes=["node4"]))
    assert ports == {"a": Ports(8080, 50052), "b": Ports(8081, 50053), "c": Ports(8080, None)}
    assert problems == []


def test_other_bases():
    ports, _problems = assign(instance("a"), settings={"http_port_base": 9000, "rpc_port_base": 60000})
    assert ports["a"] == Ports(9000, 60000)


def test_one_rpc_port_for_all_workers():
    # node3 is busy on 50052 with b, so a gets the same free port on both of its workers.
    ports, _problems = assign(
        instance("a"), instance("b", nodes=["node4", "node3"], rpc_port=50052), instance("c", nodes=["node4", "node5"])
    )
    assert (ports["a"].rpc, ports["b"].rpc, ports["c"].rpc) == (50053, 50052, 50052)


def test_ports_that_somebody_listens_on_are_passed_over():
    ports, problems = assign(instance("a"), listening={"node1": [8080], "node2": [50052], "node3": [50053]})
    assert ports["a"] == Ports(8081, 50054)
    assert problems == []


def test_a_declared_port_that_somebody_else_has():
    _ports, problems = assign(instance("a", port=8000), listening={"node1": [8000]})
    assert problems == [
        "llamacpp_instances[0].port = 8000: another program listens on this port of node1 "
        "(ss -ltnp there says which); stop it, or choose another port"
    ]


def test_a_declared_rpc_port_that_somebody_else_has_on_one_worker():
    _ports, problems = assign(instance("a", rpc_port=50100), listening={"node3": [50100]})
    assert len(problems) == 1
    assert "port of node3" in problems[0]


def test_our_own_listener_is_no_stranger():
    ports, problems = assign(
        instance("a", nodes=["node1"], port=8000),
        units={"node1": {"llamacpp-a.service": unit("head", "a", 8000)}},
        listening={"node1": [8000]},
    )
    assert ports["a"].http == 8000
    assert problems == []


def test_a_stranger_on_the_port_of_our_dead_service():
    _ports, problems = assign(
        instance("a", nodes=["node1"]),
        units={"node1": {"llamacpp-a.service": unit("head", "a", 8080, active=False)}},
        listening={"node1": [8080]},
    )
    assert len(problems) == 1


def test_a_deployed_port_stays():
    ports, _problems = assign(
        instance("a", nodes=["node1"]), units={"node1": {"llamacpp-a.service": unit("head", "a", 8099)}}
    )
    assert ports["a"].http == 8099


def test_a_declared_port_wins_over_a_deployed_one():
    ports, _problems = assign(
        instance("a", nodes=["node1"], port=8001),
        instance("b", nodes=["node1"]),
        units={
            "node1": {
                "llamacpp-a.service": unit("head", "a", 8000),
                "llamacpp-b.service": unit("head", "b", 8001),
            }
        },
    )
    # b has to move, as a was told to take its port; it does not take the one that a still holds.
    assert ports == {"a": Ports(8001, None), "b": Ports(8080, None)}


def test_the_port_of_a_retired_instance_is_not_reused_while_its_service_runs():
    ports, _problems = assign(
        instance("new", nodes=["node1"]), units={"node1": {"llamacpp-old.service": unit("head", "old", 8080)}}
    )
    assert ports["new"].http == 8081


def test_a_run_that_was_killed_between_two_workers():
    # node2 has the new port, node3 still the old one: both end on one.
    units = {
        "node2": {"llamacpp-rpc-a.service": unit("worker", "a", 50060)},
        "node3": {"llamacpp-rpc-a.service": unit("worker", "a", 50061)},
    }
    ports, _problems = assign(instance("a"), units=units)
    assert ports["a"].rpc == 50060


def test_no_port_is_left():
    _ports, problems = assign(
        instance("a", nodes=["node1"]),
        settings={"http_port_base": 65000},
        listening={"node1": list(range(65000, 65536))},
    )
    assert problems == ["llamacpp_http_port_base = 65000: no port is free above it; choose a lower one"]


PLACES = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)
CLUSTERS = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), PLACES, min_size=1, max_size=5)


def declared_from(cluster):
    return [instance(name, nodes=places) for name, places in cluster.items()]


@given(CLUSTERS)
def test_no_two_instances_share_a_port_of_a_node(cluster):
    ports, problems = assign(*declared_from(cluster))
    used = []
    for name, places in cluster.items():
        used.append((places[0], ports[name].http))
        used += [(worker, ports[name].rpc) for worker in places[1:]]
    assert len(used) == len(set(used))
    assert problems == []


@given(CLUSTERS, st.data())
def test_adding_and_removing_instances_moves_no_other_port(cluster, data):
    before = declared_from(cluster)
    ports, _problems = assign(*before)
    units = deployed(before, ports)
    listening = {name: [item["port"] for item in units[name].values()] for name in NAMES}
    kept = data.draw(st.lists(st.sampled_from(sorted(cluster)), unique=True))
    after = [instance(name, nodes=cluster[name]) for name in data.draw(st.permutations(kept))]
    new = data.draw(st.dictionaries(st.sampled_from(["x", "y"]), PLACES))
    after = declared_from(new) + after
    again, problems = assign(*after, units=units, listening=listening)
    assert {name: again[name] for name in kept} == {name: ports[name] for name in kept}
    assert problems == []
