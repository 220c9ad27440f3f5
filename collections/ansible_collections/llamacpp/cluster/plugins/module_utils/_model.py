# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the planner has to know of a model, drawn from the headers of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import Array, GgufError, Header

# How llama.cpp names the files of a split model (llama_split_path, b11434).
_SHARD = re.compile(r"^(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_LAYER = re.compile(r"^blk\.(\d+)\.")
MAX_LAYERS = 512


@dataclass(frozen=True)
class ModelFacts:
    """A model's shape. All sizes in bytes; ``layer_bytes`` one entry a layer.

    ``embed_bytes`` stay in the head's memory, ``output_bytes`` go with the last device. A model
    whose output is tied to its embedding has the embedding in both, as llama.cpp loads it twice.
    ``n_head_kv`` has one entry a layer, 0 for a layer without attention.
    """

    architecture: str
    name: str
    file_type: int | None
    version: int
    n_layers: int
    n_ctx_train: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: tuple[int, ...]
    key_length: int
    value_length: int
    n_vocab: int
    n_tensors: int
    file_bytes: int
    files: tuple[str, ...]
    tensor_bytes: int
    layer_bytes: tuple[int, ...]
    embed_bytes: int
    output_bytes: int
    chat_template: bool
    sha256: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        data = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelFacts:
        """Undo :meth:`as_dict`; raises :class:`KeyError` for a missing field."""
        values: dict[str, Any] = {item.name: data[item.name] for item in fields(cls)}
        values.update({key: tuple(value) for key, value in values.items() if isinstance(value, list)})
        return cls(**values)


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
    count = _number(headers[0], "split.count", 1)
    if count not in (len(headers), 0):
        raise GgufError("split.count", 0, "the model has %d files, %d were found" % (count, len(headers)))
    architecture = first.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise GgufError("general.architecture", 0, "it names no architecture, so it is not a model to serve")
    key = architecture + "."
    n_layers = _number(headers[0], key + "block_count", 0)
    if not 1 <= n_layers <= MAX_LAYERS:
        raise GgufError(
            key + "block_count",
            0,
            "%d layers: a model to serve has 1 to %d, an adapter or a bare vocabulary none" % (n_layers, MAX_LAYERS),
        )
    layers, embed, output = _weights(headers, n_layers)
    n_embd = _number(headers[0], key + "embedding_length", 0)
    heads = _per_layer(headers[0], key + "attention.head_count", n_layers, 0)
    n_head = max(heads)
    head_size = n_embd // n_head if n_head else 0
    tokens = first.get("tokenizer.ggml.tokens")
    file_type = first.get("general.file_type")
    return ModelFacts(
        architecture=architecture,
        name=str(first.get("general.name", "")),
        file_type=file_type if isinstance(file_type, int) else None,
        version=headers[0].version,
        n_layers=n_layers,
        n_ctx_train=_number(headers[0], key + "context_length", 0),
        n_embd=n_embd,
        n_ff=max(_per_layer(headers[0], key + "feed_forward_length", n_layers, 0)),
        n_head=n_head,
        n_head_kv=tuple(_per_layer(headers[0], key + "attention.head_count_kv", n_layers, n_head)),
        key_length=_number(headers[0], key + "attention.key_length", head_size),
        value_length=_number(headers[0], key + "attention.value_length", head_size),
        n_vocab=tokens.length if isinstance(tokens, Array) else _number(headers[0], key + "vocab_size", 0),
        n_tensors=sum(len(header.tensors) for header in headers),
        file_bytes=sum(header.file_bytes for header in headers),
        files=tuple(files),
        tensor_bytes=sum(tensor.nbytes for header in headers for tensor in header.tensors),
        layer_bytes=tuple(layers),
        embed_bytes=embed,
        output_bytes=output,
        chat_template="tokenizer.chat_template" in first,
        sha256=sha256,
    )


def _weights(headers: Sequence[Header], n_layers: int) -> tuple[list[int], int, int]:
    """Add up the tensors: bytes of every layer, of the input side, of the output side."""
    layers = [0] * n_layers
    embed = output = token_embd = 0
    has_output = False
    for header in headers:
        for tensor in header.tensors:
            match = _LAYER.match(tensor.name)
            if match:
                index = int(match.group(1))
                if index >= n_layers:
                    raise GgufError(tensor.name, 0, "it belongs to layer %d, the model has %d" % (index, n_layers))
                layers[index] += tensor.nbytes
            elif tensor.name.startswith("output"):
                output += tensor.nbytes
                has_output = has_output or tensor.name == "output.weight"
            else:
                embed += tensor.nbytes
                if tensor.name == "token_embd.weight":
                    token_embd = tensor.nbytes
    return layers, embed, output if has_output else output + token_embd


def _number(header: Header, key: str, default: int) -> int:
    value = header.values.get(key, default)
    if isinstance(value, Array) and value.items:
        value = max(value.items)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise GgufError(key, 0, "%r is not a number that it can have" % (value,))
    return value


def _per_layer(header: Header, key: str, n_layers: int, default: int) -> list[int]:
    """Return a hyper-parameter for each layer; files give one number for all, or one a layer."""
    value = header.values.get(key, default)
    if isinstance(value, Array):
        if not value.items or len(value.items) < n_layers:
            raise GgufError(key, 0, "it has %d entries, the model %d layers" % (value.length, n_layers))
        return [int(item) for item in value.items[:n_layers]]
    return [_number(header, key, default)] * n_layers
