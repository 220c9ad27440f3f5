# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Swarms of this machine's loopback addresses. Scripts that run the real engine simulate systemd."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _swarm_unit, _transient
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.plugins.modules import model_pull, swarm
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import add, manifest_of, spoil

pytest.importorskip("libtorrent")

DATA = random.Random(3).randbytes(3_000_000)
MODEL = manifest_of("owner/repo/Q4", large=DATA, small=b"small" * 100, empty=b"")
PORT = 16882

# Starts what is behind the options and stays with it in the background, to keep what it says.
SYSTEMD_RUN = '''#!@PYTHON@
"""A stand-in for systemd-run."""
import os, pathlib, socket, subprocess, sys, uuid

words = sys.argv[1:]
unit = words[words.index("--unit") + 1]
state = pathlib.Path("@STATE@") / unit
state.mkdir(exist_ok=True)
(state / "arguments").write_text("\\n".join(words))
(state / "status").write_text("")
name = "llamacpp-%s" % uuid.uuid4().hex
listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listening.bind("\\0" + name)
ready, told = os.pipe()
if os.fork():
    os.close(told)
    sys.exit(0 if os.read(ready, 1) else "Job failed")
for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
    os.dup2(os.open("/dev/null", flags), number)
process = subprocess.Popen(words[words.index("-I") - 1:], env=dict(os.environ, NOTIFY_SOCKET="@" + name),
                           stdout=open(state / "log", "w"), stderr=subprocess.STDOUT)
listening.settimeout(0.05)
while process.poll() is None:
    try:
        said = listening.recv(1 << 20).decode()
    except OSError:
        continue
    if said == "READY=1":
        (state / "pid").write_text(str(process.pid))
        os.write(told, b"1")
    else:
        (state / "new").write_text(said.partition("=")[2])
        os.rename(state / "new", state / "status")
(state / "pid").unlink(missing_ok=True)
'''
SYSTEMCTL = '''#!@PYTHON@
"""A stand-in for systemctl."""
import os, pathlib, sys, time

state = pathlib.Path("@STATE@") / sys.argv[-1]
pid = state / "pid"
if sys.argv[1] == "show":
    active = pid.exists()
    print("ActiveState=%s" % ("active" if active else "inactive"))
    print("StatusText=%s" % ((state / "status").read_text() if active else ""))
elif sys.argv[1] == "stop":
    os.kill(int(pid.read_text()), 15)
    while pid.exists():
        time.sleep(0.02)
'''
JOURNALCTL = """#!/bin/sh
# A stand-in for journalctl.
cat @STATE@/$2/log
"""


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Where the simulated systemd keeps what it knows; what still runs at the end is killed."""
    state, binaries = tmp_path / "state", tmp_path / "bin"
    for directory in (state, binaries):
        directory.mkdir()
    for name, text in (("systemd-run", SYSTEMD_RUN), ("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
        (binaries / name).write_text(text.replace("@PYTHON@", sys.executable).replace("@STATE@", str(state)))
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (binaries, os.environ["PATH"]))
    monkeypatch.setattr(_transient, "RUNTIME", str(tmp_path))
    monkeypatch.setattr(swarm, "POLL_SECONDS", 0.1)
    yield state
    for pid in state.rglob("pid"):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def address(number):
    """Return the loopback address of a node; others of this machine's tests have others."""
    return "127.72.%d.%d" % (os.getpid() % 250, number)


@pytest.fixture
def node(run_module, tmp_path):
    """A function that runs the module on one of three nodes."""

    def run(number, word, check=False, **more):
        others = ["%s:%d" % (address(other), PORT) for other in (1, 2, 3) if other != number]
        given = {"name": "n%d" % number, "store": str(tmp_path / str(number)), "state": word}
        if word != "stopped":
            given["manifest"] = MODEL.as_dict()
        if word == "started":
            # The simulated systemd starts it as whoever runs the test.
            given.update(address=address(number), port=PORT, peers=others, python=sys.executable, user="")
        return run_module(swarm, check=check, **{**given, "lock_wait": 5, **more})

    return run


@pytest.fixture
def seed(tmp_path, node):
    """A function that starts node 1, which has the model."""
    add(Store(str(tmp_path / "1")), MODEL.name, large=DATA, small=b"small" * 100, empty=b"")
    return lambda **more: node(1, "started", seed=True, **more)


def present(tmp_path, number):
    """Whether a node has the model."""
    store = Store(str(tmp_path / str(number)))
    if not store.present(MODEL):
        return False
    with open(store.path_of(MODEL.name, "large.bin"), "rb") as stream:
        return stream.read() == DATA


def test_from_one_to_two(node, seed, state, tmp_path):
    started = seed()
    assert (started["changed"], started["unit"]) == (True, "llamacpp-swarm-n1.service")
    for number in (2, 3):
        assert node(number, "started", torrent=started["torrent"])["torrent"] == started["torrent"]
    for number in (2, 3):
        finished = node(number, "finished")
        assert finished["changed"] and finished["fetched_bytes"] >= len(DATA)
        assert present(tmp_path, number)
    for number in (1, 2, 3):
        assert node(number, "stopped", manifest=MODEL.as_dict())["changed"]
        assert not node(number, "stopped")["changed"]
    assert node(2, "finished")["changed"] is False


def test_looks_are_seldom_while_much_is_to_come():
    assert swarm.pause(0, 10**9, 5.0) == swarm.POLL_SECONDS
    assert swarm.pause(10**8, 10**10, 1.0) == swarm.LONGEST_POLL_SECONDS
    assert swarm.pause(10**8, 4 * 10**8, 1.0) == 1.0
    assert swarm.pause(10**9, 10**6, 10.0) == swarm.POLL_SECONDS


def test_who_takes_can_wait_at_once(node, seed, state, tmp_path):
    torrent = seed()["torrent"]
    taken = node(2, "started", torrent=torrent, wait=True)
    assert taken["changed"] and taken["torrent"] == torrent and taken["fetched_bytes"] >= len(DATA)
    assert present(tmp_path, 2)
    assert node(3, "started", torrent=torrent, wait=True, check=True)["changed"]
    assert not present(tmp_path, 3)
    assert not node(2, "stopped")["changed"], "nobody wants anything any more"
    assert node(1, "stopped")["changed"]


def test_a_second_start_gives_only(node, seed, state, tmp_path):
    torrent = seed()["torrent"]
    node(2, "started", torrent=torrent)
    node(2, "finished")
    again = node(2, "started", torrent=torrent)
    assert again["torrent"] == torrent
    assert "ReadWritePaths" not in (state / "llamacpp-swarm-n2.service" / "arguments").read_text()
    node(1, "stopped")
    node(3, "started", torrent=torrent)
    node(3, "finished")
    assert present(tmp_path, 3)


def test_is_started_in_a_sandbox(node, seed, state, tmp_path):
    torrent = seed(user="nobody")["torrent"]
    words = (state / "llamacpp-swarm-n1.service" / "arguments").read_text().splitlines()
    for word in ("Type=notify", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=", "User=nobody"):
        assert word in words
    assert not [word for word in words if word.startswith("ReadWritePaths")]
    node(2, "started", torrent=torrent)
    words = (state / "llamacpp-swarm-n2.service" / "arguments").read_text().splitlines()
    store = Store(str(tmp_path / "2"))
    assert {word for word in words if word.startswith("ReadWritePaths")} == {
        "ReadWritePaths=" + store.part(file.sha256) for file in MODEL.files if file.bytes
    }


def test_the_seed_dies_and_a_second_run_finishes(node, seed, state, tmp_path):
    torrent = seed(rate=400_000)["torrent"]
    node(2, "started", torrent=torrent)
    report = state / "llamacpp-swarm-n2.service" / "status"
    deadline = time.monotonic() + 60
    while not (report.read_text() and bin(int(json.loads(report.read_text())["pieces"], 16)).count("1") > 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    node(1, "stopped")
    broken = node(2, "finished", stall=2)
    assert broken["failed"] and "nothing came for 2 s" in broken["msg"] and "run again: it goes on" in broken["msg"]
    assert Store(str(tmp_path / "2")).names() == []
    assert node(2, "stopped", manifest=MODEL.as_dict())["changed"]
    seed()
    node(2, "started", torrent=torrent)
    assert node(2, "finished")["fetched_bytes"] < len(DATA)
    assert present(tmp_path, 2)


def test_a_pull_takes_what_a_swarm_has_brought(node, seed, state, tmp_path, run_module):
    torrent = seed()["torrent"]
    node(2, "started", torrent=torrent)
    report = state / "llamacpp-swarm-n2.service" / "status"
    deadline = time.monotonic() + 60
    while not (report.read_text() and json.loads(report.read_text())["complete"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    node(2, "stopped", manifest=MODEL.as_dict())
    result = run_module(model_pull, store=str(tmp_path / "2"), manifest=MODEL.as_dict(), sources=[])
    assert (result["changed"], result["fetched_bytes"]) == (True, 0)
    assert present(tmp_path, 2)


def test_who_sends_wrong_bytes_is_named(node, seed, state, tmp_path):
    torrent = seed()["torrent"]
    node(1, "stopped")
    store = Store(str(tmp_path / "1"))
    spoil(store.blob(MODEL.files[0].sha256))
    broken = seed()
    assert broken["failed"] and "large.bin of owner/repo/Q4 has other bytes than it should" in broken["msg"]
    # A disk that loses a bit does not say so in ctime.
    for path in (tmp_path / "1" / "torrents").iterdir():
        os.utime(path)
    assert seed()["torrent"] == torrent
    node(2, "started", torrent=torrent)
    broken = node(2, "finished", stall=3)
    assert broken["failed"] and "%s sent wrong bytes: scrub the store there" % address(1) in str(broken["warnings"])
    assert Store(str(tmp_path / "2")).names() == []


def test_an_engine_that_talks_nonsense(node, seed, state, tmp_path, monkeypatch):
    reports = [
        {"done": "x", "bytes": None, "banned": [1, "x; rm", None, [], {}], "pieces": 5},
        {"banned": 7, "complete": []},
        {"complete": True, "received": "many"},
    ]
    said = [_swarm_unit.Status(True, report) for report in reports]
    monkeypatch.setattr(_swarm_unit.SwarmUnit, "status", lambda self: said.pop(0))
    result = node(2, "finished", stall=60)
    assert result["failed"] and "its part is gone" in result["msg"] and said == []


def test_what_was_touched_does_not_come_again(node, seed, state, tmp_path):
    torrent = seed()["torrent"]
    node(2, "started", torrent=torrent)
    node(2, "finished")
    node(1, "stopped")
    os.utime(Store(str(tmp_path / "2")).blob(MODEL.files[0].sha256))
    node(2, "started", torrent=torrent)
    assert present(tmp_path, 2)


def test_a_second_run_waits_for_the_first(node, seed, state, tmp_path, run_module):
    torrent = seed(rate=1_000_000)["torrent"]
    node(2, "started", torrent=torrent)
    late = node(2, "started", torrent=torrent, name="late", port=PORT + 1, lock_wait=0)
    assert late["failed"] and "a swarm (pid " in late["msg"] and "run again when it has ended" in late["msg"]
    given = {"store": str(tmp_path / "2"), "manifest": MODEL.as_dict()}
    pulled = run_module(model_pull, sources=[], lock_wait=0, **given)
    assert pulled["failed"] and "a swarm (pid " in pulled["msg"]
    assert node(2, "finished")["changed"] and present(tmp_path, 2)
    assert run_module(model_pull, sources=[], lock_wait=0, **given)["changed"] is False


def test_an_engine_that_ended(node, seed, state, tmp_path):
    torrent = seed()["torrent"]
    node(1, "stopped")
    node(2, "started", torrent=torrent)
    node(2, "stopped")
    broken = node(2, "finished")
    assert broken["failed"] and "llamacpp-swarm-n2.service: it does not run" in broken["msg"]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (_swarm_unit.Status(False, {}), "mend that, or see that a node gives it"),
        (_swarm_unit.Status(True, {"bytes": 9, "done": 5, "error": "x.part: it is full"}), "x.part: it is full; mend"),
    ],
)
def test_an_engine_that_ends_meanwhile(node, seed, state, monkeypatch, last, words):
    said = [_swarm_unit.Status(True, {"bytes": 9, "done": 5}), last]
    monkeypatch.setattr(_swarm_unit.SwarmUnit, "status", lambda self: said.pop(0))
    broken = node(2, "finished")
    assert broken["failed"] and "5 of 9 bytes are here" in broken["msg"] and words in broken["msg"]


def test_no_peer_is_there(node, seed, state):
    torrent = seed()["torrent"]
    node(1, "stopped")
    node(2, "started", torrent=torrent)
    broken = node(2, "finished", stall=2)
    assert broken["failed"] and "nothing came for 2 s from 0 peers" in broken["msg"]
    assert "packet filter" in broken["msg"]


def test_a_quota_that_is_too_small(node, seed, state):
    result = node(2, "started", torrent=seed()["torrent"], quota=1)
    assert result["failed"] and "raise llamacpp_models_quota" in result["msg"]


def test_who_needs_nothing_needs_no_room(node, seed, state):
    assert seed(quota=1)["evicted"] == []


def test_nothing_makes_room_for_a_torrent_that_is_none(node, state, tmp_path):
    store = Store(str(tmp_path / "2"))
    add(store, "other", large=bytes(1_000_000))
    assert node(2, "started", torrent="ZGU=", quota=len(DATA) + 10_000)["failed"]
    assert store.names() == ["other"]


def test_nobody_has_it(node, state, tmp_path):
    assert "fetch the model here first" in node(1, "started", seed=True)["msg"]
    assert "give the torrent of a node that has it" in node(1, "started")["msg"]


def test_check_mode(node, seed, state, tmp_path):
    assert seed(check=True)["changed"] is True
    result = node(2, "started", check=True, torrent="x")
    assert (result["changed"], result["torrent"]) == (True, "")
    assert not (tmp_path / "2").exists() and not list(state.iterdir())
    assert node(2, "finished", check=True)["changed"] is True
    seed()
    assert node(1, "stopped", check=True)["changed"] is True
    assert node(1, "stopped")["changed"] is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a/b"}, "write letters"),
        ({"address": "node1"}, "address = 'node1': write an IP address"),
        ({"peers": ["10.0.1.2"]}, "peers: '10.0.1.2': write ADDRESS:PORT"),
        ({"user": "no-such-user"}, "no such user"),
        ({"idle": 0}, "idle = 0: write 1 or more"),
        ({"torrent": "%%%"}, "torrent: "),
        ({"torrent": "ZGU="}, "take that of a node that has the model"),
        ({"port": 65536}, "port = 65536: write 1 to 65535"),
        ({"peers": ["10.0.1.2:65536"]}, "peers: '10.0.1.2:65536': write ADDRESS:PORT"),
        ({"manifest": dict(MODEL.as_dict(), name="../../etc/passwd")}, "name = '../../etc/passwd'"),
    ],
)
def test_bad_input(node, state, change, words):
    result = node(2, "started", **{"torrent": "ZGU=", **change})
    assert result["failed"] and words in result["msg"]


def test_an_address_of_another_machine(seed, state):
    result = seed(address="192.0.2.1")
    assert result["failed"] and "cannot listen" in result["msg"]


def test_an_interpreter_without_libtorrent(seed, state):
    result = seed(python="/bin/false")
    assert result["failed"] and "llamacpp-swarm-n1.service does not start" in result["msg"]
