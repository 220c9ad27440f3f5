# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which tensors a head asks its workers' caches for: exactly those, and from where in the files.

Source (b11434), all of it read for this and compared with what real workers wrote:

* ``rpc_use_hash_cache`` (ggml/src/ggml-rpc/ggml-rpc.cpp): of a weight of more than ``HASH_THRESHOLD`` bytes the head
  sends the FNV-1a-64 first. Whatever is smaller is always sent.
* ``load_all_data`` (src/llama-model-loader.cpp): a tensor is one call with all of its bytes as they are in the file,
  with and without mmap and with direct I/O. Pieces of 1 MiB are for devices with pinned host buffers, which RPC
  devices do not have (``ggml_backend_rpc_device_get_props``), and repacking is the business of buffers that a worker
  does not use. So the bytes of the file are the bytes that are hashed, whatever ``--load-mode`` says.
* ``create_tensor``: which device gets a tensor, with ``--override-tensor`` and its relatives first. An RPC device
  takes every type (``supports_op`` is always true).
* Fused tensors (``ffn_gate_up_exps``, ``attn_qkv``) are either fused in the file or not at all.

With ``--split-mode tensor`` rows are sent in pieces; such instances have no workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._weights import Weights, layer_weights, place

# HASH_THRESHOLD: more than this.
THRESHOLD = 10 << 20

_LAYER = re.compile(r"^blk\.(\d+)\.")
# LLM_FFN_DENSE_REGEX (common/common.h): what --n-cpu-ffn keeps in the head's memory.
_DENSE = r"\.ffn_(up|down|gate)\."
_OVERRIDE = ("-ot", "--override-tensor")
_DENSE_LAYERS = ("-ncffn", "--n-cpu-ffn")
# llama.cpp reads its environment before its arguments, in this order (common_params_parse_ex, common/arg.cpp).
_ENVIRONMENT = (("LLAMA_ARG_OVERRIDE_TENSOR", _OVERRIDE[0]), ("LLAMA_ARG_N_CPU_FFN", _DENSE_LAYERS[0]))
# ggml_backend_rpc_buffer_type: what --override-tensor calls a worker's memory.
_WORKER_BUFFER = re.compile(r"^RPC\d*\[(.+)\]$")
_SETTINGS = ("split_mode", "gpu_layers", "tensor_split", "cpu_moe", "n_cpu_moe")


class Tensor(NamedTuple):
    """One tensor as it lies in a file: ``offset`` from its beginning, ``bytes`` without padding."""

    name: str
    file: str
    offset: int
    bytes: int


class _Override(NamedTuple):
    """Tensors whose name ``pattern`` is found in go to the worker at ``endpoint``; ``""``: to none."""

    pattern: re.Pattern[str]
    endpoint: str


class _Layout(NamedTuple):
    """Where an instance has what. ``placed``: worker of each layer and, last, of the output; ``""``: no worker."""

    placed: tuple[str, ...]
    kept_experts: int
    overrides: tuple[_Override, ...]


def worker_tensors(
    model: ModelFacts, tensors: Iterable[Mapping[str, Any]], instance: Mapping[str, Any]
) -> dict[str, list[Tensor]]:
    """Return what each worker's node of a planned instance will be asked for, in the order of the files.

    ``tensors``: of all files (:func:`_model.tensor_list`). ``instance``: of the plan. Equal bytes under two names are
    there twice. A node that is not named is asked for nothing. Raises :class:`ValueError` for a pattern of
    ``--override-tensor`` that cannot be read.
    """
    found: dict[str, list[Tensor]] = {}
    nodes = {"%s:%d" % (worker["host"], worker["port"]): worker["node"] for worker in instance["workers"]}
    if not nodes or instance["settings"]["split_mode"] == "tensor":
        return found
    layout = _layout(model, instance)
    weights: dict[str, Weights] = {}
    for item in tensors:
        if item["nbytes"] <= THRESHOLD:
            continue
        match = _LAYER.match(item["name"])
        group = "blk.*." + item["name"][match.end() :] if match else item["name"]
        if group not in weights:
            weights[group] = _alone(model, group)
        layer = int(match.group(1)) if match else None
        tensor = Tensor(item["name"], item["shard"], item["offset"], item["nbytes"])
        for endpoint in _endpoints(tensor.name, layer, weights[group], layout):
            if endpoint in nodes:
                found.setdefault(nodes[endpoint], []).append(tensor)
    return found


def decides(instance: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a planned instance that :func:`worker_tensors` looks at: the same, and workers are sent the same.

    How many slots or how much context it has does not count, unless layers move for it.
    """
    settings = {key: instance["settings"][key] for key in _SETTINGS}
    devices = [[item[key] for key in ("device", "host", "endpoint", "kind", "layers")] for item in instance["devices"]]
    if not settings["tensor_split"]:
        # Then llama.cpp splits by memory.
        devices = [[*facts, item["memory_bytes"]] for facts, item in zip(devices, instance["devices"])]
    words = [pair for pair in _pairs(instance["args"]) if pair[0] in ("--device", *_OVERRIDE, *_DENSE_LAYERS)]
    environment = {name: str(instance["environment"].get(name, "")) for name, _flag in _ENVIRONMENT}
    endpoints = [(worker["node"], worker["host"], worker["port"]) for worker in instance["workers"]]
    return {
        "devices": devices,
        "settings": settings,
        "words": words,
        "environment": environment,
        "endpoints": endpoints,
    }


def _alone(model: ModelFacts, name: str) -> Weights:
    """Weigh a model of which only the tensors of one name have a size: where it is not 0, there they go."""
    groups = tuple(group if group.name == name else group._replace(nbytes=0) for group in model.tensor_groups)
    return layer_weights(replace(model, tensor_groups=groups), "cpu")


def _endpoints(name: str, layer: int | None, weights: Weights, layout: _Layout) -> set[str]:
    """Return the workers that get a tensor; empty for one that stays with the head, or is not read at all."""
    count = len(layout.placed) - 1
    layers = range(count) if layer is None else range(layer, min(layer + 1, count))
    places = {
        layout.placed[number]
        for number in layers
        if weights.layers[number] or (weights.experts[number] and number >= layout.kept_experts)
    }
    if weights.shared:
        places |= set(layout.placed[:-1])
    if weights.output and (layer is None or layer >= count):
        places.add(layout.placed[-1])
    # Experts that stay with the head do so by overrides before those of extra_args; what is skipped has no place.
    if places or weights.inputs:
        for override in layout.overrides:
            if override.pattern.search(name):
                return {override.endpoint} - {""}
    return places - {""}


def _layout(model: ModelFacts, instance: Mapping[str, Any]) -> _Layout:
    """Say where layers and output are, of the devices in the order of ``--device``."""
    settings = instance["settings"]
    named = {device["device"]: device for device in instance["devices"] if not device["host"]}
    order = dict(_pairs(instance["args"])).get("--device")
    used = [named[name] for name in (order.split(",") if order else named) if name in named]
    devices = [
        MemoryDevice(item["device"], "rpc" if item["endpoint"] else item["kind"], item["memory_bytes"], 0)
        for item in used
    ]
    split = tuple(settings["tensor_split"]) or None
    placed = place(
        model,
        devices,
        Settings(gpu_layers=settings["gpu_layers"], tensor_split=split, split_mode=settings["split_mode"]),
    )
    return _Layout(
        placed=tuple("" if index == HOST else used[index]["endpoint"] or "" for index in placed),
        kept_experts=len(placed) if settings["cpu_moe"] else settings["n_cpu_moe"],
        overrides=tuple(_overrides(instance)),
    )


def _overrides(instance: Mapping[str, Any]) -> list[_Override]:
    """Read what an operator's own arguments say about single tensors; the first that matches counts."""
    environment = instance["environment"]
    given = [(flag, str(environment[name])) for name, flag in _ENVIRONMENT if environment.get(name)]
    found = []
    for flag, text in given + _pairs(instance["args"]):
        if flag in _OVERRIDE:
            for entry in text.split(","):
                pattern, _equals, buffer = entry.partition("=")
                match = _WORKER_BUFFER.match(buffer)
                found.append(_Override(_compiled(pattern), match.group(1) if match else ""))
        elif flag in _DENSE_LAYERS and text.isdigit():
            found += [_Override(re.compile(r"blk\.%d%s" % (layer, _DENSE)), "") for layer in range(int(text))]
    return found


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError("--override-tensor %s: this pattern cannot be read: %s" % (pattern, error)) from error


def _pairs(args: Sequence[str]) -> list[tuple[str, str]]:
    """Return each word with the one behind it; llama.cpp takes ``_`` for ``-`` in long flags."""
    flags = [word.replace("_", "-") if word.startswith("--") else word for word in args]
    return list(zip(flags, args[1:]))
