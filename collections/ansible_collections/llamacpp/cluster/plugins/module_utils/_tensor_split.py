# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``--split-mode tensor``: what of each tensor and cache lies on each device.

Source: llama_meta_device_get_split_state (src/llama-model.cpp, b11434). Matrices of attention and
feed-forward layers are cut, everything else is on every device whole. Cuts fall on whole heads and
on blocks of the quantisation; where they do not divide evenly, the remainder goes around from layer
to layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._context import (
    CacheTensor,
    Context,
    caches,
    padded_tensor,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import Hparams, hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST
from ansible_collections.llamacpp.cluster.plugins.module_utils._weights import EXPERTS, INPUT

# Matrices that are cut, by what decides where: heads of queries, of keys and values, or columns of
# the feed-forward part. The fused ones are cut piece by piece, which comes to the same sum.
_QUERIES = re.compile(r"^blk\.\*\.attn_(?:q|output|gate|sinks)\.(?:weight|bias)$")
_KEYS = re.compile(r"^blk\.\*\.attn_[kv]\.(?:weight|bias)$")
_FUSED = re.compile(r"^blk\.\*\.attn_qkv\.(?:weight|bias)$")
_STATE = re.compile(r"^blk\.\*\.ssm_(?:dt\.bias|a|alpha\.weight|beta\.weight|ba\.weight|conv1d\.weight|out\.weight)$")
_FEED = re.compile(r"^blk\.\*\.ffn_(?:up|gate|gate_up|down)(?:_exps)?\.(?:weight|bias)$")
# Sums of these are made over all devices, so each has the whole bias.
_WHOLE = re.compile(r"^blk\.\*\.(?:attn_output|ffn_down(?:_exps)?)\.bias$")
# hrm_text repeats layers, deepseek4 keeps one key for all heads, lfm2's convolutions are not cut.
_UNCUT = frozenset(("hrm_text",))
_WHOLE_CACHE = frozenset(("deepseek4", "dflash", "hrm_text"))
_WHOLE_STATE = frozenset(("lfm2", "lfm2moe"))


class Spread(NamedTuple):
    """Bytes of weights and of context on each device."""

    model: tuple[int, ...]
    context: tuple[int, ...]


def spread(
    model: ModelFacts, context: Context, placed: Sequence[int], shares: Sequence[float], kinds: Sequence[str], kept: int
) -> Spread:
    """Return what lies on each of several devices that compute every layer together.

    ``placed``: of every layer and the output, :data:`HOST` for those that are not on devices.
    ``shares``: of the devices; all 0 divides evenly. ``kinds``: of their memory. ``kept``: of so
    many layers the experts stay in the head's memory.
    """
    weights = [0] * len(kinds)
    host = tuple(index == HOST for index in placed)
    for number, sizes in enumerate(_weights(model, tuple(shares), host, kept)):
        weights[number] = sizes
    found = [0] * len(kinds)
    if context.offload_kqv:
        h = hparams(model)
        for cache in caches(model, context):
            for tensor in cache.tensors:
                if host[tensor.layer]:
                    continue
                for number, kind in enumerate(kinds):
                    part = _cache_part(h, tensor, tuple(shares), number)
                    found[number] += padded_tensor(kind, tensor.type, tensor.shape[0], part)
    return Spread(tuple(weights), tuple(found))


def _weights(model: ModelFacts, shares: tuple[float, ...], host: tuple[bool, ...], kept: int) -> tuple[int, ...]:
    known = _known_weights(model)
    key = (shares, host, kept)
    if key not in known:
        known[key] = _weigh(model, hparams(model), shares, host, kept)
    return known[key]


@per_model
def _known_weights(model: ModelFacts) -> dict[tuple[object, ...], tuple[int, ...]]:
    return {}


def _weigh(
    model: ModelFacts, h: Hparams, shares: tuple[float, ...], host: tuple[bool, ...], kept: int
) -> tuple[int, ...]:
    count = len(shares)
    found = [0] * count
    names = {group.name for group in model.tensor_groups}
    for group in model.tensor_groups:
        if not group.layers:
            tied = group.name == "token_embd.weight" and "output.weight" not in names
            if host[-1] or (group.name.startswith(INPUT) and not tied):
                continue
            cut = group.name in ("output.weight", "output.bias")
            for number in range(count):
                part = _part(group.nbytes, group.shape[-1], 1, shares, h.n_layer, number)
                found[number] += part if cut else group.nbytes
            continue
        experts = bool(EXPERTS.search(group.name))
        for layer in group.layers:
            if layer >= h.n_layer or host[layer] or (experts and layer < kept):
                continue
            for number in range(count):
                found[number] += _layer_part(h, group, layer, shares, number)
    return tuple(found)


def _layer_part(h: Hparams, group: TensorGroup, layer: int, shares: tuple[float, ...], number: int) -> int:
    if h.architecture in _UNCUT or _WHOLE.match(group.name):
        return group.nbytes
    name = group.name
    block = by_name(group.type).block_elements
    if _FEED.match(name):
        # ffn_down is cut along its rows, the others along their columns, on the same places.
        width = group.shape[0] if "ffn_down" in name else group.shape[min(1, len(group.shape) - 1)]
        return _part(group.nbytes, width, _lcm(block, 128), shares, layer, number)
    if _QUERIES.match(name) or _KEYS.match(name) or _FUSED.match(name) or _STATE.match(name):
        if h.recurrent[layer]:
            return _part(group.nbytes, max(h.n_embd_s, 1), 1, shares, layer, number)
        heads = h.n_head_kv[layer]
        if not heads:
            return group.nbytes
        return _part(group.nbytes, heads, _heads_together(h, layer, block, len(shares)), shares, layer, number)
    return group.nbytes


def _cache_part(h: Hparams, tensor: CacheTensor, shares: tuple[float, ...], number: int) -> int:
    if tensor.role in ("r", "s"):
        if h.architecture in _WHOLE_STATE:
            return tensor.nbytes
        return _part(tensor.nbytes, max(tensor.shape[0], 1), 1, shares, tensor.layer, number)
    if tensor.role not in ("k", "v") or h.architecture in _WHOLE_CACHE:
        return tensor.nbytes
    heads = h.n_head_kv[tensor.layer]
    if not heads:
        return tensor.nbytes
    return _part(tensor.nbytes, heads, _heads_together(h, tensor.layer, 1, len(shares)), shares, tensor.layer, number)


@lru_cache(maxsize=4096)
def _heads_together(h: Hparams, layer: int, block: int, devices: int) -> int:
    """Key and value heads that stay together: granularity_kv in whole heads."""
    head = h.head_k_swa if h.swa[layer] else h.head_k
    if not head or not h.n_head_kv[layer]:
        return 1
    queries = h.n_head[layer] // h.n_head_kv[layer] * head
    while block < 128 and block * devices < queries:
        block *= 2
    return max(_lcm(max(queries, 1), block) // max(queries, 1), 1)


def _part(nbytes: int, width: int, step: int, shares: tuple[float, ...], layer: int, number: int) -> int:
    """Return the bytes of device ``number`` when ``width`` is cut in steps, going around with ``layer``."""
    count = len(shares)
    rotation = layer % count
    turned = [shares[(index + rotation) % count] for index in range(count)]
    whole = sum(turned)
    low = 0
    running = 0.0
    for index in range(count):
        running += turned[index]
        if index == count - 1:
            high = width
        else:
            high = width * (index + 1) // count if not whole else int(width * running / whole)
            high -= high % step
        if (index + rotation) % count == number:
            return -(-nbytes * (high - low) // width) if width else nbytes
        low = high
    return nbytes


def _lcm(one: int, other: int) -> int:
    return one * other // math.gcd(one, other)
