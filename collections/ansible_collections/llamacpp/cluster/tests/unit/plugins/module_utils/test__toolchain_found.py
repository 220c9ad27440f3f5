# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tests of what is found on a builder: its toolkits, and the driver whoever tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_find, _gpu_nvml, _toolchain_found
from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_find import Output
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

PROC = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\n"


@pytest.fixture(autouse=True)
def without_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own pynvml has nothing to say about composed ones."""
    monkeypatch.setattr(_gpu_nvml, "load_pynvml", lambda path: None)


def nothing_there(*command: str) -> None:
    return None


def write(root: Path, path: str, text: str) -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, "utf-8")


@pytest.mark.parametrize(("text", "version"), [(PROC, "535.183.01"), (OPEN, "580.95.05"), ("", "")])
def test_the_driver_of_the_kernel_module(tmp_path: Path, text: str, version: str) -> None:
    write(tmp_path, "/proc/driver/nvidia/version", text)
    driver = _toolchain_found.driver(nothing_there, Tree(str(tmp_path)), None)
    assert driver == {"version": version, "source": "/proc/driver/nvidia/version" if version else ""}


def test_a_driver_that_does_not_work_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, "/proc/driver/nvidia/version", PROC)

    def mismatch(*command: str) -> Output | None:
        return Output(18, "Failed to initialize NVML: Driver/library version mismatch", "")

    with pytest.raises(_gpu_find.GpuError):
        _gpu_find.find(mismatch, Tree(str(tmp_path)), None)
    assert _toolchain_found.driver(mismatch, Tree(str(tmp_path)), None)["version"] == "535.183.01"


def test_a_builder(tmp_path: Path) -> None:
    write(tmp_path, "/etc/os-release", 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="8.10"\n')
    write(tmp_path, "/usr/local/cuda-12.2/bin/nvcc", "")
    write(tmp_path, "/opt/mine/13.0/bin/nvcc", "")
    write(tmp_path, "/opt/mine/13.0/llamacpp-wheels.txt", "a==1\nb==2\n")

    def run(*command: str) -> Output | None:
        if command[0].endswith("nvcc"):
            version = "13.0" if "13.0" in command[0] else "12.2"
            return Output(0, "Cuda compilation tools, release %s, V%s.88\n" % (version, version), "")
        return Output(0, "8.5.0\n", "") if command[0] == "gcc" else None

    found = _toolchain_found.builder(run, Tree(str(tmp_path)), "x86_64", [], "/opt/mine")
    assert found == {
        "os_id": "rocky",
        "os_version": "8.10",
        "os_family": "redhat",
        "machine": "x86_64",
        "toolkits": [
            {"version": "13.0", "home": "/opt/mine/13.0", "wheels": ["a==1", "b==2"]},
            {"version": "12.2", "home": "/usr/local/cuda-12.2", "wheels": []},
        ],
        "compilers": {"gcc": "8.5.0"},
    }


def test_the_version_of_nvcc() -> None:
    assert _toolchain_found.nvcc_version("Cuda compilation tools, release 11.8, V11.8.89\n") == "11.8.89"
    assert _toolchain_found.nvcc_version("bash: nvcc: command not found") == ""
