# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of what was found on nodes."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._found import (
    NodeFacts,
    check_model_disk,
    check_nodes,
    check_reachable,
)
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, accept, instance, link, node, nodes

STORE = "/var/lib/llamacpp/models"


def facts(**changes):
    return NodeFacts.from_dict(node(**changes))


def messages(declared, found):
    return [str(problem) for problem in check_nodes(declared, found)]


def system(identity, version):
    return facts(os={"id": identity, "family": "debian", "version": version, "name": "%s of %s" % (identity, version)})


@pytest.mark.parametrize(
    ("identity", "version"),
    [
        ("debian", "11"), ("debian", "12"), ("debian", "13"), ("ubuntu", "22.04"), ("ubuntu", "24.04"),
        ("ubuntu", "26.04"), ("rhel", "9.4"), ("rocky", "8.10"), ("almalinux", "10.0"), ("centos", "9"),
    ],
)  # fmt: skip
def test_supported_systems(identity, version):
    assert messages(accept(), {"node1": system(identity, version)}) == []


@pytest.mark.parametrize(
    ("identity", "version"), [("debian", "10"), ("ubuntu", "23.10"), ("rhel", "7.9"), ("arch", ""), ("debian", "")]
)
def test_other_systems(identity, version):
    (message,) = messages(accept(), {"node1": system(identity, version)})
    assert message.startswith("operating system of node1 = ")
    assert "%s of" % identity in message
    assert "debian 11, 12, 13" in message
    assert "ubuntu 22.04, 24.04, 26.04" in message
    assert "llamacpp_os_check" in message


def test_an_operator_may_know_better():
    assert messages(accept(settings={"os_check": False}), {"node1": system("arch", "")}) == []


@pytest.mark.parametrize(("version", "good"), [("3.9.2", True), ("3.13.0", True), ("3.8.10", False), ("3.6.8", False)])
def test_python(version, good):
    found = messages(accept(), {"node1": facts(python=version)})
    fix = "too old: install Python 3.9 or newer there and point ansible_python_interpreter to it"
    assert found == ([] if good else ["Python of node1 = %s: %s" % (version, fix)])


def test_a_fabric_address_that_is_on_no_interface():
    declared = accept(nodes={"node1": {"fabric_address": "10.9.9.9"}})
    addresses = [link("eth0", "10.0.0.11"), link("ib0", "10.1.0.11"), link("eth0", "fd00::11", 64)]
    assert messages(declared, {"node1": facts(addresses=addresses)}) == [
        "llamacpp_fabric_address of node1 = 10.9.9.9: no interface has this address; "
        "there are 10.0.0.11 (eth0), 10.1.0.11 (ib0)"
    ]


def test_a_fabric_address_that_is_there():
    declared = accept(nodes={"node1": {"fabric_address": "10.0.1.11"}})
    assert messages(declared, {"node1": facts()}) == []


def disks(store=None, build=None):
    return {
        STORE: {"free_bytes": store or 500 * GIB, "total_bytes": 900 * GIB},
        "/var/cache/llamacpp/build": {"free_bytes": build or 500 * GIB, "total_bytes": 900 * GIB},
    }


def test_fewer_workers_than_declared():
    found = nodes(3)
    del found["node3"]
    (problem,) = check_reachable(accept(instance()), found)
    assert str(problem) == (
        'llamacpp_instances[0].nodes = ["node1", "node2", "node3"]: 2 of the 3 nodes of demo answered; '
        "no answer from node3: bring it up, or take it out of nodes"
    )


def model_disk(**changes):
    options = {"free": GIB, "files": {}, "model": {"path": "/srv/models/toy.gguf"}, "bytes": 10 * GIB}
    options.update(changes)
    declared = accept(instance(model=options["model"]))
    head = facts(disks=disks(store=options["free"]), files=options["files"])
    target = "%s/%s" % (STORE, declared.instances[0].model.source.file)
    return [str(item) for item in check_model_disk(declared, declared.instances[0], head, [target], options["bytes"])]


def test_a_disk_too_small_for_the_model():
    assert model_disk() == [
        "free disk of node1 for /var/lib/llamacpp/models = 1024 MiB: the model of demo takes 10.5 GiB; "
        "free some space, or set llamacpp_models_dir to another disk"
    ]


def test_what_could_go_is_said_when_it_is_too_little():
    others = {STORE + "/names/old/old.gguf": 8 * GIB, STORE + "/incoming/x.part.lock": 0, STORE + "/names/gone": None}
    assert model_disk(files=others) == [
        "free disk of node1 for /var/lib/llamacpp/models = 1024 MiB: the model of demo takes 10.5 GiB, "
        "and what could go for it 8192 MiB; free some space, or set llamacpp_models_dir to another disk"
    ]


def test_a_twentieth_more_than_the_model_is_wanted():
    assert model_disk(free=10 * GIB + GIB // 2) == []
    assert len(model_disk(free=10 * GIB + GIB // 4)) == 1


def test_a_model_that_is_in_place_needs_no_more():
    assert model_disk(files={STORE + "/toy.gguf": 10 * GIB}) == []
    assert len(model_disk(files={STORE + "/toy.gguf": 5 * GIB})) == 1


def test_a_model_that_is_linked_needs_nothing():
    assert model_disk(model={"path": "/srv/models/toy.gguf", "from": "node"}) == []


def test_ports_of_our_own_running_services_are_not_foreign():
    units = {
        "llamacpp-a.service": {"role": "head", "instance": "a", "port": 8080, "active": True, "release": "b1"},
        "llamacpp-b.service": {"role": "head", "instance": "b", "port": 8081, "active": False, "release": "b1"},
    }
    found = facts(units=units, listening=[22, 8080, 8081])
    assert found.foreign_ports == {22, 8081}
    assert found.serves
    assert not facts(units={"llamacpp-b.service": units["llamacpp-b.service"]}).serves
