# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finding GPUs, and saying why there are none."""

from __future__ import annotations

import json

import pytest
from nvml_answers import FIXTURES, ROW, TOPOLOGY, FakePynvml, kept

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu, _gpu_find, _gpu_nvml
from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_find import GpuError, Output
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch):
    """Machines that run this may have a driver: it is not asked."""
    monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda _path: None)


def commands(**answers):
    """Return a Run that knows nvidia-smi's answers by the beginning of its second word."""

    def run(*command):
        assert command[0] == "nvidia-smi"
        words = [key for key in answers if command[1].lstrip("-").startswith(key)]
        return answers[words[0]] if words else None

    return run


def put(root, path, text):
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def card(tmp_path):
    """The kernel's files of a machine with an NVIDIA GPU, an NVSwitch and a network card."""
    for pci_id, vendor, kind in (
        ("0000:3b:00.0", "0x10de", "0x030200"),
        ("0000:05:00.0", "0x10de", "0x068000"),
        ("0000:01:00.0", "0x15b3", "0x020700"),
    ):
        put(tmp_path, "/sys/bus/pci/devices/%s/vendor" % pci_id, vendor + "\n")
        put(tmp_path, "/sys/bus/pci/devices/%s/class" % pci_id, kind + "\n")
    return tmp_path


def test_no_gpu_is_no_error(tmp_path):
    found = _gpu_find.find(commands(), Tree(str(tmp_path)), None)
    assert found == _gpu_find.nothing([])
    assert _gpu_find.devices(found) == []


def test_a_card_without_a_driver_is_said(card):
    assert _gpu_find.cards(Tree(str(card))) == ["0000:3b:00.0"]
    found = _gpu_find.find(commands(), Tree(str(card)), None)
    assert found["gpus"] == []
    assert found["notes"] == ["NVIDIA GPUs are on the PCI bus (0000:3b:00.0), but their driver is not installed"]


def test_a_driver_without_its_tools_is_said(card):
    put(card, "/proc/driver/nvidia/version", "NVRM version: 535.183.01\n")
    (note,) = _gpu_find.find(commands(query=Output(1, "", "")), Tree(str(card)), None)["notes"]
    assert "neither NVML nor nvidia-smi works" in note


@pytest.mark.parametrize("code", [18, 255])
def test_mismatch_by_nvidia_smi(card, code):
    put(card, "/proc/driver/nvidia/version", "NVRM version: 535.183.01\nGCC version: 12\n")
    run = commands(query=Output(code, "Failed to initialize NVML: Driver/library version mismatch\n", ""))
    with pytest.raises(GpuError, match=r"different driver versions.*reboot.*\(NVRM version: 535.183.01\)$"):
        _gpu_find.find(run, Tree(str(card)), None)


def test_mismatch_by_nvml(monkeypatch, tmp_path):
    monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda _path: FakePynvml(_gpu_nvml.VERSION_MISMATCH))
    with pytest.raises(GpuError, match="different driver versions"):
        _gpu_find.find(commands(), Tree(str(tmp_path)), None)


def test_a_driver_that_is_not_loaded(monkeypatch, tmp_path, card):
    monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda _path: FakePynvml(_gpu_nvml.DRIVER_NOT_LOADED))
    with pytest.raises(GpuError, match="modprobe nvidia"):
        _gpu_find.find(commands(), Tree(str(card)), None)
    put(card, "/proc/driver/nvidia/version", "NVRM version: 535.183.01\n")
    with pytest.raises(GpuError, match="device files /dev/nvidia"):
        _gpu_find.find(commands(), Tree(str(card)), None)


def test_a_library_where_no_gpu_is(monkeypatch, tmp_path):
    monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda _path: FakePynvml(_gpu_nvml.DRIVER_NOT_LOADED))
    assert _gpu_find.find(commands(), Tree(str(tmp_path)), None)["gpus"] == []


def test_nvidia_smi_in_place_of_nvml(tmp_path):
    second = ROW.replace("0, GPU-0, 00000000:3B", "1, GPU-1, 00000000:5E")
    third = ROW.replace("0, GPU-0, 00000000:3B", "2, GPU-2, 00000000:AF")
    run = commands(
        **{
            "query-gpu": Output(0, "\n".join((ROW, second, third)), ""),
            "query-compute-apps": Output(0, "GPU-1, 7, 100\n", ""),
            "topo": Output(0, TOPOLOGY, ""),
        }
    )
    found = _gpu_find.find(run, Tree(str(tmp_path)), None)
    assert (found["source"], found["driver_version"]) == ("nvidia-smi", "535.183.01")
    assert [gpu["nvlink"]["peers"] for gpu in found["gpus"]] == [[1], [0], []]
    assert [len(gpu["processes"]) for gpu in found["gpus"]] == [0, 1, 0]
    devices = _gpu_find.devices(found)
    assert [(device["nvlink"], device["nvlinks"]) for device in devices] == [([1], [4]), ([0], [4]), ([], [])]


def test_nvidia_smi_without_a_matrix(tmp_path):
    second = ROW.replace("0, GPU-0, 00000000:3B", "1, GPU-1, 00000000:5E")
    run = commands(**{"query-gpu": Output(0, ROW + "\n" + second, ""), "topo": Output(0, "garbled", "")})
    found = _gpu_find.find(run, Tree(str(tmp_path)), None)
    assert found["nvlink_matrix"] == [[0, 0], [0, 0]]


def described(name, node):
    return dict(_gpu.describe(_gpu_nvml.Replay(kept(name, node)), lambda _id: 1), source="nvml", notes=[])


def test_devices_of_a_bridge():
    one, lone, other = _gpu_find.devices(described("mixed_3090_4090", "workstation"))
    assert one == {
        "kind": "cuda",
        "name": "NVIDIA GeForce RTX 3090",
        "index": 0,
        "memory_bytes": (24576 - 322) << 20,
        "free_bytes": (24576 - 320 - 322) << 20,
        "compute_capability": "8.6",
        "uuid": "GPU-00000000-0000-0000-0000-000000000000",
        "pci_id": "0000:01:00.0",
        "numa_node": 1,
        "nvlink": [2],
        "nvlinks": [4],
        "mig": None,
    }
    assert (lone["nvlink"], other["nvlink"]) == ([], [0])


def test_devices_of_nvswitch():
    devices = _gpu_find.devices(described("h100_nvswitch_x8", "dgx"))
    assert devices[5]["nvlink"] == [0, 1, 2, 3, 4, 6, 7]
    assert devices[5]["nvlinks"] == [18] * 7


def test_mig_instances_stand_in_for_their_gpu():
    devices = _gpu_find.devices(described("h100_mig", "mig"))
    assert [device["index"] for device in devices] == list(range(8))
    assert [device["mig"] for device in devices] == [0] * 7 + [None]
    assert devices[2]["uuid"] == "MIG-00000000-0000-0000-0000-000000000002"
    assert devices[2]["memory_bytes"] == 9984 << 20
    assert devices[2]["pci_id"] == "0000:17:00.0"
    assert devices[7]["uuid"] == "GPU-00000000-0000-0000-0000-000000000001"


def test_nvlink_counts_by_the_place_in_the_list():
    found = described("mixed_3090_4090", "workstation")
    instance = dict(found["gpus"][1], uuid="MIG-1")
    found["gpus"][1]["mig"] = {"mode": True, "instances": [instance, dict(instance, uuid="MIG-2")]}
    devices = _gpu_find.devices(found)
    assert [device["nvlink"] for device in devices] == [[3], [], [], [0]]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("compute_mode", "prohibited", "nvidia-smi -i 0 -c DEFAULT"),
        ("fabric", {"state": "in_progress", "status": 0, "clique": 0}, "nvidia-fabricmanager"),
        ("fabric", {"state": "completed", "status": 3, "clique": 0}, r"completed \(status 3\)"),
        ("mig", {"mode": True, "instances": []}, "has no instance"),
    ],
)
def test_gpus_that_nothing_can_run_on(key, value, words):
    found = described("v100s_x3", "node1")
    found["gpus"][0][key] = value
    with pytest.raises(GpuError, match=words):
        _gpu_find.devices(found)


def test_a_gpu_that_does_not_work_stops_the_plan():
    found = described("v100s_x3", "node1")
    found["problems"] = [{"index": 1, "error": 15, "message": "GPU 1 has fallen off the bus"}]
    with pytest.raises(GpuError, match="GPU 1 has fallen off the bus"):
        _gpu_find.devices(found)


def test_mig_needs_nvml():
    found = described("v100s_x3", "node1")
    found["source"] = "nvidia-smi"
    found["gpus"][0]["mig"] = {"mode": True, "instances": []}
    with pytest.raises(GpuError, match="install nvidia-ml-py on the control node"):
        _gpu_find.devices(found)


def test_fixtures_say_where_they_come_from():
    for path in FIXTURES.glob("*.json"):
        content = json.loads(path.read_text())
        assert isinstance(content["composed"], bool)
        assert content["machine"]
        assert content["from"]
