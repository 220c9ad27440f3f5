# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What nvidia-smi says."""

from __future__ import annotations

import pytest
from nvml_answers import ROW, TOPOLOGY

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_smi

MIB = 1 << 20


def test_gpus():
    (gpu,), driver = _gpu_smi.gpus(ROW + "\n", _gpu_smi.COLUMNS)
    assert driver == "535.183.01"
    assert gpu == {
        "index": 0,
        "uuid": "GPU-0",
        "pci_id": "0000:3b:00.0",
        "name": "Tesla V100S-PCIE-32GB",
        "compute_capability": "7.0",
        "memory": {"total": 32768 * MIB, "free": 32510 * MIB, "used": MIB, "reserved": 257 * MIB},
        "processes": [],
        "mig": {"mode": None, "instances": []},
        "nvlink": {"peers": []},
    }


def test_a_comma_in_a_name_shifts_nothing():
    text = ROW.replace("Tesla V100S-PCIE-32GB", "NVIDIA H100, NVL").replace("[N/A]", "Enabled")
    (gpu,), _driver = _gpu_smi.gpus(text, _gpu_smi.COLUMNS)
    assert gpu["name"] == "NVIDIA H100, NVL"
    assert gpu["mig"]["mode"] is True


def test_old_drivers_know_no_compute_capability():
    text = "0, GPU-0, 00000000:3B:00.0, 11441, 11000, 1, 470.1, Tesla K80"
    (gpu,), _driver = _gpu_smi.gpus(text, _gpu_smi.OLD_COLUMNS)
    assert (gpu["compute_capability"], gpu["name"]) == (None, "Tesla K80")


def test_no_figures_are_an_error():
    with pytest.raises(ValueError, match="invalid literal"):
        _gpu_smi.gpus(ROW.replace("32768", "[N/A]"), _gpu_smi.COLUMNS)


def test_no_gpu():
    assert _gpu_smi.gpus("No devices were found\n", _gpu_smi.COLUMNS) == ([], None)


def test_processes():
    assert _gpu_smi.processes("GPU-0, 7, 100\nGPU-0, 8, [N/A]\nGPU-1, 9, 1\n\n") == {
        "GPU-0": [
            {"pid": 7, "used": 100 * MIB, "type": "compute"},
            {"pid": 8, "used": None, "type": "compute"},
        ],
        "GPU-1": [{"pid": 9, "used": MIB, "type": "compute"}],
    }
    assert _gpu_smi.processes("") == {}


def test_matrices():
    links, ways = _gpu_smi.matrices(TOPOLOGY)
    assert links == [[0, 4, 0], [4, 0, 0], [0, 0, 0]]
    assert ways == [["X", None, "SYS"], [None, "X", "SYS"], ["SYS", "SYS", "X"]]
    assert _gpu_smi.matrices("") == ([], [])
