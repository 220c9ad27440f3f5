# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tensors from peers, over real loopback connections, from servers that break off, lie or have nothing."""

from __future__ import annotations

import os
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._http import Client
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache import Cache
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache_fetch import Fetch
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import Python, RpcCacheError
from ansible_collections.llamacpp.cluster.plugins.module_utils._share import byte_range
from ansible_collections.llamacpp.cluster.tests.unit.rpc_cache_program import entry

DATA = random.Random(9).randbytes(60_000)
SHA256 = "ab" * 32
ENTRIES = [entry(DATA[start : start + 5000], SHA256, start) for start in range(0, 60_000, 5000)]


class Peer(ThreadingHTTPServer):
    """Serves DATA by ranges. ``cut``: breaks off after so many bytes; ``wrong``: sends others; ``whole``: no ranges."""

    def __init__(self, cut=None, wrong=False, whole=False, status=206):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cut, self.wrong, self.whole, self.status = cut, wrong, whole, status
        self.asked = []
        self.url = "http://127.0.0.1:%d/s3cret/%s" % (self.server_address[1], SHA256)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        peer = self.server
        peer.asked.append(self.headers["Range"])
        if peer.status >= 400:
            self.send_error(peer.status)
            return
        start, length = (0, len(DATA)) if peer.whole else byte_range(self.headers["Range"], len(DATA))
        self.send_response(200 if peer.whole else 206)
        self.send_header("Content-Length", str(length))
        if not peer.whole:
            self.send_header("Content-Range", "bytes %d-%d/%d" % (start, start + length - 1, len(DATA)))
        self.end_headers()
        body = bytes(length) if peer.wrong else DATA[start : start + length]
        self.wfile.write(body if peer.cut is None else body[: peer.cut])

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def peer():
    """A function that starts a peer."""
    started = []

    def start(**how):
        server = Peer(**how)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path / "rpc"), Python("no program"))


def fetch(cache, *peers, entries=ENTRIES):
    """Bring entries from peers in a run of its own; return how many bytes came."""
    sources = [{SHA256: item.url} for item in peers]
    work = Fetch(cache, sources, Progress(None), Client(proxy=False, timeout=5, sleep=lambda seconds: None))
    with cache.lock("a test", 0, lambda line: None):
        work.run(entries)
    return work.fetched


def complete(cache):
    """Whether all entries are there, with their bytes, and nothing else."""
    for item in ENTRIES:
        with open(os.path.join(cache.directory, item.hash), "rb") as stream:
            assert stream.read() == DATA[item.offset : item.offset + item.bytes]
    return sorted(cache.entries()) == sorted(item.hash for item in ENTRIES) and os.listdir(cache.incoming) == []


def test_ranges_come_from_all_who_have_the_file(cache, peer):
    one, other = peer(), peer()
    assert fetch(cache, one, other) == len(DATA)
    assert complete(cache)
    assert len(one.asked) == len(other.asked) == 6
    known = cache.sort(ENTRIES, cache.record()).known
    assert len(known) == len(ENTRIES)


def test_a_peer_that_breaks_off_is_left_out_and_what_it_sent_is_kept(cache, peer):
    dying, good = peer(cut=2000), peer()
    assert fetch(cache, dying, good) == len(DATA)
    assert complete(cache)
    # Four are under way when it breaks off for the third time.
    assert 3 <= len(dying.asked) <= 6


def test_a_peer_with_other_bytes_is_left_out(cache, peer):
    lying, good = peer(wrong=True), peer()
    fetch(cache, lying, good)
    assert complete(cache)
    assert len(lying.asked) <= 4


@pytest.mark.parametrize("how", [{"whole": True}, {"status": 404}])
def test_a_peer_that_cannot_is_left_out(cache, peer, how):
    fetch(cache, peer(**how), peer())
    assert complete(cache)


def test_who_lacks_the_file_is_not_asked(cache, peer):
    good = peer()
    work = Fetch(cache, [{}, {"cd" * 32: "http://127.0.0.1:1/x"}, {SHA256: good.url}], Progress(None))
    with cache.lock("a test", 0, lambda line: None):
        work.run(ENTRIES)
    assert complete(cache)


def test_nobody_can_send_it_says_who_and_why_without_secrets(cache, peer):
    dying, lying = peer(cut=100), peer(wrong=True)
    with pytest.raises(RpcCacheError) as caught:
        fetch(cache, dying, lying)
    said = str(caught.value)
    assert "127.0.0.1:%d: the connection broke" % dying.server_address[1] in said
    assert "127.0.0.1:%d: it sent wrong bytes" % lying.server_address[1] in said
    assert "s3cret" not in said
    assert cache.entries() == {}


def test_the_next_run_goes_on_where_the_last_one_ended(cache, peer):
    with pytest.raises(RpcCacheError):
        fetch(cache, peer(cut=1500), entries=ENTRIES[:1])
    part = os.path.join(cache.incoming, ENTRIES[0].hash)
    have = os.stat(part).st_size
    assert have == 3 * 1500
    good = peer()
    assert fetch(cache, good, entries=ENTRIES[:1]) == 5000 - have
    assert good.asked == ["bytes=%d-4999" % have]
    assert list(cache.entries()) == [ENTRIES[0].hash]


def test_a_part_that_is_longer_than_its_entry_begins_anew(cache, peer):
    with cache.lock("a test", 0, lambda line: None), open(os.path.join(cache.incoming, ENTRIES[0].hash), "wb") as part:
        part.write(bytes(6000))
    assert fetch(cache, peer()) == len(DATA)
    assert complete(cache)


def test_a_disk_that_is_full_keeps_no_parts(cache, peer):
    with cache.lock("a test", 0, lambda line: None):
        for item in ENTRIES:
            os.symlink("/dev/full", os.path.join(cache.incoming, item.hash))
    with pytest.raises(RpcCacheError, match="rpc-incoming: No space left on device"):
        fetch(cache, peer())
    assert (os.listdir(cache.incoming), cache.entries()) == ([], {})
    fetch(cache, peer())
    assert complete(cache)


def test_nobody_to_ask(cache):
    assert fetch(cache, entries=[]) == 0
    with pytest.raises(RpcCacheError, match="no node gives the file %s for the RPC cache: run again" % SHA256):
        fetch(cache)
