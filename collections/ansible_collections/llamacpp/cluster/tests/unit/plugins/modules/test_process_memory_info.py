# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What services and processes take: this one."""

from __future__ import annotations

import os

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu_find
from ansible_collections.llamacpp.cluster.plugins.modules import process_memory_info

GPU = {
    "uuid": "GPU-0",
    "name": "GPU",
    "memory": {"total": 100, "free": 60, "used": 40, "reserved": None},
    "processes": [{"pid": os.getpid(), "used": 40, "type": "compute"}],
    "mig": {"mode": False, "instances": []},
}


@pytest.fixture
def gpus(monkeypatch):
    """Put GPUs in the place of this machine's."""

    def use(*listed):
        found = dict(_gpu_find.nothing([]), gpus=list(listed), source="nvml")
        monkeypatch.setattr(_gpu_find, "find", lambda *_arguments: found)

    return use


def fake_systemctl(tmp_path, monkeypatch, script):
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "systemctl"
    program.write_text("#!/bin/sh\n%s\n" % script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (directory, os.environ["PATH"]))


def test_processes(run_module, gpus):
    gpus(GPU)
    found = run_module(process_memory_info, pids=[os.getpid(), 2**22 + 1])
    mine = found["memory"][str(os.getpid())]
    assert mine["rss_bytes"] > 10 << 20
    assert mine["pids"] == [os.getpid()]
    assert mine["gpus"] == {"GPU-0": 40}
    assert found["memory"][str(2**22 + 1)] is None
    assert found["devices"][0]["used_bytes"] == 40


def test_units(run_module, gpus, tmp_path, monkeypatch):
    gpus()
    fake_systemctl(
        tmp_path,
        monkeypatch,
        'test "$1 $2 $3 $4 $5 $6" = "show --property MainPID,ControlGroup -- a.service b.service" || exit 1\n'
        "printf 'MainPID=%d\\nControlGroup=/none\\n\\nMainPID=0\\nControlGroup=\\n'" % os.getpid(),
    )
    memory = run_module(process_memory_info, units=["a.service", "b.service"])["memory"]
    assert memory["a.service"]["pid"] == os.getpid()
    assert memory["b.service"] is None


def test_a_systemd_that_does_not_answer(run_module, gpus, tmp_path, monkeypatch):
    gpus()
    fake_systemctl(tmp_path, monkeypatch, "echo 'Failed to connect to bus' >&2; exit 1")
    result = run_module(process_memory_info, units=["a.service"])
    assert result["failed"]
    assert result["msg"] == "systemctl show does not work: Failed to connect to bus"


def test_a_driver_that_does_not_work(run_module, monkeypatch):
    def broken(*_arguments):
        raise _gpu_find.GpuError("reboot")

    monkeypatch.setattr(_gpu_find, "find", broken)
    result = run_module(process_memory_info, pids=[os.getpid()])
    assert result["failed"]
    assert result["msg"] == "reboot"
