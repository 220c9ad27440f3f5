# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which tensors a worker is asked for. Real workers wrote the same: tests/cluster/test_worker_caches.py."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._model import TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.plugins.module_utils._worker_tensors import THRESHOLD, worker_tensors
from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, model, nodes
from ansible_collections.llamacpp.cluster.tests.unit.builders import instance as declared_instance
from ansible_collections.llamacpp.cluster.tests.unit.rpc_cache_program import planned

BIG = THRESHOLD + 1
EMBEDDING = ("token_embd.weight", None)
OUTPUT = ("output.weight", None)
DENSE = [EMBEDDING, ("blk.*.ffn_up.weight", range(4)), ("output_norm.weight", None), OUTPUT]
EXPERTS = [("blk.*.ffn_up_exps.weight", range(4)), ("blk.*.attn_q.weight", range(4)), OUTPUT]


def files(groups, size=BIG, n_layers=4, **changes):
    """Return the facts of a model and its list of tensors. ``groups``: name and layers, or None for no layer."""
    facts = model(
        n_layers,
        tensor_groups=tuple(TensorGroup(name, tuple(layers or ()), (size,), "I8", size) for name, layers in groups),
        **changes,
    )
    names = [
        name.replace("*", str(layer)) for name, layers in groups for layer in (layers if layers is not None else [""])
    ]
    tensors = [
        {"name": name, "offset": 4096 + index * size, "nbytes": size, "shard": "toy.gguf"}
        for index, name in enumerate(names)
    ]
    return facts, tensors


def names(model_and_tensors, instance):
    """Return node -> names of tensors, without their common endings."""
    found = worker_tensors(*model_and_tensors, instance)
    return {node: [tensor.name.replace(".weight", "") for tensor in tensors] for node, tensors in found.items()}


def test_layers_and_output_of_two_workers():
    assert names(files(DENSE), planned()) == {
        "node2": ["blk.0.ffn_up", "blk.1.ffn_up", "blk.2.ffn_up"],
        "node3": ["blk.3.ffn_up", "output_norm", "output"],
    }


def test_where_in_which_file():
    facts, tensors = files(DENSE)
    tensors[2]["shard"] = "toy-00002-of-00002.gguf"
    second = worker_tensors(facts, tensors, planned())["node2"][1]
    assert second == ("blk.1.ffn_up.weight", "toy-00002-of-00002.gguf", 4096 + 2 * BIG, BIG)


def test_what_is_not_larger_than_the_threshold_is_always_sent():
    assert names(files(DENSE, size=THRESHOLD), planned()) == {}


def test_order_and_shares_are_those_of_the_command_line():
    assert names(files(DENSE), planned(devices=("RPC1", "RPC0"), split=(4, 1))) == {
        "node3": ["blk.0.ffn_up", "blk.1.ffn_up", "blk.2.ffn_up", "blk.3.ffn_up"],
        "node2": ["output_norm", "output"],
    }


def test_what_a_head_computes_itself_is_nobodys():
    assert names(files(DENSE), planned(devices=("RPC0", "CUDA0"), split=(2, 3))) == {
        "node2": ["blk.0.ffn_up", "blk.1.ffn_up"]
    }
    assert names(files(DENSE), planned(gpu_layers=2)) == {"node2": ["blk.3.ffn_up"], "node3": ["output_norm", "output"]}


def test_a_tied_embedding_goes_to_the_output():
    assert names(files(DENSE[:-1]), planned())["node3"] == ["token_embd", "blk.3.ffn_up", "output_norm"]
    # BERT has no output at all.
    assert names(files(DENSE[:-1], architecture="bert"), planned())["node3"] == ["blk.3.ffn_up", "output_norm"]


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, ["blk.0.ffn_up_exps", "blk.1.ffn_up_exps", "blk.2.ffn_up_exps"]),
        ({"n_cpu_moe": 2}, ["blk.2.ffn_up_exps"]),
        ({"cpu_moe": True}, []),
    ],
)
def test_experts_that_stay_with_the_head(settings, first):
    found = names(files(EXPERTS), planned(**settings))
    assert found["node2"] == [*first, "blk.0.attn_q", "blk.1.attn_q", "blk.2.attn_q"]


def test_blocks_that_predict_ahead_are_not_read():
    keys = {"nextn_predict_layers": 1}
    assert names(files(DENSE, architecture="glm4moe", **keys), planned())["node3"] == ["output_norm", "output"]
    assert names(files(DENSE, architecture="llama", **keys), planned())["node3"][0] == "blk.3.ffn_up"


def test_tensors_that_llama_cpp_reads_past():
    groups = [*DENSE, ("dec.blk.0.cross_attn_rel_b.weight", None)]
    assert names(files(groups), planned()) == names(files(DENSE), planned())


def test_what_a_worker_takes_does_not_depend_on_what_its_gpu_can_compute():
    """An RPC device says yes to everything, so types that CUDA refuses are sent all the same."""
    facts, tensors = files(DENSE)
    groups = tuple(group._replace(type="TQ1_0", shape=(256, 4)) for group in facts.tensor_groups)
    odd = model(4, tensor_groups=groups)
    assert names((odd, tensors), planned()) == names((facts, tensors), planned())


@pytest.mark.parametrize("flag", ["-ot", "--override-tensor"])
def test_an_operators_overrides(flag):
    rules = r"blk\.[01]\.ffn_up=CPU,token_embd=RPC0[10.0.1.13:50052],output.weight=CUDA0,output=RPC0[10.0.1.12:50052]"
    assert names(files(DENSE), planned(extra=[flag, rules])) == {
        "node2": ["blk.2.ffn_up", "output_norm"],
        "node3": ["token_embd", "blk.3.ffn_up"],
    }


def test_the_environment_comes_before_the_arguments():
    extra = ["-ot", "output=RPC0[10.0.1.12:50052]"]
    found = names(files(DENSE), planned(extra=extra, environment={"LLAMA_ARG_OVERRIDE_TENSOR": "output=CPU"}))
    assert found["node3"] == ["blk.3.ffn_up"]


def test_the_first_rule_that_matches_counts():
    rule, dense = ["-ot", "ffn_up=RPC0[10.0.1.13:50052]"], ["--n_cpu_ffn", "2"]
    outputs = ["output_norm", "output"]
    found = names(files(DENSE), planned(extra=dense + rule))
    assert found == {"node3": ["blk.2.ffn_up", "blk.3.ffn_up", *outputs]}
    found = names(files(DENSE), planned(extra=rule + dense))
    assert found == {"node3": ["blk.%d.ffn_up" % layer for layer in range(4)] + outputs}


def test_dense_layers_that_stay_with_the_head():
    assert names(files(DENSE), planned(extra=["--n-cpu-ffn", "2"]))["node2"] == ["blk.2.ffn_up"]
    assert names(files(EXPERTS), planned(extra=["-ncffn", "2"])) == names(files(EXPERTS), planned())


def test_a_pattern_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"--override-tensor blk\.\(: this pattern cannot be read"):
        worker_tensors(*files(DENSE), planned(extra=["-ot", "blk.(=CPU"]))


def test_rows_that_are_sent_in_pieces_and_instances_without_workers():
    assert names(files(DENSE), planned(split_mode="tensor")) == {}
    assert names(files(DENSE), dict(planned(), workers=[])) == {}


def test_of_a_real_plan_nothing_is_forgotten_and_nothing_sent_twice():
    found = {"demo": model(8, layer=BIG)}
    plan = make_plan(accept(declared_instance("demo", nodes=["node1", "node2", "node3"])), nodes(), found)
    (instance,) = plan["instances"]
    tensors = [
        {"name": name, "offset": 0, "nbytes": BIG, "shard": "toy.gguf"}
        for name in ["token_embd.weight", *("blk.%d.w" % layer for layer in range(8)), "output.weight"]
    ]
    sent = worker_tensors(found["demo"], tensors, instance)
    assert set(sent) == {"node2", "node3"}
    for device in instance["devices"]:
        if device["node"] in sent:
            assert sum(tensor.bytes for tensor in sent[device["node"]]) <= device["model_bytes"]
            first, last = device["layers"]
            blocks = ["blk.%d.w" % layer for layer in range(first, min(last, 7) + 1)]
            assert [tensor.name for tensor in sent[device["node"]]] == blocks + ["output.weight"] * (last == 8)
