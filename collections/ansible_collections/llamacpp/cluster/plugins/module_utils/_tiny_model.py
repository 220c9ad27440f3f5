# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A model of 100 KB that recites the bytes in their order: what a new release is tried with.

The answer is known: behind ``abc`` it says ``def``. So a server that computes wrong numbers, on
whichever device, is told from one that computes right, which a model of random weights cannot do.

How it counts: the embedding of every token is a row of random signs, and the output row of token
i + 1 is the embedding of token i. The product of a row with itself is WIDTH, with another one it is
about sqrt(WIDTH), so the next byte wins clearly. The layers between add their own small numbers
through all kernels of a llama model (attention, rope, norms, feed forward), which do not turn the
answer, unless they are wrong: infinite, not a number, or too large.

Format: docs/gguf.md of ggml; names of keys and tensors: llama.cpp b11434, src/llama-arch.cpp. The
vocabulary is a SentencePiece one of bytes alone (src/llama-vocab.cpp, byte_to_token).
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Sequence
from typing import Union

WIDTH = 32
HEADS = 2
FEED_FORWARD = 64
CONTEXT = 256
SEED = 11434
# With 0.1, behind 1 to 16 layers, the right byte is e^11 times as likely as any other (llama-server b11434, on a CPU);
# with 0.3 the layers drown it.
LAYER_SCALE = 0.1

SPECIAL = ("<unk>", "<s>", "</s>")
# llama_token_type of include/llama.h: unknown, control, byte.
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6
# Types of values (gguf.h) and of tensors (ggml.h).
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TENSOR_F32 = 0
_ALIGNMENT = 32

Value = Union[bool, int, float, str, Sequence[str], "array[int]", "array[float]"]


def question() -> str:
    """Return the prompt: longer than the batches for which matrices are multiplied by special kernels."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefgh"


def answer(tokens: int) -> str:
    """Return what a right release says to :func:`question` in ``tokens`` tokens (at most 18)."""
    first = ord(question()[-1]) + 1
    return "".join(chr(first + step) for step in range(tokens))


def tiny_model(layers: int = 2) -> bytes:
    """Return the GGUF file. ``layers``: one for each device that shall have something to do, and at least one."""
    dice = random.Random(SEED)
    vocabulary = [*SPECIAL, *("<0x%02X>" % byte for byte in range(256))]
    embedding = [[1.0 if dice.random() < 0.5 else -1.0 for _column in range(WIDTH)] for _token in vocabulary]
    # Nothing follows the last byte, and nothing leads to the first special token.
    output = [[0.0] * WIDTH, *embedding[:-1]]
    for token in range(len(SPECIAL) + 1):
        output[token] = [0.0] * WIDTH

    def noise(columns: int, rows: int) -> tuple[list[int], array[float]]:
        count = columns * rows
        return [columns, rows], array("f", ((2 * dice.random() - 1) * LAYER_SCALE for _weight in range(count)))

    ones = array("f", [1.0] * WIDTH)
    tensors: dict[str, tuple[list[int], array[float]]] = {
        "token_embd.weight": ([WIDTH, len(vocabulary)], _flat(embedding)),
        "output.weight": ([WIDTH, len(vocabulary)], _flat(output)),
        "output_norm.weight": ([WIDTH], ones),
    }
    for layer in range(layers):
        prefix = "blk.%d." % layer
        tensors[prefix + "attn_norm.weight"] = ([WIDTH], ones)
        tensors[prefix + "ffn_norm.weight"] = ([WIDTH], ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[prefix + name + ".weight"] = noise(WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            tensors[prefix + name + ".weight"] = noise(WIDTH, FEED_FORWARD)
        tensors[prefix + "ffn_down.weight"] = noise(FEED_FORWARD, WIDTH)
    keys: dict[str, Value] = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": layers,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.scores": array("f", [0.0] * len(vocabulary)),
        "tokenizer.ggml.token_type": array("i", [_UNKNOWN, _CONTROL, _CONTROL] + [_BYTE] * 256),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        # A space before the prompt would be one token more that nobody asked for.
        "tokenizer.ggml.add_space_prefix": False,
    }
    return _gguf(keys, tensors)


def _gguf(keys: dict[str, Value], tensors: dict[str, tuple[list[int], array[float]]]) -> bytes:
    """Return a little-endian GGUF file, version 3."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    header += b"".join(_string(key) + _value(value) for key, value in keys.items())
    data = b""
    for name, (shape, weights) in tensors.items():
        header += _string(name) + struct.pack("<I%dQIQ" % len(shape), len(shape), *shape, _TENSOR_F32, len(data))
        data += struct.pack("<%df" % len(weights), *weights)
        data += bytes(-len(data) % _ALIGNMENT)
    return header + bytes(-len(header) % _ALIGNMENT) + data


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    """Return a value behind its type: integers are unsigned, those of arrays are signed, as llama.cpp reads them."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, array):
        kind = _I32 if value.typecode == "i" else _F32
        return struct.pack("<IIQ%d%s" % (len(value), value.typecode), _ARRAY, kind, len(value), *value)
    texts = b"".join(_string(str(text)) for text in value)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + texts


def _flat(rows: list[list[float]]) -> array[float]:
    return array("f", (number for row in rows for number in row))
