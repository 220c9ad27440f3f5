# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Parts of a store in a swarm: which pieces are there, whose they are, and what becomes of them."""

from __future__ import annotations

import os
import random
import stat
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _swarm_store
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull_map import PartMap
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Manifest, Store, StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_store import SwarmStore, closed
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_torrent import TorrentError
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import QUIET, add, bring, manifest_of

PIECE = 256 << 10
LARGE = random.Random(1).randbytes(9 * PIECE + 1000)
SMALL = b"small" * 100
MODEL = manifest_of("a", large=LARGE, small=SMALL, same=SMALL, empty=b"")
BIG, LITTLE = MODEL.files[0], MODEL.files[1]
NOBODY = (65534, 65534)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def make_store(place):
    """Return an empty store that nobody uses."""
    return Store(str(place / "models"), str(place / "units"), str(place / "proc"))


@pytest.fixture
def seed(tmp_path):
    """A store that has the model."""
    store = make_store(tmp_path / "seed")
    add(store, "a", large=LARGE, small=SMALL, same=SMALL, empty=b"")
    return SwarmStore(store, MODEL, QUIET)


@pytest.fixture
def taker(tmp_path):
    """A store that has nothing."""
    return SwarmStore(make_store(tmp_path / "taker"), MODEL, QUIET)


def fill(taker, file, data, at=0):
    """Write into a part as the engine does."""
    with open(taker.store.part(file.sha256), "r+b") as stream:
        stream.seek(at)
        stream.write(data)


def put(taker, data):
    """Leave a part, as something else than a swarm does."""
    with taker.store.transfer_lock(BIG.sha256, "test", 1.0, print), open(taker.store.part(BIG.sha256), "wb") as stream:
        stream.write(data)


def test_who_has_it_only_gives(seed):
    share = seed.prepare(seed.torrent(), NOBODY, 1.0)
    assert share.files == {file.sha256: seed.store.blob(file.sha256) for file in (BIG, LITTLE)}
    assert share.have == {BIG.sha256: "1" * 10, LITTLE.sha256: "1"}
    assert os.stat(share.files[BIG.sha256]).st_uid == os.geteuid()


def test_who_links_to_it_gives_it_too(tmp_path, seed):
    store = make_store(tmp_path / "linked")
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    file = store.adopt(str(path), "large.bin", "other", QUIET, external=True)
    manifest = Manifest("a", (file,), external={"large.bin": str(path)})
    store.name(manifest)
    work = SwarmStore(store, Manifest("a", (file,)), QUIET)
    assert work.lacking() == []
    assert work.prepare(work.torrent(), None, 1.0).files == {file.sha256: str(path)}


@as_root
def test_parts_belong_to_the_engine(seed, taker):
    share = taker.prepare(seed.torrent(), NOBODY, 1.0)
    for file in (BIG, LITTLE):
        info = os.stat(share.files[file.sha256])
        assert share.files[file.sha256] == taker.store.part(file.sha256)
        assert (info.st_uid, info.st_size, stat.S_IMODE(info.st_mode)) == (65534, file.bytes, 0o600)
    taker.take_back()
    info = os.stat(share.files[BIG.sha256])
    # Its engine may go on giving it, but not write it.
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o644)


def test_nothing_is_there_at_first_and_nothing_is_read(seed, taker):
    share = taker.prepare(seed.torrent(), None, 1.0)
    assert share.have == {BIG.sha256: "0" * 10, LITTLE.sha256: "0"}
    assert sorted(share.locks) == sorted("%s/%s.lock" % (taker.store.incoming, one.sha256) for one in (BIG, LITTLE))
    assert os.stat(share.files[BIG.sha256]).st_blocks == 0


def test_what_is_there_is_told_by_its_hash(seed, taker):
    data = seed.torrent()
    taker.prepare(data, None, 1.0)
    fill(taker, BIG, LARGE[: 2 * PIECE])
    fill(taker, BIG, bytes(PIECE), 4 * PIECE)
    fill(taker, BIG, LARGE[9 * PIECE :], 9 * PIECE)
    fill(taker, LITTLE, SMALL)
    have = taker.prepare(data, None, 1.0).have
    assert have == {BIG.sha256: "1100000001", LITTLE.sha256: "1"}
    assert [os.path.basename(path) for path in taker.prepare(data, None, 1.0).locks] == [BIG.sha256 + ".lock"]


def test_a_beginning_that_something_else_has_left_is_used(seed, taker):
    put(taker, LARGE[: 3 * PIECE + 5])
    assert taker.prepare(seed.torrent(), None, 1.0).have[BIG.sha256] == "1110000000"


def test_a_part_that_is_too_long_begins_anew(seed, taker):
    put(taker, LARGE + b"!")
    with open(taker.store.part(BIG.sha256) + ".map", "w"):
        pass
    assert taker.prepare(seed.torrent(), None, 1.0).have[BIG.sha256] == "0" * 10
    assert not os.path.exists(taker.store.part(BIG.sha256) + ".map")


def test_a_link_in_the_place_of_a_part_is_not_followed(seed, taker, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    with taker.store.transfer_lock(BIG.sha256, "test", 1.0, print):
        os.symlink(precious, taker.store.part(BIG.sha256))
    with pytest.raises(OSError, match="symbolic links"):
        taker.prepare(seed.torrent(), NOBODY, 1.0)
    assert precious.read_bytes() == b"precious" and precious.stat().st_uid == os.geteuid()


def test_another_run_brings_it_already(seed, taker):
    data = seed.torrent()
    other = make_store_of(taker)
    with other.transfer_lock(BIG.sha256, "a pull", 1.0, print), pytest.raises(StoreError, match="a pull"):
        taker.prepare(data, None, 0.0)


def test_another_run_brought_it_while_this_one_waited(seed, taker, monkeypatch):
    data, before = seed.torrent(), taker.lacking()
    monkeypatch.setattr(taker, "lacking", lambda: before)
    bring(taker.store, "large.bin", LARGE)
    share = taker.prepare(data, None, 1.0)
    assert share.files[BIG.sha256] == taker.store.blob(BIG.sha256) and share.have[BIG.sha256] == "1" * 10
    assert not os.path.exists(taker.store.part(BIG.sha256))
    assert [os.path.basename(path) for path in share.locks] == [LITTLE.sha256 + ".lock"]


def test_what_another_run_is_at_stays_that_runs(seed, taker):
    data = seed.torrent()
    taker.prepare(data, None, 1.0)
    taker.keep(data)
    with make_store_of(taker).transfer_lock(BIG.sha256, "another swarm", 1.0, print):
        taker.take_back()
        taker.leave("fff")
    modes = [stat.S_IMODE(os.stat(taker.store.part(file.sha256)).st_mode) for file in (BIG, LITTLE)]
    assert modes == [0o600, 0o644]
    assert [os.path.exists(taker.store.part(file.sha256) + ".map") for file in (BIG, LITTLE)] == [False, True]


def make_store_of(work):
    """Return the same store as somebody else sees it."""
    return Store(work.store.root, work.store.units, work.store.proc)


def test_blobs_are_made_of_what_came(seed, taker):
    taker.prepare(seed.torrent(), NOBODY if os.geteuid() == 0 else None, 1.0)
    taker.keep(seed.torrent())
    fill(taker, BIG, LARGE)
    fill(taker, LITTLE, SMALL)
    for file in (BIG, LITTLE):
        taker.admit(file, pytest.fail, 1.0, "a test")
    assert taker.finish(1.0) and taker.store.present(MODEL)
    info = os.stat(taker.store.blob(BIG.sha256))
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (os.geteuid(), 0o644)
    assert not taker.finish(1.0)
    assert [name for name in os.listdir(taker.store.incoming) if not name.endswith(".lock")] == []


def test_wrong_bytes_get_no_name(seed, taker):
    taker.prepare(seed.torrent(), None, 1.0)
    fill(taker, BIG, LARGE[:-1] + b"!")
    with pytest.raises(StoreError, match="a test has sha256"):
        taker.admit(BIG, pytest.fail, 1.0, "a test")
    assert not os.path.exists(taker.store.part(BIG.sha256))
    with pytest.raises(StoreError, match="its part is gone"):
        taker.admit(BIG, pytest.fail, 1.0, "a test")


def test_the_engine_ends_before_bytes_are_hashed_that_it_could_still_change(seed, taker, monkeypatch):
    monkeypatch.setattr("%s.CLOSING_SECONDS" % SwarmStore.__module__, 0.0)
    taker.prepare(seed.torrent(), None, 1.0)
    fill(taker, LITTLE, SMALL)
    ended = []
    with open(taker.store.part(LITTLE.sha256), "r+b") as writer:

        def end():
            ended.append(taker.store.trusted(LITTLE))
            writer.close()

        taker.admit(LITTLE, end, 1.0, "a test")
    assert ended == [False] and taker.store.trusted(LITTLE)


def test_closed(tmp_path):
    path = tmp_path / "x"
    with open(path, "wb"):
        assert not closed(str(path), 0.0)
    with open(path, "rb"):
        assert closed(str(path), 0.0)


def test_a_torrent_is_made_once(seed, monkeypatch):
    first = seed.torrent()
    monkeypatch.setattr("%s.content_of" % SwarmStore.__module__, pytest.fail)
    assert seed.torrent() == first


@pytest.mark.parametrize("spoil", ["cut", "of other files", "of an older blob"])
def test_a_torrent_that_may_be_wrong_is_made_again(seed, tmp_path, spoil):
    right = seed.torrent()
    if spoil == "cut":
        os.truncate(seed.torrent_path, 50)
    elif spoil == "of other files":
        other = SwarmStore(make_store(tmp_path / "other"), manifest_of("b", x=b"x"), QUIET)
        add(other.store, "b", x=b"x")
        with open(seed.torrent_path, "wb") as stream:
            stream.write(other.torrent())
    else:
        with open(seed.torrent_path, "wb") as stream:
            stream.write(right.replace(LITTLE.sha256.encode(), BIG.sha256.encode()))
        os.utime(seed.torrent_path, (1, 1))
    assert seed.torrent() == right
    with open(seed.torrent_path, "rb") as stream:
        assert stream.read() == right


def test_torrents_of_long_ago_go(seed):
    seed.torrent()
    old = os.path.join(seed.torrents, "old.torrent")
    with open(old, "wb"):
        os.utime(old, (1, 1))
    seed.keep(seed.torrent())
    assert os.listdir(seed.torrents) == [os.path.basename(seed.torrent_path)]


def test_torrents_that_another_run_looks_after_meanwhile(seed, monkeypatch):
    data = seed.torrent()
    listing = _swarm_store.files.listing
    monkeypatch.setattr(_swarm_store.files, "listing", lambda path: [*listing(path), ".new-of-another-run"])
    seed.keep(data)
    assert seed.kept() == data


def test_a_torrent_of_something_else_is_refused(taker, tmp_path):
    other = SwarmStore(make_store(tmp_path / "other"), manifest_of("b", x=b"x"), QUIET)
    add(other.store, "b", x=b"x")
    with pytest.raises(TorrentError, match="of other files"):
        taker.prepare(other.torrent(), None, 1.0)


def test_a_pull_goes_on_where_the_swarm_ended(seed, taker):
    data = seed.torrent()
    taker.prepare(data, None, 1.0)
    taker.keep(data)
    fill(taker, BIG, LARGE[: 9 * PIECE])
    order = sorted([BIG.sha256, LITTLE.sha256])
    bits = {BIG.sha256: "1" * 9 + "0", LITTLE.sha256: "0"}
    text = "".join(bits[sha256] for sha256 in order)
    taker.leave("%03x" % int(text.ljust(12, "0"), 2))
    marks = PartMap(taker.store.part(BIG.sha256), BIG.bytes)
    assert marks.done == [True, True, False]
    marks.close()
    marks = PartMap(taker.store.part(LITTLE.sha256), LITTLE.bytes)
    assert marks.done == [False]
    marks.close()


def test_an_engine_that_says_nonsense_leaves_nothing(seed, taker):
    data = seed.torrent()
    taker.prepare(data, None, 1.0)
    taker.keep(data)
    for pieces in (None, "zz", "f"):
        taker.leave(pieces)
        marks = PartMap(taker.store.part(BIG.sha256), BIG.bytes)
        assert not any(marks.done)
        marks.close()


def test_what_came_in_another_way_meanwhile(seed, taker):
    taker.prepare(seed.torrent(), None, 1.0)
    bring(taker.store, "large.bin", LARGE)
    with open(taker.store.part(BIG.sha256), "wb"):
        pass
    taker.admit(BIG, pytest.fail, 1.0, "a test")
    assert taker.store.trusted(BIG) and not os.path.exists(taker.store.part(BIG.sha256))


def test_links_change_a_blob_and_the_torrent_is_made_again(seed):
    seed.torrent()
    before = os.stat(seed.torrent_path).st_mtime_ns
    time.sleep(0.02)
    seed.store.name(Manifest("b", MODEL.files))
    seed.torrent()
    assert os.stat(seed.torrent_path).st_mtime_ns > before
