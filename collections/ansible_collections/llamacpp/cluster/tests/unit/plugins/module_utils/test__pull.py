# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models from peers over loopback: what comes, from whom, and what happens when they die, lie, or stand still."""

from __future__ import annotations

import collections
import hashlib
import http.server
import json
import multiprocessing
import os
import pathlib
import random
import signal
import threading
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _pull, _share
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull_map import LEAST_CHUNK, PartMap, chunk_bytes
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull_model import pull_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import File, Manifest, Store, StoreError

MIB = 1 << 20
DATA = random.Random(5).randbytes(7 * MIB + 12345)
SHA = hashlib.sha256(DATA).hexdigest()
QUIET = Progress(None)


class Peer(http.server.ThreadingHTTPServer):
    """A peer that gives DATA, or something else. ``sent``: bytes of bodies; ``ranges``: first bytes asked for."""

    daemon_threads = True

    def __init__(self, data=DATA, fault=None, rate=0):
        self.data, self.fault, self.rate = data, fault, rate
        self.sent, self.ranges, self.requests = 0, [], 0
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), PeerHandler)
        self.url = "http://127.0.0.1:%d/s3cret/file" % self.server_address[1]
        self.name = "127.0.0.1:%d" % self.server_address[1]
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""

    def stop(self):
        """End."""
        self.released.set()
        self.shutdown()
        self.server_close()


class PeerHandler(http.server.BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self):
        """Send a range, or misbehave."""
        peer = self.server
        peer.requests += 1
        if peer.fault == "404":
            self.send_error(404)
            return
        start, length = _share.byte_range(self.headers.get("Range"), len(peer.data))
        peer.ranges.append(start)
        self.send_response(206)
        shown = start + 1 if peer.fault == "other range" else start
        self.send_header("Content-Range", "bytes %d-%d/%d" % (shown, shown + length - 1, len(peer.data)))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        body = peer.data[start : start + length]
        if peer.fault == "cut":
            body = body[: length // 2]
        elif peer.fault == "silent":
            self.wfile.write(body[:1000])
            peer.released.wait(30)
            return
        if peer.fault == "late":
            peer.released.wait(30)
        for at in range(0, len(body), 65536):
            block = body[at : at + 65536]
            self.wfile.write(block)
            peer.sent += len(block)
            if peer.rate:
                time.sleep(len(block) / peer.rate)

    def log_message(self, *_arguments):
        """Silence."""


@pytest.fixture
def peer():
    """A function that starts a peer."""
    started = []

    def start(*arguments, **options):
        started.append(Peer(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def store(tmp_path):
    """An empty store."""
    for name in ("units", "proc"):
        (tmp_path / name).mkdir()
    return Store(str(tmp_path / "models"), str(tmp_path / "units"), str(tmp_path / "proc"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Silence is noticed soon."""
    monkeypatch.setattr(_pull, "SILENCE_SECONDS", 1.0)


def manifest(**files):
    """Return a manifest of files with these bytes."""
    files = files or {"model": DATA}
    return Manifest(
        "owner/repo/Q4",
        tuple(File(name + ".bin", hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()),
        external={},
    )


def pull(store, peers, wanted=None, **options):
    """Pull DATA from peers."""
    given = {"quota": 0, "keep": [], "patience": 20.0, "progress": QUIET, **options}
    sources = [{file.sha256: one.url for file in (wanted or manifest()).files} for one in peers]
    return pull_model(store, wanted or manifest(), sources, **given)


def leftovers(store):
    """Return what is in incoming besides locks."""
    return [name for name in os.listdir(store.incoming) if not name.endswith(".lock")]


def test_from_one_peer(store, peer):
    one = peer()
    pulled = pull(store, [one])
    assert (pulled.changed, pulled.fetched, pulled.warnings) == (True, len(DATA), [])
    with open(store.path_of("owner/repo/Q4", "model.bin"), "rb") as stream:
        assert stream.read() == DATA
    assert store.present(manifest()) and leftovers(store) == []
    assert one.sent == len(DATA)


def test_a_second_run_asks_nobody(store, peer):
    one = peer()
    pull(store, [one])
    asked = one.requests
    assert pull(store, [one])[:2] == (False, 0)
    assert one.requests == asked


def test_several_peers_share_the_work(store, peer):
    peers = [peer(rate=8 * MIB) for _number in range(3)]
    pulled = pull(store, peers)
    assert pulled.fetched == len(DATA) and all(one.sent for one in peers)


def test_one_blob_under_two_file_names_comes_once(store, peer):
    one = peer()
    wanted = manifest(model=DATA, same=DATA)
    assert pull(store, [one], wanted).fetched == len(DATA)
    assert store.present(wanted)


def test_only_what_lacks_comes(store, peer):
    small = b"small" * 1000
    wanted = manifest(a=DATA, b=small)
    pull(store, [peer()], manifest())
    two = peer(data=small)
    pulled = pull_model(store, wanted, [{wanted.files[1].sha256: two.url}], 0, [], 5.0, QUIET)
    assert pulled.fetched == len(small) and store.present(wanted)


def test_an_empty_file_needs_nobody(store):
    wanted = manifest(empty=b"")
    assert pull_model(store, wanted, [], 0, [], 5.0, QUIET).changed
    assert store.present(wanted)


def test_links_of_the_first_holder_are_files_here(store, peer):
    wanted = Manifest("a", manifest().files, external={"model.bin": "/nfs/model.bin"})
    pull(store, [peer()], wanted)
    assert store.manifest("a").external == {}
    assert store.trusted(wanted.files[0])


@pytest.mark.parametrize("fault", ["404", "cut", "silent", "other range"])
def test_a_peer_that_fails_is_left_out(store, peer, fault):
    bad = peer(fault=fault)
    pulled = pull(store, [bad, peer()])
    assert store.present(manifest())
    assert pulled.warnings == [] or bad.name in pulled.warnings[0]
    assert "s3cret" not in " ".join(pulled.warnings)


@pytest.mark.parametrize("fault", ["404", "cut", "silent", "other range"])
def test_nobody_gives_it(store, peer, fault):
    bad = peer(fault=fault)
    with pytest.raises(StoreError, match="0 of %d bytes are here, and nobody gives the rest" % len(DATA)) as caught:
        pull(store, [bad])
    assert bad.name in str(caught.value) and "s3cret" not in str(caught.value)
    assert store.manifest("owner/repo/Q4") is None
    assert pull(store, [peer()]).fetched == len(DATA)


def test_a_peer_that_is_not_there_at_all(store, peer):
    gone = peer()
    gone.stop()
    with pytest.raises(StoreError, match="nobody gives the rest"):
        pull(store, [gone])


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/x", "ftp://127.0.0.1/x", "/etc/passwd", "http://:x/", "http://[::1"]
)
def test_an_address_that_is_none(store, peer, url):
    sources = [{SHA: url}, {SHA: peer().url}]
    pulled = pull_model(store, manifest(), sources, 0, [], 5.0, QUIET)
    assert pulled.changed and "its address is" in pulled.warnings[0]


def test_a_slow_peer_does_not_hold_up_the_end(store, peer):
    late = peer(fault="late")
    started = time.monotonic()
    pull(store, [late, peer()])
    assert store.present(manifest()) and late.sent == 0
    # It would have been let go 30 s later.
    assert time.monotonic() - started < 20


def test_a_peer_that_trickles_is_left_out(store, peer, monkeypatch):
    monkeypatch.setattr(_pull, "LEAST_RATE", 2 * MIB)
    trickling = peer(rate=MIB // 8)
    with pytest.raises(StoreError, match="it is too slow"):
        pull(store, [trickling])


def test_wrong_bytes_are_thrown_away_and_their_source_named(store, peer):
    wrong = peer(data=DATA[:-1] + b"!")
    with pytest.raises(StoreError, match=wrong.name):
        pull(store, [wrong])
    assert leftovers(store) == [] and store.names() == []


def test_wrong_bytes_of_one_among_several(store, peer):
    right, wrong = peer(rate=8 * MIB), peer(data=bytes(len(DATA)), rate=8 * MIB)
    pulled = pull(store, [wrong, right])
    assert store.present(manifest()) and leftovers(store) == []
    assert pulled.warnings == ["%s sent wrong bytes of model.bin: scrub the store there" % wrong.name]


def test_the_only_honest_one_comes_last(store, peer):
    """Alone, the first sends wrong bytes again, and the second is gone in the middle of what it sends."""
    _liar, dying, right = peers = [peer(data=bytes(len(DATA)), rate=8 * MIB) for _number in range(3)]
    right.data = DATA
    serve, chunks = dying.finish_request, -(-len(DATA) // LEAST_CHUNK)

    def finish_request(*arguments):
        if sum(len(one.ranges) for one in peers) >= 2 * chunks:
            dying.fault = "cut"
        serve(*arguments)

    dying.finish_request = finish_request
    assert pull(store, peers).changed
    assert dying.fault == "cut" and store.present(manifest()) and leftovers(store) == []


def test_a_chunk_that_comes_back_at_the_last_moment(tmp_path, peer, monkeypatch):
    """Another source gives up between the look for something to do and the look whether somebody is at work."""
    monkeypatch.setattr(_pull, "CONNECTIONS", 1)
    marks = PartMap(str(tmp_path / "x.part"), len(DATA))
    pulling = _pull.Pull(marks, [peer().url])
    chunks = [pulling._take("another") for _mark in marks.done]
    take = pulling._take

    def late(name):
        found = take(name)
        while found is None and chunks:
            pulling._give_back(chunks.pop(), "another")
        return found

    monkeypatch.setattr(pulling, "_take", late)
    assert pulling.run(lambda here: None)
    marks.close()


def test_a_file_of_another_size_is_not_taken(store, peer):
    with pytest.raises(StoreError, match="it has another file"):
        pull(store, [peer(data=DATA + b"!")])


def test_what_arrived_before_is_not_asked_for_again(store, peer):
    bad = peer(fault="404")
    first = DATA[: 3 * LEAST_CHUNK]
    wanted = manifest().files[0]
    with store.transfer_lock(SHA, "test", 1.0, print):
        marks = PartMap(store.part(SHA), wanted.bytes)
        os.pwrite(marks.file, first, 0)
        for index in range(3):
            marks.finish(index)
        marks.sync()
        marks.close()
    with pytest.raises(StoreError, match="%d of %d bytes are here" % (len(first), len(DATA))):
        pull(store, [bad])
    one = peer()
    assert pull(store, [one]).fetched == len(DATA) - len(first)
    assert min(one.ranges) == len(first)


def test_a_rotten_beginning_is_fetched_again_also_from_a_single_peer(store, peer):
    with store.transfer_lock(SHA, "test", 1.0, print):
        marks = PartMap(store.part(SHA), len(DATA))
        marks.finish(0)
        marks.sync()
        marks.close()
    one = peer()
    pull(store, [one])
    assert store.present(manifest()) and one.sent > len(DATA)


def test_marks_of_another_file_mean_nothing(tmp_path):
    part = str(tmp_path / "x.part")
    for content in (b"", b"{}", b"[1]", b'{"bytes": 5, "chunk": 1048576}'.ljust(64) + b"1", b"\xff" * 99):
        with open(part + ".map", "wb") as stream:
            stream.write(content)
        marks = PartMap(part, 3 * MIB)
        assert marks.done == [False] * 3
        marks.close()


def test_a_beginning_without_marks_counts(tmp_path):
    part = str(tmp_path / "x.part")
    with open(part, "wb") as stream:
        stream.write(DATA[: 2 * MIB + 5])
    marks = PartMap(part, 5 * MIB)
    assert marks.done == [True, True, False, False, False] and marks.here() == 2 * MIB
    marks.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take files back")
def test_what_an_engine_has_left_is_roots(tmp_path):
    part = tmp_path / "x.part"
    part.touch()
    os.chown(part, 65534, 65534)
    PartMap(str(part), 1).close()
    assert part.stat().st_uid == 0


@pytest.mark.parametrize(("size", "chunk"), [(0, 1), (1, 1), (64 * MIB, 1), (64 * MIB + 1, 2), (1 << 40, 16)])
def test_chunk_bytes(size, chunk):
    assert chunk_bytes(size) == chunk * MIB


def test_somebody_else_brought_it(store):
    with store.transfer_lock(SHA, "test", 1.0, print), open(store.part(SHA), "wb") as stream:
        stream.write(DATA)
    pulled = pull(store, [])
    assert pulled.changed and pulled.fetched == 0 and store.present(manifest())


def test_somebody_else_brought_something_else(store, peer):
    with store.transfer_lock(SHA, "test", 1.0, print), open(store.part(SHA), "wb") as stream:
        stream.write(DATA[::-1])
    with pytest.raises(StoreError, match="an earlier run"):
        pull(store, [])
    assert leftovers(store) == []
    with open(store.part(SHA), "wb") as stream:
        stream.write(DATA[::-1])
    assert pull(store, [peer()]).fetched == len(DATA)


def test_nothing_came_and_nobody_is_asked(store):
    with pytest.raises(StoreError, match="0 of %d bytes are here" % len(DATA)):
        pull(store, [])


def test_a_quota_that_is_too_small(store, peer):
    one = peer()
    with pytest.raises(StoreError, match="raise llamacpp_models_quota"):
        pull(store, [one], quota=MIB)
    assert one.requests == 0


def test_no_room_on_the_disk(store, peer, monkeypatch):
    real = os.pwrite

    def full(descriptor, data, at):
        if len(data) > 1 and at > MIB:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="model.bin: the disk of %s is full: free some space" % store.incoming):
        pull(store, [peer()])
    assert store.names() == []
    monkeypatch.setattr(os, "pwrite", real)
    assert pull(store, [peer()]).changed


def test_a_disk_that_fails(store, peer, monkeypatch):
    def broken(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(StoreError, match=r"model.bin: .*[.]part says: Input/output error"):
        pull(store, [peer()])


def test_progress(store, peer, tmp_path):
    lines = []

    class Spy(Progress):
        def say(self, line, now=False):
            lines.append(line)

    pull(store, [peer(rate=4 * MIB)], progress=Spy(None))
    assert any("model.bin from 1 peers: " in line and "MiB/s" in line for line in lines)


def pulling(root, urls, answer):
    """Pull in a process of its own."""
    wanted = manifest()
    store = Store(root, root + "/none", root + "/none")
    done = pull_model(store, wanted, [{wanted.files[0].sha256: url} for url in urls], 0, [], 60.0, QUIET)
    answer.put(done[:2])


def test_two_runs_at_once(store, peer):
    one = peer(rate=8 * MIB)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    runs = [context.Process(target=pulling, args=(store.root, [one.url], answer)) for _number in range(2)]
    for run in runs:
        run.start()
    found = sorted(answer.get(timeout=60) for _run in runs)
    for run in runs:
        run.join()
    assert collections.Counter(fetched for _changed, fetched in found) == {0: 1, len(DATA): 1}
    assert one.sent == len(DATA) and store.present(manifest())


def test_killed_and_run_again(store, peer, monkeypatch):
    monkeypatch.setattr(_pull, "SYNC_SECONDS", 0.0)
    slow = peer(rate=2 * MIB)
    context = multiprocessing.get_context("fork")
    run = context.Process(target=pulling, args=(store.root, [slow.url], context.Queue()))
    run.start()
    deadline = time.monotonic() + 30
    marks = pathlib.Path(store.part(SHA) + ".map")
    while not (marks.exists() and b"1" in marks.read_bytes()[64:]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert store.names() == [] and not store.present(manifest())
    one = peer()
    assert 0 < pull(store, [one]).fetched < len(DATA)
    assert store.present(manifest()) and leftovers(store) == []


def test_a_chunk_that_arrives_while_marks_are_written(tmp_path):
    marks = PartMap(str(tmp_path / "x.part"), 2 * MIB)

    class Interrupted(list):
        """A list that the other thread looks at in the moment before something is appended."""

        def append(self, value):
            marks.sync()
            super().append(value)

    marks._unsynced = Interrupted()
    marks.finish(0)
    marks.sync()
    marks.close()
    assert (tmp_path / "x.part.map").read_bytes()[64:] == b"10"


def test_what_the_marks_say_on_the_disk(tmp_path):
    marks = PartMap(str(tmp_path / "x.part"), 2 * MIB + 1)
    marks.finish(2)
    content = (tmp_path / "x.part.map").read_bytes()
    assert json.loads(content[:64]) == {"bytes": 2 * MIB + 1, "chunk": MIB} and content[64:] == b"000"
    marks.sync()
    assert (tmp_path / "x.part.map").read_bytes()[64:] == b"001"
    marks.close()
    again = PartMap(str(tmp_path / "x.part"), 2 * MIB + 1)
    assert again.done == [False, False, True] and again.here() == 1 and again.span(2) == (2 * MIB, 1)
    again.close()
