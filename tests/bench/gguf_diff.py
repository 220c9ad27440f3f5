#!/usr/bin/env python3
"""Do our reader of GGUF headers and llama.cpp's agree on which files are good?

    python tests/bench/gguf_diff.py --library .../libggml-base.so [--count 20000] [--seed 1] [--keep DIR] [FILE ...]

Asks both about files that are a little wrong (gguf_mutants.py), or about the named ones, and prints where they
differ. llama.cpp's verdict is gguf_init_from_file's, as its model loader calls it, and that loader's test of
whether every tensor is within the file. Exits with 1 when there is a difference that is not one of STRICTER.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

from gguf_mutants import mutants

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, read_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import describe

# What we refuse on purpose although llama.cpp goes on: counts.
STRICTER = ("not believable",)
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
OK, REFUSED, CRASHED = "ok", "refused", "crashed"


class _Parameters(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


class Library:
    """llama.cpp's libggml-base, asked in a process of its own for each file, because it may abort."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.init = library.gguf_init_from_file
        self.init.restype = ctypes.c_void_p
        self.init.argtypes = (ctypes.c_char_p, _Parameters)
        self.count = library.gguf_get_n_tensors
        self.name = library.gguf_get_tensor_name
        self.start = library.gguf_get_data_offset
        self.offset = library.gguf_get_tensor_offset
        self.size = library.gguf_get_tensor_size
        for function, kind in (
            (self.count, ctypes.c_int64),
            (self.name, ctypes.c_char_p),
            (self.start, ctypes.c_size_t),
            (self.offset, ctypes.c_size_t),
            (self.size, ctypes.c_size_t),
        ):
            function.restype = kind
            function.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        for function in (self.count, self.start):
            function.argtypes = (ctypes.c_void_p,)

    def verdict(self, path: str) -> str:
        """Return what llama.cpp makes of a file."""
        child = os.fork()
        if not child:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            os._exit(0 if self._good(path) else 1)
        _child, status = os.waitpid(child, 0)
        return CRASHED if os.WIFSIGNALED(status) else REFUSED if os.WEXITSTATUS(status) else OK

    def _good(self, path: str) -> bool:
        tensors = ctypes.c_void_p()
        context = self.init(path.encode(), _Parameters(True, ctypes.pointer(tensors)))
        if not context:
            return False
        names = set()
        length = os.path.getsize(path)
        for number in range(self.count(context)):
            name = self.name(context, number)
            end = self.start(context) + self.offset(context, number) + self.size(context, number)
            if name in names or end > length:
                return False
            names.add(name)
        return True


def ours(path: str) -> tuple[str, str]:
    """Return what we make of a file, and why."""
    try:
        header = read_header(path)
    except GgufError as error:
        return REFUSED, str(error)
    try:
        describe([header], [os.path.basename(path)])
    except GgufError as error:
        # A file of a set is no whole model, which llama.cpp sees later than here.
        return (OK, "") if error.field in SPLIT_KEYS else (REFUSED, str(error))
    return OK, ""


def compare(library: Library, path: str) -> tuple[str, str]:
    """Return how the two verdicts relate, and our reason."""
    theirs = library.verdict(path)
    mine, why = ours(path)
    if (mine == OK) == (theirs == OK):
        return "both " + (OK if mine == OK else REFUSED), why
    if mine == REFUSED and any(words in why for words in STRICTER):
        return "stricter on purpose", why
    return f"DIFFERENT: llama.cpp {theirs}, ours {mine}", why


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--library", required=True, help="libggml-base.so of llama.cpp")
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where to put files that are judged differently")
    parser.add_argument("files", nargs="*")
    arguments = parser.parse_args()
    library = Library(arguments.library)
    tally: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "m.gguf")
        following = mutants(arguments.seed)
        for number in range(len(arguments.files) or arguments.count):
            if arguments.files:
                path = arguments.files[number]
            else:
                Path(path).write_bytes(following())
            outcome, why = compare(library, path)
            tally[outcome] += 1
            if outcome.startswith("DIFFERENT"):
                print(f"{outcome}: file {number}: {why or path}")
                if arguments.keep:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    (arguments.keep / (f"{arguments.seed}-{number}.gguf")).write_bytes(Path(path).read_bytes())
    print(json.dumps({"seconds": round(time.monotonic() - begun, 1), **dict(sorted(tally.items()))}))
    return 1 if any(outcome.startswith("DIFFERENT") for outcome in tally) else 0


if __name__ == "__main__":
    sys.exit(main())
