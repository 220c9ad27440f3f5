# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looking at a node: this one."""

from __future__ import annotations

import os
import socket

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.modules import node_info

UNIT = "[Unit]\nX-Llamacpp-Role=worker\nX-Llamacpp-Instance=demo\nX-Llamacpp-Port=50052\nX-Llamacpp-Release=b1-cpu-1\n"


@pytest.fixture
def look(run_module, tmp_path):
    def run(**arguments):
        options = {"unit_directory": str(tmp_path / "units"), "prefix": str(tmp_path / "prefix")}
        result = run_module(node_info, **dict(options, **arguments))
        assert result.get("failed") is not True, result
        assert result["changed"] is False
        return result["node"]

    return run


def test_the_planner_understands_it(look):
    facts = NodeFacts.from_dict(look())
    assert facts.cores >= 1
    assert facts.memory_bytes > facts.available_bytes > 0
    assert facts.devices
    assert "127.0.0.1" in [item.address for item in facts.addresses]


def test_ports_in_use(look):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert port in look()["listening"]
    assert port not in look()["listening"]


def test_disk_of_a_directory_that_is_not_there_yet(look, tmp_path):
    path = str(tmp_path / "not" / "there")
    info = os.statvfs(tmp_path)
    assert look(disks=[path])["disks"][path]["total_bytes"] == info.f_blocks * info.f_frsize


def test_files(look, tmp_path):
    model = tmp_path / "store" / "names" / "owner" / "repo" / "Q8_0" / "m.gguf"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"12345")
    (tmp_path / "store" / "README").write_bytes(b"no model")
    (model.parent / "gone.gguf").symlink_to(tmp_path / "none")
    part = tmp_path / "store" / "incoming" / "x.part"
    part.parent.mkdir()
    part.write_bytes(b"12")
    missing = str(tmp_path / "none")
    found = look(files=[missing], store=str(tmp_path / "store"))["files"]
    assert found == {missing: None, str(model): 5, str(model.parent / "gone.gguf"): None, str(part): 2}


def test_a_store_that_is_not_there_yet(look, tmp_path):
    assert look(store=str(tmp_path / "none"))["files"] == {}


def test_only_complete_releases_count(look, tmp_path):
    for name, complete in (("b1-cpu-1", True), ("b2-cpu-2", False)):
        directory = tmp_path / "prefix" / "releases" / name
        directory.mkdir(parents=True)
        if complete:
            (directory / "manifest.json").write_text('{"files": {}}')
    assert look()["releases"] == ["b1-cpu-1"]


def test_units(look, tmp_path):
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "llamacpp-rpc-demo.service").write_text(UNIT)
    (tmp_path / "units" / "llamacpp-firewall.service").write_text("[Unit]\nDescription=other\n")
    (tmp_path / "units" / "other.service").write_text(UNIT)
    assert look()["units"] == {
        "llamacpp-rpc-demo.service": {
            "role": "worker",
            "instance": "demo",
            "port": 50052,
            "release": "b1-cpu-1",
            "active": False,
        }
    }


def fake(tmp_path, monkeypatch, name, script):
    """Put a program before all others."""
    directory = tmp_path / "bin"
    directory.mkdir(exist_ok=True)
    program = directory / name
    program.write_text("#!/bin/sh\n%s\n" % script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (directory, os.environ["PATH"]))


def test_active_units(look, tmp_path, monkeypatch):
    fake(
        tmp_path,
        monkeypatch,
        "systemctl",
        'case "$1" in --version) echo "systemd 252";; *) shift; for u; do echo activating; done; exit 3;; esac',
    )
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "llamacpp-rpc-demo.service").write_text(UNIT)
    node = look()
    assert node["units"]["llamacpp-rpc-demo.service"]["active"] is True
    assert node["systemd"] == 252


def test_gpus(look, tmp_path, monkeypatch):
    fake(
        tmp_path,
        monkeypatch,
        "nvidia-smi",
        'case "$1" in --query-gpu=*compute_cap*)'
        ' echo "0, GPU-0, 00000000:3B:00.0, 81559, 80900, 100, 559, 580.1, 9.0, Disabled, H100";; *) exit 2;; esac',
    )
    (device,) = look()["devices"]
    assert device == {
        "kind": "cuda",
        "name": "H100",
        "index": 0,
        "memory_bytes": 81000 << 20,
        "free_bytes": 80900 << 20,
        "compute_capability": "9.0",
        "uuid": "GPU-0",
        "pci_id": "0000:3b:00.0",
        "numa_node": None,
        "nvlink": [],
        "nvlinks": [],
        "mig": None,
    }


def test_gpus_of_an_old_driver(look, tmp_path, monkeypatch):
    fake(
        tmp_path,
        monkeypatch,
        "nvidia-smi",
        'case "$1" in *compute_cap*) exit 2;; esac;'
        ' echo "0, GPU-0, 00000000:3B:00.0, 11441, 11000, 1, 470.1, Tesla K80"',
    )
    assert look()["devices"][0]["compute_capability"] is None


def test_a_gpu_in_an_error_state(run_module, tmp_path, monkeypatch):
    fake(
        tmp_path,
        monkeypatch,
        "nvidia-smi",
        "echo '0, GPU-0, 00000000:3B:00.0, [N/A], [N/A], [N/A], [N/A], 580.1, 9.0, Disabled, NVIDIA H100'",
    )
    result = run_module(node_info)
    assert result["failed"]
    assert "nvidia-smi gives no figures for a GPU" in result["msg"]


def test_driver_and_library_of_different_versions(run_module, tmp_path, monkeypatch):
    fake(
        tmp_path,
        monkeypatch,
        "nvidia-smi",
        "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
    )
    result = run_module(node_info)
    assert result["failed"]
    assert "reboot" in result["msg"]


def test_a_node_without_ip(run_module, tmp_path, monkeypatch):
    fake(tmp_path, monkeypatch, "ip", "exit 1")
    result = run_module(node_info)
    assert result["failed"]
    assert "install the package iproute2" in result["msg"]


def test_a_node_without_systemd_can_be_looked_at(look, monkeypatch, tmp_path):
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "llamacpp-rpc-demo.service").write_text(UNIT)
    there = node_info.AnsibleModule.get_bin_path
    monkeypatch.setattr(
        node_info.AnsibleModule,
        "get_bin_path",
        lambda module, name, *rest, **options: None if name == "systemctl" else there(module, name, *rest, **options),
    )
    assert look()["units"]["llamacpp-rpc-demo.service"]["port"] == 50052
