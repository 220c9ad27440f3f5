"""Models whose matrices are large enough for a worker's cache: dense, tied, mixture of experts, k-quants.

The weights are dice, the shapes are those of real architectures. Half of the matrices are below the threshold of
10 MiB, so that a test sees both sides of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import make_model
import numpy as np
import numpy.typing as npt

HEAD_DIM = 64
HEADS = 16
KV_HEADS = 4
VOCABULARY = 6144
F32, Q8_0, Q4_K, Q6_K = (gguf.GGMLQuantizationType[name] for name in ("F32", "Q8_0", "Q4_K", "Q6_K"))
# Where a block of a type keeps its scales, as float16 (block_q8_0, block_q4_K, block_q6_K in ggml/src/ggml-common.h,
# b11434). The rest of a block may be any bytes.
SCALES = {Q8_0: (0,), Q4_K: (0, 2), Q6_K: (208,)}


@dataclass(frozen=True)
class Kind:
    """A model. ``wide``: type of most matrices; ``down``: of those that lead back; ``experts``: 0 for a dense one."""

    name: str
    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    wide: gguf.GGMLQuantizationType = Q8_0
    down: gguf.GGMLQuantizationType = Q8_0
    experts: int = 0
    tied: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("dense", "llama", 4, 2048, 6144),
        Kind("tied", "llama", 3, 2048, 6144, tied=True),
        Kind("experts", "qwen3moe", 4, 1024, 768, experts=16),
        Kind("quantised", "llama", 3, 2048, 10240, wide=Q4_K, down=Q6_K),
    )
}

Shapes = Iterator[tuple[str, tuple[int, ...], gguf.GGMLQuantizationType]]


def layout(kind: Kind) -> Shapes:
    """Every tensor: name, shape (last dimension first, as NumPy has it), type."""
    width, forward = kind.embedding, kind.feed_forward
    yield "token_embd.weight", (VOCABULARY, width), Q8_0
    for layer in range(kind.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (width,), F32
        yield block + "attn_q.weight", (HEADS * HEAD_DIM, width), kind.wide
        yield block + "attn_k.weight", (KV_HEADS * HEAD_DIM, width), kind.wide
        yield block + "attn_v.weight", (KV_HEADS * HEAD_DIM, width), kind.wide
        yield block + "attn_output.weight", (width, HEADS * HEAD_DIM), kind.wide
        yield block + "ffn_norm.weight", (width,), F32
        stack, suffix = ((kind.experts,), "_exps") if kind.experts else ((), "")
        if kind.experts:
            yield block + "attn_q_norm.weight", (HEAD_DIM,), F32
            yield block + "attn_k_norm.weight", (HEAD_DIM,), F32
            yield block + "ffn_gate_inp.weight", (kind.experts, width), F32
        yield block + f"ffn_gate{suffix}.weight", (*stack, forward, width), kind.wide
        yield block + f"ffn_up{suffix}.weight", (*stack, forward, width), kind.wide
        yield block + f"ffn_down{suffix}.weight", (*stack, width, forward), kind.down
    yield "output_norm.weight", (width,), F32
    if not kind.tied:
        yield "output.weight", (VOCABULARY, width), Q8_0


def dice(random: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor."""
    if kind == F32:
        return np.ones(shape, dtype=np.float32).view(np.uint8)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // elements, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.0005).tobytes(), dtype=np.uint8)
    for place in SCALES[kind]:
        blocks[..., place : place + 2] = scale
    return blocks.reshape(*shape[:-1], -1)


def write(path: Path, kind: Kind, seed: int = 1) -> Path:
    """Write a model; return where."""
    random = np.random.default_rng(seed)
    tokenizer = make_model.train_tokenizer(make_model.VOCABULARY)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    tokens += [f"<unused{number}>" for number in range(VOCABULARY - len(tokens))]
    writer = gguf.GGUFWriter(path, kind.architecture)
    shape = make_model.Shape(kind.architecture, kind.layers, kind.embedding, kind.feed_forward, VOCABULARY)
    make_model.add_metadata(writer, shape, tokenizer, tokens)
    # Later ones win: fewer heads than make_model would take.
    for key, value in ((gguf.Keys.Attention.HEAD_COUNT, HEADS), (gguf.Keys.Attention.HEAD_COUNT_KV, KV_HEADS)):
        writer.kv_data[0].pop(key.format(arch=kind.architecture))
        writer.add_uint32(key.format(arch=kind.architecture), value)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    if kind.experts:
        writer.add_expert_count(kind.experts)
        writer.add_expert_used_count(4)
        writer.add_expert_feed_forward_length(kind.feed_forward)
    for name, dimensions, type_ in layout(kind):
        data = dice(random, dimensions, type_)
        if type_ == F32:
            writer.add_tensor(name, data.view(np.float32))
        else:
            writer.add_tensor(name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
