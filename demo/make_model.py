#!/usr/bin/env python3
"""Write a GGUF model of a real architecture whose weights were thrown with dice.

The file is what llama.cpp expects of any chat model (hyper-parameters, Q8_0 matrices, a byte-level BPE vocabulary,
a ChatML template), so it is split over nodes, served and streamed like a real one, and needs no download. What it
says is nonsense.

One thing is arranged rather than random, so that the nonsense can be read. Dimension 0 of the residual stream carries
the same constant for every token, and no layer writes to it; column 0 of the output matrix therefore acts as a bias.
It is neutral for whole words of corpus.txt and strongly negative for everything else (control tokens, single bytes,
halves of words), so an answer is made of words and is never empty.

The same options and the same package versions give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ARCHITECTURES = ("llama", "qwen2")
HERE = Path(__file__).resolve().parent
WORDS = HERE / "corpus.txt"
ENGLISH = HERE.parent / "LICENSE"

VOCABULARY = 4096  # upper bound; the corpus may yield fewer
CONTEXT = 8192  # tokens
HEAD_DIM = 64
HEADS_PER_KV = 4
BLOCK = 32  # elements of one Q8_0 block
BLOCK_BYTES = 34  # a float16 scale and 32 signed bytes
MIB = 1024 * 1024
SQUARES_PER_LAYER = 10.75  # a usual layer in units of E * E: q, k, v, o and a feed-forward of 2.75 E

CONSTANT = 8.0  # what dimension 0 of every embedding holds
UNWANTED = -8.0  # column 0 of the output for tokens that must not be said
PUNCTUATION = -0.25  # the same for commas and full stops: rarer than words
LOGIT_SPREAD = 2.5  # standard deviation of the logits; more is more repetitive

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """Hyper-parameters of one model; counts, not bytes."""

    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    vocabulary: int

    @property
    def heads(self) -> int:
        return self.embedding // HEAD_DIM

    @property
    def kv_heads(self) -> int:
        return self.heads // HEADS_PER_KV


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: `shape` is rows, columns (or one length), `scale` the standard deviation of its weights."""

    name: str
    shape: tuple[int, ...]
    scale: float
    silent: bool = False  # the first row is zero, so that dimension 0 of the residual stream keeps its constant


def fit_shape(architecture: str, megabytes: int, layers: int, vocabulary: int) -> Shape:
    """Choose widths so that the file comes close to `megabytes` MiB.

    Raises ValueError when the size is too small for that many layers.
    """
    elements = megabytes * MIB * BLOCK / BLOCK_BYTES
    step = HEAD_DIM * HEADS_PER_KV
    embedding = step
    while layers * SQUARES_PER_LAYER * (embedding + step) ** 2 + 2 * vocabulary * (embedding + step) <= elements * 1.05:
        embedding += step
    attention = 2 * embedding**2 + 2 * embedding**2 // HEADS_PER_KV
    left = (elements - 2 * vocabulary * embedding) / layers - attention
    feed_forward = int(left / (3 * embedding)) // BLOCK * BLOCK
    if feed_forward < BLOCK:
        least = (2 * vocabulary * embedding + layers * (attention + 3 * embedding * BLOCK)) * BLOCK_BYTES / BLOCK / MIB
        raise ValueError(
            f"--megabytes {megabytes} is too small for --layers {layers}: "
            f"write at least --megabytes {int(least) + 1}, or fewer layers"
        )
    return Shape(architecture, layers, embedding, feed_forward, vocabulary)


def train_tokenizer(size: int) -> Tokenizer:
    """A byte-level BPE in GPT-2's manner, with at most `size` entries. Any text can be encoded with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The words stand there twice, so that each of them earns a token of its own before the licence's rarer ones do.
    texts = [WORDS.read_text("utf-8")] * 2 + [ENGLISH.read_text("utf-8")]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def output_bias(tokens: list[str]) -> npt.NDArray[np.float32]:
    """Column 0 of the output matrix: what keeps an answer readable (see the module's text)."""
    words = {f"Ġ{word}" for word in re.findall(r"[A-Za-z]+", WORDS.read_text("utf-8"))}
    bias = np.full(len(tokens), UNWANTED, dtype=np.float32)
    for index, token in enumerate(tokens):
        if token in words:
            bias[index] = 0.0
        elif token in (",", "."):
            bias[index] = PUNCTUATION
    return bias


def layout(shape: Shape) -> list[Tensor]:
    """Every tensor of the file, in the order in which it is written."""
    embedding, forward, kv = shape.embedding, shape.feed_forward, shape.kv_heads * HEAD_DIM
    wide, narrow = embedding**-0.5, forward**-0.5
    out = [Tensor("token_embd.weight", (shape.vocabulary, embedding), 1.0)]
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        out.append(Tensor(f"{block}.attn_norm.weight", (embedding,), 0.0))
        for name, rows in (("q", embedding), ("k", kv), ("v", kv)):
            out.append(Tensor(f"{block}.attn_{name}.weight", (rows, embedding), wide))
            if shape.architecture == "qwen2":
                out.append(Tensor(f"{block}.attn_{name}.bias", (rows,), 0.0))
        # Small steps: some tens of random layers must not drown the token that came in.
        out.append(Tensor(f"{block}.attn_output.weight", (embedding, embedding), 0.3 * wide, silent=True))
        out.append(Tensor(f"{block}.ffn_norm.weight", (embedding,), 0.0))
        out.append(Tensor(f"{block}.ffn_gate.weight", (forward, embedding), wide))
        out.append(Tensor(f"{block}.ffn_up.weight", (forward, embedding), wide))
        out.append(Tensor(f"{block}.ffn_down.weight", (embedding, forward), 0.6 * narrow, silent=True))
    out.append(Tensor("output_norm.weight", (embedding,), 0.0))
    out.append(Tensor("output.weight", (shape.vocabulary, embedding), LOGIT_SPREAD * wide))
    return out


def dice(seed: int, index: int, elements: int) -> npt.NDArray[np.int8]:
    """`elements` uniform numbers of -127..127, from the bit stream that NumPy promises never to change."""
    source = np.random.PCG64(np.random.SeedSequence([seed, index]))
    raw = source.random_raw((elements + 7) // 8).view(np.int8)[:elements]
    return np.maximum(raw, np.int8(-127), out=raw)


def quantised(tensor: Tensor, seed: int, index: int) -> Bytes:
    """A random Q8_0 matrix as its bytes, shape (rows, columns / 32 * 34)."""
    rows, columns = tensor.shape
    blocks = np.empty((rows, columns // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    # Uniform on -127..127 has a standard deviation of 127 / sqrt(3).
    scale = np.array([tensor.scale * 3**0.5 / 127], dtype="<f2")
    blocks[:, :, :2] = scale.view(np.uint8)
    blocks[:, :, 2:] = dice(seed, index, rows * columns).view(np.uint8).reshape(rows, -1, BLOCK)
    if tensor.silent:
        blocks[0] = 0
    return blocks.reshape(rows, -1)


def with_first_column(tensor: Tensor, seed: int, index: int, first: npt.NDArray[np.float32]) -> Bytes:
    """A random Q8_0 matrix whose column 0 is `first` (one number a row)."""
    rows, columns = tensor.shape
    values = dice(seed, index, rows * columns).reshape(rows, columns).astype(np.float32)
    values *= np.float32(tensor.scale * 3**0.5 / 127)
    values[:, 0] = first
    packed: Bytes = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    return packed


def tensor_data(shape: Shape, tokens: list[str], seed: int) -> Iterator[npt.NDArray[np.float32] | Bytes]:
    """The content of every tensor of `layout`, one at a time (a model is larger than it is polite to hold)."""
    for index, tensor in enumerate(layout(shape)):
        if len(tensor.shape) == 1:
            fill = 0.0 if tensor.name.endswith(".bias") else 1.0
            yield np.full(tensor.shape, fill, dtype=np.float32)
        elif tensor.name == "token_embd.weight":
            yield with_first_column(tensor, seed, index, np.full(tensor.shape[0], CONSTANT, dtype=np.float32))
        elif tensor.name == "output.weight":
            yield with_first_column(tensor, seed, index, output_bias(tokens))
        else:
            yield quantised(tensor, seed, index)


def add_metadata(writer: gguf.GGUFWriter, shape: Shape, tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Hyper-parameters, vocabulary and chat template."""
    writer.add_name(f"Dice {shape.layers} layers (random weights)")
    writer.add_description("Random weights for trying out a cluster: what it says is nonsense")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.embedding)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(len(tokens))

    special = [END_OF_TEXT, IM_START, IM_END]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_eos_token_id(tokens.index(IM_END))
    writer.add_eot_token_id(tokens.index(IM_END))
    writer.add_pad_token_id(tokens.index(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_model(path: Path, shape: Shape, tokenizer: Tokenizer, tokens: list[str], seed: int) -> None:
    """Write the file beside `path`, then move it into place: nobody sees half a model."""
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, shape.architecture)
    add_metadata(writer, shape, tokenizer, tokens)
    for tensor in layout(shape):
        if len(tensor.shape) == 1:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.shape[0] * 4)
        else:
            rows, columns = tensor.shape
            stored = (rows, columns // BLOCK * BLOCK_BYTES)
            writer.add_tensor_info(
                tensor.name, stored, np.dtype(np.uint8), stored[0] * stored[1], gguf.GGMLQuantizationType.Q8_0
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in tensor_data(shape, tokens, seed):
        writer.write_tensor_data(data)
    writer.close()
    os.replace(part, path)


def recipe(arguments: argparse.Namespace) -> dict[str, str | int]:
    """Everything that the bytes of the file depend on."""
    sources = hashlib.sha256()
    for path in (Path(__file__), WORDS, ENGLISH):
        sources.update(path.read_bytes())
    return {
        "arch": arguments.arch,
        "megabytes": arguments.megabytes,
        "layers": arguments.layers,
        "seed": arguments.seed,
        "sources": sources.hexdigest(),
        "gguf": version("gguf"),
        "numpy": version("numpy"),
        "tokenizers": version("tokenizers"),
    }


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_current(path: Path, note: Path, wanted: dict[str, str | int]) -> bool:
    """Whether `path` is what the note beside it describes, and the note what is `wanted`."""
    if not (path.is_file() and note.is_file()):
        return False
    try:
        found = json.loads(note.read_text("utf-8"))
    except json.JSONDecodeError:
        return False
    return isinstance(found, dict) and (found.get("recipe"), found.get("bytes")) == (wanted, path.stat().st_size)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the GGUF file to write")
    parser.add_argument("--megabytes", type=int, default=300, help="size of the file in MiB (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=24, help="number of layers (default: %(default)s)")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="llama", help="architecture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another model (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="write it even when the file is there already")
    arguments = parser.parse_args(argv)
    for name in ("megabytes", "layers"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if arguments.seed < 0:
        parser.error("--seed must not be negative")

    wanted = recipe(arguments)
    note = arguments.path.with_name(arguments.path.name + ".json")
    if not arguments.force and is_current(arguments.path, note, wanted):
        print(f"{arguments.path} is there already")
        return 0

    tokenizer = train_tokenizer(VOCABULARY)
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    try:
        shape = fit_shape(arguments.arch, arguments.megabytes, arguments.layers, len(tokens))
    except ValueError as error:
        parser.error(str(error))
    print(
        f"Writing {arguments.path}: {shape.architecture}, {shape.layers} layers of width {shape.embedding}, "
        f"{arguments.megabytes} MiB of random weights",
        flush=True,
    )
    arguments.path.parent.mkdir(parents=True, exist_ok=True)
    # The note goes first: if this is cut short, the next run starts again.
    note.unlink(missing_ok=True)
    write_model(arguments.path, shape, tokenizer, tokens, arguments.seed)
    size, digest = arguments.path.stat().st_size, sha256_of(arguments.path)
    content = {"recipe": wanted, "shape": asdict(shape), "bytes": size, "sha256": digest}
    note.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
    print(f"{size / MIB:.0f} MiB, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
