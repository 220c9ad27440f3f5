#!/usr/bin/env python3
"""How long a header takes to read, and how much memory, beside gguf.GGUFReader in the same run.

    python tests/bench/gguf_speed.py [FILE] [--runs 7]

FILE: a GGUF with a large vocabulary, such as llama.cpp's models/ggml-vocab-gemma-4.gguf; without one, a file is made
that has as many tokens and merges as that, of about the same lengths. Each reader runs in a process of its own, its
start and its imports counted; the memory is the most that the process had. Ours runs several times, and the median
counts. Seconds are those of the processor, so that what else the machine does matters less; neither reader waits for
anything. Prints JSON; exits with 1 when ours is not WANTED_RATIO times faster within WANTED_MIB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import build, pair

COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"
UTILS = "ansible_collections.llamacpp.cluster.plugins.module_utils"
WANTED_RATIO = 100
WANTED_MIB = 64
READERS = {
    "header": f"from {UTILS}._gguf import read_header as read",
    "facts": f"from {UTILS}._read_model import read_model as read",
    "GGUFReader": "from gguf import GGUFReader as read",
    "nothing": "read = len",
}


def gemma_like() -> bytes:
    """Return a file with the vocabulary of gemma-4 in numbers: 262,144 tokens, 514,906 merges, 15.8 MB."""
    dice = random.Random(4)
    tokens = ["t" * dice.randrange(1, 17) for _token in range(262_144)]
    merges = ["m" * dice.randrange(5, 23) for _merge in range(514_906)]
    return build(
        [
            pair("general.architecture", "str", "gemma4"),
            pair("tokenizer.ggml.tokens", "[str]", tokens),
            pair("tokenizer.ggml.scores", "[f32]", [-1000.0] * len(tokens)),
            pair("tokenizer.ggml.token_type", "[i32]", [1] * len(tokens)),
            pair("tokenizer.ggml.merges", "[str]", merges),
        ]
    )


def measure(reader: str, path: str) -> tuple[float, float]:
    """Return seconds and MiB of a process that reads the file."""
    # What getrusage says of memory counts that of the process that started this one.
    code = f"import sys\n{READERS[reader]}\nread(sys.argv[1])\nprint(open('/proc/self/status').read())"
    environment = dict(os.environ, PYTHONPATH=str(COLLECTIONS))
    with subprocess.Popen(
        [sys.executable, "-c", code, path], env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        said = child.stdout.read()
        # Instead of wait, because it tells the time of this child alone.
        _pid, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{reader} failed on {path}")
    kib = next(int(line.split()[1]) for line in said.splitlines() if line.startswith("VmHWM"))
    return usage.ru_utime + usage.ru_stime, kib / 1024


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.file:
        return compare(arguments.file, arguments.runs)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "m.gguf"
        path.write_bytes(gemma_like())
        return compare(str(path), arguments.runs)


def compare(path: str, runs: int) -> int:
    """Print the figures of a file; return 1 when they are not good enough."""
    found: dict[str, dict[str, float]] = {}
    for reader in READERS:
        measured = [measure(reader, path) for _run in range(1 if reader == "GGUFReader" else runs)]
        found[reader] = {
            "seconds": round(statistics.median(seconds for seconds, _mib in measured), 4),
            "mib": round(max(mib for _seconds, mib in measured), 1),
        }
    ratios = {name: round(found["GGUFReader"]["seconds"] / found[name]["seconds"]) for name in ("header", "facts")}
    good = min(ratios.values()) >= WANTED_RATIO and max(found[name]["mib"] for name in ratios) < WANTED_MIB
    print(json.dumps({"file_bytes": os.path.getsize(path), "readers": found, "times_faster": ratios, "good": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
