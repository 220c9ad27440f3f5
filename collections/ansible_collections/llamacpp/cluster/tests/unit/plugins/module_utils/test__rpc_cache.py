# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The cache of a node's workers: what is trusted, what is hashed, what is evicted, and what goes to quarantine."""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import subprocess
import sys

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _rpc_cache
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache import Cache, being_written
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import Python, RpcCacheError
from ansible_collections.llamacpp.cluster.tests.unit.rpc_cache_program import entry, name_of

DATA = random.Random(7).randbytes(5000)
PIECES = [DATA[start : start + 1000] for start in range(0, 5000, 1000)]
ENTRIES = [entry(piece, offset=1000 * index) for index, piece in enumerate(PIECES)]
NAMES = [item.hash for item in ENTRIES]


class Watched(Python):
    """Python that remembers what it was asked to hash."""

    def __init__(self):
        super().__init__("no program")
        self.checked = []

    def check(self, directory, names):
        names = list(names)
        self.checked += names
        return super().check(directory, names)


@pytest.fixture
def hasher():
    return Watched()


@pytest.fixture
def cache(tmp_path, hasher):
    return Cache(str(tmp_path / "llamacpp" / "rpc"), hasher)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(DATA)
    return str(path)


def held(cache):
    """Hold the cache, as a run does."""
    return cache.lock("a test", 0, lambda line: None)


def seed(cache, file, entries):
    """Seed entries of a file, in a run of its own."""
    with held(cache):
        cache.seed_from(file, entries)
        cache.need({item.hash for item in entries})


def write(cache, data, name=None):
    """Write an entry as a worker does; return its path."""
    os.makedirs(cache.directory, exist_ok=True)
    path = os.path.join(cache.directory, name or name_of(data))
    with open(path, "wb") as stream:
        stream.write(data)
    return path


def ages(cache, *names):
    """Make entries as if they had been needed long ago, the first of them longest."""
    with held(cache):
        for age, name in enumerate(names):
            cache._record[name]["needed_at"] = 1000 + age


def test_what_was_seeded_is_known_and_never_read_again(cache, file, hasher):
    seed(cache, file, ENTRIES[:2])
    found = cache.sort(ENTRIES[:3], cache.record())
    assert ([item.hash for item in found.known], found.doubtful) == (NAMES[:2], [])
    assert found.missing == [ENTRIES[2]]
    assert hasher.checked == []


def test_what_a_worker_wrote_itself_is_hashed_once(cache, hasher):
    write(cache, PIECES[0])
    assert cache.sort(ENTRIES[:1], cache.record()).doubtful == ENTRIES[:1]
    with held(cache):
        assert cache.verify(ENTRIES[:1]) == []
    assert cache.sort(ENTRIES[:1], cache.record()).known == ENTRIES[:1]
    assert hasher.checked == NAMES[:1]


def test_an_entry_that_changed_is_hashed_again(cache, file):
    seed(cache, file, ENTRIES[:1])
    write(cache, PIECES[1], NAMES[0])
    assert cache.sort(ENTRIES[:1], cache.record()).doubtful == ENTRIES[:1]


def test_a_truncated_entry_goes_to_quarantine_and_is_missing_then(cache):
    path = write(cache, PIECES[0])
    os.truncate(path, 400)
    with held(cache):
        (finding,) = cache.verify(cache.sort(ENTRIES[:1], cache.record()).doubtful)
    assert (finding.name, finding.bytes) == (NAMES[0], 400)
    assert not os.path.exists(path)
    with open(finding.path, "rb") as stream:
        assert stream.read() == PIECES[0][:400]
    assert cache.sort(ENTRIES[:1], cache.record()).missing == ENTRIES[:1]


def test_an_entry_that_a_worker_is_writing_is_let_be(cache):
    path = write(cache, PIECES[0][:500], NAMES[0])
    with open(path, "ab") as stream, held(cache):
        assert being_written(path)
        (finding,) = cache.verify(ENTRIES[:1])
        assert (finding.why, finding.path) == ("a worker is writing it", "")
        stream.write(PIECES[0][500:])
    assert not being_written(path)
    with held(cache):
        assert cache.verify(ENTRIES[:1]) == []


def test_an_entry_that_a_worker_finished_while_it_was_read_stays(tmp_path):
    class Slow(Python):
        """By the time that it has read an entry, the worker has written the rest."""

        def check(self, directory, names):
            found = super().check(directory, names)
            write(cache, PIECES[0])
            return found

    cache = Cache(str(tmp_path / "rpc"), Slow("no program"))
    write(cache, PIECES[0][:500], NAMES[0])
    with held(cache):
        assert cache.verify(ENTRIES[:1]) == []
    assert cache.sort(ENTRIES[:1], cache.record()).known == ENTRIES[:1]


def test_scrub_finds_what_the_record_trusts(cache, file):
    seed(cache, file, ENTRIES[:3])
    path = os.path.join(cache.directory, NAMES[1])
    before = os.stat(path)
    with open(path, "r+b") as stream:
        stream.write(b"\0\0\0\0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(cache.sort(ENTRIES[:3], cache.record()).known) == 3
    with held(cache):
        assert [finding.name for finding in cache.scrub()] == [NAMES[1]]
        assert cache.scrub() == []
    found = cache.sort(ENTRIES[:3], cache.record())
    assert ([item.hash for item in found.known], found.missing) == ([NAMES[0], NAMES[2]], [ENTRIES[1]])


def test_whoever_noted_that_all_is_seeded_looks_again_after_a_finding(cache, file):
    seed(cache, file, ENTRIES[:2])
    noted = cache.directory + "-planned"
    with open(noted, "w", encoding="utf-8") as stream:
        stream.write("all of the plan")
    with held(cache):
        assert cache.scrub() == []
        assert os.path.exists(noted)
        os.truncate(os.path.join(cache.directory, NAMES[0]), 1)
        assert len(cache.scrub()) == 1
    assert not os.path.exists(noted)


def test_a_link_under_the_name_of_an_entry_goes_to_quarantine_and_its_target_stays(cache, tmp_path):
    os.makedirs(cache.directory)
    (tmp_path / "secret").write_text("s3cret")
    os.symlink(tmp_path / "secret", os.path.join(cache.directory, NAMES[0]))
    with held(cache):
        assert [finding.name for finding in cache.scrub()] == [NAMES[0]]
    assert cache.entries() == {}
    assert (tmp_path / "secret").read_text() == "s3cret"


def test_quarantine_is_emptied_after_a_week(cache, monkeypatch):
    os.truncate(write(cache, PIECES[0]), 1)
    with held(cache):
        (finding,) = cache.scrub()
        cache.scrub()
        assert os.path.exists(finding.path)
        monkeypatch.setattr(_rpc_cache, "QUARANTINE_SECONDS", -1)
        cache.scrub()
    assert not os.path.exists(finding.path)


def test_a_store_with_other_bytes_than_the_heads_is_told_and_what_is_right_stays(cache, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(PIECES[3] + PIECES[1])
    with pytest.raises(RpcCacheError, match=r"other\.gguf: 1000 bytes at 0 are not those that the head hashed"):
        seed(cache, str(other), ENTRIES[:2])
    found = cache.sort(ENTRIES[:2], cache.record())
    assert (found.missing, found.known) == (ENTRIES[:1], ENTRIES[1:2])


def test_a_broken_record_means_hashing_again(cache, file):
    seed(cache, file, ENTRIES[:1])
    for text in ("{", "[]", json.dumps({"schema": 9, "entries": {}}), json.dumps({"schema": 1, "entries": {"a": 1}})):
        with open(cache.directory + "-record.json", "w", encoding="utf-8") as stream:
            stream.write(text)
        assert cache.sort(ENTRIES[:1], cache.record()).doubtful == ENTRIES[:1]


def test_what_a_killed_run_left_is_removed(cache):
    write(cache, b"half", ".seed-123-0")
    os.makedirs(os.path.join(cache.directory, ".seed-a-directory", "in it"))
    with held(cache):
        assert os.listdir(cache.directory) == []


def test_a_directory_under_the_name_of_an_entry_is_no_entry(cache, monkeypatch):
    os.makedirs(os.path.join(cache.directory, NAMES[0], "in it"))
    with held(cache):
        assert [finding.name for finding in cache.scrub()] == [NAMES[0]]
        monkeypatch.setattr(_rpc_cache, "QUARANTINE_SECONDS", -1)
        cache.scrub()
    assert os.listdir(cache.quarantined) == []


def test_quota_evicts_what_was_needed_longest_ago(cache, file):
    seed(cache, file, ENTRIES[:4])
    ages(cache, NAMES[2], NAMES[0], NAMES[3], NAMES[1])
    with held(cache):
        assert cache.room([ENTRIES[4]], {NAMES[2], NAMES[4]}, 3000) == [NAMES[0], NAMES[3]]
    assert sorted(cache.entries()) == sorted([NAMES[1], NAMES[2]])


def test_what_a_worker_wrote_by_itself_is_as_old_as_its_file(cache, file):
    seed(cache, file, ENTRIES[:1])
    os.utime(write(cache, PIECES[1]), (500, 500))
    ages(cache, NAMES[0])
    with held(cache):
        assert cache.room([], set(), 1000) == [NAMES[1]]


def test_a_quota_below_what_is_needed_is_refused_and_evicts_nothing(cache, file):
    seed(cache, file, ENTRIES[:3])
    with held(cache), pytest.raises(RpcCacheError, match=r"llamacpp_rpc_cache_quota = .*the workers of this node need"):
        cache.room([ENTRIES[3]], set(NAMES[:2]) | {NAMES[3]}, 2999)
    assert len(cache.entries()) == 3


@pytest.fixture
def disk(monkeypatch):
    """A function that says how much is free on the disk, in bytes that others do not need."""
    usage = collections.namedtuple("usage", "total used free")

    def free(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, count + _rpc_cache.RESERVE))

    return free


def test_a_full_disk_evicts_too(cache, file, disk):
    seed(cache, file, ENTRIES[:2])
    ages(cache, NAMES[1], NAMES[0])
    disk(500)
    with held(cache):
        assert cache.room([ENTRIES[2]], {NAMES[2]}, 0) == [NAMES[1]]


def test_where_nothing_is_to_come_a_full_disk_evicts_nothing(cache, file, disk):
    seed(cache, file, ENTRIES[:2])
    os.truncate(write(cache, PIECES[2]), 1)
    disk(-1)
    with held(cache):
        (finding,) = cache.scrub()
        assert cache.room([], {NAMES[0]}, 0) == []
    assert os.path.exists(finding.path)
    assert sorted(cache.entries()) == sorted(NAMES[:2])


def test_a_directory_under_the_name_of_an_entry_can_be_evicted(cache):
    os.makedirs(os.path.join(cache.directory, NAMES[0], "in it"))
    with held(cache):
        assert cache.room([], set(), 1) == [NAMES[0]]
    assert os.listdir(cache.directory) == []


def test_no_room_is_said_with_figures_and_evicts_nothing(cache, file, disk):
    seed(cache, file, ENTRIES[:2])
    disk(500)
    with held(cache), pytest.raises(RpcCacheError, match=r"rpc: .* are to come, and there is room for .* free some"):
        cache.room(ENTRIES[2:4], {NAMES[0], NAMES[2], NAMES[3]}, 0)
    assert len(cache.entries()) == 2


def test_quarantine_and_stale_parts_make_room_first(cache, file, disk):
    seed(cache, file, ENTRIES[:1])
    with held(cache):
        os.truncate(write(cache, PIECES[1]), 1)
        cache.scrub()
        for name in (NAMES[2], NAMES[4]):
            with open(os.path.join(cache.incoming, name), "wb") as stream:
                stream.write(b"0123456789")
        disk(989)
        with pytest.raises(RpcCacheError):
            cache.room([ENTRIES[2]], {NAMES[0]}, 0)
        assert os.listdir(cache.quarantined) == []
        assert os.listdir(cache.incoming) == [NAMES[2]]
        disk(990)
        assert cache.room([ENTRIES[2]], {NAMES[0]}, 0) == []


def test_what_is_needed_is_remembered(cache, file):
    seed(cache, file, ENTRIES[:3])
    seed(cache, file, ENTRIES[1:2])
    assert cache.needed() == {NAMES[1]}
    assert cache.settled(ENTRIES[1:2], 3000)
    assert not cache.settled(ENTRIES[1:2], 2999)
    assert not cache.settled(ENTRIES[:2], 0)


def test_only_right_bytes_get_a_name(cache):
    with held(cache):
        for name, data in ((NAMES[0], PIECES[0]), (NAMES[1], PIECES[1][:-1])):
            with open(os.path.join(cache.incoming, name), "wb") as stream:
                stream.write(data)
        assert cache.arrived(NAMES[:2]) == [NAMES[1]]
        assert os.listdir(cache.incoming) == []
    assert list(cache.entries()) == [NAMES[0]]
    assert os.stat(os.path.join(cache.directory, NAMES[0])).st_mode & 0o777 == 0o644


def test_an_owner_that_the_node_does_not_have(tmp_path, hasher):
    cache = Cache(str(tmp_path / "rpc"), hasher, "nobody-here")
    with pytest.raises(RpcCacheError, match="owner = nobody-here: this node has no such user"), held(cache):
        pass
    assert os.listdir(tmp_path) == []


def test_two_runs_at_once_wait_for_each_other(cache, tmp_path):
    code = (
        "import sys; sys.path[:0] = %r\n"
        "from ansible_collections.llamacpp.cluster.plugins.module_utils._lock import locked\n"
        "with locked(%r, 'anna on control', 0, print):\n    print('held', flush=True); sys.stdin.read()\n"
    ) % (sys.path, cache.directory + ".lock")
    with held(cache):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        said = r"rpc: gave up after 0 s, anna on control \(pid %d\)" % other.pid
        with pytest.raises(RpcCacheError, match=said), held(cache):
            pass
        other.stdin.close()
