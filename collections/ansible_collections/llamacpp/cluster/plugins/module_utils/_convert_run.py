# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run convert_hf_to_gguf.py and llama-quantize: what they say as progress, and what it means when they fail.

The words are those of llama.cpp b11434 (convert_hf_to_gguf.py, conversion/base.py, gguf-py/gguf/gguf_writer.py,
tools/quantize/quantize.cpp, src/llama-quant.cpp), of Python and of PyTorch 2.13.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming
from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_source import ConvertError
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import amount

# Kept of what a tool says, and shown when nothing better is known.
KEPT_LINES = 400
SHOWN_LINES = 8
# What decides the bytes of the result, beside the converter itself.
PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "sentencepiece", "protobuf", "safetensors")
NEEDED = ("torch", "numpy", "transformers", "sentencepiece")

_LOOKED_AT = re.compile(r"^INFO:hf-to-gguf:\S+,\s+\S+ --> ")
_WRITING = re.compile(r"^Writing:\s+\d+%\|.*\|\s*[\d.]+\w?/(?P<total>[\d.]+)(?P<unit>[kMGTP]?) ")
_QUANTIZED = re.compile(r"\[\s*(\d+)/\s*(\d+)\]\s")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
# Lines that only count, repeat what is in the model, or point at a place in the line above (Python 3.11).
_NOISE = re.compile(r"^(Writing:|INFO:hf-to-gguf:\S+,\s|llama_model_loader: |\[\s*\d+/\s*\d+\]|[\s^~]*$)")

# The first that matches counts: a full disk or a killed tool breaks anything else as well.
_CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|Disk quota exceeded|Not enough free space to write|iostream error",
        "the disk of the store is full: free some space, or set llamacpp_models_dir to another disk",
    ),
    (
        r"MemoryError|std::bad_alloc|can't allocate memory|[Cc]annot allocate memory",
        "it got no memory: convert on a node with more, or name another one (llamacpp_models_fetcher)",
    ),
    (
        r"ERROR:hf-to-gguf:Model (?P<what>\S+) is not supported",
        "the converter of this llama.cpp does not know the architecture %(what)s: set llamacpp_release to a newer one, "
        "or look for a repository that has GGUF",
    ),
    (
        r"BPE pre-tokenizer was not recognized",
        "the converter of this llama.cpp does not know the tokenizer: set llamacpp_release to a newer one, "
        "or look for a repository that has GGUF",
    ),
    (
        r"contains custom code which must be executed",
        "its tokenizer is Python code of the repository, which the converter does not run for this architecture: look "
        "for a repository that has GGUF",
    ),
    (
        r"does not appear to have a file named (?P<what>\S+\.py)|requires you to execute the (?P<what2>\S+ \S+) file",
        "the repository wants Python code of its own to run, and that is withheld: read it, and set trust_code if it "
        "shall run",
    ),
    (
        r"No module named '(?P<what>[^']+)'",
        "the virtual environment has no %(what)s: let the role make it again",
    ),
    (
        r"requires an i(mportance )?matrix|[Mm]issing importance matrix",
        "so few bits need an importance matrix: give imatrix, or choose a quantisation of 3 bits or more",
    ),
    (
        r"invalid ftype '(?P<what>[^']+)'",
        "llama-quantize does not know the quantisation %(what)s: `llama-quantize --help` lists those that it knows",
    ),
    (
        r"requantizing from type (?P<what>\S+) is disabled",
        "it is quantised already (%(what)s): choose outtype f16, bf16 or f32 with quant",
    ),
)


@dataclass
class Said:
    """What a tool has said so far: the end of it, for messages."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))

    def add(self, line: str) -> None:
        """Take a line; those that only count do not push others out."""
        if not _NOISE.match(line):
            self.lines.append(line.rstrip())

    def tail(self) -> str:
        """Return the last lines."""
        return "\n".join(list(self.lines)[-SHOWN_LINES:])


def environment(work: str, threads: int, mark: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a tool: nothing of the operator's, no network, no GPU. ``work``: its scratch."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        "HOME": work,
        "TMPDIR": work,
        "HF_HOME": os.path.join(work, "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        **mark,
    }


def packages(python: str) -> dict[str, str]:
    """Return the versions of Python and of :data:`PACKAGES` in a virtual environment.

    Raises :class:`ConvertError` when it is not there or lacks what the converter imports.
    """
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError:\n"
        "        pass\n"
        "print(json.dumps(found))\n"
    )
    try:
        done = subprocess.run(
            [python, "-I", "-c", code, *PACKAGES], capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False
        )
    except OSError as error:
        raise ConvertError("python = %s: %s: let the role make the virtual environment" % (python, error)) from error
    if done.returncode:
        raise ConvertError("python = %s does not run: %s" % (python, done.stderr.strip()))
    found: dict[str, str] = json.loads(done.stdout)
    absent = [name for name in NEEDED if name not in found]
    if absent:
        raise ConvertError(
            "python = %s has no %s: the converter needs a virtual environment with %s"
            % (python, ", ".join(absent), ", ".join(NEEDED))
        )
    return found


def convert(argv: Sequence[str], env: Mapping[str, str], result: str, tensors: int, say: Callable[[str], None]) -> None:
    """Run the converter. ``result``: the file that it writes. ``tensors``: how many it will look at.

    Raises :class:`ConvertError` with what it means when it fails.
    """
    said, looked_at, started = Said(), 0, time.monotonic()

    def read(line: str) -> None:
        nonlocal looked_at, started
        said.add(line)
        writing = _WRITING.match(line)
        if writing:
            total = int(float(writing.group("total")) * _UNITS[writing.group("unit")])
            say("converting: %s" % amount(_size(result), total, started, time.monotonic()))
        elif _LOOKED_AT.match(line):
            looked_at += 1
            # Nothing is written yet: the converter makes tensors when their turn comes.
            started = time.monotonic()
            say("converting: looked at %d of about %d tensors" % (looked_at, tensors))

    _run(argv, env, read, said, "convert_hf_to_gguf.py")


def quantize(argv: Sequence[str], env: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Run llama-quantize. Raises :class:`ConvertError` with what it means when it fails."""
    said = Said()

    def read(line: str) -> None:
        said.add(line)
        step = _QUANTIZED.search(line)
        if step:
            done, total = int(step.group(1)), int(step.group(2))
            say("quantizing: tensor %d of %d, %d %%" % (done, total, 100 * done // total))

    _run(argv, env, read, said, "llama-quantize")


def failure(tool: str, rc: int, said: str, shown: str) -> str:
    """Return the message of a tool that failed. ``rc``: its exit code, or minus the signal that killed it."""
    for pattern, advice in _CAUSES:
        match = re.search(pattern, said)
        if match:
            return "%s failed: %s\nIts last words:\n%s" % (tool, advice % match.groupdict(), shown)
    if rc == -9:
        return (
            "%s was killed, most likely because memory ran out: convert on a node with more; a second run begins anew"
            % (tool)
        )
    if rc < 0:
        return "%s was killed by signal %d; a second run begins anew\nIts last words:\n%s" % (tool, -rc, shown)
    return "%s failed (exit code %d). Its last words:\n%s" % (tool, rc, shown)


def _run(argv: Sequence[str], env: Mapping[str, str], read: Callable[[str], None], said: Said, tool: str) -> None:
    try:
        rc = run_streaming(argv, env, read)
    except OSError as error:
        raise ConvertError("%s does not start: %s" % (argv[0], error)) from error
    if rc:
        raise ConvertError(failure(tool, rc, "\n".join(said.lines), said.tail()))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
