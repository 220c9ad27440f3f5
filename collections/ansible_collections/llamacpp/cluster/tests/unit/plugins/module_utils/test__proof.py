# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The placement proof: what a log says against what the plan said."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _proof

# Lines as llama.cpp b11434 wrote them on two workers and a CPU-only head.
LOG = """\
0.00.046.912 I load_tensors: offloaded 17/25 layers to GPU
0.00.046.918 I load_tensors:   CPU_Mapped model buffer size =   100.68 MiB
0.00.046.919 I load_tensors: RPC0[10.0.1.12:50052] model buffer size =   109.14 MiB
0.00.046.920 I load_tensors: RPC0[10.0.1.13:50052] model buffer size =    88.56 MiB
0.00.450.185 I llama_kv_cache: RPC0[10.0.1.12:50052] KV buffer size =    18.00 MiB
"""
DEVICES = [
    {"node": "node1", "device": "CPU", "endpoint": None, "n_layers": 8},
    {"node": "node2", "device": "RPC0", "endpoint": "10.0.1.12:50052", "n_layers": 9},
    {"node": "node3", "device": "RPC1", "endpoint": "10.0.1.13:50052", "n_layers": 8},
]


def test_buffers_of_a_real_log():
    assert _proof.model_buffers(LOG) == {"CPU": 100.68, "10.0.1.12:50052#0": 109.14, "10.0.1.13:50052#0": 88.56}


def test_everything_in_its_place():
    assert _proof.missing_buffers(DEVICES, _proof.model_buffers(LOG)) == []


def test_a_worker_without_a_buffer_is_named():
    log = "\n".join(line for line in LOG.splitlines() if "10.0.1.13" not in line)
    assert _proof.missing_buffers(DEVICES, _proof.model_buffers(log)) == ["RPC1 of node3"]


def test_an_empty_buffer_is_no_buffer():
    assert _proof.missing_buffers(DEVICES, dict(_proof.model_buffers(LOG), CPU=0.0)) == ["CPU of node1"]


def test_several_devices_of_one_worker_are_told_apart():
    log = (
        "load_tensors: RPC0[10.0.1.12:50052] model buffer size = 10.00 MiB\n"
        "load_tensors:        CUDA0 model buffer size =  4403.49 MiB\n"
        "load_tensors:    CUDA_Host model buffer size =     1.50 MiB\n"
        "load_tensors:   CPU_Mapped model buffer size =     2.50 MiB\n"
    )
    devices = [
        {"node": "b", "device": "RPC0", "endpoint": "10.0.1.12:50052", "n_layers": 3},
        {"node": "b", "device": "RPC1", "endpoint": "10.0.1.12:50052", "n_layers": 3},
        {"node": "a", "device": "CUDA0", "endpoint": None, "n_layers": 3},
    ]
    buffers = _proof.model_buffers(log)
    assert buffers["CPU"] == 4.0
    assert _proof.missing_buffers(devices, buffers) == ["RPC1 of b"]


def test_a_device_without_layers_needs_no_buffer():
    assert _proof.missing_buffers([dict(DEVICES[0], n_layers=0)], {}) == []


def test_connections():
    assert _proof.missing_connections(DEVICES, {"10.0.1.12:50052", "10.0.0.1:22"}) == ["10.0.1.13:50052"]
    assert _proof.missing_connections(DEVICES[:1], set()) == []


def test_interface_and_its_counters():
    listed = (
        "2: mgmt0@if5    inet 10.0.0.11/24 scope global mgmt0\n"
        "3: fab0@if7    inet 10.0.1.11/24 brd x scope global fab0\n"
    )
    table = (
        "Inter-|   Receive   |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n"
        "  fab0: 1000       9    0    0    0     0          0         0     234       3    0    0    0     0       0\n"
    )
    assert _proof.interface_of("10.0.1.11", listed) == "fab0"
    assert _proof.interface_of("10.0.1.1", listed) == ""
    assert _proof.interface_bytes("fab0", table) == 1234
    assert _proof.interface_bytes("mgmt0", table) == 0


@pytest.mark.parametrize(
    ("args", "environment", "use"),
    [
        (["--model", "m.gguf"], {}, "completion"),
        (["--embedding", "--pooling", "mean"], {}, "embedding"),
        (["--embeddings"], {}, "embedding"),
        ([], {"LLAMA_ARG_EMBEDDINGS": "1"}, "embedding"),
        ([], {"LLAMA_ARG_EMBEDDINGS": "0"}, "completion"),
        (["--embedding", "--reranking"], {}, "reranking"),
        ([], {"LLAMA_ARG_RERANKING": "on"}, "reranking"),
    ],
)
def test_what_a_head_serves(args, environment, use):
    assert _proof.served(args, environment) == use
    assert _proof.question(use, 8).use == use


def test_only_an_answer_to_the_question_is_one():
    error = {"error": "the current context does not support logits computation"}
    answers = {
        "completion": {"content": "a", "tokens_predicted": 8},
        "embedding": [{"index": 0, "embedding": [[0.5, 0.25]]}],
        "reranking": {"results": [{"index": 0, "relevance_score": 0.5}]},
    }
    for use in answers:
        assert [key for key, answer in answers.items() if _proof.answered(use, answer)] == [use]
        assert not _proof.answered(use, error)
    assert not _proof.answered("embedding", [])
