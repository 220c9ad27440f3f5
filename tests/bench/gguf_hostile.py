#!/usr/bin/env python3
"""GGUF files that are made to take long or to fill memory, and what they take.

    python tests/bench/gguf_hostile.py

Prints JSON: for each file, what became of it, seconds of processor and MiB of the process that read and described it.
Exits with 1 when one takes a second or 128 MiB.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import build, head, pair, string, tensor

COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"
SECONDS = 1.0
MIB = 128
ARRAY, STR, U8, U64 = 9, 8, 0, 10
READ = """
import json, sys
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import read_model
try:
    facts = read_model(sys.argv[1])
    facts.servable()
    json.dumps(facts.as_dict(), allow_nan=False)
    print("read")
except GgufError as error:
    print("%s at %d: %s" % (error.field, error.offset, error.message))
# What getrusage says counts the memory of the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
Maker = Callable[[Path], None]


def array(key: str, kind: int, count: int) -> bytes:
    """Return the beginning of an array."""
    return string(key) + struct.pack("<iiQ", ARRAY, kind, count)


def written(raw: Callable[[], bytes], size: int = 0) -> Maker:
    """Return what writes a file, with a hole behind it up to ``size`` bytes."""

    def make(path: Path) -> None:
        path.write_bytes(raw())
        os.truncate(path, max(size, path.stat().st_size))

    return make


def pieces(parts: Callable[[], Iterator[tuple[int, bytes]]], size: int) -> Maker:
    """Return what writes a file of ``size`` bytes that has holes between its parts: (offset, bytes)."""

    def make(path: Path) -> None:
        with path.open("wb") as stream:
            for offset, raw in parts():
                stream.seek(offset)
                stream.write(raw)
        os.truncate(path, size)

    return make


def far_strings(length: int, count: int) -> Maker:
    """Return a file with an array of long strings, all of them holes."""
    start = head(0, 1) + array("a", STR, count)

    if length < 4096:  # a hole would take no less
        return written(lambda: start + (struct.pack("<Q", length) + bytes(length)) * count)

    def parts() -> Iterator[tuple[int, bytes]]:
        yield 0, start
        for number in range(count):
            yield len(start) + number * (length + 8), struct.pack("<Q", length)

    return pieces(parts, len(start) + count * (length + 8))


def long_values(count: int, length: int) -> Maker:
    """Return a file with many long strings as values, all of them holes."""

    def parts() -> Iterator[tuple[int, bytes]]:
        yield 0, head(0, count)
        at = 24
        for number in range(count):
            raw = string(f"k{number:05d}") + struct.pack("<iQ", STR, length)
            yield at, raw
            at += len(raw) + length

    return pieces(parts, 24 + count * (14 + 12 + length))


def deep(count: int) -> bytes:
    """Return a file with an array of arrays of arrays."""
    return head(0, 1) + string("a") + struct.pack("<i", ARRAY) + struct.pack("<iQ", ARRAY, 1) * count


def files() -> dict[str, Maker]:
    """Return what makes each file, by name."""
    giant = (1 << 64) - 1
    return {
        "tensors": written(
            lambda: build(
                [],
                [tensor(f"blk.{index:05d}.".ljust(63, "n"), (1, 1, 1, 32), 24, 32 * index) for index in range(1 << 15)],
                32 << 15,
            )
        ),
        "tensors in many groups": written(
            lambda: build(
                [],
                [tensor(f"t{number:05d}".ljust(63, "n"), (1, 1, 1, 32), 24, 32 * number) for number in range(1 << 15)],
                32 << 15,
            )
        ),
        "keys": written(lambda: build([pair(f"general.{number:05d}", "u8", 1) for number in range(1 << 14)])),
        "hyperparameters": written(
            lambda: build(
                [pair("general.architecture", "str", "x")]
                + [pair(f"x.{number:05d}", "[u8]", [1] * 20) for number in range((1 << 14) - 1)]
            )
        ),
        "long keys": written(lambda: build([pair(f"{number:05d}" * 390, "u8", 1) for number in range(1 << 14)])),
        "arrays that are just kept": written(
            lambda: build([pair(f"{number:05d}", "[u8]", [1] * 4096) for number in range(3000)])
        ),
        "strings without characters": written(lambda: head(0, 1) + array("a", STR, 1 << 23), (1 << 26) + 64),
        "strings beyond belief": written(lambda: head(0, 1) + array("a", STR, 1 << 29), (1 << 33) + 64),
        "long strings in an array": far_strings(65536, 4000),
        "longer strings in an array": far_strings(1 << 20, 400),
        "as many strings as a vocabulary has, longer": far_strings(999, 100_000),
        "long strings": long_values(1 << 14, 65536),
        "longer strings": long_values(1 << 14, 65537),
        "arrays of a gibibyte": written(lambda: head(0, 2) + array("a", U64, 1 << 30), (1 << 33) + (1 << 20)),
        "nested arrays": written(lambda: deep(100_000)),
        "counts of 2^64": written(lambda: head(-1, -1)),
        "a string of 2^64": written(lambda: head(0, 1) + struct.pack("<Q", giant)),
        "an array of 2^64": written(lambda: head(0, 1) + array("a", U8, giant)),
        "dimensions of 2^63": written(lambda: build([], [tensor(shape=((1 << 63) - 1,) * 4)])),
        "a hole of a tebibyte": written(lambda: b"GGUF" + struct.pack("<I", 3), 1 << 40),
        "a hole of zeros": written(lambda: head(1 << 15, 1 << 14), 1 << 40),
    }


def measure(path: Path) -> tuple[str, float, float]:
    """Return what became of a file, and the seconds and MiB of the process that looked at it."""
    environment = dict(os.environ, PYTHONPATH=str(COLLECTIONS))
    command = [sys.executable, "-c", READ, str(path)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        assert child.stdout
        said = child.stdout.read()
        # Instead of wait, because it tells the time of this child alone.
        _pid, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(said)
    outcome, _newline, kib = said.strip().rpartition("\n")
    return outcome, usage.ru_utime + usage.ru_stime, int(kib) / 1024


def main() -> int:
    """Entry point."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, make in files().items():
            path = Path(directory) / "m.gguf"
            make(path)
            outcome, seconds, mib = measure(path)
            found[name] = {"outcome": outcome[-200:], "seconds": round(seconds, 3), "mib": round(mib, 1)}
            path.unlink()
    print(json.dumps(found, indent=1))
    return 0 if all(item["seconds"] < SECONDS and item["mib"] < MIB for item in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
