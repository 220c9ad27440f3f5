# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run commands whose output is read while they work; AnsibleModule.run_command hands it over at the end only."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Callable


def run_streaming(argv: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None]) -> int:
    """Run a command, give each line of its output and errors to ``on_line``; return its exit code."""
    with subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            on_line(line)
    return process.returncode


def run_with_status(
    argv: Callable[[int], Sequence[str]], environment: Mapping[str, str], on_status: Callable[[str], None]
) -> tuple[int, str]:
    """Run a command that writes its state to a file descriptor of its own, as apt does.

    ``argv`` gets the number of that descriptor. Returns exit code and output.
    """
    reader, writer = os.pipe()
    # A file, not a pipe: nobody reads the output while the state is read.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        with subprocess.Popen(
            argv(writer),
            env=environment,
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process:
            os.close(writer)
            with os.fdopen(reader, encoding="utf-8", errors="replace") as status:
                for line in status:
                    on_status(line)
        output.seek(0)
        return process.returncode, output.read()
