# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run what a build runs: with the toolchain's environment, into a log, as progress."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._causes import failure
from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

# ninja: "[12/230] Building"; make: "[ 12%] Building"
_STEP = re.compile(r"^\[\s*(\d+)(?:/(\d+)|%)\]")
# Sources every script, says nothing of what they say, and prints what they made of the environment.
_ENABLE = 'for script; do . "$script" >&2 || exit 1; done; exec env -0'


def enabled(environment: Mapping[str, str], scripts: Sequence[str]) -> dict[str, str]:
    """Return an environment after bash has sourced ``scripts``, as ``/opt/rh/gcc-toolset-12/enable``.

    Raises :class:`ReleaseError` when one is absent or fails.
    """
    if not scripts:
        return dict(environment)
    for script in scripts:
        if not os.path.isfile(script):
            raise ReleaseError("%s is not there on the builder: is the toolchain installed?" % script)
    done = subprocess.run(
        ["bash", "-c", _ENABLE, "enable", *scripts],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
        errors="surrogateescape",
    )
    if done.returncode:
        raise ReleaseError("cannot source %s: %s" % (" ".join(scripts), done.stderr.strip()))
    found = dict(entry.partition("=")[::2] for entry in done.stdout.split("\0") if "=" in entry)
    # What bash sets for itself is no part of the toolchain.
    return {name: value for name, value in found.items() if name in environment or name not in ("_", "SHLVL", "PWD")}


class Runner:
    """Runs commands of one build."""

    def __init__(self, environment: Mapping[str, str], log_path: str, say: Callable[[str], None]) -> None:
        """``log_path``: gets everything that commands say. ``say``: gets steps as progress."""
        self.environment = dict(environment)
        self.log_path = log_path
        self._say = say

    def note(self, text: str) -> None:
        """Write a text into the log."""
        with open(self.log_path, "a", encoding="utf-8") as log:
            log.write(text if text.endswith("\n") else text + "\n")

    def run(self, argv: Sequence[str]) -> None:
        """Run a command; raise :class:`ReleaseError` with the probable cause and the log's end when it fails."""
        with open(self.log_path, "a", encoding="utf-8") as log:
            log.write("+ %s\n" % " ".join(argv))

            def read(line: str) -> None:
                log.write(line)
                step = _STEP.match(line)
                if step:
                    done, total = int(step.group(1)), int(step.group(2) or 100)
                    self._say("compiling llama.cpp: %d %% (%d of %d)" % (100 * done // total, done, total))

            try:
                rc = run_streaming(argv, self.environment, read)
            except FileNotFoundError as error:
                raise ReleaseError("no command %s on the builder: install it" % argv[0]) from error
            if rc < 0:
                log.write("%s was killed by signal %d\n" % (argv[0], -rc))
        if rc:
            with open(self.log_path, encoding="utf-8", errors="replace") as stream:
                raise ReleaseError(failure(" ".join(argv[:2]), stream.read(), self.log_path))

    def output(self, argv: Sequence[str]) -> str:
        """Run a command and return what it prints. Raises :class:`ReleaseError` when it fails or is not there."""
        try:
            done = subprocess.run(
                argv,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                text=True,
                errors="replace",
            )
        except FileNotFoundError as error:
            raise ReleaseError("no command %s on the builder" % argv[0]) from error
        if done.returncode:
            raise ReleaseError("%s failed: %s" % (" ".join(argv), (done.stderr or done.stdout).strip()))
        return done.stdout
