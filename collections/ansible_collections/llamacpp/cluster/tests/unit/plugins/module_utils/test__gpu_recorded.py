# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was recorded on real GPUs: NVML, nvidia-smi and CUDA must say the same of them, each read by our code."""

from __future__ import annotations

import json

import pytest
from nvml_answers import FIXTURES, kept

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu, _gpu_find, _gpu_nvml, _gpu_smi, _reality
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

MIB = 1 << 20
RECORDED = sorted(path.stem for path in FIXTURES.glob("*.json") if not json.loads(path.read_text())["composed"])


@pytest.fixture(params=RECORDED)
def name(request):
    return request.param


def recording(name):
    return json.loads((FIXTURES / (name + ".json")).read_text())


def describe(name, moment):
    found = _gpu.describe(_gpu_nvml.Replay(kept(name, moment)), lambda _pci_id: None)
    return dict(found, source="nvml", notes=[])


def test_there_are_recordings():
    assert {"h200_x1", "h200_x2"} <= set(RECORDED)


def test_every_gpu_is_described(name):
    found = describe(name, "idle")
    assert found["problems"] == []
    assert found["gpus"]
    for gpu in found["gpus"]:
        memory = gpu["memory"]
        assert memory["free"] + memory["used"] + memory["reserved"] == memory["total"]
        assert gpu["processes"] == []
        assert None not in (gpu["compute_capability"], gpu["compute_mode"], gpu["power_limit_watts"], gpu["ecc"])
        assert gpu["pcie"]["width"] <= gpu["pcie"]["max_width"]


def test_h200s_meet_in_switches_that_their_machine_does_not_see():
    found = describe("h200_x2", "idle")
    assert found["nvlink_matrix"] == [[0, 18], [18, 0]]
    assert found["topology"] == [["X", "PHB"], ["PHB", "X"]]
    gpu = found["gpus"][0]
    assert (gpu["name"], gpu["compute_capability"], gpu["nvlink"]["version"]) == ("NVIDIA H200", "9.0", "4.0")
    assert gpu["nvlink"]["links"][17] == {
        "link": 17,
        "active": True,
        "remote_type": "nvswitch",
        "remote_pci_id": None,
    }
    assert gpu["fabric"] == {"state": "completed", "status": 0, "clique": 0}
    assert (found["driver_version"], found["cuda_version"]) == ("580.159.04", "13.0")


@pytest.mark.parametrize("moment", ["idle", "busy"])
def test_nvidia_smi_says_the_same(name, moment):
    found = describe(name, moment)
    recorded = recording(name)
    texts = recorded["nvidia_smi"][moment]
    gpus = []
    for line in texts["gpus"].splitlines():
        values = dict(zip(recorded["columns"], line.split(", ")))
        listed, driver = _gpu_smi.gpus(", ".join(values[column] for column in _gpu_smi.COLUMNS), _gpu_smi.COLUMNS)
        assert driver == found["driver_version"]
        gpus += listed
    links, _ways = _gpu_smi.matrices(texts["topology"])
    assert links == found["nvlink_matrix"]
    users = _gpu_smi.processes(texts["processes"])
    for ours, theirs in zip(found["gpus"], gpus):
        for key in ("index", "uuid", "pci_id", "name", "compute_capability"):
            assert ours[key] == theirs[key]
        for part, size in theirs["memory"].items():
            assert abs(ours["memory"][part] - size) <= MIB
        assert ours["mig"]["mode"] == theirs["mig"]["mode"]
        listed = users.get(ours["uuid"], [])
        assert [item["pid"] for item in ours["processes"]] == [item["pid"] for item in listed]
        for process, other in zip(ours["processes"], listed):
            assert abs(process["used"] - other["used"]) <= MIB
    assert len(gpus) == len(found["gpus"])


def test_a_plan_counts_memory_as_cuda_does(name):
    devices = {device["pci_id"]: device for device in _gpu_find.devices(describe(name, "busy"))}
    for seen in recording(name)["cuda"]["devices"]:
        device = devices[seen["pci_id"]]
        assert device["memory_bytes"] == seen["after"]["total"]
        assert device["free_bytes"] == seen["after"]["free"]
        assert device["index"] == seen["ordinal"]


def test_peers_of_nvlink_are_peers_of_cuda(name):
    devices = _gpu_find.devices(describe(name, "idle"))
    for seen in recording(name)["cuda"]["devices"]:
        reached = {peer["ordinal"] for peer in seen["peers"] if peer["access"]}
        assert set(devices[seen["ordinal"]]["nvlink"]) <= reached


def test_a_process_is_found_by_its_pid_with_all_that_it_takes(name, tmp_path):
    cuda = recording(name)["cuda"]
    status = tmp_path / "proc" / str(cuda["pid"]) / "status"
    status.parent.mkdir(parents=True)
    status.write_text("VmRSS:\t 100 kB\n")
    gpus = describe(name, "busy")["gpus"]
    found = _reality.memory([cuda["pid"]], gpus, Tree(str(tmp_path)))
    assert list(found["gpus"]) == [gpu["uuid"] for gpu in gpus]
    for gpu, used in zip(gpus, found["gpus"].values()):
        # What it holds and a CUDA context, which is some hundred MiB.
        assert cuda["held"] + 100 * MIB < used <= gpu["memory"]["used"] < cuda["held"] + 1024 * MIB
