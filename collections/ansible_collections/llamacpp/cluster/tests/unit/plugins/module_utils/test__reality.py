# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What running services really take."""

from __future__ import annotations

import os

import pytest
from nvml_answers import kept

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu, _gpu_nvml, _reality
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

MIB = 1 << 20
STATUS = (
    "Name:\tllama-server\nVmRSS:\t 400 kB\nRssAnon:\t 100 kB\nRssFile:\t 250 kB\nRssShmem:\t 50 kB\nVmSwap:\t 8 kB\n"
)
ROLLUP = "55 - 7f ---p 0 00:00 0 [rollup]\nRss:  400 kB\nPss:  300 kB\nSwap:  8 kB\n"


def put(root, path, text):
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def test_process():
    assert _reality.process(STATUS, ROLLUP) == {
        "rss_bytes": 400 << 10,
        "anon_bytes": 100 << 10,
        "file_bytes": 250 << 10,
        "shmem_bytes": 50 << 10,
        "pss_bytes": 300 << 10,
        "swap_bytes": 8 << 10,
    }
    assert _reality.process(STATUS, "")["pss_bytes"] is None
    assert _reality.process(STATUS, "")["swap_bytes"] == 8 << 10


def test_a_thread_of_the_kernel_takes_nothing():
    assert _reality.process("Name:\tkthreadd\n", "")["rss_bytes"] == 0


def test_this_process_grows_by_what_it_takes():
    before = _reality.read_process(os.getpid(), Tree())
    held = bytearray(64 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    after = _reality.read_process(os.getpid(), Tree())
    assert after["anon_bytes"] - before["anon_bytes"] >= 60 * MIB
    assert after["rss_bytes"] == after["anon_bytes"] + after["file_bytes"] + after["shmem_bytes"]
    assert len(held) == 64 * MIB


def test_units():
    text = "MainPID=7\nControlGroup=/system.slice/a.service\n\nMainPID=0\nControlGroup=\n"
    assert _reality.units(text, ["a.service", "b.service"]) == {
        "a.service": {"MainPID": "7", "ControlGroup": "/system.slice/a.service"},
        "b.service": {"MainPID": "0", "ControlGroup": ""},
    }


@pytest.mark.parametrize("root", ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"])
def test_pids_of_a_unit_main_first(tmp_path, root):
    put(tmp_path, root + "/system.slice/a.service/cgroup.procs", "3\n9\n0\n7\n")
    unit = {"MainPID": "7", "ControlGroup": "/system.slice/a.service"}
    assert _reality.unit_pids(unit, Tree(str(tmp_path))) == [7, 3, 9]


def test_a_unit_that_does_not_run(tmp_path):
    put(tmp_path, "/sys/fs/cgroup/cgroup.procs", "1\n2\n")
    assert _reality.unit_pids({"MainPID": "0", "ControlGroup": ""}, Tree(str(tmp_path))) == []
    assert _reality.unit_pids({}, Tree(str(tmp_path))) == []


def process(root, pid, rollup=ROLLUP):
    put(root, "/proc/%d/status" % pid, STATUS)
    if rollup:
        put(root, "/proc/%d/smaps_rollup" % pid, rollup)


def gpu(uuid, *processes):
    return {
        "uuid": uuid,
        "name": "GPU",
        "memory": {"total": 100, "free": 60, "used": 30, "reserved": 10},
        "processes": [{"pid": pid, "used": used, "type": "compute"} for pid, used in processes],
        "mig": {"mode": False, "instances": []},
    }


def test_memory_of_several_processes_and_gpus(tmp_path):
    process(tmp_path, 7)
    process(tmp_path, 9)
    gpus = [gpu("GPU-0", (7, 1000), (9, 200), (5, 30)), gpu("GPU-1", (9, None)), gpu("GPU-2", (5, 30))]
    found = _reality.memory([7, 9, 11], gpus, Tree(str(tmp_path)))
    assert (found["pid"], found["pids"]) == (7, [7, 9])
    assert (found["rss_bytes"], found["pss_bytes"]) == (800 << 10, 600 << 10)
    assert found["gpus"] == {"GPU-0": 1200, "GPU-1": None}


def test_a_part_that_may_not_be_read_makes_the_sum_unknown(tmp_path):
    process(tmp_path, 7)
    process(tmp_path, 9, rollup="")
    found = _reality.memory([7, 9], [], Tree(str(tmp_path)))
    assert found["pss_bytes"] is None
    assert found["rss_bytes"] == 800 << 10


def test_nobody_is_there(tmp_path):
    assert _reality.memory([7], [], Tree(str(tmp_path))) is None
    assert _reality.memory([], [], Tree(str(tmp_path))) is None


def test_mig_instances_count_in_place_of_their_gpu(tmp_path):
    process(tmp_path, 3300)
    gpus = _gpu.describe(_gpu_nvml.Replay(kept("h100_mig", "mig")), lambda _id: None)["gpus"]
    found = _reality.memory([3300], gpus, Tree(str(tmp_path)))
    assert found["gpus"] == {"MIG-00000000-0000-0000-0000-000000000002": 4096 * MIB}
    devices = _reality.devices(gpus)
    assert [device["uuid"][:3] for device in devices] == ["MIG"] * 7 + ["GPU"]
    assert devices[2] == {
        "uuid": "MIG-00000000-0000-0000-0000-000000000002",
        "name": "NVIDIA H100 PCIe MIG 1g.10gb",
        "total_bytes": 9984 * MIB,
        "free_bytes": 5875 * MIB,
        "used_bytes": 4109 * MIB,
        "reserved_bytes": 0,
        "pids": [3300],
    }
