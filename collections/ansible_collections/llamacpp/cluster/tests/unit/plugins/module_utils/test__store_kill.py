# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs that are killed before each of their steps on the disk: nothing half counts, and a second run finishes.

A forked child kills itself (SIGKILL, so nothing is tidied up) right before its n-th change below the store, as
Python's audit events tell them, for every n until it comes to its end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Manifest, Store, StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_clean import UNNAMED_SECONDS
from ansible_collections.llamacpp.cluster.plugins.module_utils._store_files import walk
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import (
    QUIET,
    add,
    bring,
    describe,
    manifest_of,
    spoil,
    tree,
)

# What changes a disk; "open" only counts when it is for writing.
CHANGES = (
    "os.rename",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "os.chown",
    "os.utime",
)
MOST_STEPS = 200
DONE = 7


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch):
    """What a killed process has written is there without fsync(2); only a power cut would need it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def killed(root, step, work):
    """Do ``work(store)`` in a child that is killed before its change number ``step``; False when it came to its end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (event in CHANGES or writes) and root in map(str, (str(item)[: len(root)] for item in arguments)):
                seen += 1
                if seen > step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work(store_of(root))
        except BaseException as error:  # noqa: BLE001 - whatever it is, this process must not go on with the tests
            os.write(2, ("%r\n" % error).encode())
            os._exit(1)
        os._exit(DONE)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == DONE
    return False


def store_of(root):
    """A store that nobody uses."""
    return Store(root, root + ".units", root + ".proc")


def each_step(tmp_path, prepare, work):
    """Give a fresh, prepared store on which ``work`` was killed, once for each step that it could be killed at."""
    for step in range(MOST_STEPS):
        root = str(tmp_path / ("s%d" % step))
        os.makedirs(root + ".proc")
        store = store_of(root)
        prepare(store)
        if not killed(root, step, work):
            assert step > 5, "the steps were not seen"
            return
        yield store
        shutil.rmtree(root)
    pytest.fail("it has more than %d steps" % MOST_STEPS)


NAMES = ("old", "new/one/Q", "two")


def sound(store):
    """Whatever has a name and counts has the right bytes, under its readable path as well."""
    for name in NAMES:
        manifest = store.manifest(name)
        if manifest is None or not store.present(manifest):
            continue
        for file in manifest.files:
            with open(store.path_of(name, file.name), "rb") as stream:
                assert hashlib.sha256(stream.read()).hexdigest() == file.sha256
    for blob in os.listdir(store.blobs) if os.path.isdir(store.blobs) else []:
        with open(store.blob(blob), "rb") as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == blob


def after_a_week(store, monkeypatch):
    """Sweep as if a week had passed."""
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 8 * UNNAMED_SECONDS)
        store.sweep()


def exactly(store, *manifests):
    """These models, whole, and nothing else is left in the store."""
    assert store.names() == sorted(manifest.name for manifest in manifests)
    assert all(store.present(manifest) for manifest in manifests)
    expected = {"manifests/%s.json" % manifest.name for manifest in manifests}
    for manifest in manifests:
        for file in manifest.files:
            expected |= {"blobs/" + file.sha256, "stamps/%s.json" % file.sha256}
            expected.add("names/%s/%s" % (manifest.name, file.name))
    marks = {"used/" + manifest.name.replace("/", ",") for manifest in manifests}
    assert set(tree(store.root)) - {".sha256.json"} - marks == expected


OLD = {"x": b"shared", "y": b"old"}
NEW = {"x": b"shared", "y": b"new", "z": b"more"}


def test_bringing_a_model(tmp_path, monkeypatch):
    wanted = manifest_of("new/one/Q", **NEW)
    steps = 0
    for store in each_step(
        tmp_path, lambda store: add(store, "old", **OLD), lambda store: add(store, "new/one/Q", **NEW)
    ):
        steps += 1
        sound(store)
        assert store.present(manifest_of("old", **OLD))
        # The second run, which does not know of the first.
        assert add(store, "new/one/Q", **NEW).files == wanted.files
        assert store.name(wanted) is False
        after_a_week(store, monkeypatch)
        exactly(store, manifest_of("old", **OLD), wanted)
    assert steps > 20


def test_bringing_a_model_that_nobody_wants_any_more(tmp_path, monkeypatch):
    for store in each_step(
        tmp_path, lambda store: add(store, "old", **OLD), lambda store: add(store, "new/one/Q", **NEW)
    ):
        if "new/one/Q" in store.names():
            store.remove("new/one/Q")
        after_a_week(store, monkeypatch)
        exactly(store, manifest_of("old", **OLD))


def test_giving_a_name_other_files(tmp_path, monkeypatch):
    wanted = manifest_of("old", **NEW)

    def prepare(store):
        add(store, "old", **OLD)
        add(store, "two", x=b"shared")
        for key, content in NEW.items():
            bring(store, key + ".bin", content)

    for store in each_step(tmp_path, prepare, lambda store: store.name(wanted)):
        sound(store)
        # The old files, the new ones, or none that count; never a mixture.
        assert not (store.present(wanted) and store.present(manifest_of("old", **OLD)))
        assert store.present(manifest_of("two", x=b"shared"))
        store.name(wanted)
        after_a_week(store, monkeypatch)
        exactly(store, wanted, manifest_of("two", x=b"shared"))


def test_removing_a_model(tmp_path):
    def prepare(store):
        add(store, "old", **OLD)
        add(store, "new/one/Q", **NEW)
        store.note_used(["new/one/Q"])

    for store in each_step(tmp_path, prepare, lambda store: store.remove("new/one/Q")):
        sound(store)
        store.remove("new/one/Q")
        exactly(store, manifest_of("old", **OLD))


def test_making_room(tmp_path):
    def prepare(store):
        add(store, "old", **OLD)
        add(store, "two", x=b"shared", w=b"0123456789")

    for store in each_step(tmp_path, prepare, lambda store: store.room(10, 25, ["old"])):
        sound(store)
        assert store.present(manifest_of("old", **OLD))
        store.room(10, 25, ["old"])
        assert store.space().stored <= 15
        # Where its bytes were gone already, its name is left to be removed, or to be brought again.
        assert "two" not in store.names() or not store.present(manifest_of("two", x=b"shared", w=b"0123456789"))
        store.remove("two")
        exactly(store, manifest_of("old", **OLD))


def test_adopting_a_file(tmp_path, monkeypatch):
    for mode in (0o644, 0o666):
        source = tmp_path / ("source%o.bin" % mode)
        source.write_bytes(b"of this node")
        source.chmod(mode)
        directory = tmp_path / oct(mode)
        directory.mkdir()

        def work(store, source=source):
            file = store.adopt(str(source), "x.bin", "model", QUIET)
            return store.name(Manifest("two", (file,)))

        for store in each_step(directory, lambda store: None, work):
            sound(store)
            work(store)
            after_a_week(store, monkeypatch)
            exactly(store, Manifest("two", (describe("x.bin", b"of this node", "model"),)))
            assert source.read_bytes() == b"of this node"


def test_scrubbing(tmp_path, monkeypatch):
    wrong = describe("y.bin", b"old").sha256

    def prepare(store):
        add(store, "old", **OLD)
        add(store, "two", x=b"shared")
        info = os.stat(store.blob(wrong))
        with open(store.blob(wrong), "r+b") as stream:
            stream.write(b"0ld")
        os.utime(store.blob(wrong), ns=(info.st_atime_ns, info.st_mtime_ns))

    for store in each_step(tmp_path, prepare, lambda store: store.scrub([], QUIET)):
        store.scrub([], QUIET)
        sound(store)
        for path in walk(store.links):
            with open(path, "rb") as stream:
                assert stream.read() == b"shared", "nobody finds wrong bytes by their path"
        assert not store.present(manifest_of("old", **OLD))
        assert store.present(manifest_of("two", x=b"shared"))
        add(store, "old", **OLD)
        shutil.rmtree(store.quarantine)
        after_a_week(store, monkeypatch)
        exactly(store, manifest_of("old", **OLD), manifest_of("two", x=b"shared"))


def test_scrubbing_a_file_that_is_another_place_s_as_well(tmp_path):
    source = tmp_path / "source.bin"

    def prepare(store):
        source.unlink(missing_ok=True)
        source.write_bytes(b"of this node")
        source.chmod(0o644)
        store.name(Manifest("two", (store.adopt(str(source), "x.bin", "model", QUIET),)))
        spoil(source)

    for store in each_step(tmp_path, prepare, lambda store: store.scrub([], QUIET)):
        store.scrub([], QUIET)
        # What was remembered of it is not believed any more.
        with pytest.raises(StoreError, match="instead of"):
            store.adopt(str(source), "x.bin", "model", QUIET, describe("x.bin", b"of this node").sha256)


def test_sweeping(tmp_path, monkeypatch):
    def prepare(store):
        add(store, "old", **OLD)
        add(store, "two", w=b"gone")
        bring(store, "u.bin", b"unnamed")
        os.unlink(os.path.join(store.manifests, "two.json"))

    def work(store):
        real = time.time
        time.time = lambda: real() + 8 * UNNAMED_SECONDS
        store.sweep()

    for store in each_step(tmp_path, prepare, work):
        sound(store)
        after_a_week(store, monkeypatch)
        exactly(store, manifest_of("old", **OLD))
