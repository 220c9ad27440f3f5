# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan as people read it in a terminal."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._table import plan_table

MIB = 1 << 20
PARTS = ("model_bytes", "context_bytes", "compute_bytes", "overhead_bytes")


def parts(*sizes):
    return dict(zip(PARTS, [None if size is None else int(size * MIB) for size in sizes]))


def device(node, name, layers, *sizes, free=1000, host=False):
    number = layers[1] - layers[0] + 1 if layers else 0
    facts = {"node": node, "device": name, "host": host, "layers": layers, "n_layers": number}
    return dict(facts, free_bytes=None if free is None else int(free * MIB), **parts(*sizes))


def instance(devices, **changes):
    facts = {
        "name": "behemoth",
        "head": "node1",
        "host": "0.0.0.0",
        "port": 8000,
        "api_key_file": None,
        "context": 4096,
        "parallel": 3,
        "devices": devices,
        "host_memory": parts(400, 0, 180, 96),
        "workers": [{"node": "node2", "port": 50052}],
        "tensor_split": [27, 26.5],
        "notes": [],
        "why": "No node has the memory.",
        "choices": [],
    }
    return dict(facts, **changes)


def plan(*instances, host_free=190556.5):
    memory = {"device": "CPU", "kind": "cpu", "free_bytes": None if host_free is None else int(host_free * MIB)}
    return {"instances": list(instances), "devices": {"node1": [{"kind": "cuda"}, memory]}}


@pytest.fixture
def behemoth():
    return instance(
        [
            device("node1", "CUDA0", [0, 26], 15360.5, 432, 1108, 346, free=15266.9),
            device("node2", "RPC0", [27, 80], 15180, 432, 790, 346, free=15764),
        ],
        choices=[
            {
                "what": "quantisation",
                "chosen": "Q4_K_M",
                "why": "The largest that fits.",
                "rejected": [{"option": name, "why": "too big."} for name in ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_0")],
            }
        ],
        api_key_file="/etc/llamacpp/keys/behemoth",
    )


def test_sizes_ports_split_and_reasons(behemoth):
    assert plan_table(plan(behemoth), {"node1": "fd00::11"}).splitlines() == [
        "instance  node   device      layers  model  context  compute  overhead    free  split   port",
        "--------  -----  ------  ----------  -----  -------  -------  --------  ------  -----  -----",
        "behemoth  node1  CUDA0    0-26 (27)  15361      432     1108       346   15266     27   8000",
        "          node2  RPC0    27-80 (54)  15180      432      790       346   15764   26.5  50052",
        "          node1  host                  400        0      180        96  190556",
        "(sizes in MiB)",
        "",
        "behemoth: http://[fd00::11]:8000/v1 (with an API key)",
        "  3 slots of 4096 tokens. No node has the memory.",
        "  quantisation Q4_K_M: The largest that fits.",
        "    not F16: too big.",
        "    not Q8_0: too big.",
        "    not Q6_K: too big.",
        "    nor 2 more, which the page tells",
    ]


def test_the_heads_own_memory_is_told_once():
    devices = [device("node1", "CPU", [0, 7], 101, 64, 30, 90, host=True), device("node2", "RPC0", [8, 24], 1, 1, 1, 1)]
    lines = plan_table(plan(instance(devices, tensor_split=[1]))).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["behemoth", "node2"]
    assert lines[4] == "(sizes in MiB)"
    # A single device takes all that is offloaded: there is nothing to split.
    assert lines[3].split()[-2:] == ["1000", "50052"]


def test_what_is_unknown_is_a_question_mark():
    unknown = dict(device("node1", "CUDA0", None, None, None, None, None, free=None), n_layers=None)
    item = instance([unknown], workers=[], host_memory=None)
    lines = plan_table(plan(item)).splitlines()
    assert lines[2].split() == ["behemoth", "node1", "CUDA0", "?", "?", "?", "?", "?", "?", "8000"]
    assert lines[3] == "(sizes in MiB)"


def test_a_node_that_tells_nothing_of_its_memory(behemoth):
    lines = plan_table(plan(behemoth, host_free=None)).splitlines()
    assert lines[4].split() == ["node1", "host", "400", "0", "180", "96", "?"]


def test_a_device_without_layers():
    lines = plan_table(plan(instance([device("node1", "CUDA0", None, 0, 0, 9, 9)]))).splitlines()
    assert lines[2].split()[:4] == ["behemoth", "node1", "CUDA0", "none"]


def test_notes_are_told(behemoth):
    behemoth["notes"] = ["the compute buffers are a bound, the rest is exact"]
    assert "  note: the compute buffers are a bound, the rest is exact" in plan_table(plan(behemoth)).splitlines()


def test_a_reason_is_told_once(behemoth):
    choice = {"what": "strategy", "chosen": "RPC", "why": behemoth["why"], "rejected": []}
    behemoth["choices"] = [choice]
    lines = plan_table(plan(behemoth)).splitlines()
    assert lines[-2:] == ["  3 slots of 4096 tokens. No node has the memory.", "  strategy RPC"]


def test_it_fits_into_a_terminal(behemoth):
    words = "There are many reasons, and every one of them takes a whole sentence of its own. " * 5
    behemoth["choices"][0]["why"] = behemoth["why"] = words
    behemoth["name"] = behemoth["devices"][0]["node"] = "gpu001.example"
    assert max(map(len, plan_table(plan(behemoth)).splitlines())) <= 120


def test_nothing_declared():
    assert plan_table({"instances": []}) == "No instances are declared."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"source": {"repo": "o/r", "commit": "c0ffee" + "0" * 34}, "fetcher": "node1", "why": "one sender"},
            "model o/r/Q8_0 on node1, node2: node1 gets o/r@c0ffee000000; http: one sender",
        ),
        (
            {"source": {"urls": ["https://h/m.gguf"]}, "fetcher": "controller", "transport": "none", "why": "alone"},
            "model o/r/Q8_0 on node1, node2: the control node gets https://h/m.gguf; alone",
        ),
        (
            {"source": {"path": "/nfs/m.gguf", "shared": True}, "fetcher": None},
            "model o/r/Q8_0 on node1, node2: /nfs/m.gguf of all nodes, nothing is copied",
        ),
    ],
)
def test_models_stand_below_the_instances(behemoth, changes, words):
    model = {"holders": ["node1", "node2"], "transport": "http", "why": "", **changes}
    assert words in plan_table({**plan(behemoth), "models": {"o/r/Q8_0": model}}).splitlines()
