# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The engine of the swarm: real libtorrent processes on several loopback addresses."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import threading
import time
import uuid

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _swarm
from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import BusyError, locked
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_store import unpack
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_torrent import content_of, make_torrent

pytest.importorskip("libtorrent")

PIECE = 256 << 10
DATA = {name: random.Random(name).randbytes(size) for name, size in (("large", 5_000_000), ("small", 70_000))}
NAMES = {name: hashlib.sha256(data).hexdigest() for name, data in DATA.items()}
WAIT_SECONDS = 60


class Node:
    """One engine. ``said``: what it last reported."""

    def __init__(self, place, number, torrent, peers, data=None, have=None, **more):
        place.mkdir()
        self.address = address(number)
        self.place = place
        data = data or {}
        files = {}
        for name, sha256 in NAMES.items():
            path = place / name
            if name in data:
                path.write_bytes(data[name])
            else:
                path.touch()
                os.truncate(path, len(DATA[name]))
            files[sha256] = str(path)
        full = "1" if data else "0"
        config = {
            "torrent": str(torrent),
            "files": files,
            "have": {NAMES[name]: full * -(-len(DATA[name]) // PIECE) for name in DATA} if have is None else have,
            "address": self.address,
            "port": 16881,
            "peers": ["%s:16881" % address(peer) for peer in peers],
            "locks": [],
            "idle": 60,
            "stall": 60,
            "rate": 0,
            **more,
        }
        (place / "config.json").write_text(json.dumps(config))
        self.said, self.ready = {}, threading.Event()
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = "llamacpp-%s" % uuid.uuid4().hex
        self.listening.bind("\0" + name)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", _swarm.__file__, place / "config.json"],
            env=dict(os.environ, NOTIFY_SOCKET="@" + name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self.hear, daemon=True).start()

    def hear(self):
        """Take what it says."""
        while True:
            text = self.listening.recv(1 << 20).decode()
            if text == "READY=1":
                self.ready.set()
            else:
                self.said = json.loads(text.partition("=")[2])

    def until(self, question):
        """Wait until something is true of what it said."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not (self.said and question(self.said)):
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)
        return self

    def complete(self):
        """Wait until it has all; return whether its bytes are right."""
        self.until(lambda said: said["complete"])
        return all((self.place / name).read_bytes() == data for name, data in DATA.items())

    def kill(self):
        """End it at once."""
        self.process.kill()
        self.process.wait()


def address(number):
    """Return the loopback address of a node; others of this machine's tests have others."""
    return "127.71.%d.%d" % (os.getpid() % 250, number)


@pytest.fixture
def torrent(tmp_path):
    """The torrent of DATA."""
    contents = {}
    for name, data in DATA.items():
        path = tmp_path / name
        path.write_bytes(data)
        contents[NAMES[name]] = content_of(str(path), PIECE)[0]
    path = tmp_path / "torrent"
    path.write_bytes(make_torrent(contents, PIECE))
    return path


@pytest.fixture
def node(tmp_path, torrent):
    """A function that starts an engine."""
    started = []

    def start(number, peers, **more):
        started.append(Node(tmp_path / str(number), number, torrent, peers, **more))
        deadline = time.monotonic() + WAIT_SECONDS
        while not started[-1].ready.wait(0.1) and started[-1].process.poll() is None:
            assert time.monotonic() < deadline
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.process.stdout.close()


def test_one_gives_to_two(node):
    seed = node(1, [2, 3], data=DATA)
    first, second = node(2, [1, 3]), node(3, [1, 2])
    assert first.complete() and second.complete()
    size = sum(map(len, DATA.values()))
    assert seed.said["complete"] and first.said["bytes"] == size == first.said["done"]
    assert first.said["received"] >= size and first.said["banned"] == []
    pieces = 20 + 1
    assert unpack(first.said["pieces"], pieces) == "1" * pieces


def test_nobody_has_a_finished_file_open_for_writing(node):
    node(1, [2], data=DATA)
    taker = node(2, [1])
    assert taker.complete()
    for entry in os.listdir("/proc/%d/fd" % taker.process.pid):
        if os.readlink("/proc/%d/fd/%s" % (taker.process.pid, entry)).startswith(str(taker.place)):
            flags = pathlib.Path("/proc/%d/fdinfo/%s" % (taker.process.pid, entry)).read_text().split("flags:")[1]
            assert int(flags.split()[0], 8) & os.O_ACCMODE == os.O_RDONLY


def test_a_file_that_got_its_name_is_still_given(node):
    seed = node(1, [2], data=DATA)
    taker = node(2, [1, 3])
    assert taker.complete()
    for name in DATA:
        (taker.place / name).rename(taker.place / (name + ".renamed"))
    seed.kill()
    assert node(3, [2]).complete()


def test_the_seed_dies_and_the_rest_comes_when_it_is_back(node, tmp_path):
    seed = node(1, [2], data=DATA, rate=1_000_000)
    taker = node(2, [1])
    taker.until(lambda said: said["done"] > 500_000)
    seed.kill()
    assert not taker.said["complete"]
    (tmp_path / "1").rename(tmp_path / "dead")
    node(1, [2], data=DATA)
    assert taker.complete()


def test_a_peer_dies_and_the_others_finish(node):
    node(1, [2, 3], data=DATA, rate=1_500_000)
    dying, other = node(2, [1, 3]), node(3, [1, 2])
    dying.until(lambda said: said["done"] > 500_000)
    dying.kill()
    assert other.complete()


def test_wrong_bytes_are_refused_and_their_sender_banned(node):
    liar = node(1, [2, 3], data=dict(DATA, large=b"!" + DATA["large"][1:]))
    taker = node(2, [1, 3])
    taker.until(lambda said: said["banned"] == [liar.address])
    node(3, [1, 2], data=DATA)
    assert taker.complete()


@pytest.mark.parametrize("name", ["large", "small"])
def test_wrong_bytes_at_the_end_are_refused(node, name):
    node(1, [2, 3], data=dict(DATA, **{name: DATA[name][:-1] + b"!"}))
    taker = node(2, [1, 3])
    # Whether it is banned depends on how much of the piece was right.
    taker.until(lambda said: said["received"] > 1_000_000)
    assert not taker.said["complete"]
    node(3, [1, 2], data=DATA)
    assert taker.complete()


def test_a_stranger_gets_nothing(node):
    seed = node(1, [2], data=DATA)
    stranger = node(3, [1])
    assert node(2, [1]).complete()
    assert (stranger.said["done"], stranger.said["received"]) == (0, 0)
    assert seed.said["banned"] == []


def test_what_is_there_is_not_asked_for(node):
    half = bytearray(len(DATA["large"]))
    half[: 10 * PIECE] = DATA["large"][: 10 * PIECE]
    have = {NAMES["large"]: "1" * 10 + "0" * 10, NAMES["small"]: "0"}
    node(1, [2], data=DATA)
    taker = node(2, [1], data={"large": bytes(half), "small": bytes(len(DATA["small"]))}, have=have)
    assert taker.complete()
    assert taker.said["received"] < len(DATA["large"]) - 9 * PIECE


def test_told_to_stop_it_writes_what_it_has(node):
    node(1, [2], data=DATA, rate=1_500_000)
    taker = node(2, [1])
    taker.until(lambda said: int(said["pieces"], 16))
    taker.process.terminate()
    assert taker.process.wait(WAIT_SECONDS) == 0
    bits = unpack(taker.said["pieces"], 21)
    # Torrents count pieces file by file, by name.
    at = 0
    for sha256, name in sorted((sha256, name) for name, sha256 in NAMES.items()):
        found, data = (taker.place / name).read_bytes(), DATA[name]
        for start in range(0, len(data), PIECE):
            assert bits[at] == "0" or found[start : start + PIECE] == data[start : start + PIECE], sha256
            at += 1


def test_ends_by_itself_when_nobody_wants_anything(node):
    assert node(1, [2], data=DATA, idle=1).process.wait(WAIT_SECONDS) == 0


def test_ends_by_itself_when_nothing_comes(node):
    taker = node(1, [2], stall=1)
    assert taker.process.wait(WAIT_SECONDS) == 1
    assert "nothing came for 1 s" in taker.process.stdout.read()


def test_says_what_the_disk_says(node, tmp_path):
    node(1, [2], data=DATA)
    taker = node(2, [1], files={sha256: "/dev/full" for sha256 in NAMES.values()})
    assert taker.process.wait(WAIT_SECONDS) == 1
    assert "/dev/full" in taker.said["error"] and "/proc/self" not in taker.said["error"]


def test_files_are_locked_while_they_are_written(node, tmp_path):
    lock = str(tmp_path / "lock")
    (tmp_path / "lock").touch()
    node(1, [2], data=DATA, rate=1_500_000)
    taker = node(2, [1], locks=[lock])
    taker.until(lambda said: said["done"] > 0)
    with pytest.raises(BusyError), locked(lock, "a pull", 0.0, print):
        pytest.fail("got the lock")
    assert taker.complete()
    with locked(lock, "a pull", 5.0, lambda other: None):
        assert taker.process.poll() is None


def test_does_not_write_what_somebody_else_brings(node, tmp_path):
    with locked(str(tmp_path / "lock"), "a pull", 1.0, print):
        late = node(2, [1], locks=[str(tmp_path / "lock")])
    assert late.process.wait(WAIT_SECONDS) == 1
    said = late.process.stdout.read()
    assert "another run brings the same file" in said and "Traceback" not in said


def test_the_port_is_the_one_that_peers_know(node):
    with socket.create_server((address(1), 16881)):
        late = node(1, [2], data=DATA)
    assert late.process.wait(WAIT_SECONDS) == 1
    said = late.process.stdout.read()
    assert "Address already in use" in said and "try another one" in said and "Traceback" not in said


@pytest.mark.parametrize(("text", "found"), [("10.0.1.2:6881", ("10.0.1.2", 6881)), ("[fd00::2]:1", ("fd00::2", 1))])
def test_split_address(text, found):
    assert _swarm.split_address(text) == found


@pytest.mark.parametrize(
    "text", ["node1:6881", "10.0.1.2", "10.0.1.2:", ":1", "10.0.1.2:x", "10.0.1.2:65536", "10.0.1.2:0"]
)
def test_split_address_of_what_is_none(text):
    with pytest.raises(ValueError):  # noqa: PT011 - ipaddress and int have their own words
        _swarm.split_address(text)


@pytest.mark.parametrize(("pieces", "told"), [(10_000, 2_500), (100_000, 0)])
def test_a_report_fits_into_a_message_of_systemd(pieces, told):
    text = _swarm.status_text({"bytes": pieces << 24, "pieces": _swarm.bits([True] * pieces), "complete": True})
    assert len(text) <= 4096
    said = json.loads(text.partition("=")[2])
    assert said["complete"] and len(said["pieces"]) == told


def test_bits():
    assert _swarm.bits([True, False, False, True, True]) == "98"
    assert unpack("98", 5) == "10011"
    assert unpack("9", 5) == unpack(None, 5) == unpack("zz", 5) == "00000"
