# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking llama.cpp on a head, with a stand-in for llama-server that says what llama.cpp b11434 says."""

from __future__ import annotations

import json
import sys

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import memory_oracle

MIB = 1 << 20
STAND_IN = """#!%s
import json, os, sys, time
with open(os.path.join(os.path.dirname(__file__), "told.json"), "a") as told:
    told.write(json.dumps([sys.argv[1:], os.environ.get("CUDA_DEVICE_ORDER"), os.environ.get("LLAMA_X")]) + chr(10))
print(%r, flush=True)
time.sleep(60)
"""
ROWS = [
    {"kind": "device", "name": "RPC0", "model": 100, "context": 20, "compute": 3},
    {"kind": "device", "name": "CUDA0", "model": 200, "context": 40, "compute": 6},
    {"kind": "host", "name": "Host", "model": 50, "context": 0, "compute": 9},
]


def device(name, endpoint=None):
    return {"device": name, "kind": "cuda", "endpoint": endpoint, "memory_bytes": 8192 * MIB}


@pytest.fixture
def head(tmp_path, monkeypatch):
    """Return what a head has: a release, a model, a place to remember; and an instance of it."""
    monkeypatch.setattr(memory_oracle, "PROOFS", str(tmp_path / "proofs"))
    # The module sets what the unit sets.
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "")
    monkeypatch.setenv("LLAMA_X", "")
    program = tmp_path / "llama-server"
    program.write_text(
        STAND_IN % (sys.executable, json.dumps({"type": "fit_memory_breakdown", "data": {"rows": ROWS}}))
    )
    program.chmod(0o755)
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    instance = {
        "name": "demo",
        "unit": "llamacpp-demo.service",
        "model": {"files": [str(model)]},
        "devices": [device("RPC0", "10.0.0.2:50052"), device("CUDA0")],
        "environment": {"LLAMA_X": "1"},
        "args": ["--model", str(model), "--rpc", "10.0.0.2:50052", "--device", "RPC0,CUDA0", "--api-key-file", "/k"],
    }
    return tmp_path, instance


def told(directory):
    return [json.loads(line) for line in (directory / "told.json").read_text().splitlines()]


def test_an_answer_by_device(head, run_module):
    directory, instance = head
    result = run_module(memory_oracle, instance=instance, bin_dir=str(directory))
    assert result["devices"] == {
        "RPC0": {"model": 100 * MIB, "context": 20 * MIB, "compute": 3 * MIB},
        "CUDA0": {"model": 200 * MIB, "context": 40 * MIB, "compute": 6 * MIB},
        "host": {"model": 50 * MIB, "context": 0, "compute": 9 * MIB},
    }
    assert (result["why"], result["changed"], result["remembered"]) == ("", False, False)
    words, order, extra = told(directory)[0]
    assert words[words.index("--rpc") + 1].startswith("127.0.0.1:")  # never the worker that serves the head
    assert "--api-key-file" not in words
    assert (order, extra) == ("PCI_BUS_ID", "1")


def test_it_asks_again_only_when_something_changed(head, run_module):
    directory, instance = head
    first = run_module(memory_oracle, instance=instance, bin_dir=str(directory))
    second = run_module(memory_oracle, instance=instance, bin_dir=str(directory))
    assert second["remembered"] is True
    assert second["devices"] == first["devices"]
    instance["args"] += ["--parallel", "2"]
    assert run_module(memory_oracle, instance=instance, bin_dir=str(directory))["remembered"] is False
    assert len(told(directory)) == 2


def test_check_mode_remembers_nothing(head, run_module):
    directory, instance = head
    run_module(memory_oracle, check=True, instance=instance, bin_dir=str(directory))
    assert not (directory / "proofs").exists()


def test_no_answer_is_no_failure(head, run_module):
    directory, instance = head
    result = run_module(memory_oracle, instance=instance, bin_dir=str(directory / "nowhere"))
    assert result["devices"] == {}
    assert "llama-server" in result["why"]


def test_a_broken_memory_is_forgotten(head, run_module):
    directory, instance = head
    (directory / "proofs").mkdir()
    (directory / "proofs" / "llamacpp-demo.service.oracle.json").write_text("{")
    assert run_module(memory_oracle, instance=instance, bin_dir=str(directory))["remembered"] is False
