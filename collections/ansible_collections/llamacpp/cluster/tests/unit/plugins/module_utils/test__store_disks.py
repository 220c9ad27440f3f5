# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Several runs at once, and disks that are full, small, elsewhere or read only."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _store_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store, StoreError
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import QUIET, add, describe


@pytest.fixture
def store(tmp_path):
    """An empty store that nobody uses."""
    (tmp_path / "units").mkdir()
    (tmp_path / "proc").mkdir()
    return Store(str(tmp_path / "models"), str(tmp_path / "units"), str(tmp_path / "proc"))


# Several at once


def compete(root, number, results):
    """Bring the same model, and one of its own, many times; runs in a process of its own."""
    store = Store(root)
    try:
        for _round in range(5):
            add(store, "shared/model", a=b"a" * 100_000, b=b"b" * 50_000)
            own = add(store, "own/%d" % number, a=b"a" * 100_000, c=b"%d" % number)
            assert store.present(own)
            store.remove("own/%d" % number)
        results.put("")
    except (StoreError, OSError, AssertionError) as error:
        results.put(repr(error))


def test_several_runs_at_once(store):
    results = multiprocessing.Queue()
    processes = [multiprocessing.Process(target=compete, args=(store.root, number, results)) for number in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _process in processes] == [""] * 4
    for process in processes:
        process.join()
    assert store.names() == ["shared/model"]
    assert store.scrub([], QUIET) == []
    assert len(os.listdir(store.blobs)) == 2


def test_whoever_waits_is_told_for_whom(store):
    script = (
        "import sys, time\n"
        "from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store\n"
        "with Store(sys.argv[1]).lock('a run on node1', 1.0, print):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    with subprocess.Popen(
        [sys.executable, "-c", script, store.root], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"held\n"
        said = []
        words = r"a run on node1 .* is at work in .*, waited 0 s for it: run again"
        with pytest.raises(StoreError, match=words), store.lock("me", 0.4, said.append):
            pass
        assert said and said[0].startswith("waiting for a run on node1")
        process.kill()
        process.wait()
        # The kernel lets go of what the dead held.
        with store.lock("me", 5.0, said.append):
            assert store.name(add(store, "a", x=b"1")) is False


def test_a_transfer_is_of_one_run(store):
    file = describe("x.bin", b"1")
    other = Store(store.root)
    with store.transfer_lock(file.sha256, "the first", 1.0, print):
        second = other.transfer_lock(file.sha256, "the second", 0.0, lambda line: None)
        with pytest.raises(StoreError, match="the first"), second:
            pass
        # Bytes on their way hold up nobody else.
        add(other, "a", y=b"2")


# Disks


def in_small_disk(megabytes, script):
    """Run Python in a mount namespace where /mnt is a small disk; skip where that may not be done."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    mount = "mount -t tmpfs -o size=%dm tmpfs /mnt" % megabytes
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode != 0:
        pytest.skip("a mount namespace needs root")
    shell = mount + ' && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, sys.executable, script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PRELUDE = """
import json, os
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store, StoreError
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import QUIET, add, bring, manifest_of
store = Store("/mnt/models")
"""


def test_a_full_disk_names_nothing_half():
    found = in_small_disk(
        3,
        PRELUDE
        + """
before = add(store, "small", x=b"1")
with open("/mnt/fill", "wb", buffering=0) as stream:
    try:
        while True:
            stream.write(b"0" * 4096)
    except OSError:
        pass
try:
    add(store, "b", x=b"2" * 100_000)
    error = ""
except OSError as caught:
    error = caught.strerror
names, present = store.names(), store.present(before)
os.unlink("/mnt/fill")
after = add(store, "b", x=b"2" * 100_000)
print(json.dumps([error, names, present, store.present(after)]))
""",
    )
    assert found == ["No space left on device", ["small"], True, True]


def test_what_is_free_is_asked_of_the_disk():
    error, kept, evicted, after = in_small_disk(
        8,
        PRELUDE
        + """
add(store, "a", x=b"1" * (3 << 20))
add(store, "b", x=b"2" * (1 << 20))
os.utime("/mnt/models/manifests/a.json", (1, 1))
try:
    error = store.room(20 << 20, 0, [])
except StoreError as caught:
    error = str(caught)
kept = store.names()
evicted = store.room(5 << 20, 0, [])
print(json.dumps([error, kept, evicted, store.names()]))
""",
    )
    assert "free on its disk" in error and "too few" in error and "free its disk, or take a larger one" in error
    assert (kept, evicted, after) == (["a", "b"], ["a"], ["b"])


def test_a_disk_that_may_only_be_read_can_be_asked():
    found = in_small_disk(
        3,
        PRELUDE
        + """
import subprocess
model = add(store, "a", x=b"1")
subprocess.run(["mount", "-o", "remount,ro", "/mnt"], check=True)
try:
    store.remove("a")
    error = ""
except OSError as caught:
    error = caught.strerror
print(json.dumps([store.present(model), store.names(), store.sweep(check=True).removed, error]))
""",
    )
    assert found == [True, ["a"], [], "Read-only file system"]


def test_another_file_system_is_copied_from(tmp_path):
    if os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system alone")
    source = "/dev/shm/llamacpp-store-test-%d.bin" % os.getpid()
    with open(source, "wb") as stream:
        stream.write(b"far away")
    try:
        store = Store(str(tmp_path / "models"))
        assert not store.linkable(source)
        assert store.trusted(store.adopt(source, "x.bin", "model", QUIET))
    finally:
        os.unlink(source)


def test_large_files_are_hashed_in_blocks(tmp_path):
    path = tmp_path / "x"
    content = bytes(range(256)) * 10_000
    path.write_bytes(content)
    copy = tmp_path / "y"
    assert _store_files.sha256_of(str(path), lambda line: None, copy=str(copy)) == hashlib.sha256(content).hexdigest()
    assert copy.read_bytes() == content
