"""The lab on a real kernel: it comes up, breaks as told and mends."""

from __future__ import annotations

import socket
import subprocess

import pytest
from fixtures import LabFailed, LiveLab, greets
from leftovers import remains, wait_for
from llamalab import inventory

pytestmark = pytest.mark.lab


def boot_id(live: LiveLab, node: str) -> str:
    return live.ssh(node, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout


def test_connections_that_ssh_keeps_open_end_with_the_node(pair: LiveLab) -> None:
    with subprocess.Popen(
        [*inventory.ssh_command(pair.lab, "node2")[:-1], "-N", f"ops@{pair.address('node2')}"]
    ) as ssh:
        wait_for(lambda: "ops" in pair.root("node2", ["ps", "-C", "sshd", "-o", "args"]).stdout, "ssh to log in")
        pair.up(1)
        assert ssh.wait(timeout=5) == 255


def test_up_twice_changes_nothing(pair: LiveLab) -> None:
    before = boot_id(pair, "node1")
    assert pair.up(2)["changed"] is False
    assert boot_id(pair, "node1") == before


def test_nodes_come_and_go_without_touching_the_others(pair: LiveLab) -> None:
    before = boot_id(pair, "node1"), boot_id(pair, "node2")
    assert pair.up(3)["changed"] is True
    assert pair.ssh("node1", ["getent", "hosts", "node3"]).stdout.split() == ["10.217.0.13", "node3"]
    assert pair.up(2)["changed"] is True
    assert (boot_id(pair, "node1"), boot_id(pair, "node2")) == before
    assert not [line for line in remains() if "node3" in line]


def test_a_node_is_what_ansible_expects(pair: LiveLab) -> None:
    """ssh with strict host keys has worked by now; here is the rest."""
    shown = pair.ssh("node2", ["hostname; sudo id -u; cat /etc/resolv.conf; systemctl is-system-running --wait"])
    assert shown.stdout == "node2\n0\nrunning\n"
    ids = {pair.ssh(node, ["cat", "/etc/machine-id"]).stdout for node in ("node1", "node2")}
    assert len(ids) == 2
    unknown = pair.ssh("node1", ["getent", "hosts", "nowhere.invalid"], check=False, timeout=5)
    assert unknown.returncode == 2


def test_nodes_get_packages_but_no_way_out(pair: LiveLab) -> None:
    assert "default" not in pair.root("node1", ["ip", "route"]).stdout
    pair.root("node1", ["apt-get", "-qq", "update"], timeout=120)
    pair.root("node1", ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", "tree"], timeout=120)
    assert pair.ssh("node1", ["tree", "--version"]).stdout.startswith("tree v")


def test_a_killed_node_says_no_goodbye_and_keeps_its_disk(pair: LiveLab) -> None:
    before = boot_id(pair, "node1")
    pair.ssh("node1", ["echo kept > kept && sudo journalctl --sync"])
    with socket.create_connection((pair.address("node1"), 22), timeout=2) as connection:
        assert connection.recv(200).startswith(b"SSH-")
        assert pair.kill("node1") is True
        connection.settimeout(1)
        with pytest.raises(TimeoutError):  # neither an end of file nor a reset
            connection.recv(1)
    assert pair.kill("node1") is False
    assert pair.state("node1") == "dead"
    assert pair.start("node1") is True
    assert pair.start("node1") is False
    assert pair.ssh("node1", ["cat", "kept"]).stdout == "kept\n"
    assert boot_id(pair, "node1") != before
    boots = pair.ssh("node1", ["sudo", "journalctl", "--list-boots", "--quiet"]).stdout
    assert before.strip().replace("-", "") in boots


def test_up_boots_a_dead_node_again(pair: LiveLab) -> None:
    pair.kill("node2")
    assert pair.up(2)["changed"] is True
    assert pair.ssh("node2", ["true"]).returncode == 0


def test_a_node_can_reboot_itself(pair: LiveLab) -> None:
    before = boot_id(pair, "node2")
    pair.root("node2", ["systemctl", "reboot"], check=False)

    def back() -> bool:
        shown = pair.ssh("node2", ["cat", "/proc/sys/kernel/random/boot_id"], check=False)
        return shown.returncode == 0 and shown.stdout != before

    wait_for(back, "node2 to come back")


def test_a_frozen_node_hangs_and_goes_on_where_it_was(pair: LiveLab) -> None:
    before = boot_id(pair, "node1")
    assert pair.freeze("node1") is True
    assert pair.freeze("node1") is False
    with socket.create_connection((pair.address("node1"), 22), timeout=1) as connection:
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            connection.recv(4)
        assert pair.state("node1") == "frozen"
        assert pair.thaw("node1") is True
        connection.settimeout(5)
        assert connection.recv(4) == b"SSH-"
    assert pair.thaw("node1") is False
    assert boot_id(pair, "node1") == before


def test_a_frozen_node_can_be_killed(pair: LiveLab) -> None:
    pair.freeze("node2")
    assert pair.kill("node2") is True
    assert pair.start("node2") is True


def test_cables_are_cut_one_by_one(pair: LiveLab) -> None:
    peer = ["ssh-keyscan", "-T", "1", "-t", "ed25519", pair.address("node2", "fabric")]
    assert "ssh-ed25519" in pair.ssh("node1", peer).stdout
    assert pair.cut("node2", "fabric") is True
    assert pair.cut("node2", "fabric") is False
    assert "ssh-ed25519" not in pair.ssh("node1", peer, check=False).stdout
    assert "NO-CARRIER" in pair.ssh("node2", ["ip", "link", "show", "fab0"]).stdout
    assert pair.cut("node2") is True
    assert not greets(pair.address("node2"))
    assert pair.root("node2", ["hostname"]).stdout == "node2\n"
    assert pair.mend("node2", "management") is True
    assert pair.ssh("node2", ["hostname"]).stdout == "node2\n"
    assert pair.mend("node2") is True
    assert pair.mend("node2") is False
    assert "ssh-ed25519" in pair.ssh("node1", peer).stdout


def test_a_cut_outlasts_a_restart_until_it_is_mended(pair: LiveLab) -> None:
    pair.cut("node2", "fabric")
    pair.kill("node2")
    pair.start("node2")
    assert "NO-CARRIER" in pair.ssh("node2", ["ip", "link", "show", "fab0"]).stdout
    assert pair.up(2)["changed"] is True
    assert "NO-CARRIER" not in pair.ssh("node2", ["ip", "link", "show", "fab0"]).stdout


def test_shaping_holds_for_nodes_to_come_until_it_is_lifted(pair: LiveLab) -> None:
    def limits() -> list[str]:
        namespaces = [("lclab-faults", "fab-node1"), ("lclab-faults-node1", "fab0"), ("lclab-faults-node1", "mgmt0")]
        return [
            subprocess.run(
                ["tc", "-n", namespace, "qdisc", "show", "dev", device], capture_output=True, text=True, check=True
            ).stdout
            for namespace, device in namespaces
        ]

    assert pair.shape("100mbit") is True
    assert pair.shape("100mbit") is False
    pair.kill("node1")
    pair.start("node1")
    assert ["rate 100Mbit" in shown for shown in limits()] == [True, True, False]
    assert pair.shape("none") is True
    assert not any("tbf" in shown for shown in limits())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kill", "node9"], "has no node9; its nodes are: node1, node2"),
        (["up", "--nodes", "2", "--suite", "node2=trixie"], "node2 runs bookworm, not trixie"),
        (["up", "--nodes", "2", "--suite", "node3=trixie"], "node3, but the lab is to have 2 nodes"),
        (["up", "--nodes", "0"], "1 to 200 nodes, not 0"),
        (["shape", "--rate", "fast"], "such as 500mbit"),
        (["up", "--nodes", "2", "--owner-pid", "4194304"], "there is no such process"),
    ],
)
def test_mistakes_are_explained(pair: LiveLab, words: list[str], message: str) -> None:
    with pytest.raises(LabFailed, match=message):
        pair.ctl(*words)
    assert pair.up(2)["changed"] is False
