# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compute buffers against figures of llama-fit-params and llama-server b11434; every architecture is in tests/fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _compute_graph
from ansible_collections.llamacpp.cluster.plugins.module_utils._compute import compute_buffers, pipeline_parallel
from ansible_collections.llamacpp.cluster.plugins.module_utils._context import resolve
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._weights import place
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, MIB, model


def group(name: str, shape: tuple[int, ...], layers: tuple[int, ...] = (), kind: str = "Q4_K") -> TensorGroup:
    kind = "F32" if len(shape) == 1 else kind
    rows = 1
    for size in shape[1:]:
        rows *= size
    return TensorGroup(name, layers, shape, kind, by_name(kind).row_bytes(shape[0]) * rows)


def transformer(
    architecture: str, n_layers: int, width: int, heads: tuple[int, int, int], vocabulary: int, **changes
) -> ModelFacts:
    """Return a model with attention in every layer; ``heads``: of queries, of keys, and their size."""
    every = tuple(range(n_layers))
    q, kv, size = heads
    shapes = {
        "attn_norm": (width,),
        "attn_q": (width, q * size),
        "attn_k": (width, kv * size),
        "attn_v": (width, kv * size),
        "attn_output": (q * size, width),
        "ffn_norm": (width,),
        **changes.pop("tensors"),
    }
    groups = [group("blk.*.%s.weight" % name, shape, every) for name, shape in shapes.items()]
    groups += [group("token_embd.weight", (width, vocabulary)), group("output_norm.weight", (width,))]
    if not changes.pop("tied", False):
        groups.append(group("output.weight", (width, vocabulary), kind="Q6_K"))
    changes.update(
        {
            "embedding_length": width,
            "context_length": 131072,
            "attention.head_count": q,
            "attention.head_count_kv": kv,
            "attention.key_length": size,
            "attention.value_length": size,
            "vocab_size": vocabulary,
        }
    )
    return model(n_layers, architecture=architecture, tensor_groups=tuple(groups), **changes)


def feed_forward(width: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {"ffn_gate": (width, inner), "ffn_up": (width, inner), "ffn_down": (inner, width)}


@pytest.fixture(scope="module")
def llama() -> ModelFacts:
    """Llama 3.1 8B."""
    return transformer("llama", 32, 4096, (32, 8, 128), 128256, tensors=feed_forward(4096, 14336))


@pytest.fixture(scope="module")
def qwen() -> ModelFacts:
    """Qwen 3 30B with 3B active."""
    tensors = {
        "attn_q_norm": (128,),
        "attn_k_norm": (128,),
        "ffn_gate_inp": (2048, 128),
        "ffn_gate_exps": (2048, 768, 128),
        "ffn_up_exps": (2048, 768, 128),
        "ffn_down_exps": (768, 2048, 128),
    }
    experts = {"expert_count": 128, "expert_used_count": 8}
    return transformer("qwen3moe", 48, 2048, (32, 4, 128), 151936, tensors=tensors, **experts)


@pytest.fixture(scope="module")
def gemma() -> ModelFacts:
    """Gemma 3 4B: five sliding layers, then one that is not."""
    tensors = {
        "attn_q_norm": (256,),
        "attn_k_norm": (256,),
        "post_attention_norm": (2560,),
        "post_ffw_norm": (2560,),
        **feed_forward(2560, 10240),
    }
    window = {"attention.sliding_window": 1024}
    return transformer("gemma3", 34, 2560, (8, 4, 256), 262144, tensors=tensors, tied=True, **window)


def workers(count: int) -> tuple[MemoryDevice, ...]:
    return tuple(MemoryDevice("RPC%d" % index, "rpc", 80 * GIB, 80 * GIB) for index in range(count))


CUDA = tuple(MemoryDevice("CUDA%d" % index, "cuda", 80 * GIB, 80 * GIB, "9.0") for index in range(2))


def buffers(facts: ModelFacts, devices, **settings):
    asked = Settings(**dict({"ctx_size": 32768}, **settings))
    return compute_buffers(facts, place(facts, devices, asked), devices, asked, resolve(facts, asked))


def mib(found) -> list[float]:
    return [round(size / MIB, 2) for size in (*found.devices, found.host)]


# What llama.cpp b11434 said of the real models with simulated RPC workers, in MiB.
TRUTH = [
    ("llama", 1, {}, [148.01, 64.02]),
    ("llama", 1, {"logits": "fit_params"}, [314.52, 64.02]),
    ("llama", 1, {"parallel": 4}, [124.01, 40.02]),
    ("llama", 1, {"parallel": 4, "kv_unified": True}, [148.01, 64.02]),
    ("llama", 1, {"ubatch_size": 2048}, [592.05, 256.07]),
    ("llama", 1, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, [148.09, 64.10]),
    ("llama", 1, {"flash_attn": "off"}, [2156.01, 100.01]),
    ("llama", 1, {"gpu_layers": 16}, [132.01, 156.02]),
    ("llama", 1, {"gpu_layers": 16, "logits": "fit_params"}, [258.50, 156.02]),
    ("llama", 1, {"no_kv_offload": True}, [200.01, 64.02]),
    ("llama", 2, {}, [340.05, 300.04, 208.07]),
    ("llama", 2, {"logits": "fit_params"}, [340.05, 450.55, 208.08]),
    ("llama", 3, {}, [340.05, 300.04, 300.04, 208.07]),
    ("qwen", 1, {}, [116.01, 48.02]),
    ("qwen", 1, {"flash_attn": "off"}, [2146.01, 82.01]),
    ("qwen", 1, {"cpu_moe": True}, [80.01, 84.02]),
    ("qwen", 1, {"gpu_layers": 24}, [124.03, 120.02]),
    ("qwen", 2, {"logits": "fit_params"}, [264.05, 460.80, 168.08]),
    ("qwen", 3, {}, [264.05, 244.04, 244.04, 168.07]),
    ("gemma", 1, {}, [113.52, 53.53]),
    ("gemma", 1, {"parallel": 4, "kv_unified": True}, [116.52, 56.53]),
    ("gemma", 1, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, [119.05, 54.06]),
    ("gemma", 1, {"flash_attn": "off"}, [611.02, 95.02]),
    ("gemma", 1, {"no_kv_offload": True}, [188.01, 53.53]),
    ("gemma", 2, {"logits": "fit_params"}, [273.09, 691.08, 184.12]),
]


@pytest.mark.parametrize(("name", "devices", "settings", "truth"), TRUTH)
def test_as_llama_cpp(request, name, devices, settings, truth):
    found = buffers(request.getfixturevalue(name), workers(devices), **settings)
    assert found.exact
    assert mib(found) == pytest.approx(truth, abs=0.02)


def test_all_layers_give_what_a_few_give(llama, gemma, monkeypatch):
    """Leaving repeated layers out must not change a figure."""
    settings = [{}, {"parallel": 4}, {"gpu_layers": 13}, {"flash_attn": "off"}]
    cases = [(facts, count, given) for facts in (llama, gemma) for count in (1, 3) for given in settings]
    few = [mib(buffers(facts, workers(count), ubatch_size=480, **given)) for facts, count, given in cases]
    monkeypatch.setattr(_compute_graph, "_REPEATS", 1000)
    every = [
        mib(
            buffers(
                replace(facts, sha256="another, so that nothing is remembered"),
                workers(count),
                ubatch_size=480,
                **given,
            )
        )
        for facts, count, given in cases
    ]
    assert few == every


def test_gpus_take_over_what_the_host_would_compute(llama):
    """Weights in memory are copied to the first GPU for large batches; a worker behind RPC does not do that."""
    at_home = buffers(llama, CUDA[:1], gpu_layers=16)
    far_away = buffers(llama, workers(1), gpu_layers=16)
    largest = 14336 * 4096 * 144 // 256
    assert at_home.devices[0] >= far_away.devices[0] + largest
    assert at_home.host < far_away.host
    assert buffers(llama, CUDA, gpu_layers=0).devices[0] > largest
    assert buffers(llama, CUDA, gpu_layers=0).devices[1] == 0
    assert buffers(llama, workers(1), gpu_layers=0).devices[0] == 0


def test_flash_attention_on_cuda_copies_a_quantised_cache(llama):
    plain = buffers(llama, CUDA[:1])
    quantised = buffers(llama, CUDA[:1], cache_type_k="q8_0", cache_type_v="q8_0")
    copies = 2 * 2 * 32768 * 8 * 128
    mask = 2 * 512 * 32768
    # They live while attention is computed, beside the mask; feed forward no longer is the peak.
    assert quantised.devices[0] > copies + mask
    assert plain.devices[0] < copies + mask
    behind = tuple(MemoryDevice("RPC0", "rpc", 80 * GIB, 80 * GIB, backend="cuda") for _index in range(1))
    assert buffers(llama, behind, cache_type_k="q8_0", cache_type_v="q8_0").devices == quantised.devices


def test_results_of_experts_stay_where_they_are_on_local_gpus():
    """CUDA adds them up in one step; the client of a worker knows nothing of that."""
    tensors = {
        "ffn_gate_inp": (2048, 64),
        "ffn_gate_exps": (2048, 256, 64),
        "ffn_up_exps": (2048, 256, 64),
        "ffn_down_exps": (256, 2048, 64),
    }
    experts = {"expert_count": 64, "expert_used_count": 8}
    small = transformer("qwen3moe", 4, 2048, (16, 4, 128), 32000, tensors=tensors, **experts)
    behind = (MemoryDevice("RPC0", "rpc", 80 * GIB, 80 * GIB, backend="cuda"),)
    results = 4 * 512 * 8 * 2048
    hidden = 3 * 4 * 512 * 8 * 256
    more = buffers(small, CUDA[:1], ctx_size=4096).devices[0] - buffers(small, behind, ctx_size=4096).devices[0]
    # A second place for the results, some of it where the experts' hidden layers were.
    assert results - hidden <= more <= results


def test_what_a_pipeline_of_local_gpus_allocates(llama):
    """As logged on two H200s (docs/bench/gpu_h200.json, pair-layer and pair-rpc): less than is measured before."""
    here = buffers(llama, CUDA, tensor_split=(1.0, 1.0))
    assert mib(here)[:2] == pytest.approx([340.05, 268.04], abs=0.1)
    behind = (MemoryDevice("RPC0", "rpc", 80 * GIB, 80 * GIB, backend="cuda"), CUDA[0])
    assert mib(buffers(llama, behind, tensor_split=(1.0, 1.0)))[:2] == pytest.approx([340.05, 268.04], abs=0.1)
    assert mib(buffers(llama, workers(2), tensor_split=(1.0, 1.0)))[1] == pytest.approx(268.04 + 32, abs=0.1)


def test_the_processor_scans_states_for_which_a_gpu_has_no_kernel():
    """ggml-cuda has Mamba 2 for states of 96, 128 and 256; a worker is taken to have everything."""

    def scanning(size: int, devices: tuple[MemoryDevice, ...]) -> tuple[int, ...]:
        width, inner, heads = 2048, 4096, 64
        groups = [
            group("blk.*." + name, shape, (0, 1, 2, 3), "F32")
            for name, shape in {
                "attn_norm.weight": (width,),
                "ssm_in.weight": (width, 2 * inner + 2 * size + heads),
                "ssm_conv1d.weight": (4, inner + 2 * size),
                "ssm_conv1d.bias": (inner + 2 * size,),
                "ssm_dt.bias": (heads,),
                "ssm_a": (1, heads),
                "ssm_d": (1, heads),
                "ssm_norm.weight": (inner, 1),
                "ssm_out.weight": (inner, width),
            }.items()
        ]
        groups += [group("token_embd.weight", (width, 32000)), group("output_norm.weight", (width,))]
        keys = {"embedding_length": width, "ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": size}
        keys.update({"ssm.time_step_rank": heads, "ssm.group_count": 1, "vocab_size": 32000})
        facts = model(4, architecture="mamba2", tensor_groups=tuple(groups), **keys)
        found = buffers(facts, devices, ctx_size=4096)
        return (*found.devices, found.host)

    assert scanning(128, CUDA[:1]) == scanning(128, workers(1))
    assert scanning(64, CUDA[:1])[-1] > scanning(64, workers(1))[-1]


def test_flash_attention_is_off_where_a_gpu_has_no_kernel():
    odd = transformer("llama", 2, 4096, (32, 8, 160), 32000, tensors=feed_forward(4096, 14336))
    assert not buffers(odd, CUDA[:1]).flash_attn
    assert buffers(odd, workers(1)).flash_attn


def test_flash_attention_where_the_host_has_layers(llama):
    assert buffers(llama, workers(2), gpu_layers=20).flash_attn
    assert buffers(llama, workers(1), no_kv_offload=True).flash_attn
    assert not buffers(llama, workers(1), flash_attn="off").flash_attn


@pytest.mark.parametrize(
    ("count", "settings", "expected"),
    [
        (2, {}, True),
        (1, {}, False),
        (2, {"gpu_layers": 20}, False),
        (2, {"no_kv_offload": True}, False),
        (2, {"n_cpu_moe": 3}, False),
        (2, {"split_mode": "none"}, False),
    ],
)
def test_pipeline(llama, count, settings, expected):
    asked = Settings(ctx_size=4096, **settings)
    placed = place(llama, workers(count), asked)
    assert pipeline_parallel(workers(count), placed, asked) is expected
    assert buffers(llama, workers(count), **settings).pipeline is expected


def test_an_unused_device_needs_nothing(llama):
    found = buffers(llama, workers(3), tensor_split=(1.0, 0.0, 1.0))
    assert found.devices[1] == 0
    assert min(found.devices[0], found.devices[2]) > 0


def test_a_model_without_what_its_graph_needs_is_an_error(llama):
    groups = tuple(item for item in llama.tensor_groups if "ffn_down" not in item.name and "attn_k" not in item.name)
    broken = model(32, architecture="llama", tensor_groups=groups, **{"attention.head_count": 32})
    with pytest.raises(LookupError):
        buffers(broken, workers(1))


def test_an_architecture_without_a_graph_is_an_error():
    with pytest.raises(LookupError):
        buffers(model(4), workers(1))


def test_the_order_of_devices_decides_who_is_first(llama):
    one, two = workers(2)
    asked = Settings(ctx_size=32768, tensor_split=(3.0, 1.0))
    placed = place(llama, (one, two), asked)
    turned = tuple(HOST if index == HOST else 1 - index for index in placed)
    context = resolve(llama, asked)
    straight = compute_buffers(llama, placed, (one, two), asked, context)
    assert compute_buffers(llama, turned, (two, one), asked, context).devices == straight.devices[::-1]
