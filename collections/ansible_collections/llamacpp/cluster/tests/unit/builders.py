# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Small inputs for tests: GGUF files, models, nodes, declarations."""

from __future__ import annotations

import math
import struct
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, Shard, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse import parse

MIB = 1 << 20
GIB = 1 << 30
TYPE_IDS = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_K": 12}


def string(text: str) -> bytes:
    """Return a GGUF string."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """Return a GGUF value with its type: str, bool, int (u32), float (f32), or a list of these."""
    if isinstance(item, list):
        kinds = {str: 8, bool: 7, int: 4, float: 6}
        kind = kinds[type(item[0])] if item else 4
        return struct.pack("<iiQ", 9, kind, len(item)) + b"".join(value(part)[4:] for part in item)
    if isinstance(item, str):
        return struct.pack("<i", 8) + string(item)
    if isinstance(item, bool):
        return struct.pack("<iB", 7, item)
    if isinstance(item, float):
        return struct.pack("<if", 6, item)
    return struct.pack("<iI", 4, item)


def gguf(
    values: dict[str, Any] | None = None,
    tensors: list[tuple[str, tuple[int, ...], str]] | None = None,
    version: int = 3,
    data: bool = True,
    alignment: int = 32,
) -> bytes:
    """Return a GGUF file; ``tensors`` are (name, shape, type), their data zeros."""
    values = {"general.architecture": "llama", "llama.block_count": 1} if values is None else values
    tensors = [("blk.0.attn_q.weight", (32, 2), "F16")] if tensors is None else tensors
    out = b"GGUF" + struct.pack("<Iqq", version, len(tensors), len(values))
    for key, item in values.items():
        out += string(key) + value(item)
    offset = 0
    for name, shape, kind in tensors:
        out += string(name) + struct.pack("<I", len(shape)) + struct.pack("<%dq" % len(shape), *shape)
        out += struct.pack("<iQ", TYPE_IDS[kind], offset)
        rows = 1
        for size in shape[1:]:
            rows *= size
        size = by_name(kind).row_bytes(shape[0]) * rows
        offset += (size + alignment - 1) & -alignment
    out += b"\0" * (-len(out) % alignment)
    return out + b"\0" * offset if data else out


def llama(n_layers: int = 4, name: str = "toy", vocabulary: int = 96, tied: bool = False) -> bytes:
    """Return a small but complete llama model: 64 wide, 4 heads, 2 of them for keys and values."""
    values = {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": 1,
        "llama.block_count": n_layers,
        "llama.context_length": 2048,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "tokenizer.ggml.tokens": ["t%d" % index for index in range(vocabulary)],
        "tokenizer.chat_template": "{{ messages }}",
    }
    tensors: list[tuple[str, tuple[int, ...], str]] = [("token_embd.weight", (64, vocabulary), "F16")]
    for layer in range(n_layers):
        tensors.append(("blk.%d.attn_q.weight" % layer, (64, 64), "F16"))
        tensors.append(("blk.%d.ffn_up.weight" % layer, (64, 128), "F16"))
    tensors.append(("output_norm.weight", (64,), "F32"))
    if not tied:
        tensors.append(("output.weight", (64, vocabulary), "F16"))
    return gguf(values, tensors)


def model(n_layers: int = 24, layer: int = 100 * MIB, **changes: Any) -> ModelFacts:
    """Return the facts of a llama model with equal layers, all of it of the type I8.

    ``changes``: fields of the facts, ``embed_bytes`` and ``output_bytes``, or hyper-parameters.
    """
    outside = {
        "token_embd.weight": changes.pop("embed_bytes", layer),
        "output.weight": changes.pop("output_bytes", layer),
    }
    groups = [TensorGroup(name, (), (size,), "I8", size) for name, size in outside.items()]
    groups.insert(1, TensorGroup("blk.*.w", tuple(range(n_layers)), (layer,), "I8", layer))
    size = sum(group.nbytes * group.copies for group in groups)
    hyperparameters = {
        "block_count": n_layers,
        "context_length": 8192,
        "embedding_length": 1024,
        "feed_forward_length": 4096,
        "attention.head_count": 16,
        "attention.head_count_kv": 8,
        "attention.key_length": 64,
        "attention.value_length": 64,
        "vocab_size": 32000,
    }
    facts: dict[str, Any] = {
        "version": 3,
        "byte_order": "little",
        "alignment": 32,
        # None that llama.cpp knows: those have tensors by name that this has not.
        "architecture": "toy",
        "name": "toy",
        "file_type": "F16",
        "quantisation": {"I8": size},
        "parameter_count": size,
        "file_size": size,
        "tensor_count": n_layers + 2,
        "tensor_bytes": size,
        "shards": (Shard("toy.gguf", size, n_layers + 2),),
        "metadata": {},
        "hyperparameters": hyperparameters,
        "tensor_groups": tuple(groups),
        "chat_template": True,
        "license": None,
        "sha256": None,
    }
    for key, item in changes.items():
        (facts if key in facts else hyperparameters)[key] = item
    return ModelFacts(**facts)


def by_shape(shape: tuple[int, ...]) -> int:
    """Return the numbers in a tensor."""
    return math.prod(shape)


def transformer(
    n_layers: int = 32,
    width: int = 4096,
    feed: int = 14336,
    heads: int = 32,
    heads_kv: int = 8,
    vocabulary: int = 128256,
    kind: str = "Q4_K",
    experts: int = 0,
    **changes: Any,
) -> ModelFacts:
    """Return the facts of a real transformer, all of its matrices of one type; Llama 3.1 8B unless told otherwise.

    ``experts``: of a mixture, 8 of which each token is sent to. ``changes``: as for :func:`model`.
    """
    row = width // heads * heads_kv
    shapes = {
        "attn_norm": (width,),
        "attn_q": (width, width),
        "attn_k": (width, row),
        "attn_v": (width, row),
        "attn_output": (width, width),
        "ffn_norm": (width,),
    }
    if experts:
        shapes["ffn_gate_inp"] = (width, experts)
        shapes.update({"ffn_%s_exps" % part: (width, feed, experts) for part in ("gate", "up")})
        shapes["ffn_down_exps"] = (feed, width, experts)
    else:
        shapes.update({"ffn_gate": (width, feed), "ffn_up": (width, feed), "ffn_down": (feed, width)})

    def group(name: str, layers: tuple[int, ...], shape: tuple[int, ...]) -> TensorGroup:
        own = "F32" if len(shape) == 1 or "gate_inp" in name else kind
        return TensorGroup(name, layers, shape, own, by_name(own).row_bytes(shape[0]) * by_shape(shape[1:]))

    every = tuple(range(n_layers))
    groups = [group("blk.*.%s.weight" % name, every, shape) for name, shape in shapes.items()]
    outside = {"token_embd": (width, vocabulary), "output_norm": (width,), "output": (width, vocabulary)}
    groups += [group(name + ".weight", (), shape) for name, shape in outside.items()]
    size = sum(item.nbytes * item.copies for item in groups)
    mix: dict[str, int] = {}
    for item in groups:
        mix[item.type] = mix.get(item.type, 0) + item.nbytes * item.copies
    hyperparameters = {
        "block_count": n_layers,
        "context_length": 131072,
        "embedding_length": width,
        "feed_forward_length": feed,
        "attention.head_count": heads,
        "attention.head_count_kv": heads_kv,
        "attention.key_length": width // heads,
        "attention.value_length": width // heads,
        "vocab_size": vocabulary,
    }
    if experts:
        more = {"expert_count": experts, "expert_used_count": 8, "expert_feed_forward_length": feed}
        hyperparameters.update(more)
    facts: dict[str, Any] = {
        "architecture": "qwen3moe" if experts else "llama",
        "file_type": {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_S"}.get(kind, kind),
        "quantisation": mix,
        "parameter_count": sum(by_shape(item.shape) * item.copies for item in groups),
        "file_size": size,
        "tensor_bytes": size,
        "shards": (Shard("model.gguf", size, len(groups)),),
        "tensor_groups": tuple(groups),
        **hyperparameters,
    }
    return model(n_layers, **{**facts, **changes})


def seventy_billion(kind: str = "Q4_K", **changes: Any) -> ModelFacts:
    """Return the facts of a model of 70 billion weights, as Llama 3.1 70B."""
    return transformer(80, 8192, 28672, 64, 8, kind=kind, **changes)


def node(address: str = "10.0.1.11", **changes: Any) -> dict[str, Any]:
    """Return what node_info says of a Debian 12 node with a CPU, 32 GiB and one fast link."""
    facts: dict[str, Any] = {
        "hostname": "node",
        "os": {"id": "debian", "version": "12", "family": "debian", "name": "Debian GNU/Linux 12 (bookworm)"},
        "python": "3.11.2",
        "machine": "x86_64",
        "libc": "2.36",
        "systemd": 252,
        "cpus": 8,
        "cores": 4,
        "cpu_flags": ["sse4_2", "avx", "avx2", "bmi2", "f16c", "fma"],
        "memory": {"total_bytes": 32 * GIB, "available_bytes": 31 * GIB},
        "addresses": [link("lo", "127.0.0.1", 8, kind="loopback"), link("fab0", address)],
        "disks": {
            "/var/lib/llamacpp/models": {"free_bytes": 500 * GIB, "total_bytes": 900 * GIB},
            "/var/cache/llamacpp/build": {"free_bytes": 500 * GIB, "total_bytes": 900 * GIB},
        },
        "files": {},
        "devices": [device("cpu", 32, 31)],
        "releases": [],
        "manifests": {},
        "current_release": None,
        "previous_release": None,
        "driver": "",
        "toolkits": [],
        "compilers": {"gcc": "12.2.0"},
        "rdma": [],
        "units": {},
        "listening": [22],
        "firewall": "nftables",
    }
    facts.update(changes)
    return facts


def link(
    interface: str, address: str, prefix: int = 24, speed: int | None = 10000, kind: str = "ethernet"
) -> dict[str, Any]:
    """Return an address as node_info says it."""
    return {
        "interface": interface,
        "address": address,
        "prefix": prefix,
        "speed_mbit": speed,
        "mtu": 1500,
        "kind": kind,
    }


def gpus(name: str, gib: float, count: int, linked: bool = False, free: float | None = None) -> list[dict[str, Any]]:
    """Return GPUs of one node; ``linked``: NVLink joins all of them."""
    capability = {"V100S": "7.0", "RTX 3090": "8.6", "RTX 4090": "8.9", "H100": "9.0"}[name]
    return [
        dict(
            device("cuda", gib, free, index, name),
            compute_capability=capability,
            nvlink=[other for other in range(count) if other != index] if linked else [],
        )
        for index in range(count)
    ]


def machine(number: int, devices: list[dict[str, Any]], gib: int = 256, **changes: Any) -> NodeFacts:
    """Return the facts of a node with these devices and so much memory, at 10.0.1.(10 + number)."""
    memory = {"total_bytes": gib * GIB, "available_bytes": (gib - 2) * GIB}
    return NodeFacts.from_dict(node("10.0.1.%d" % (10 + number), devices=devices, memory=memory, **changes))


def device(kind: str, gib: float, free: float | None = None, index: int = 0, name: str = "") -> dict[str, Any]:
    """Return a device as node_info says it; sizes in GiB."""
    return {
        "kind": kind,
        "name": name or {"cpu": "Xeon", "cuda": "V100S"}[kind],
        "index": index,
        "memory_bytes": int(gib * GIB),
        "free_bytes": int((gib if free is None else free) * GIB),
        "compute_capability": None if kind == "cpu" else "7.0",
    }


def nodes(count: int = 3, **changes: Any) -> dict[str, NodeFacts]:
    """Return the facts of node1, node2 and so on; ``changes`` apply to all of them."""
    return {
        "node%d" % number: NodeFacts.from_dict(node("10.0.1.%d" % (10 + number), **changes))
        for number in range(1, count + 1)
    }


def instance(name: str = "demo", **changes: Any) -> dict[str, Any]:
    """Return a declared instance on three nodes."""
    declared: dict[str, Any] = {
        "name": name,
        "model": {"path": "/srv/models/toy.gguf"},
        "nodes": ["node1", "node2", "node3"],
    }
    declared.update(changes)
    return {key: item for key, item in declared.items() if item is not None}


def declare(*instances: Any, **changes: Any) -> Any:
    """Parse declarations over six nodes; return (declared, problems)."""
    arguments: dict[str, Any] = {
        "release": "b11434",
        "instances": list(instances),
        "settings": {},
        "inventory": ["node%d" % number for number in range(1, 7)],
        "nodes": {},
        "builders": ["node1"],
        "static": False,
    }
    arguments.update(changes)
    return parse(**arguments)


def accept(*instances: Any, **changes: Any) -> Any:
    """Parse declarations that must have no problem."""
    declared, problems = declare(*instances, **changes)
    assert [str(problem) for problem in problems] == []
    return declared
