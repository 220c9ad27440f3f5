# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The façade: that its parts land where they belong. Figures are compared with llama.cpp's in tests/fit."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._compute import compute_buffers
from ansible_collections.llamacpp.cluster.plugins.module_utils._context import resolve
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import estimate, layer_costs
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Refused, Settings
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, MIB, model


def llama(n_layers: int = 4, **changes) -> ModelFacts:
    """Return a llama of 1024 wide layers with what its graph needs, in half precision."""
    layers = tuple(range(n_layers))
    shapes = {
        "attn_norm": (1024,),
        "attn_q": (1024, 1024),
        "attn_k": (1024, 512),
        "attn_v": (1024, 512),
        "attn_output": (1024, 1024),
        "ffn_norm": (1024,),
        "ffn_gate": (1024, 4096),
        "ffn_up": (1024, 4096),
        "ffn_down": (4096, 1024),
    }
    groups = [_group("blk.*.%s.weight" % name, layers, shape) for name, shape in shapes.items()]
    outside = {"token_embd": (1024, 32000), "output_norm": (1024,), "output": (1024, 32000)}
    groups += [_group("%s.weight" % name, (), shape) for name, shape in outside.items()]
    return model(n_layers, **dict({"architecture": "llama", "tensor_groups": tuple(groups)}, **changes))


def _group(name, layers, shape):
    one = len(shape) == 1
    size = (4 if one else 2) * shape[0] * (1 if one else shape[1])
    return TensorGroup(name, layers, shape, "F32" if one else "F16", size)


LAYER = 2 * 1024 * (2 * 1024 + 2 * 512 + 3 * 4096) + 2 * 4096
EMBEDDING = 2 * 1024 * 32000
CUDA = MemoryDevice("CUDA0", "cuda", 24 * GIB, 24 * GIB, "9.0")
OTHER = MemoryDevice("CUDA1", "cuda", 24 * GIB, 24 * GIB, "9.0")
WORKER = MemoryDevice("RPC0", "rpc", 24 * GIB, 24 * GIB)
MEMORY = MemoryDevice("CPU", "cpu", 64 * GIB, 64 * GIB)


def test_one_device():
    found = estimate(llama(), [CUDA], Settings(ctx_size=4096))
    (usage,) = found.devices
    assert (usage.name, usage.model, usage.context) == ("CUDA0", 4 * LAYER + EMBEDDING + 4096, 4 * 4096 * 2 * 512 * 2)
    assert usage.total == usage.model + usage.context + usage.compute + usage.overhead
    assert found.host.model == EMBEDDING
    assert (found.layers, found.n_ctx, found.n_ctx_slot) == ((0,) * 5, 4096, 4096)
    assert (found.flash_attn, found.pipeline, found.exact, found.notes) == (True, False, True, ())


def test_every_part_has_its_own_source():
    facts, settings = llama(), Settings(ctx_size=4096, ubatch_size=256)
    found = estimate(facts, [CUDA, OTHER], settings)
    buffers = compute_buffers(facts, found.layers, [CUDA, OTHER], settings, resolve(facts, settings))
    assert tuple(usage.compute for usage in found.devices) == buffers.devices
    assert found.host.compute == buffers.host
    assert found.pipeline


def test_layers_in_memory_count_there():
    found = estimate(llama(), [CUDA], Settings(ctx_size=4096, gpu_layers=2))
    assert found.layers == (HOST, HOST, HOST, 0, 0)
    assert found.devices[0].model == LAYER + EMBEDDING + 4096
    assert found.host.model == EMBEDDING + 3 * LAYER
    assert (found.devices[0].context, found.host.context) == (8 * MIB, 24 * MIB)


def test_context_in_memory():
    found = estimate(llama(), [CUDA], Settings(ctx_size=4096, no_kv_offload=True))
    assert (found.devices[0].context, found.host.context) == (0, 32 * MIB)


def test_a_process_takes_something_on_gpus_and_nothing_on_processors():
    found = estimate(llama(), [WORKER, CUDA], Settings(ctx_size=4096, tensor_split=(1, 1)))
    worker, gpu = found.devices
    assert worker.overhead == 0
    assert 500 * MIB < gpu.overhead < 1200 * MIB


def test_a_worker_with_a_gpu_has_a_process_of_its_own():
    behind = MemoryDevice("RPC0", "rpc", 24 * GIB, 24 * GIB, "9.0", "node2:50052", "cuda")
    found = estimate(llama(), [behind], Settings(ctx_size=4096))
    assert found.devices[0].overhead > 500 * MIB


def test_an_unmeasured_gpu_says_so():
    old = MemoryDevice("CUDA0", "cuda", 24 * GIB, 24 * GIB, "7.0")
    (note,) = estimate(llama(), [old], Settings(ctx_size=4096)).notes
    assert "CUDA0 (7.0)" in note


def test_memory_as_a_device_shows_the_host():
    found = estimate(llama(), [MEMORY, CUDA], Settings(ctx_size=4096, gpu_layers=3))
    assert found.devices[0].name == "CPU"
    assert found.devices[0].total == found.host.total
    assert found.layers == (HOST, HOST, 1, 1, 1)


def test_logits_are_handed_out_in_memory():
    of_slots = [estimate(llama(), [CUDA], Settings(ctx_size=4096, parallel=slots)).host.overhead for slots in (1, 4)]
    assert of_slots[1] - of_slots[0] == 3 * 4 * 32000


def test_a_process_takes_memory_of_its_own():
    alone = estimate(llama(), [], Settings(ctx_size=4096)).host.overhead
    behind = estimate(llama(), [MemoryDevice("RPC0", "rpc", GIB, GIB)], Settings(ctx_size=4096)).host.overhead
    assert 0 < alone == behind < estimate(llama(), [CUDA], Settings(ctx_size=4096)).host.overhead


def test_devices_that_compute_together_have_a_part_of_each_layer():
    whole = estimate(llama(), [CUDA], Settings(ctx_size=4096))
    both = estimate(llama(), [CUDA, OTHER], Settings(ctx_size=4096, split_mode="tensor"))
    first, second = both.devices
    assert (first.model, first.context, first.compute) == (second.model, second.context, second.compute)
    assert whole.devices[0].model < 2 * first.model < whole.devices[0].model + 5 * 3 * 4096
    assert (first.context, first.compute) == (16 * MIB, whole.devices[0].compute)
    assert not both.exact


def test_an_unknown_architecture_is_an_estimate():
    found = estimate(llama(architecture="llama9000"), [CUDA], Settings(ctx_size=4096))
    known = estimate(llama(), [CUDA], Settings(ctx_size=4096))
    assert not found.exact
    assert "llama9000" in found.notes[0]
    assert (found.devices[0].model, found.devices[0].context) == (known.devices[0].model, known.devices[0].context)
    assert found.devices[0].compute >= known.devices[0].compute


def test_a_file_without_a_tensor_that_all_others_have_is_an_estimate():
    whole = llama()
    kept = tuple(group for group in whole.tensor_groups if group.name != "blk.*.attn_k.weight")
    found = estimate(llama(tensor_groups=kept), [CUDA], Settings(ctx_size=4096))
    assert not found.exact
    assert found.devices[0].compute >= estimate(whole, [CUDA], Settings(ctx_size=4096)).devices[0].compute


def test_what_is_refused():
    with pytest.raises(Refused, match=r"cache_type_v q8_0.*write f16"):
        estimate(llama(), [CUDA], Settings(cache_type_v="q8_0", flash_attn="off"))


def test_costs_of_layers_add_up_to_the_estimate():
    facts, settings = llama(), Settings(ctx_size=4096)
    costs = layer_costs(facts, settings)
    usage = estimate(facts, [CUDA], settings).devices[0]
    assert sum(costs.layers) == usage.model + usage.context
    assert costs.layers[0] == LAYER + 8 * MIB
    assert costs.host == EMBEDDING
    memory = layer_costs(facts, Settings(ctx_size=4096, no_kv_offload=True))
    assert (memory.layers[0], memory.host) == (LAYER, EMBEDDING + 32 * MIB)
