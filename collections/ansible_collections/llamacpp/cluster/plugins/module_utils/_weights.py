# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where llama.cpp puts each tensor of a model, and what it takes there.

Source (b11434): llama_model_base::load_tensors (src/llama-model.cpp),
llama_model_loader::create_tensor (src/llama-model-loader.cpp), LLM_TENSOR_INFOS
(src/llama-arch.cpp) for which tensors are of the input, the output or a layer, and
``load_arch_tensors`` of each file in src/models/ for those that are skipped or loaded twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ansible_collections.llamacpp.cluster.plugins.module_utils._architectures import (
    NOT_TIED,
    OUTPUT_FIRST,
    SKIPS_NEXTN,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._context import padded_tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import Hparams, hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._layers import assign_layers
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import (
    HOST,
    MAX_DEVICES,
    MemoryDevice,
    Refused,
    Settings,
    offload_devices,
)

# Names of tensors with a layer number that are not "blk.N.": of encoders, decoders and vocoders.
_NUMBERED = re.compile(r"^(?:enc\.blk|dec\.blk|posnet|convnext)\.(\d+)\.")
# LLM_FFN_EXPS_REGEX (common/common.h): what --cpu-moe and --n-cpu-moe keep in memory.
EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")

# LLM_TENSOR_LAYER_INPUT: the head's memory, always.
INPUT = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
# LLM_TENSOR_LAYER_REPEATING without a number in the name: they are created for layer 0. Of the
# first group, every device that has layers gets a copy.
_SHARED = ("rope_freqs.", "rope_factors_long.", "rope_factors_short.")
_FIRST_LAYER = (
    "token_embd_norm.",
    "per_layer_model_proj.",
    "per_layer_proj_norm.",
    "hrm.z_l_init",
    "nextn.pre_projection.",
    "conv1d.",
)
# GGML_OP_NONE in LLM_TENSOR_INFOS: read past.
_UNUSED = re.compile(r"^masked_embd_|(?:^|\.)cross_attn_rel_b\.")

# Types that ggml-cuda's supports_op refuses for a matrix product: such tensors stay in memory.
_NOT_ON_CUDA = frozenset(("TQ1_0", "TQ2_0"))


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's tensors in memory of one kind, padded as its buffers pad them.

    ``layers``: one entry a layer, without experts; ``experts``: what --cpu-moe moves; ``output``:
    what goes with the output layer, a tied embedding included; ``shared``: what each device with
    layers gets; ``inputs``: what is in the head's memory wherever the layers are. ``stranded``:
    what stays in memory of a layer on such a device, as the device cannot compute with it.
    """

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    output: int
    inputs: int
    shared: int
    stranded: tuple[int, ...]


def layer_weights(model: ModelFacts, kind: str) -> Weights:
    """Return the weights of every layer in memory of a ``kind``.

    cuda, rocm, vulkan, metal, sycl, cpu (of a worker), or host: the head's own memory, in which
    a tied embedding is needed only once.
    """
    tables = _tables(model)
    if kind not in tables:
        tables[kind] = _weigh(model, hparams(model), kind)
    return tables[kind]


@per_model
def _tables(model: ModelFacts) -> dict[str, Weights]:
    return {}


def _weigh(model: ModelFacts, h: Hparams, kind: str) -> Weights:
    count = h.n_layer_all
    layers, experts, stranded = [0] * count, [0] * count, [0] * count
    output = inputs = shared = 0
    skipped = h.n_layer if h.architecture in SKIPS_NEXTN else count
    names = set()
    for group in model.tensor_groups:
        names.add(group.name)
        if _UNUSED.search(group.name):
            continue
        size = padded_tensor(kind, group.type, group.shape[0], group.nbytes)
        numbers = _layers_of(group, h)
        if numbers:
            cannot = kind in ("cuda", "rocm") and group.type in _NOT_ON_CUDA and len(group.shape) > 1
            table = stranded if cannot else experts if EXPERTS.search(group.name) else layers
            if cannot:
                size = padded_tensor("cpu", group.type, group.shape[0], group.nbytes)
            for number in numbers:
                # Blocks that are not layers of the model, such as those of a decision head, go with the output.
                if number >= count:
                    output += size
                elif number < skipped:
                    table[number] += size
        elif group.name.startswith(_SHARED):
            shared += size
        elif group.name.startswith(INPUT):
            inputs += padded_tensor("cpu", group.type, group.shape[0], group.nbytes)
        else:
            output += size
    output += _again(model, h, kind, names)
    return Weights(tuple(layers), tuple(experts), output, inputs, shared, tuple(stranded))


def _layers_of(group: TensorGroup, h: Hparams) -> Sequence[int]:
    if group.layers:
        return group.layers
    match = _NUMBERED.match(group.name)
    if match:
        return (int(match.group(1)),)
    if group.name.startswith(_FIRST_LAYER):
        # lfm2 wrote its output norm under the name of another tensor (LLM_TENSOR_OUTPUT_NORM_LFM2).
        return () if h.architecture in ("lfm2", "lfm2moe") else (0,)
    return ()


def _again(model: ModelFacts, h: Hparams, kind: str, names: set[str]) -> int:
    """What is loaded twice on the output's device: a tied embedding, or codeshell's output for one that is missing."""
    source = "token_embd.weight"
    if "output.weight" in names:
        if h.architecture != "codeshell" or source in names:
            return 0
        source = "output.weight"
    elif h.architecture in NOT_TIED or (kind == "host" and h.architecture not in OUTPUT_FIRST):
        # In the same memory llama.cpp uses one tensor for both.
        return 0
    found = [group for group in model.tensor_groups if group.name == source]
    return sum(padded_tensor(kind, group.type, group.shape[0], group.nbytes) for group in found)


@lru_cache(maxsize=65536)
def _assigned(n_layers: int, gpu_layers: int, split: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(assign_layers(n_layers, gpu_layers, split))


def place(model: ModelFacts, devices: Sequence[MemoryDevice], settings: Settings) -> tuple[int, ...]:
    """Say which of ``devices`` gets each layer and, last, the output; :data:`HOST` is the head's memory.

    Without ``tensor_split`` llama.cpp divides by free memory. With ``split_mode`` tensor every device
    has a part of each layer, and the first one stands for all. Raises :class:`Refused` for a split
    or a number of devices that it does not take.
    """
    used = offload_devices(devices, settings)
    n_layers = hparams(model).n_layer_all
    if len(used) > MAX_DEVICES:
        raise Refused("devices", "llama-server takes %d at most" % MAX_DEVICES, len(used))
    given = settings.tensor_split or ()
    if len(given) >= MAX_DEVICES:
        raise Refused("tensor_split", "llama-server takes fewer than %d shares" % MAX_DEVICES, len(given))
    if any(share < 0 for share in given):
        raise Refused("tensor_split", "shares cannot be below 0", ",".join("%g" % share for share in given))
    if settings.split_mode == "row" and any(devices[index].kind not in ("sycl",) for index in used):
        raise Refused("split_mode", "llama.cpp no longer splits by rows here; write layer or tensor", "row")
    if not used:
        return (HOST,) * (n_layers + 1)
    if settings.split_mode == "tensor":
        # All devices together are one to llama.cpp (a meta device), which the first stands for.
        used, given = used[:1], ()
    split = tuple(float(share) for share in given[: len(used)]) + (0.0,) * (len(used) - len(given))
    if not any(split):
        split = tuple(float(devices[index].free) for index in used)
        if not any(split):
            split = (1.0,) * len(used)
    local = _assigned(n_layers, settings.layers_on_devices(n_layers), split)
    return tuple(index if index == HOST else used[index] for index in local)


def model_bytes(
    model: ModelFacts, devices: Sequence[MemoryDevice], settings: Settings, placed: Sequence[int]
) -> tuple[list[int], int]:
    """Return the bytes of the weights on each device and in the head's memory."""
    host = layer_weights(model, "host")
    found = [0] * len(devices)
    tables = [layer_weights(model, device.hardware) for device in devices]
    at_host = host.inputs
    kept = len(placed) - 1 if settings.cpu_moe else min(settings.n_cpu_moe, len(placed) - 1)
    holders = set()
    for layer, index in enumerate(placed[:-1]):
        holders.add(index)
        if index == HOST:
            at_host += host.layers[layer] + host.experts[layer]
            continue
        table = tables[index]
        found[index] += table.layers[layer]
        at_host += table.stranded[layer]
        if layer < kept:
            at_host += host.experts[layer]
        else:
            found[index] += table.experts[layer]
    for index in holders:
        if index == HOST:
            at_host += host.shared
        else:
            found[index] += tables[index].shared
    if placed[-1] == HOST:
        at_host += host.output
    else:
        found[placed[-1]] += tables[placed[-1]].output
    return found, at_host
