#!/usr/bin/env python3
"""Fuzz the reader of GGUF headers, guided by coverage (atheris).

    python tests/bench/fuzz_gguf.py [--seconds 600] [--found DIR] [CORPUS ...]

Starts from tests/corpus/gguf and the named directories, runs for so many seconds of one processor, and stops with 1 at
the first file that makes the reader raise anything but GgufError, take a second, or take 128 MiB; that file is left in
--found. What covers new code is gathered there too. A find becomes a file found-*.bin of tests/corpus/gguf.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import time
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

with atheris.instrument_imports(include=["ansible_collections.llamacpp.cluster"]):
    from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, parse_header
    from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, describe, tensor_list

from gguf_mutants import damaged

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "gguf"
MIB = 128


class Fuzzer:
    """Counts what it tries."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.files = 0
        self.good = 0
        self.slowest = 0.0

    def one(self, raw: bytes) -> None:
        """Read a file; raises what must not be raised."""
        self.files += 1
        begun = time.process_time()
        try:
            self.read(raw)
        except GgufError as error:
            str(error).encode()  # it can be printed
            if not (error.field and error.message and 0 <= error.offset <= len(raw)):
                raise RuntimeError("an error that does not say where and why") from error
        took = time.process_time() - begun
        self.slowest = max(self.slowest, took)
        if took > 1:
            raise RuntimeError(f"{took:.1f} s for {len(raw)} bytes")
        if time.process_time() > self.seconds:
            self.report()
            sys.stdout.flush()
            os._exit(0)  # libFuzzer has no other way to end at a time of the processor

    def read(self, raw: bytes) -> None:
        """Do with a file what gguf_info does."""
        for whole in (False, True):
            header = parse_header(io.BytesIO(raw).read, len(raw), whole)
            facts = describe([header], ["m.gguf"])
            again = ModelFacts.from_dict(json.loads(json.dumps(facts.as_dict(), allow_nan=False)))
            assert again == facts
            facts.servable()
            json.dumps(tensor_list([header], ["m.gguf"]))
        self.good += 1

    def report(self) -> None:
        """Print what was done."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        mib = next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        print(
            json.dumps(
                {
                    "files": self.files,
                    "good": self.good,
                    "seconds": round(time.process_time()),
                    "slowest_seconds": round(self.slowest, 3),
                    "mib": mib,
                }
            )
        )


def mutate(raw: bytes, size: int, seed: int) -> bytes:
    """Change a file: half of the time as libFuzzer does, else as gguf_mutants does, which knows odd numbers."""
    dice = random.Random(seed)
    return atheris.Mutate(raw, size) if dice.random() < 0.5 else damaged(dice, raw)[:size]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--found", default=".cache/fuzz-gguf", help="where finds go")
    parser.add_argument("corpus", nargs="*", help="more directories of files to begin with")
    arguments = parser.parse_args()
    os.makedirs(arguments.found, exist_ok=True)
    fuzzer = Fuzzer(arguments.seconds)
    settings = ["-max_len=8192", f"-rss_limit_mb={MIB}", "-timeout=10", "-verbosity=0"]
    settings.append(f"-artifact_prefix={arguments.found}/")
    directories = [arguments.found, str(CORPUS), *arguments.corpus]
    atheris.Setup([sys.argv[0], *settings, *directories], fuzzer.one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
