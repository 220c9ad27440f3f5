#!/usr/bin/env python3
"""How long a header takes to read, and how much memory, beside gguf.GGUFReader in the same run.

    python tests/bench/gguf_speed.py FILE [--runs 7]

FILE: a GGUF with a large vocabulary, such as llama.cpp's models/ggml-vocab-gemma-4.gguf. Each reader runs in a process
of its own, its start and its imports counted; the memory is the most that the process had. Ours runs several times, and
the median counts. Prints JSON; exits with 1 when ours is not WANTED_RATIO times faster within WANTED_MIB. Seconds are
those of the processor, so that what else the machine does matters less; neither reader waits for anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

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


def measure(reader: str, path: str) -> tuple[float, float]:
    """Return seconds and MiB of a process that reads the file."""
    code = f"import sys\n{READERS[reader]}\nread(sys.argv[1])"
    environment = dict(os.environ, PYTHONPATH=str(COLLECTIONS))
    child = subprocess.Popen([sys.executable, "-c", code, path], env=environment)
    # wait4 instead of wait, because it tells the memory of this child alone.
    _pid, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{reader} failed on {path}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for reader in READERS:
        runs = [measure(reader, arguments.file) for _run in range(1 if reader == "GGUFReader" else arguments.runs)]
        found[reader] = {
            "seconds": round(statistics.median(seconds for seconds, _mib in runs), 4),
            "mib": round(max(mib for _seconds, mib in runs), 1),
        }
    ratios = {name: round(found["GGUFReader"]["seconds"] / found[name]["seconds"]) for name in ("header", "facts")}
    good = min(ratios.values()) >= WANTED_RATIO and max(found[name]["mib"] for name in ratios) < WANTED_MIB
    print(
        json.dumps(
            {"file_bytes": os.path.getsize(arguments.file), "readers": found, "times_faster": ratios, "good": good}
        )
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
