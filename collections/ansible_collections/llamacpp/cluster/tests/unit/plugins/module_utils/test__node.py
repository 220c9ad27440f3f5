# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What Linux says of itself."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _node


def test_os_release():
    text = 'PRETTY_NAME="Rocky Linux 8.10"\n# comment=1\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="8.10"\n'
    assert _node.os_release(text) == {
        "id": "rocky",
        "family": "redhat",
        "version": "8.10",
        "name": "Rocky Linux 8.10",
    }
    assert _node.os_release("ID=debian\n") == {"id": "debian", "family": "debian", "version": "", "name": ""}
    assert _node.os_release("")["id"] == "linux"


def test_memory():
    text = "MemTotal:       32 kB\nMemFree:        8 kB\nMemAvailable:   16 kB\nHugePages_Total:       0\n"
    assert _node.memory(text) == {"total_bytes": 32768, "available_bytes": 16384}


def cpu(number, package, core, flags="fpu avx avx2 fma"):
    return "processor\t: %d\nmodel name\t: Xeon Gold\nphysical id\t: %s\ncore id\t\t: %s\nflags\t\t: %s\n" % (
        number,
        package,
        core,
        flags,
    )


def test_two_threads_are_one_core():
    text = "\n".join([cpu(0, 0, 0), cpu(1, 0, 1), cpu(2, 0, 0), cpu(3, 0, 1)])
    found = _node.processor(text, frozenset(range(4)))
    assert found == {"name": "Xeon Gold", "cores": 2, "cpu_flags": ["avx", "avx2", "fma"]}


def test_cores_of_two_sockets_have_the_same_numbers():
    assert _node.processor("\n".join([cpu(0, 0, 0), cpu(1, 1, 0)]), frozenset((0, 1)))["cores"] == 2


def test_only_cpus_that_may_be_used_count():
    text = "\n".join(cpu(number, 0, number) for number in range(8))
    assert _node.processor(text, frozenset((2, 3)))["cores"] == 2


def test_arm_names_no_cores():
    text = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd asimddp\n"
    assert _node.processor(text, frozenset((0, 1))) == {"name": "", "cores": 2, "cpu_flags": ["asimd", "asimddp"]}


def address(local, prefix, family="inet", scope="global"):
    return {"family": family, "local": local, "prefixlen": prefix, "scope": scope}


def link(name, kind, *addresses, up=True):
    flags = ["UP"] if up else []
    return {"ifname": name, "flags": flags, "link_type": kind, "mtu": 1500, "addr_info": list(addresses)}


def test_addresses():
    links = [
        link("lo", "loopback", address("127.0.0.1", 8)),
        link("ib0", "infiniband", address("10.100.0.31", 24)),
        link("eth0", "ether", address("10.0.0.31", 24), address("fe80::1", 64, "inet6", "link"), {"family": "inet"}),
        link("eth1", "ether", address("10.7.0.31", 24), up=False),
        link("wg0", "none", address("10.8.0.31", 24)),
        {},
    ]
    speeds = {"ib0": 100000, "eth0": 1000}
    found = _node.addresses(json.dumps(links), speeds.get)
    assert [(item["interface"], item["address"], item["speed_mbit"], item["kind"]) for item in found] == [
        ("eth0", "10.0.0.31", 1000, "ethernet"),
        ("ib0", "10.100.0.31", 100000, "infiniband"),
        ("lo", "127.0.0.1", None, "loopback"),
        ("wg0", "10.8.0.31", None, "other"),
    ]
    assert (found[0]["prefix"], found[0]["mtu"]) == (24, 1500)


def test_listening_ports():
    head = "  sl  local_address rem_address   st tx_queue\n"
    tcp = head + (
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:C384 0100007F:1F90 01 00000000:00000000\n"
    )
    tcp6 = head + "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0\n"
    assert _node.listening_ports(tcp, tcp6) == [22, 8080]


UNIT = "[Unit]\nX-Llamacpp-Role=head\nX-Llamacpp-Instance=demo\nX-Llamacpp-Port=8080\nX-Llamacpp-Release=b11434-cpu-1\n"


def test_a_unit_says_whose_it_is():
    assert _node.unit(UNIT) == {"role": "head", "instance": "demo", "port": 8080, "release": "b11434-cpu-1"}


@pytest.mark.parametrize(
    "text", ["", "[Unit]\nDescription=other\n", UNIT.replace("8080", "x"), UNIT.replace("head", "x")]
)
def test_other_units(text):
    assert _node.unit(text) is None


def test_systemd_version():
    assert _node.systemd_version("systemd 252 (252.33-1~deb12u1)\n+PAM") == 252
    assert _node.systemd_version("") is None
