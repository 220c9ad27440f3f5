# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the planner has to know of a model, drawn from the headers of its files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import FILE_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import Array, Header, LongString, Value
from ansible_collections.llamacpp.cluster.plugins.module_utils._split import check_set, shard_names

__all__ = ["ModelFacts", "Shard", "TensorGroup", "describe", "shard_names", "tensor_list"]

_LAYER = re.compile(r"^blk\.([0-9]+)\.")
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS in llama.cpp's src/llama-hparams.h, b11434
# What llama.cpp wants one of, or as many as there are layers (load_hparams in src/llama-model.cpp).
_BY_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
# general.type of files that are no model (gguf-py, GGUFType).
_NO_MODELS = {
    "adapter": "an adapter, which goes beside the model that it was trained for",
    "mmproj": "a projector for images or sound, which goes beside its model",
    "imatrix": "an importance matrix, which is for making quantisations",
    "vocab": "a bare vocabulary",
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
    def copies(self) -> int:
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
            value = max((item for item in value if isinstance(item, int)), default=default)
        return value if isinstance(value, int) else default

    def per_layer(self, key: str, default: int) -> tuple[int, ...]:
        """Return a hyper-parameter for each layer; files give one number for all, or one a layer."""
        value = self.hyperparameters.get(key, default)
        if isinstance(value, (list, tuple)):
            return tuple(item if isinstance(item, int) else default for item in value[: self.n_layers])
        return (value if isinstance(value, int) else default,) * self.n_layers

    def servable(self) -> str | None:
        """Return why llama-server could not serve it, or None; what only its architecture knows is not looked at."""
        kind = self.metadata.get("general.type")
        if self.architecture == "clip":
            kind = "mmproj"
        if isinstance(kind, str) and kind in _NO_MODELS:
            return "it is %s" % _NO_MODELS[kind]
        if not self.architecture:
            return "it names no architecture (general.architecture), so it is not a model to serve"
        if not self.tensor_count:
            return "it has no tensors: a bare vocabulary"
        n_layers = self.hyperparameters.get("block_count", 0)
        if isinstance(n_layers, bool) or not isinstance(n_layers, int) or not 1 <= n_layers <= MAX_LAYERS:
            return "%s.block_count says %s layers: a model to serve has 1 to %d" % (
                self.architecture,
                n_layers,
                MAX_LAYERS,
            )
        for key in _BY_LAYER:
            value = self.hyperparameters.get(key)
            if isinstance(value, (list, tuple)) and len(value) != n_layers:
                return "%s.%s has %d entries, the model %d layers" % (self.architecture, key, len(value), n_layers)
            if isinstance(value, Mapping):
                return "%s.%s is too long to be kept" % (self.architecture, key)
        for group in self.tensor_groups:
            if group.layers and group.layers[-1] >= n_layers:
                return "%s belongs to layer %d, the model has %d" % (group.name, group.layers[-1], n_layers)
        return None

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


def describe(headers: Sequence[Header], files: Sequence[str], sha256: str | None = None) -> ModelFacts:
    """Draw the facts from the headers of all files of a model, in order; of anything that is GGUF.

    Raises :class:`GgufError` for a set of files that is not complete or mixed up. Whether it can be
    served is for :meth:`ModelFacts.servable` to say.
    """
    check_set(headers, files)
    first = headers[0].values
    architecture = _text(first.get("general.architecture"))
    file_type = first.get("general.file_type")
    quantisation: dict[str, int] = {}
    for header in headers:
        for tensor in header.tensors:
            quantisation[tensor.type_name] = quantisation.get(tensor.type_name, 0) + tensor.nbytes
    return ModelFacts(
        version=headers[0].version,
        byte_order="little",
        alignment=headers[0].alignment,
        architecture=architecture,
        name=_text(first.get("general.name")),
        file_type=FILE_TYPES.get(file_type) if isinstance(file_type, int) else None,
        quantisation=quantisation,
        parameter_count=sum(_elements(tensor.shape) for header in headers for tensor in header.tensors),
        file_size=sum(header.file_bytes for header in headers),
        tensor_count=sum(len(header.tensors) for header in headers),
        tensor_bytes=sum(quantisation.values()),
        shards=tuple(Shard(name, header.file_bytes, len(header.tensors)) for name, header in zip(files, headers)),
        metadata={_clean(key): _plain(value) for key, value in first.items()},
        hyperparameters=_hyperparameters(first, architecture),
        tensor_groups=_groups(headers),
        chat_template="tokenizer.chat_template" in first,
        license=_text(first.get("general.license")) or None,
        sha256=sha256,
    )


def tensor_list(headers: Sequence[Header], files: Sequence[str]) -> list[dict[str, Any]]:
    """Return every tensor: name, shape, type, offset (bytes from the start of its file), nbytes, shard (its file)."""
    return [
        {
            "name": _clean(tensor.name),
            "shape": list(tensor.shape),
            "type": tensor.type_name,
            "offset": header.data_offset + tensor.offset,
            "nbytes": tensor.nbytes,
            "shard": name,
        }
        for header, name in zip(headers, files)
        for tensor in header.tensors
    ]


def _hyperparameters(values: Mapping[str, Value], architecture: str) -> dict[str, Any]:
    prefix = architecture + "."
    found = {_clean(key[len(prefix) :]): _plain(value) for key, value in values.items() if key.startswith(prefix)}
    tokens = values.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Array):
        # llama.cpp counts the tokens (LLM_KV_VOCAB_SIZE is for models without a vocabulary).
        found["vocab_size"] = tokens.length
    elif not isinstance(found.get("vocab_size"), int):
        found["vocab_size"] = 0
    return found


def _clean(text: str) -> str:
    """Return ``text`` with bytes that were no UTF-8 spelt out, so that JSON and YAML can have it."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _text(value: Value | None) -> str:
    return _clean(value) if isinstance(value, str) else ""


def _plain(value: Value) -> Any:
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no NaN and no infinity
    if isinstance(value, Array):
        if value.items is None:
            return {"type": value.type_name, "length": value.length}
        return [_plain(item) for item in value.items]
    if isinstance(value, LongString):
        return {"length": value.length}
    return value


def _groups(headers: Sequence[Header]) -> tuple[TensorGroup, ...]:
    """Gather tensors that differ in nothing but their layer, in the order of the file."""
    found: dict[tuple[str, tuple[int, ...], str, int], list[int]] = {}
    for header in headers:
        for tensor in header.tensors:
            name = _clean(tensor.name)
            match = _LAYER.match(name)
            if match:
                name = "blk.*." + name[match.end() :]
            layers = found.setdefault((name, tensor.shape, tensor.type_name, tensor.nbytes), [])
            if match:
                layers.append(int(match.group(1)))
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
