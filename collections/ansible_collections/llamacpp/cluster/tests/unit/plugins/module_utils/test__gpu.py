# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""GPUs, from NVML's answers: recorded ones of real machines, composed ones of others."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvml_answers import FIXTURES, kept

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu, _gpu_nvml

MIB = 1 << 20


def describe(answers, numa=None):
    return _gpu.describe(_gpu_nvml.Replay(answers), (numa or {}).get)


def test_composed_files_are_what_the_script_composes():
    spec = importlib.util.spec_from_file_location("compose", FIXTURES / "compose.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, content in script.compose().items():
        assert (FIXTURES / name).read_text() == script.text(content), "run %s" % (FIXTURES / "compose.py")
        assert content["composed"] is True
        assert content["from"]


def test_three_v100s_nodes():
    for number, node in enumerate(("node1", "node2", "node3")):
        found = describe(kept("v100s_x3", node), {"0000:3b:00.0": 0})
        (gpu,) = found["gpus"]
        assert gpu == {
            "index": 0,
            "uuid": "GPU-00000000-0000-0000-0000-%012d" % number,
            "pci_id": "0000:3b:00.0",
            "name": "Tesla V100S-PCIE-32GB",
            "compute_capability": "7.0",
            "memory": {"total": 32 << 30, "free": 32507 * MIB, "used": 0, "reserved": 261 * MIB},
            "processes": [],
            "compute_mode": "default",
            "persistence": True,
            "ecc": True,
            "power_limit_watts": 250,
            "mig": {"mode": None, "pending": None, "instances": []},
            "nvlink": {"version": None, "links": [], "peers": []},
            "fabric": None,
            "pcie": {"generation": 3, "width": 16, "max_generation": 3, "max_width": 16},
            "numa_node": 0,
        }
        assert (found["driver_version"], found["cuda_version"]) == ("535.183.01", "12.2")
        assert (found["nvlink_matrix"], found["topology"], found["problems"]) == ([[0]], [["X"]], [])


def test_nvswitch_joins_every_pair():
    found = describe(kept("h100_nvswitch_x8", "dgx"))
    assert len(found["gpus"]) == 8
    for number, row in enumerate(found["nvlink_matrix"]):
        assert row == [0 if column == number else 18 for column in range(8)]
    gpu = found["gpus"][3]
    assert gpu["nvlink"]["peers"] == [0, 1, 2, 4, 5, 6, 7]
    assert gpu["nvlink"]["version"] == "4.0"
    assert {link["remote_type"] for link in gpu["nvlink"]["links"]} == {"nvswitch"}
    assert gpu["fabric"] == {"state": "completed", "status": 0, "clique": 0}
    assert found["topology"][0] == ["X", "NODE", "NODE", "NODE", "SYS", "SYS", "SYS", "SYS"]
    assert [row[0] for row in found["topology"]] == found["topology"][0]


def test_links_into_a_switch_that_carries_no_peer_access_join_nobody():
    answers = kept("h100_nvswitch_x8", "dgx")
    for key in [key for key in answers if key.startswith("nvmlDeviceGetP2PStatus")]:
        answers[key] = 5  # NVML_P2P_STATUS_NOT_SUPPORTED
    found = describe(answers)
    assert found["nvlink_matrix"] == [[0] * 8] * 8
    assert found["gpus"][0]["nvlink"]["peers"] == []


def test_a_bridge_joins_two_of_three():
    found = describe(kept("mixed_3090_4090", "workstation"))
    assert [gpu["compute_capability"] for gpu in found["gpus"]] == ["8.6", "8.9", "8.6"]
    assert found["nvlink_matrix"] == [[0, 0, 4], [0, 0, 0], [4, 0, 0]]
    assert [gpu["nvlink"]["peers"] for gpu in found["gpus"]] == [[2], [], [0]]
    assert found["gpus"][0]["processes"] == [{"pid": 2100, "used": 310 * MIB, "type": "graphics"}]
    assert found["gpus"][0]["pcie"]["generation"] == 1
    assert found["gpus"][0]["ecc"] is None


def test_a_link_that_is_down_joins_nobody():
    answers = kept("mixed_3090_4090", "workstation")
    for gpu, link in ((0, 1), (2, 3)):
        answers["nvmlDeviceGetNvLinkState(gpu%d, %d)" % (gpu, link)] = 0
    found = describe(answers)
    assert found["nvlink_matrix"][0] == [0, 0, 3]
    assert [link["active"] for link in found["gpus"][0]["nvlink"]["links"]] == [True, False, True, True]


def test_mig_instances():
    cut, whole = describe(kept("h100_mig", "mig"))["gpus"]
    assert (whole["mig"]["mode"], whole["mig"]["instances"]) == (False, [])
    assert cut["mig"]["mode"] is True
    assert len(cut["mig"]["instances"]) == 7
    assert cut["mig"]["instances"][2] == {
        "uuid": "MIG-00000000-0000-0000-0000-000000000002",
        "name": "NVIDIA H100 PCIe MIG 1g.10gb",
        "gpu_instance": 9,
        "compute_instance": 0,
        "memory": {"total": 9984 * MIB, "free": 5875 * MIB, "used": 4109 * MIB, "reserved": 0},
        "multiprocessors": 16,
        "processes": [{"pid": 3300, "used": 4096 * MIB, "type": "compute"}],
    }


def test_places_without_a_mig_instance_are_left_out():
    answers = kept("h100_mig", "mig")
    answers["nvmlDeviceGetMigDeviceHandleByIndex(gpu0, 3)"] = {"error": _gpu_nvml.NOT_FOUND}
    instances = describe(answers)["gpus"][0]["mig"]["instances"]
    assert [instance["gpu_instance"] for instance in instances] == [7, 8, 9, 11, 12, 13]


def test_an_old_driver_says_less():
    answers = kept("v100s_x3", "node1")
    size = dict(answers.pop("nvmlDeviceGetMemoryInfo_v2(gpu0)"))
    answers["nvmlDeviceGetMemoryInfo(gpu0)"] = {key: size[key] for key in ("total", "free", "used")}
    del answers["nvmlDeviceGetComputeRunningProcesses_v3(gpu0)"]
    answers["nvmlDeviceGetComputeRunningProcesses_v2(gpu0)"] = [{"pid": 7, "usedGpuMemory": None}]
    del answers["nvmlDeviceGetMigMode(gpu0)"]
    (gpu,) = describe(answers)["gpus"]
    assert gpu["memory"]["reserved"] is None
    assert gpu["memory"]["total"] == 32 << 30
    assert gpu["processes"] == [{"pid": 7, "used": None, "type": "compute"}]
    assert gpu["mig"]["mode"] is None


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("nvmlDeviceGetHandleByIndex(1)", _gpu_nvml.GPU_IS_LOST, "GPU 1 has fallen off the bus"),
        ("nvmlDeviceGetMemoryInfo_v2(gpu1)", _gpu_nvml.RESET_REQUIRED, "GPU 1 needs a reset"),
        ("nvmlDeviceGetHandleByIndex(1)", _gpu_nvml.NO_PERMISSION, "GPU 1 may not be used"),
        ("nvmlDeviceGetName(gpu1)", _gpu_nvml.UNKNOWN, "GPU 1 does not answer"),
        ("nvmlDeviceGetNvLinkState(gpu1, 0)", _gpu_nvml.GPU_IS_LOST, "GPU 1 has fallen off the bus"),
    ],
)
def test_a_gpu_that_does_not_work_is_named_and_the_others_stay(function, code, words):
    answers = kept("mixed_3090_4090", "workstation")
    answers[function] = {"error": code}
    found = describe(answers)
    assert [gpu["index"] for gpu in found["gpus"]] == [0, 2]
    (problem,) = found["problems"]
    assert (problem["index"], problem["error"]) == (1, code)
    assert problem["message"].startswith(words)
    assert found["nvlink_matrix"] == [[0, 4], [4, 0]]
    assert [gpu["nvlink"]["peers"] for gpu in found["gpus"]] == [[2], [0]]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_a_driver_does_not_know_is_no_crash(data):
    name, node = data.draw(st.sampled_from([("mixed_3090_4090", "workstation"), ("h100_mig", "mig")]))
    answers = kept(name, node)
    for key in data.draw(st.lists(st.sampled_from(sorted(answers)), max_size=20)):
        if not key.endswith("()"):  # What is asked of the driver as a whole.
            answers[key] = {"error": data.draw(st.sampled_from([2, 3, 4, 6, 13, 15, 16, 999]))}
    count = answers["nvmlDeviceGetCount()"]
    found = describe(answers)
    assert sorted([gpu["index"] for gpu in found["gpus"]] + [item["index"] for item in found["problems"]]) == [
        *range(count)
    ]
    assert len(found["nvlink_matrix"]) == len(found["topology"]) == len(found["gpus"])


def test_words_of_versions_and_ids():
    assert _gpu.cuda_version(13000) == "13.0"
    assert _gpu.cuda_version(None) is None
    assert _gpu.normal_pci_id("00000000:DF:00.0") == "0000:df:00.0"
    assert _gpu.normal_pci_id("00010002:3B:00.0") == "10002:3b:00.0"


def test_errors_of_the_driver_say_what_to_do():
    mismatch = _gpu.error_text(_gpu_nvml.NvmlError("nvmlInit", _gpu_nvml.VERSION_MISMATCH))
    assert "different driver versions" in mismatch
    assert "reboot" in mismatch
    assert "modprobe nvidia" in _gpu.error_text(_gpu_nvml.NvmlError("nvmlInit", _gpu_nvml.DRIVER_NOT_LOADED))
    assert "NVML error 999" in _gpu.error_text(_gpu_nvml.NvmlError("nvmlInit", 999))
