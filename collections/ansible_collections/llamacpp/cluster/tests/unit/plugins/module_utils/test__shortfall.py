# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When nothing fits: how much is missing, and what would fit instead."""

from __future__ import annotations

import re

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError
from ansible_collections.llamacpp.cluster.plugins.module_utils._shortfall import requantised
from ansible_collections.llamacpp.cluster.tests.unit.builders import (
    GIB,
    accept,
    device,
    gpus,
    instance,
    machine,
    model,
    nodes,
    seventy_billion,
    transformer,
)

SMALL = {"node1": machine(1, gpus("RTX 3090", 24, 1), 16)}


def message(*instances, found, models):
    with pytest.raises(PlanError) as caught:
        make_plan(accept(*instances), found, models)
    (problem,) = (item for item in caught.value.problems if "free disk" not in item.variable)
    return str(problem)


def ways(text):
    """Return what is said to fit, in order."""
    return re.split(r"; \(\d\) ", text.split("nearest that would fit: (1) ")[1])


def test_it_names_what_is_missing_where():
    text = message(instance(nodes=["node1"]), found=SMALL, models={"demo": seventy_billion()})
    assert text.startswith("llamacpp_instances[0].model = /srv/models/toy.gguf: demo does not fit: ")
    missing = float(re.search(r"demo does not fit: ([0-9.]+) GiB are missing", text).group(1))
    takes, has = (
        float(re.search(pattern, text).group(1)) for pattern in (r"it takes ([0-9.]+) GiB", r"has ([0-9.]+) GiB for it")
    )
    assert missing == pytest.approx(takes - has, abs=0.11)
    assert "CUDA0 of node1 has" in text
    assert re.search(r"\(weights [0-9.]+ GiB, context 0\.7 GiB, compute [0-9.]+ GiB, process [0-9.]+ GiB\)", text)


def test_a_smaller_quantisation_that_is_there():
    quants = {kind: {"path": "/srv/%s.gguf" % kind} for kind in ("Q8_0", "Q4_K", "Q2_K")}
    facts = {kind: transformer(40, 5120, 17408, 40, 8, 151936, kind=kind) for kind in quants}
    found = {"node1": machine(1, gpus("RTX 3090", 10, 1), 4)}
    declared = instance(nodes=["node1"], model={"quants": quants, "quant": "Q8_0"})
    first = ways(message(declared, found=found, models={"demo": facts}))[0]
    assert first.startswith("the quantisation Q4_K (")
    plan = make_plan(
        accept(instance(nodes=["node1"], model={"quants": quants, "quant": "Q4_K"})), found, {"demo": facts}
    )
    assert plan["instances"][0]["strategy"] == "one-device"


def test_a_smaller_quantisation_that_is_not_there():
    first = ways(message(instance(nodes=["node1"]), found=SMALL, models={"demo": seventy_billion()}))[0]
    assert re.match(r"a quantisation of about [23]\.\d bits a weight, as Q[23]_K has \([0-9.]+ GiB\)", first)


def test_less_context_and_fewer_slots_are_what_the_planner_would_take():
    found = {"node1": machine(1, gpus("RTX 4090", 24, 1), 16)}
    big = {"context": 131072, "parallel": 4, "cache_type_k": "f16", "cache_type_v": "f16"}
    text = message(instance(nodes=["node1"], **big), found=found, models={"demo": transformer()})
    context = next(way for way in ways(text) if way.startswith("context: "))
    number = int(context.split()[1])
    plan = make_plan(accept(instance(nodes=["node1"], **{**big, "context": number})), found, {"demo": transformer()})
    assert plan["instances"][0]["context"] == number
    slots = int(next(way for way in ways(text) if way.startswith("parallel: ")).split()[1])
    with_slots = accept(instance(nodes=["node1"], **{**big, "parallel": slots}))
    assert make_plan(with_slots, found, {"demo": transformer()})["instances"][0]["parallel"] == slots < 4


def test_other_nodes():
    found = dict(SMALL, node2=machine(2, gpus("H100", 80, 1), 64))
    text = message(instance(nodes=["node1"]), found=found, models={"demo": seventy_billion()})
    assert "nodes: [node2]" in ways(text)


def test_more_nodes():
    text = message(instance(nodes="auto"), found=SMALL, models={"demo": seventy_billion()})
    assert "1 more node like node1" in ways(text)


def test_more_nodes_on_a_cluster_of_processors():
    found = {"node1": machine(1, [device("cpu", 16)], 16)}
    text = message(instance(nodes="auto", context=512), found=found, models={"demo": seventy_billion()})
    assert "2 more nodes like node1" in ways(text)


def test_three_at_most():
    found = dict(SMALL, node2=machine(2, gpus("H100", 80, 1), 64))
    text = message(instance(nodes=["node1"], context=131072, parallel=4), found=found, models={"demo": transformer()})
    assert [way.split(":")[0] for way in ways(text)] == ["context", "parallel", "nodes"]


def test_what_others_take_is_said():
    found = {"node1": machine(1, gpus("RTX 4090", 20, 1), 4)}
    text = message(
        instance("first", nodes=["node1"]),
        instance("second", nodes=["node1"]),
        found=found,
        models={"first": transformer(kind="Q8_0"), "second": transformer(kind="F16")},
    )
    assert "second does not fit" in text
    assert "beside first" in text


def test_a_process_takes_memory_of_its_own_on_a_gpu():
    fits = model(layer=100 << 20)
    weights = fits.tensor_bytes - (100 << 20)
    # Weights and context alone would fit; CUDA's own memory does not.
    card = dict(device("cuda", 1), memory_bytes=weights + (512 << 20), free_bytes=weights + (512 << 20))
    found = {"node1": machine(1, [card], 2)}
    text = message(instance(nodes=["node1"], gpu_layers="all", context=256), found=found, models={"demo": fits})
    assert re.search(r"process 0\.[5-9] GiB", text)


def test_free_memory_counts_where_nothing_of_ours_runs():
    busy = nodes(1, devices=[device("cpu", 32, 1)])
    text = message(instance(nodes=["node1"]), found=busy, models={"demo": model()})
    assert "CPU of node1 has 0.8 GiB for it" in text


def test_what_runs_already_is_not_counted_twice():
    units = {"llamacpp-old.service": {"role": "head", "instance": "old", "port": 1, "active": True, "release": ""}}
    busy = nodes(1, devices=[device("cpu", 32, 1)], units=units)
    assert make_plan(accept(instance(nodes=["node1"])), busy, {"demo": model()})["instances"]


def test_settings_that_llama_cpp_refuses():
    odd = transformer(**{"attention.key_length": 100})  # which the blocks of q8_0 do not divide
    text = message(instance(nodes=["node1"], cache_type_k="q8_0"), found=SMALL, models={"demo": odd})
    assert text.startswith("llamacpp_instances[0].cache_type_k = q8_0: ")


def test_requantised_weights_are_those_of_the_type():
    small = requantised(seventy_billion("Q8_0"), "Q4_K")
    assert small.tensor_bytes == seventy_billion("Q4_K").tensor_bytes
    assert requantised(seventy_billion("Q2_K"), "Q4_K").tensor_bytes == seventy_billion("Q2_K").tensor_bytes


def test_nothing_helps():
    found = {"node1": machine(1, [device("cpu", 1)], 1)}
    text = message(instance(nodes=["node1"]), found=found, models={"demo": model(8, layer=400 * GIB)})
    assert text.endswith("nothing near it would fit")
