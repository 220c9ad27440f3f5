# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looking at GPUs and links: of this machine, which need not have any, and of stand-ins."""

from __future__ import annotations

import os

import pytest
from nvml_answers import ROW, kept

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_nvml
from ansible_collections.llamacpp.cluster.plugins.modules import gpu_info


class Answers:
    """A driver that gives kept answers."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, _pynvml):
        return self

    def __enter__(self):
        return _gpu_nvml.Replay(self.answers)

    def __exit__(self, *_exception):
        pass


@pytest.fixture
def driver(monkeypatch):
    """Return a function that puts kept answers in NVML's place."""

    def use(answers):
        monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda _path: object())
        monkeypatch.setattr(_gpu_nvml, "Live", Answers(answers))

    return use


def fake(tmp_path, monkeypatch, name, script):
    directory = tmp_path / "bin"
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text("#!/bin/sh\n%s\n" % script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (directory, os.environ["PATH"]))


def test_a_machine_without_nvidia(run_module, monkeypatch, tmp_path):
    monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda _path: None)
    fake(tmp_path, monkeypatch, "nvidia-smi", "exit 9")
    fake(tmp_path, monkeypatch, "vulkaninfo", "echo 'Cannot create Vulkan instance.'; exit 1")
    monkeypatch.setattr(gpu_info._gpu_find, "cards", lambda _tree: [])
    found = run_module(gpu_info)
    assert found["changed"] is False
    assert (found["gpus"], found["source"], found["vulkan"]) == ([], "none", [])
    assert "127.0.0.1/8" in [address for link in found["links"] for address in link["addresses"]]


def test_nvml(run_module, driver):
    driver(kept("h100_nvswitch_x8", "dgx"))
    found = run_module(gpu_info, vulkan=False)
    assert found["source"] == "nvml"
    assert found["nvlink_matrix"][0] == [0] + [18] * 7
    assert found["gpus"][7]["name"] == "NVIDIA H100 80GB HBM3"


def test_a_lost_gpu_is_a_warning(run_module, driver, monkeypatch):
    warnings = []
    # In a process that has imported the control node's side of Ansible, warnings do not go into the result.
    monkeypatch.setattr(gpu_info.AnsibleModule, "warn", lambda _module, warning: warnings.append(warning))
    driver(dict(kept("mixed_3090_4090", "workstation"), **{"nvmlDeviceGetName(gpu1)": {"error": 15}}))
    found = run_module(gpu_info, vulkan=False)
    assert [gpu["index"] for gpu in found["gpus"]] == [0, 2]
    assert found["problems"][0]["index"] == 1
    assert [warning.startswith("GPU 1 has fallen off the bus") for warning in warnings] == [True]


def test_mismatch_fails_and_says_what_to_do(run_module, monkeypatch, tmp_path):
    monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda _path: None)
    fake(tmp_path, monkeypatch, "nvidia-smi", "echo 'Driver/library version mismatch'; exit 18")
    result = run_module(gpu_info, vulkan=False)
    assert result["failed"]
    assert "reboot" in result["msg"]


def test_nvidia_smi(run_module, monkeypatch, tmp_path):
    monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda _path: None)
    fake(tmp_path, monkeypatch, "nvidia-smi", "case $1 in --query-gpu*) echo '%s';; esac" % ROW)
    found = run_module(gpu_info, vulkan=False)
    assert (found["source"], found["gpus"][0]["name"]) == ("nvidia-smi", "Tesla V100S-PCIE-32GB")


def test_vulkan(run_module, driver, monkeypatch, tmp_path):
    driver(kept("v100s_x3", "node1"))
    text = "Device Properties and Extensions:\nGPU0:\n\tdeviceName = Radeon\nmemoryHeaps: count = 0\nmemoryTypes:"
    fake(tmp_path, monkeypatch, "vulkaninfo", "echo '%s'" % text)
    assert [device["name"] for device in run_module(gpu_info)["vulkan"]] == ["Radeon"]
    assert run_module(gpu_info, vulkan=False)["vulkan"] == []
