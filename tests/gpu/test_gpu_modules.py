"""The modules that look at GPUs, on real ones: run as Ansible runs them, by a Python that has no pynvml of its own.

Skipped where there is no NVIDIA driver. Needs ansible-core's module_utils on the path and pynvml to send along:

    PYTHONPATH=collections python3 -m pytest tests/gpu --noconftest
"""

from __future__ import annotations

import base64
import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDER = Path(__file__).with_name("record_nvml.py")
MODULES = "ansible_collections.llamacpp.cluster.plugins.modules."
WITHOUT_PYNVML = "import runpy, sys; sys.modules['pynvml'] = None; runpy.run_module('{}', run_name='__main__')"
ENVIRONMENT = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / "collections"), *sys.path]))
MIB = 1 << 20


def has_driver() -> bool:
    """Whether NVML's library is here."""
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_driver(), reason="no NVIDIA driver on this machine")


def run(name: str, **arguments: Any) -> dict[str, Any]:
    """Run a module with this Python's pynvml as the argument that the action plugin sets, and without its own."""
    spec = importlib.util.find_spec("pynvml")
    assert spec is not None and spec.origin is not None
    arguments["pynvml"] = base64.b64encode(zlib.compress(Path(spec.origin).read_bytes())).decode()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYNVML.format(MODULES + name)],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert not answer.get("failed"), answer
    return answer


@pytest.fixture(scope="module")
def held() -> Iterator[dict[str, Any]]:
    """A process that holds 1 GiB on every GPU, and what CUDA says of them."""
    with subprocess.Popen(
        [sys.executable, str(RECORDER), "--child"],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())


def test_gpus_are_found_through_nvml(held: dict[str, Any]) -> None:
    found = run("gpu_info", vulkan=False)
    assert found["source"] == "nvml"
    assert found["problems"] == []
    assert [gpu["pci_id"] for gpu in found["gpus"]] == [device["pci_id"] for device in held["devices"]]
    for gpu in found["gpus"]:
        assert held["pid"] in [process["pid"] for process in gpu["processes"]]


def test_a_plan_gets_the_memory_that_cuda_counts(
    held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("ip") is None:
        # An image for computing has no iproute2, and nothing here is about addresses.
        (tmp_path / "ip").write_text("#!/bin/sh\necho '[]'\n")
        (tmp_path / "ip").chmod(0o755)
        monkeypatch.setitem(ENVIRONMENT, "PATH", f"{tmp_path}:{os.environ['PATH']}")
    devices = run("node_info")["node"]["devices"]
    assert len(devices) == len(held["devices"])
    for device, seen in zip(devices, held["devices"], strict=True):
        assert device["memory_bytes"] == seen["after"]["total"]
        # Somebody else may use the GPU too, or have stopped to.
        assert abs(device["free_bytes"] - seen["after"]["free"]) < 512 * MIB
        reached = {peer["ordinal"] for peer in seen["peers"] if peer["access"]}
        assert set(device["nvlink"]) <= reached


def test_what_a_process_takes_is_found(held: dict[str, Any]) -> None:
    found = run("process_memory_info", pids=[held["pid"]])
    memory = found["memory"][str(held["pid"])]
    assert memory["rss_bytes"] > 10 * MIB
    assert list(memory["gpus"]) == [device["uuid"] for device in found["devices"]]
    for used in memory["gpus"].values():
        assert held["held"] + 100 * MIB < used < held["held"] + 1024 * MIB
