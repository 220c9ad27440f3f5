# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A lock between processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _build_lock
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

HOLD = """
import sys, time
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_lock import build_lock
with build_lock(sys.argv[1], "b1", "anna on control", 0, print):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def lock(tmp_path):
    """A function that makes a lock on one file."""

    def make(patience=0, say=lambda line: None):
        return _build_lock.build_lock(str(tmp_path / "b1.lock"), "b1", "bob", patience, say)

    return make


@pytest.fixture
def holder(tmp_path):
    """A process that holds that lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "b1.lock"],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_who_gives_up_says_who_holds_it_and_since_when(lock, holder):
    said = []
    with pytest.raises(ReleaseError) as refused, lock(1, said.append):
        pass
    pattern = r"the build of b1 by anna on control \(pid %d\) since \d\d:\d\d" % holder.pid
    assert re.fullmatch("gave up after 1 s of waiting for %s; .*" % pattern, str(refused.value))
    assert said and all(re.fullmatch("waiting for " + pattern, line) for line in said)


def test_killed_holder_holds_nothing(lock, holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock():
        assert "bob" in (tmp_path / "b1.lock").read_text()


def test_who_waits_goes_on_when_the_holder_is_done(lock, holder):
    said = []

    def end(line):
        said.append(line)
        holder.kill()

    with lock(60, end):
        assert len(said) >= 1


def test_holder_that_did_not_say_its_name_yet(lock, tmp_path):
    with lock():
        (tmp_path / "b1.lock").write_text("")
        with pytest.raises(ReleaseError, match="by another run"), lock():
            pass


def test_free_again_after_use(lock):
    for _turn in range(2):
        with lock():
            pass


def test_leftovers_of_this_directory_end_and_others_stay(tmp_path):
    def sleeper(directory):
        return subprocess.Popen(["sleep", "300"], env=dict(os.environ, **{_build_lock.MARK: str(directory)}))

    ours, other = sleeper(tmp_path / "b1"), sleeper(tmp_path / "b10")
    try:
        time.sleep(0.1)
        assert _build_lock.stop_leftovers(str(tmp_path / "b1")) == 1
        assert ours.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        assert _build_lock.stop_leftovers(str(tmp_path / "b1")) == 0
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()
