# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run llama.cpp's programs until they have said what a model takes, and end them before they load it.

llama-server logs the line ``fit_memory_breakdown`` when it has measured, and goes on to load; llama-fit-params
prints a row a device (``common_memory_breakdown_print``, ``common_fit_print`` in common/fit.cpp, llama.cpp b11434).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused

SERVER, FIT_PARAMS = "llama-server", "llama-fit-params"
MIB = 1 << 20
LAST_LINES = 6

# What llama.cpp says when it does not want settings, and which setting that is.
# Sources: llama_init_from_model and llama_context::llama_context in src/llama-context.cpp,
# llama_model_create in src/llama-model.cpp.
_REFUSALS = (
    (re.compile(r"model does not support different K .* cache types"), "cache_type_v"),
    (re.compile(r"quantized V cache (requires flash_attn|was requested)"), "flash_attn"),
    (re.compile(r"K cache type .* does not divide"), "cache_type_k"),
    (re.compile(r"V cache type .* does not divide"), "cache_type_v"),
    (re.compile(r"SPLIT_MODE_TENSOR (requires|not implemented|does not)"), "split_mode"),
    (re.compile(r"not implemented for SPLIT_MODE_TENSOR"), "split_mode"),
    (re.compile(r"does not support split buffers"), "split_mode"),
    (re.compile(r"n_seq_max must be"), "parallel"),
    (re.compile(r"n_ctx_seq == 0"), "ctx_size"),
    (re.compile(r"unknown model architecture"), "model"),
)
_PREFIX = re.compile(r"^(?:[\d.]+ )?(?:[IWED] )?(?:\w+: )?")
_FIT_ROW = re.compile(r"^(\S+) (\d+) (\d+) (\d+) *$")
# It could not measure. llama-server would now load the model, read all of it, and fail then.
_GAVE_UP = "encountered an error while trying to fit params"

# Of a unit's arguments: keys, which whoever asks may not be able to read, and what a question sets itself.
_NOT_ASKED = (
    "--api-key",
    "--api-key-file",
    "--ssl-key-file",
    "--ssl-cert-file",
    "--log-file",
    "--host",
    "--port",
    "--fit",
)


class OracleError(Exception):
    """llama.cpp gave no answer. ``program``, and the last ``lines`` of what it said."""

    def __init__(self, program: str, message: str, lines: Sequence[str] = ()) -> None:
        said = "; it said last: %s" % " | ".join(lines) if lines else ""
        super().__init__("%s: %s%s" % (program, message, said))
        self.program = program
        self.message = message
        self.lines = tuple(lines)


@dataclass(frozen=True)
class Buffers:
    """Bytes that llama.cpp reserves in one memory, cut to whole MiB."""

    name: str
    model: int
    context: int
    compute: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.model + self.context + self.compute

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "name": self.name,
            "model": self.model,
            "context": self.context,
            "compute": self.compute,
            "total": self.total,
        }


@dataclass(frozen=True)
class Answer:
    """What ``program`` says. ``devices``: in the order of ``--device``."""

    program: str
    devices: tuple[Buffers, ...]
    host: Buffers


def measuring(arguments: Sequence[str]) -> list[str]:
    """Return llama-server's ``arguments`` so that it measures, says so in JSON, and is in nobody's way."""
    words: list[str] = []
    skip = False
    for word in arguments:
        if not skip and word not in _NOT_ASKED:
            words.append(word)
        skip = not skip and word in _NOT_ASKED
    # With --fit on it measures before it loads, whatever else is set. Port 0: any free one.
    return [*words, "--fit", "on", "--host", "127.0.0.1", "--port", "0", "--log-jsonl", "--log-verbosity", "4"]


class _Listener:
    """Gathers what a program says until it has answered."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.rows: list[tuple[str, str, Buffers]] = []
        self.complaints: list[str] = []
        self.answered = False
        self.gave_up = False

    def hear(self, line: str) -> None:
        """Take the next line."""
        if self.program == SERVER and line.startswith("{"):
            try:
                entry = json.loads(line)
            except ValueError:
                return  # cut off when the program was
            if entry.get("type") == "fit_memory_breakdown":
                self._measured(entry["data"]["rows"])
            else:
                self._words(str(entry.get("msg", "")), entry.get("level") in ("error", "warn"))
            return
        row = _FIT_ROW.match(line) if self.program == FIT_PARAMS else None
        if row:
            kind = "host" if row.group(1) == "Host" else "device"
            self.rows.append((kind, row.group(1), _buffers(row.group(1), *map(int, row.groups()[1:]))))
            self.answered = kind == "host"
        else:
            self._words(line, not line.startswith(("D ", "I ")))

    def _words(self, text: str, complaint: bool) -> None:
        for line in text.splitlines():
            self.gave_up = self.gave_up or _GAVE_UP in line
            if complaint and line.strip():
                self.complaints.append(_PREFIX.sub("", line.strip()))

    def _measured(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            name = str(row["name"])
            self.rows.append((row["kind"], name, _buffers(name, row["model"], row["context"], row["compute"])))
        self.answered = True

    def answer(self) -> Answer:
        """Return what was said. Weights that the CPU repacked are in a row of their own, and the host's."""
        at_host = [item for kind, _name, item in self.rows if kind != "device"]
        return Answer(
            self.program,
            tuple(item for kind, _name, item in self.rows if kind == "device"),
            Buffers(
                "host",
                sum(item.model for item in at_host),
                sum(item.context for item in at_host),
                sum(item.compute for item in at_host),
            ),
        )

    def failure(self, message: str) -> Exception:
        """Return the error that fits what was said instead of an answer."""
        for line in self.complaints:
            for pattern, setting in _REFUSALS:
                if pattern.search(line):
                    return Refused(setting, "llama.cpp says: %s" % line)
        return OracleError(self.program, message, self.complaints[-LAST_LINES:])


def _buffers(name: str, model: int, context: int, compute: int) -> Buffers:
    return Buffers(name, model * MIB, context * MIB, compute * MIB)


def run(bin_dir: str, program: str, words: Sequence[str], timeout: float, environment: Mapping[str, str]) -> Answer:
    """Run a program until it has answered, and end it; raises :class:`Refused` or :class:`OracleError`."""
    if "tensor" in words and words[words.index("tensor") - 1] == "--split-mode":
        raise OracleError(program, "llama.cpp measures no tensor split before it loads")
    listener = _Listener(program)
    # Settings in the environment would count as well, and a backtrace through a debugger takes seconds.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_ARG_")}
    clean.update({"GGML_NO_BACKTRACE": "1"}, **environment)
    try:
        process = subprocess.Popen(
            [os.path.join(bin_dir, program), *words],
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise OracleError(program, "it cannot be run from %s: %s" % (bin_dir, error.strerror or error)) from error
    late = threading.Event()

    def give_up() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(timeout, give_up)
    timer.start()
    try:
        for line in process.stdout or ():
            listener.hear(line.rstrip("\n"))
            if listener.answered or listener.gave_up:
                break
    finally:
        timer.cancel()
        _end(process)
        if process.stdout:
            process.stdout.close()
        code = process.wait()
    if listener.answered:
        return listener.answer()
    if listener.gave_up:
        raise listener.failure("it could not measure")
    raise listener.failure("no answer within %g s" % timeout if late.is_set() else "it ended with code %d" % code)


def _end(process: subprocess.Popen[str]) -> None:
    """End the program and what it started; it has a session of its own."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
