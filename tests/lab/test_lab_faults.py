"""The lab on a real kernel: it comes up, breaks as told, survives crashes and leaves nothing behind.

These tests use the lab ``faults``, so that they can take it down while others use ``test``. What is left
of a lab is looked for with the kernel's own lists, not with labctl's code.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import LabFailed, LiveLab
from llamalab import host, inventory, roots

pytestmark = pytest.mark.lab

STATE = Path("/var/lib/llamacpp-lab/faults")
SWITCH = "lclab-faults"
MARKS = re.compile(r"lclab-faults|lclab4[mf]|llamacpp-lab/faults|--name faults|llamacpp-lab faults")


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def remains() -> list[str]:
    """Every namespace, link, control group, file, process and mount that bears the lab's marks."""
    found = [f"netns {name}" for name in os.listdir("/run/netns")] if Path("/run/netns").is_dir() else []
    found += [f"link {line}" for line in ip("-d", "link", "show").split("\n") if MARKS.search(line)]
    found += [f"cgroup {path}" for path in groups()]
    found += [f"path {path}" for path in (STATE, *Path("/run/systemd/nspawn").glob("*/*")) if path.exists()]
    return sorted(line for line in (*found, *processes()) if MARKS.search(line))


def groups() -> list[Path]:
    """Every control group, in whatever hierarchies this host has."""
    return [Path(directory) for directory, _names, _files in os.walk("/sys/fs/cgroup")]


def processes() -> Iterator[str]:
    """Lines that say what each process runs, its control groups and its mounts."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            group = (process / "cgroup").read_text().replace("\n", " ")
            mounts = (process / "mountinfo").read_text().splitlines()
        except OSError:
            continue  # it ended before or while we looked
        yield f"process {process.name} {command[:300]} {group}"
        yield from (f"mount of {process.name}: {line}" for line in mounts)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.002)


def greets(address: str, seconds: float = 1) -> bool:
    """Whether an ssh server sends its banner."""
    try:
        with socket.create_connection((address, 22), timeout=seconds) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


@pytest.fixture
def down() -> Iterator[LiveLab]:
    """The lab, down before and after."""
    live = LiveLab("faults")
    live.down()
    assert remains() == []
    yield live
    live.down()


@pytest.fixture
def pair() -> LiveLab:
    """The lab with two nodes that answer, new or from the test before."""
    live = LiveLab("faults")
    live.up(2, f"--owner-pid={os.getpid()}")
    return live


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    """Leave no lab behind."""
    yield
    LiveLab("faults").down()


def boot_id(live: LiveLab, node: str) -> str:
    return live.ssh(node, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout


def start_up(live: LiveLab, *words: str) -> subprocess.Popen[str]:
    """An `up` of two nodes in the background."""
    return subprocess.Popen(
        live.command("up", "--nodes", "2", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def murder(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "labctl had ended before it could be killed; the test proves nothing"


def node_has_processes() -> bool:
    for group in groups():
        if "lclab-faults-node1" in group.parts:
            with contextlib.suppress(OSError):  # it may go while we look
                if (group / "cgroup.procs").read_text():
                    return True
    return False


#: Moments in the life of `up`, each with what shows that it has come.
MOMENTS: dict[str, Callable[[], bool]] = {
    "the record is written": (STATE / "record.json").exists,
    "the switch exists": Path("/run/netns", SWITCH).exists,
    "the host is connected": Path("/sys/class/net/lclab4f").exists,
    "keys are made": (STATE / "ssh" / "id_ed25519").exists,
    "a disk is half made": (STATE / "nodes" / "node1" / "upper").exists,
    "a node has its network": Path("/run/netns/lclab-faults-node1").exists,
    "a node has processes": node_has_processes,
    "a node answers": lambda: greets("10.217.0.11", 0.2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_down_cleans_up_after_a_killed_up(down: LiveLab, moment: str) -> None:
    process = start_up(down)
    wait_for(MOMENTS[moment], moment)
    murder(process)
    assert remains() != []
    assert down.down() is True
    assert remains() == []


@pytest.mark.parametrize("moment", ["the host is connected", "a disk is half made", "a node has processes"])
def test_up_goes_on_after_a_killed_up(down: LiveLab, moment: str) -> None:
    process = start_up(down)
    wait_for(MOMENTS[moment], moment)
    murder(process)
    assert down.up(2)["changed"] is True
    assert down.up(2)["changed"] is False
    for node in ("node1", "node2"):
        assert down.ssh(node, ["sudo", "hostname"]).stdout == f"{node}\n"


def test_down_cleans_up_after_a_killed_down(down: LiveLab) -> None:
    down.up(2)
    process = subprocess.Popen(down.command("down"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: not Path("/run/netns/lclab-faults-node1").exists(), "the first node's end")
    murder(process)
    assert remains() != []
    down.down()
    assert remains() == []


def test_a_killed_build_of_a_root_leaves_nothing(
    pair: LiveLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pair is up, so that the build reaches its packages through the apt proxy."""
    code = (
        "import sys; from pathlib import Path; from llamalab import host, inventory, roots;"
        "host.CACHE = host.STATE = Path(sys.argv[1]); roots.ensure('bookworm')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    half = tmp_path / "roots" / f".{roots.key('bookworm')}.{process.pid}"
    wait_for((half / "var/lib/dpkg").exists, "the root to be unpacked")
    assert any(str(tmp_path) in line for line in processes())
    murder(process)
    wait_for(lambda: not any(str(tmp_path) in line for line in processes()), "mmdebstrap to die with labctl", 5)
    monkeypatch.setattr(host, "CACHE", tmp_path)
    monkeypatch.setattr(host, "STATE", tmp_path)
    roots.clean_all()
    assert list((tmp_path / "roots").iterdir()) == []


FRESH_HOST = """
import os, subprocess, sys
from pathlib import Path

subprocess.run(["umount", "--quiet", "--recursive", "/run/netns"])
for place in ("/run", "/var/lib"):
    subprocess.run(["mount", "-t", "tmpfs", "fresh", place], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
from llamalab import limits, names, proxy, record
from llamalab import lab as labs

proxy.PROXY_UNIT = "lclab-faults-apt"  # the labs of the real host keep theirs
limits.PER_NODE = 1000  # so that the limit has to be raised


def look():
    mounts = sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    links = sorted(os.listdir("/proc/sys/net/ipv4/conf"))
    return mounts, links, os.listdir("/run"), limits.INSTANCES.read_text()


before = look()
lab = names.Lab("faults")
assert labs.up(lab, 1, {})
during = look()
assert "/run/netns" in during[0] and "lclab4m" in during[1] and during[3] != before[3], during
assert labs.down(lab)
after = look()
after[2].remove("systemd")  # empty directories of systemd-nspawn
assert after == before, (before, after)
print("as before")
"""


def test_the_first_lab_on_a_host_leaves_it_as_it_was(down: LiveLab) -> None:
    """On this host other labs may be up; so this is tried with a network and /run of its own."""
    fresh = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, "-c", FRESH_HOST]
    done = subprocess.run(fresh, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.stdout == "as before\n", done.stderr


def test_down_of_nothing_is_a_no_op(down: LiveLab) -> None:
    assert down.down() is False


def test_check_changes_nothing(down: LiveLab) -> None:
    assert down.up(1, "--check")["changed"] is True
    assert remains() == []
    down.up(1)
    assert down.up(1, "--check")["changed"] is False
    assert down.ctl("down", "--check")["changed"] is True
    assert down.state("node1") == "running"


@pytest.mark.parametrize(
    ("make", "remove", "exists", "message"),
    [
        (["netns", "add", SWITCH], ["netns", "delete", SWITCH], f"/run/netns/{SWITCH}", SWITCH),
        (
            ["netns", "add", f"{SWITCH}-node2"],
            ["netns", "delete", f"{SWITCH}-node2"],
            f"/run/netns/{SWITCH}-node2",
            f"{SWITCH}-node2",
        ),
        (
            ["link", "add", "lclab4m", "type", "bridge"],
            ["link", "delete", "lclab4m"],
            "/sys/class/net/lclab4m",
            "lclab4m",
        ),
    ],
    ids=["switch", "node", "bridge"],
)
def test_what_is_not_ours_is_refused_and_left_alone(
    down: LiveLab, make: list[str], remove: list[str], exists: str, message: str
) -> None:
    ip(*make)
    try:
        with pytest.raises(LabFailed, match=f"{message} exists"):
            down.up(2)
        assert not STATE.exists()
        down.down()
        assert Path(exists).exists()
    finally:
        ip(*remove)


def test_an_address_range_in_use_is_refused(down: LiveLab) -> None:
    ip("link", "add", "foreign-range", "type", "bridge")
    try:
        ip("addr", "add", "10.217.1.77/24", "dev", "foreign-range")
        with pytest.raises(LabFailed, match=r"foreign-range of this host uses 10\.217\.1\.77/24"):
            down.up(1)
        assert remains() == []
    finally:
        ip("link", "delete", "foreign-range")


def test_the_lab_goes_when_its_owner_does(down: LiveLab) -> None:
    with subprocess.Popen(["sleep", "600"]) as owner:
        down.up(1, f"--owner-pid={owner.pid}")
        assert remains() != []
        owner.kill()
    wait_for(lambda: remains() == [], "the watchdog to take the lab down")


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
