# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A llama-server of one's own for a moment: on a free port of the loopback, stopped by its own process id."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._proof import model_buffers
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

HOST = "127.0.0.1"
# CUDA compiles for GPUs that a release holds no machine code for; that takes minutes and is worth knowing as slow.
START_SECONDS = 180.0
ANSWER_SECONDS = 60.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.1
CONTEXT = 256
TAIL_BYTES = 1500


class TrialServer:
    """Context manager around one server process with one model on the given devices (none: the CPU)."""

    def __init__(self, binary: str, model: str, devices: Sequence[str], environment: Mapping[str, str]) -> None:
        self.argv = [binary, "--model", model, "--host", HOST, "--ctx-size", str(CONTEXT), "--parallel", "1"]
        self.argv += ["--fit", "off", "--gpu-layers", "99", "--device", ",".join(devices) or "none"]
        # The log of a load names the buffer of each device at this verbosity alone.
        self.argv += ["--verbosity", "4"]
        if len(devices) > 1:
            self.argv += ["--split-mode", "layer", "--tensor-split", ",".join("1" for _device in devices)]
        self.environment = environment

    def __enter__(self) -> TrialServer:
        self.log = tempfile.TemporaryFile()
        self.port = _free_port()
        try:
            self.process = subprocess.Popen(
                [*self.argv, "--port", str(self.port)],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            self.log.close()
            raise ReleaseError("%s cannot be run: %s" % (self.argv[0], error.strerror)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS)
        self.log.close()

    def complete(self, prompt: str, tokens: int) -> str:
        """Wait until the server is ready; return what it says behind ``prompt``. Raises :class:`ReleaseError`."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise self._failure("ended while it loaded a model (%s)" % ended(self.process.returncode))
            try:
                if self._ask("GET", "/health", None, 5.0)[0] == 200:
                    break
            except (OSError, http.client.HTTPException):
                pass
            if time.monotonic() > deadline:
                raise self._failure("was not ready within %d s" % START_SECONDS)
            time.sleep(POLL_SECONDS)
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "cache_prompt": False}
        try:
            status, said = self._ask("POST", "/completion", body, ANSWER_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            raise self._failure("did not answer a completion (%s)" % error) from error
        if status != 200 or "content" not in said:
            raise self._failure("answered a completion with %d %s" % (status, said))
        return str(said["content"])

    def buffers(self) -> dict[str, float]:
        """Return the model buffers that the log tells of, in MiB by device."""
        return model_buffers(self._said())

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout)
        try:
            connection.request(
                method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        try:
            said = json.loads(raw)
        except ValueError:
            said = None
        return response.status, said if isinstance(said, dict) else {}

    def _said(self) -> str:
        # Not read(): the server writes where this file's one position is.
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0).decode(errors="replace")

    def _failure(self, what: str) -> ReleaseError:
        return ReleaseError(
            "llama-server with a tiny model %s. The end of its log:\n%s" % (what, self._said().strip()[-TAIL_BYTES:])
        )


def ended(code: int) -> str:
    """Say how a process ended; ``code`` as :mod:`subprocess` gives it."""
    if code == -signal.SIGILL:
        return "signal 4: it uses an instruction that the CPU of this node does not have"
    return "signal %d" % -code if code < 0 else "exit code %d" % code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
