# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pruning real directories; what may go is decided in test__installed.py."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import llama_release, release_prune
from ansible_collections.llamacpp.cluster.tests.unit import release_builder


@pytest.fixture
def prefix(run_module, tmp_path):
    """Five releases of an hour each, b1 the oldest; b3 is previous and b4 current."""
    for number in range(1, 6):
        arguments = release_builder.pack(tmp_path, "b%d-cpu-1" % number, files={"lib/common": "x" * 10_000})
        run_module(llama_release, **arguments, state="current" if number in (3, 4) else "present")
        os.utime(tmp_path / "opt" / "releases" / arguments["id"], (0, number * 3600))
    return tmp_path / "opt"


def left(prefix):
    """Return the numbers of the releases that are left."""
    return [int(name[1]) for name in sorted(os.listdir(prefix / "releases"))]


def test_removes_the_oldest_that_nobody_needs(run_module, prefix):
    result = run_module(release_prune, prefix=str(prefix), keep=1)
    assert (result["changed"], result["removed"]) == (True, ["b1-cpu-1", "b2-cpu-1"])
    assert result["kept"]["b4-cpu-1"] == "current"
    assert left(prefix) == [3, 4, 5]
    # The file that all share is still needed.
    assert 0 < result["freed_bytes"] < 10_000
    assert sorted(os.listdir(prefix / "validated")) == ["b3-cpu-1.json", "b4-cpu-1.json", "b5-cpu-1.json"]
    assert run_module(release_prune, prefix=str(prefix), keep=1)["changed"] is False


def test_check_mode_says_what_would_go(run_module, prefix):
    result = run_module(release_prune, check=True, prefix=str(prefix), keep=0, protect=["b1-cpu-1"])
    assert result["removed"] == ["b2-cpu-1", "b5-cpu-1"]
    assert left(prefix) == [1, 2, 3, 4, 5]


def test_what_a_process_runs_stays(run_module, prefix):
    binary = prefix / "releases" / "b1-cpu-1" / "bin" / "llama-server"
    shutil.copy("/bin/sleep", binary)
    with subprocess.Popen([binary, "60"]) as process:
        result = run_module(release_prune, prefix=str(prefix), keep=0)
        process.kill()
    assert result["kept"]["b1-cpu-1"] == "used by llama-server (process %d)" % process.pid
    assert left(prefix) == [1, 3, 4]


def test_nothing_is_installed(run_module, tmp_path):
    assert run_module(release_prune, prefix=str(tmp_path))["changed"] is False
    assert os.listdir(tmp_path) == []


def test_keep_less_than_nothing(run_module, tmp_path):
    assert "write 0 or more" in run_module(release_prune, prefix=str(tmp_path), keep=-1)["msg"]
