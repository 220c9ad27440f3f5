#!/usr/bin/env python3
"""Write the files of this directory that are made by hand, and ask llama.cpp about all of them.

    python tests/corpus/gguf/make.py --library .../libggml-base.so

`*.bin` are GGUF files, good and bad. Those below have the ways in which llama.cpp's own tests/test-gguf.cpp (b11434)
makes files bad, and more; `found-*.bin` were found by fuzzing, and stay. `verdicts.json` says what llama.cpp b11434
makes of each: `ok`, `refused`, or `crashed` (an assertion), as tests/bench/gguf_diff.py asks it.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "collections"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from gguf_diff import Library

from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import build, head, pair, split, string, tensor

HERE = Path(__file__).resolve().parent
GOOD = pair("a", "u32", 1)
EVERY_TYPE = [
    pair("u8", "u8", 200),
    pair("i8", "i8", -100),
    pair("u16", "u16", 60000),
    pair("i16", "i16", -30000),
    pair("u32", "u32", 1 << 31),
    pair("i32", "i32", -(1 << 31)),
    pair("f32", "f32", 0.5),
    pair("bool", "bool", True),
    pair("str", "str", "text"),
    pair("u64", "u64", (1 << 64) - 1),
    pair("i64", "i64", -(1 << 63)),
    pair("f64", "f64", 0.1),
]
ARRAYS = [
    pair("arr " + kind, f"[{kind}]", ["x", "", "long"] if kind == "str" else [0, 1, 1])
    for kind in ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "u64", "i64", "f64")
]


def aligned(value: int, kind: str = "u32") -> bytes:
    """Return the key of the alignment."""
    return pair("general.alignment", kind, value)


def one(info: bytes, data: int = 128, *pairs: bytes) -> bytes:
    """Return a file with one tensor."""
    return build(list(pairs), [info], data=data)


def two(second_offset: int, data: int, *pairs: bytes, shape: tuple[int, ...] = (3,), alignment: int = 32) -> bytes:
    """Return a file with two tensors of the same shape."""
    infos = [tensor("a", shape), tensor("b", shape, offset=second_offset)]
    return build(list(pairs), infos, data=data, alignment=alignment)


def cases() -> dict[str, bytes]:
    """Return the files by name."""
    q4, i8, i64 = 2, 24, 27
    huge = 4 * ((1 << 31) - 1)
    found = {
        "header-empty-file": b"",
        "header-magic-only": b"GGUF",
        "header-bad-magic": b"FUGG" + head(0, 0)[4:],
        "header-version-0": head(0, 0, 0),
        "header-version-1": head(0, 0, 1),
        "header-version-2": head(0, 0, 2),
        "header-version-4": head(0, 0, 4),
        "header-big-endian": b"GGUF" + struct.pack(">Iqq", 3, 0, 0),
        "header-version-65536": head(0, 0, 1 << 16),
        "header-bad-n-tensors": head(-1, 0),
        "header-many-tensors": head(1 << 40, 0),
        "header-bad-n-kv": head(0, -1),
        "header-many-kv": head(0, 1 << 40),
        "header-empty": head(0, 0),
        "header-empty-more-bytes": head(0, 0) + bytes(99),
        "kv-key-too-long": head(0, 1) + struct.pack("<Q", (1 << 64) - 1) + b"key",
        "kv-key-longer-than-file": head(0, 1) + struct.pack("<Q", 100) + b"key",
        "kv-empty-key": build([pair("", "u32", 1)]),
        "kv-key-not-utf8": build([pair(b"\xff\xfe", "u32", 1), pair(b"\xff\xff", "u32", 1)]),
        "kv-key-of-100-kb": build([pair("k" * 100_000, "u32", 1)]),
        "kv-bad-type": head(0, 1) + string("a") + struct.pack("<iB", 13, 0),
        "kv-negative-type": head(0, 1) + string("a") + struct.pack("<iB", -1, 0),
        "kv-duplicate": build([GOOD, pair("b", "u32", 1), GOOD]),
        "kv-missing": head(0, 2) + GOOD,
        "kv-alignment-13": build([aligned(13)]),
        "kv-alignment-0": build([aligned(0)]),
        "kv-alignment-i32": build([aligned(32, "i32")]),
        "kv-alignment-u64": build([aligned(32, "u64")]),
        "kv-alignment-array": build([pair("general.alignment", "[u32]", [32])]),
        "kv-alignment-largest": build([aligned(1 << 31)]),
        "kv-every-type": build(EVERY_TYPE),
        "kv-arrays": build(ARRAYS),
        "kv-bool-2": head(0, 1) + string("a") + struct.pack("<ib", 7, 2),
        "kv-empty-arrays": build([pair("a", "[str]", []), pair("b", "[f64]", [])]),
        "kv-array-of-arrays": head(0, 1) + string("a") + struct.pack("<iiQiQ", 9, 9, 1, 4, 0),
        "kv-empty-array-of-bad-type": head(0, 1) + string("a") + struct.pack("<iiQ", 9, 13, 0),
        "kv-array-too-long": head(0, 1) + string("a") + struct.pack("<iiQ", 9, 0, (1 << 30) + 1),
        "kv-array-length-wraps": head(0, 1) + string("a") + struct.pack("<iiQ", 9, 10, (1 << 61) + 1) + bytes(8),
        "kv-array-longer-than-file": head(0, 1) + string("a") + struct.pack("<iiQ", 9, 4, 3) + bytes(11),
        "kv-strings-longer-than-file": head(0, 1) + string("a") + struct.pack("<iiQ", 9, 8, 3) + bytes(23),
        "kv-string-in-array-too-long": head(0, 1)
        + string("a")
        + struct.pack("<iiQ", 9, 8, 3)
        + struct.pack("<QQ", 0, 1 << 40)
        + bytes(64),
        "kv-string-in-array-wraps": head(0, 1)
        + string("a")
        + struct.pack("<iiQ", 9, 8, 3)
        + struct.pack("<QQ", 0, (1 << 64) - 8)
        + bytes(64),
        "kv-string-not-utf8": build([pair("a", "str", b"\xff")]),
        "kv-string-too-long": head(0, 1) + string("a") + struct.pack("<iQ", 8, 1 << 40),
        "tensors-name-63": one(tensor("n" * 63)),
        "tensors-name-64": one(tensor("n" * 64)),
        "tensors-name-empty": one(tensor("")),
        "tensors-name-not-utf8": one(tensor(b"\xff")),
        "tensors-names-same-before-zero": build([], [tensor(b"a\0b"), tensor(b"a\0c", offset=128)], data=256),
        "tensors-no-dimension": one(tensor(shape=())),
        "tensors-4-dimensions": one(tensor(shape=(2, 2, 2, 4))),
        "tensors-5-dimensions": one(tensor(shape=(2, 2, 2, 2, 2))),
        "tensors-n-dims-huge": one(string("t") + struct.pack("<Iq", (1 << 32) - 1, 1)),
        "tensors-bad-shape": one(tensor(shape=(-1,))),
        "tensors-bad-shape-2": one(tensor(shape=(32, -1))),
        "tensors-zero-dim": one(tensor(shape=(32, 0)), data=0),
        "tensors-zero-first-dim": one(tensor(shape=(0, 32)), data=0),
        "tensors-zero-dim-bad-row": one(tensor(shape=(33, 0), kind=q4), data=0),
        "tensors-zero-dim-overflow": one(tensor(shape=(1 << 40, 0, 1 << 40)), data=0),
        "tensors-ne-too-big": one(tensor(shape=(huge, huge))),
        "tensors-ne-largest": one(tensor(shape=((1 << 62) - 1, 2), kind=i8)),
        "tensors-nbytes-too-big": one(tensor(shape=(1 << 31, 1 << 31), kind=i64)),
        "tensors-nbytes-pad-wrap": one(tensor(shape=(4, (1 << 30) - 1, (1 << 30) + 1))),
        "tensors-nbytes-wrap-in-a-row": one(tensor(shape=((1 << 64) // 18 // 32 * 32 + 32,), kind=q4)),
        "tensors-bad-type": one(tensor(kind=43)),
        "tensors-removed-type": one(tensor(kind=4)),
        "tensors-negative-type": one(tensor(kind=-1)),
        "tensors-row-not-of-blocks": one(tensor(shape=(33,), kind=q4)),
        "tensors-bad-offset": one(tensor(offset=(1 << 64) - 1)),
        "tensors-duplicate-name": build([], [tensor("t"), tensor("t", offset=128)], data=256),
        "tensors-bad-align": build([aligned(13)], [tensor(shape=(3,))], data=64, alignment=13),
        "tensors-inconsistent-align": two(12, 64),
        "tensors-custom-align-1": two(12, 24, aligned(1), alignment=1),
        "tensors-custom-align-128": two(128, 140, aligned(128), alignment=128),
        "tensors-padding-cut": build([], [tensor(shape=(0,))], data=0)[:-1],
        "tensors-missing": head(2, 0) + tensor(),
        "data-whole": two(32, 64),
        "data-last-padding-missing": two(32, 44),
        "data-not-enough": two(32, 43),
        "data-none": two(32, 0),
        "data-mem-size-overflow": build(
            [],
            [
                tensor("a", ((1 << 63) - 64,), i8),
                tensor("b", ((1 << 63) - 64,), i8, offset=(1 << 63) - 64),
            ],
            data=32,
        ),
        "data-more-than-enough": two(32, 999),
        "split-first": split(2)[0],
        "split-second": split(2)[1],
    }
    for cut in (3, 7, 15, 23, 24, 40, 60):
        found[f"cut-at-{cut}"] = one(tensor(), 128, GOOD)[:cut]
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--library", required=True, help="libggml-base.so of llama.cpp b11434")
    library = Library(parser.parse_args().library)
    for path in HERE.glob("*.bin"):
        if not path.name.startswith("found-"):
            path.unlink()
    for name, raw in cases().items():
        (HERE / f"{name}.bin").write_bytes(raw)
    verdicts = {path.name: library.verdict(str(path)) for path in sorted(HERE.glob("*.bin"))}
    (HERE / "verdicts.json").write_text(json.dumps(verdicts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
