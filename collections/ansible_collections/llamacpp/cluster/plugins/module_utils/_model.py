# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the planner has to know of a model, drawn from the headers of its files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import Array, GgufError, Header, LongString, Value

# How llama.cpp names the files of a split model (llama_split_path, b11434).
_SHARD = re.compile(r"^(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_LAYER = re.compile(r"^blk\.(\d+)\.")
MAX_LAYERS = 512

# enum llama_ftype in llama.cpp's include/llama.h (b11434), as llama.cpp names them. The same
# as LlamaFileType of the gguf package, which targets do not have; a unit test compares the two.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
}


class TensorGroup(NamedTuple):
    """Tensors that differ in nothing but their layer.

    ``name``: as in the file, with ``*`` for the layer (``blk.*.attn_q.weight``). ``layers``: the
    blocks that have it in this shape and type; empty for a tensor outside of the blocks.
    ``shape``: first dimension first. ``nbytes``: of one tensor, without padding.
    """

    name: str
    layers: tuple[int, ...]
    shape: tuple[int, ...]
    type: str
    nbytes: int

    @property
    def count(self) -> int:
        """How many tensors it stands for."""
        return len(self.layers) or 1


class Shard(NamedTuple):
    """One file of a model: ``size`` in bytes."""

    name: str
    size: int
    tensor_count: int


@dataclass(frozen=True)
class ModelFacts:
    """A model as its headers say it; no weights were read. Sizes in bytes.

    ``file_type``: llama.cpp's name of the quantisation that the file says it has.
    ``quantisation``: what it really has, bytes of each tensor type. ``metadata``: all keys, with
    long arrays as ``{"type", "length"}`` and long strings as ``{"length"}``. ``hyperparameters``:
    the keys of the architecture without its name (``block_count``, ``attention.head_count_kv``;
    a number, or a list with one a layer), and ``vocab_size``, always. ``sha256``: what was
    verified, of the first file.
    """

    version: int
    byte_order: str
    alignment: int
    architecture: str
    name: str
    file_type: str | None
    quantisation: Mapping[str, int]
    parameter_count: int
    file_size: int
    tensor_count: int
    tensor_bytes: int
    shards: tuple[Shard, ...]
    metadata: Mapping[str, Any]
    hyperparameters: Mapping[str, Any]
    tensor_groups: tuple[TensorGroup, ...]
    chat_template: bool
    license: str | None
    sha256: str | None

    @property
    def n_layers(self) -> int:
        """Blocks, those for predicting further tokens included; 0 for what is no model to serve."""
        return self.number("block_count", 0)

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context that it was trained on; 0 when it does not say."""
        return self.number("context_length", 0)

    def number(self, key: str, default: int) -> int:
        """Return a hyper-parameter that is one whole number; of a list, the largest."""
        value = self.hyperparameters.get(key, default)
        if isinstance(value, (list, tuple)):
            value = max(value, default=default)
        return value if isinstance(value, int) else default

    def per_layer(self, key: str, default: int) -> tuple[int, ...]:
        """Return a hyper-parameter for each layer; files give one number for all, or one a layer."""
        value = self.hyperparameters.get(key, default)
        if isinstance(value, (list, tuple)):
            return tuple(int(item) for item in value[: self.n_layers])
        return (int(value),) * self.n_layers

    # What follows until as_dict serves the planner of before and goes with it.

    n_embd = property(lambda self: self.number("embedding_length", 0))
    n_ff = property(lambda self: self.number("feed_forward_length", 0))
    n_head = property(lambda self: self.number("attention.head_count", 0))
    n_head_kv = property(lambda self: self.per_layer("attention.head_count_kv", self.n_head))
    key_length = property(lambda self: self.number("attention.key_length", self.n_embd // max(self.n_head, 1)))
    value_length = property(lambda self: self.number("attention.value_length", self.n_embd // max(self.n_head, 1)))
    n_vocab = property(lambda self: self.number("vocab_size", 0))
    file_bytes = property(lambda self: self.file_size)
    files = property(lambda self: tuple(shard.name for shard in self.shards))

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        found = [0] * self.n_layers
        for group in self.tensor_groups:
            for layer in group.layers:
                found[layer] += group.nbytes
        return tuple(found)

    @property
    def embed_bytes(self) -> int:
        outside = [group for group in self.tensor_groups if not group.layers]
        return sum(group.nbytes for group in outside if not group.name.startswith("output"))

    @property
    def output_bytes(self) -> int:
        outside = {group.name: group.nbytes for group in self.tensor_groups if not group.layers}
        tied = 0 if "output.weight" in outside else outside.get("token_embd.weight", 0)
        return tied + sum(size for name, size in outside.items() if name.startswith("output"))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data; the layers of a group as ``[first, last]`` ranges."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data["shards"] = [dict(shard._asdict()) for shard in self.shards]
        data["tensor_groups"] = [
            dict(group._asdict(), layers=_ranges(group.layers), shape=list(group.shape)) for group in self.tensor_groups
        ]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelFacts:
        """Undo :meth:`as_dict`; raises :class:`KeyError` for a missing field, ignores others."""
        values: dict[str, Any] = {item.name: data[item.name] for item in fields(cls)}
        values["shards"] = tuple(Shard(item["name"], item["size"], item["tensor_count"]) for item in data["shards"])
        values["tensor_groups"] = tuple(
            TensorGroup(
                item["name"],
                tuple(layer for first, last in item["layers"] for layer in range(first, last + 1)),
                tuple(item["shape"]),
                item["type"],
                item["nbytes"],
            )
            for item in data["tensor_groups"]
        )
        return cls(**values)

    def with_sha256(self, sha256: str) -> ModelFacts:
        """Return the same with the checksum that was verified."""
        return replace(self, sha256=sha256)


def shard_names(name: str) -> list[str]:
    """Return the names of all files of a model, given the name of one of them.

    A name without ``-00001-of-00003`` is a model in one file. Raises :class:`GgufError`
    when ``name`` is a shard, but not the first: llama.cpp opens the first.
    """
    match = _SHARD.match(name)
    if not match:
        return [name]
    count = int(match.group("count"))
    if int(match.group("number")) != 1:
        first = "%s-00001-of-%05d.gguf" % (match.group("prefix"), count)
        number = int(match.group("number"))
        raise GgufError("path", 0, "it is shard %d of %d: name the first, %s" % (number, count, first))
    return ["%s-%05d-of-%05d.gguf" % (match.group("prefix"), number, count) for number in range(1, count + 1)]


def describe(headers: Sequence[Header], files: Sequence[str], sha256: str | None = None) -> ModelFacts:
    """Draw the facts from the headers of all files of a model, in order.

    Raises :class:`GgufError` for a model that llama-server could not serve: no architecture
    (an adapter or a bare vocabulary), no layers, or a set of files that is not complete.
    """
    first = headers[0].values
    count = first.get("split.count", 1)
    if count not in (len(headers), 0):
        raise GgufError("split.count", 0, "the model has %s files, %d were found" % (count, len(headers)))
    architecture = first.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise GgufError("general.architecture", 0, "it names no architecture, so it is not a model to serve")
    hyperparameters = _hyperparameters(first, architecture)
    n_layers = hyperparameters.get("block_count", 0)
    if isinstance(n_layers, bool) or not isinstance(n_layers, int) or not 1 <= n_layers <= MAX_LAYERS:
        raise GgufError(
            architecture + ".block_count",
            0,
            "%r layers: a model to serve has 1 to %d, an adapter or a bare vocabulary none" % (n_layers, MAX_LAYERS),
        )
    for key, value in hyperparameters.items():
        if key.startswith("attention.head_count") and isinstance(value, list) and len(value) < n_layers:
            where = "%s.%s" % (architecture, key)
            raise GgufError(where, 0, "it has %d entries, the model %d layers" % (len(value), n_layers))
    file_type = first.get("general.file_type")
    license_name = first.get("general.license")
    quantisation: dict[str, int] = {}
    for header in headers:
        for tensor in header.tensors:
            quantisation[tensor.type_name] = quantisation.get(tensor.type_name, 0) + tensor.nbytes
    return ModelFacts(
        version=headers[0].version,
        byte_order="little",
        alignment=headers[0].alignment,
        architecture=architecture,
        name=str(first.get("general.name", "")),
        file_type=FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        quantisation=quantisation,
        parameter_count=sum(_elements(tensor.shape) for header in headers for tensor in header.tensors),
        file_size=sum(header.file_bytes for header in headers),
        tensor_count=sum(len(header.tensors) for header in headers),
        tensor_bytes=sum(quantisation.values()),
        shards=tuple(Shard(name, header.file_bytes, len(header.tensors)) for name, header in zip(files, headers)),
        metadata={key: _plain(value) for key, value in first.items()},
        hyperparameters=hyperparameters,
        tensor_groups=_groups(headers, n_layers),
        chat_template="tokenizer.chat_template" in first,
        license=license_name if isinstance(license_name, str) else None,
        sha256=sha256,
    )


def _hyperparameters(values: Mapping[str, Value], architecture: str) -> dict[str, Any]:
    prefix = architecture + "."
    found = {key[len(prefix) :]: _plain(value) for key, value in values.items() if key.startswith(prefix)}
    tokens = values.get("tokenizer.ggml.tokens")
    # llama.cpp counts the tokens (LLM_KV_VOCAB_SIZE is for models without a vocabulary).
    found["vocab_size"] = tokens.length if isinstance(tokens, Array) else found.get("vocab_size", 0)
    return found


def _plain(value: Value) -> Any:
    if isinstance(value, Array):
        return {"type": value.type_name, "length": value.length} if value.items is None else list(value.items)
    if isinstance(value, LongString):
        return {"length": value.length}
    return value


def _groups(headers: Sequence[Header], n_layers: int) -> tuple[TensorGroup, ...]:
    """Gather tensors that differ in nothing but their layer, in the order of the file."""
    found: dict[tuple[str, tuple[int, ...], str, int], list[int]] = {}
    for header in headers:
        for tensor in header.tensors:
            match = _LAYER.match(tensor.name)
            name = tensor.name
            if match:
                layer = int(match.group(1))
                if layer >= n_layers:
                    raise GgufError(name, 0, "it belongs to layer %d, the model has %d" % (layer, n_layers))
                name = "blk.*." + name[match.end() :]
            layers = found.setdefault((name, tensor.shape, tensor.type_name, tensor.nbytes), [])
            if match:
                layers.append(layer)
    return tuple(
        TensorGroup(name, tuple(sorted(layers)), shape, kind, nbytes)
        for (name, shape, kind, nbytes), layers in found.items()
    )


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def _elements(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
