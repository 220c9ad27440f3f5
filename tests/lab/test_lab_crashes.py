"""The lab leaves nothing behind, whenever labctl is killed, and keeps its hands off what it did not make.

These tests and those of test_lab_faults.py use the lab ``faults``, so that they can take it down while others
use ``test``.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import LabFailed, LiveLab
from leftovers import STATE, SWITCH, groups, ip, processes, remains, wait_for
from llamalab import host, roots, supervise

pytestmark = pytest.mark.lab


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


def test_a_node_that_still_has_the_hosts_root_is_not_entered(down: LiveLab, tmp_path: Path) -> None:
    """Between clone and pivot_root systemd-nspawn's child is PID 1, but its files are the host's."""
    unit = "lclab-faults-young"
    supervise.spawn(unit, ["unshare", "--pid", "--fork", "sleep", "60"], tmp_path / "log", {})
    try:
        wait_for(lambda: len(supervise.pids(unit)) == 2, "the child to start")
        assert supervise.leader(unit) is None
    finally:
        supervise.kill(unit)


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
