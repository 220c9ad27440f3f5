"""Tiny real GGUF files for the simulated hub: whole, in shards, of several quantisations."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


def write_model(path: Path, kib: int = 64, seed: int = 1, shards: int = 1, architecture: str = "llama") -> list[Path]:
    """Write a model of about ``kib`` KiB, of random weights, as ``shards`` files; return them in order.

    llama.cpp could not run it, but its header is one of llama.cpp's.
    """
    dice = np.random.default_rng(seed)
    tensors = 2 * shards
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors // shards if shards > 1 else 0)
    writer.add_name(path.stem)
    writer.add_block_count(tensors)
    for number in range(tensors):
        writer.add_tensor(f"blk.{number}.ffn_up.weight", dice.random((kib * 256 // tensors,), dtype=np.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(path.stem + "-0*-of-*.gguf")) if shards > 1 else [path]


def cut_in_pieces(path: Path, count: int) -> list[Path]:
    """Replace a file by ``.part1ofN`` pieces, as publishers did when the hub took 50 GB a file; return them."""
    raw = path.read_bytes()
    step = -(-len(raw) // count)
    pieces = []
    for number in range(count):
        piece = path.with_name(f"{path.name}.part{number + 1}of{count}")
        piece.write_bytes(raw[number * step : (number + 1) * step])
        pieces.append(piece)
    path.unlink()
    return pieces
