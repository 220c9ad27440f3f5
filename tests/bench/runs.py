"""Running Ansible with a stopwatch: wall time, processor time, and what the time went into."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
COLLECTION = "llamacpp.cluster."
STARTING = "(ansible-playbook starts)"
RECAP = "(recap and exit)"
SAY_EVERY = 5.0  # seconds
TAIL = 4000  # characters of a failed run's output that the message shows

_HEADER = re.compile(r"^(PLAY|TASK|RUNNING HANDLER) \[(.*)\] \*+$")
_RECAP_LINE = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)")


class RunFailed(Exception):
    """A run that failed, or did what makes its time worthless. The text says which, and how it ended."""


@dataclass
class Span:
    """All that one run did under one heading."""

    seconds: float = 0.0
    times: int = 0


class Stopwatch:
    """Turns the headings of ansible-playbook's output, as they come, into time.

    A task lasts until the next heading; the same heading again (an included file, for each instance) adds to it.
    """

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {STARTING: Span(times=1)}
        self.changed: dict[str, int] = {}  # node -> changed tasks
        self.current = STARTING
        self._since = 0.0

    def line(self, text: str, at: float) -> None:
        """Take one line of output that came ``at`` seconds after the start."""
        if heading := _HEADER.match(text):
            kind, name = heading.groups()
            self._begin(f"play: {name}" if kind == "PLAY" else name.replace(COLLECTION, ""), at)
        elif text.startswith("PLAY RECAP "):
            self._begin(RECAP, at)
        elif self.current == RECAP and (recap := _RECAP_LINE.match(text)):
            self.changed[recap.group(1)] = int(recap.group(3))

    def stop(self, at: float) -> None:
        """The process ended ``at`` seconds after the start."""
        self.spans[self.current].seconds += at - self._since

    def _begin(self, label: str, at: float) -> None:
        self.stop(at)
        self.current, self._since = label, at
        span = self.spans.setdefault(label, Span())
        span.times += 1


@dataclass(frozen=True)
class Run:
    """One run: wall time, and processor time (user and system) of Ansible's processes and of all nodes', in seconds.

    ``main_cpu`` is that part of ``control_cpu`` which the first process used: more cores or forks do not share it.
    """

    seconds: float
    control_cpu: float
    main_cpu: float
    spans: dict[str, Span]
    changed: dict[str, int]
    nodes_cpu: float = 0.0

    def unchanged(self) -> Run:
        """This run, if it was a no-op. Raises RunFailed when a node reports a change, or no node reports at all."""
        busy = [f"{node}: {changed}" for node, changed in self.changed.items() if changed]
        if busy or not self.changed:
            found = f"changed tasks on {', '.join(busy)}" if busy else "no recap"
            raise RunFailed(f"a run that was to change nothing ended with {found}; its time is not that of a no-op")
        return self


def run(
    command: Sequence[str],
    environment: dict[str, str],
    say: Callable[[str], None],
) -> Run:
    """Run one of Ansible's commands in the repository's root; ``say`` gets a line every few seconds.

    Raises RunFailed with the end of the output when it fails.
    """
    started = said = time.monotonic()
    watch = Stopwatch()
    lines: list[str] = []
    main_cpu = 0.0
    with subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                now = time.monotonic()
                lines.append(line)
                watch.line(line.rstrip("\n"), now - started)
                main_cpu = own_cpu(process.pid, main_cpu)
                if now - said >= SAY_EVERY:
                    said = now
                    say(f"{now - started:.0f} s: {watch.current if watch.current != STARTING else command[0]}")
            _pid, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # also Ctrl-C and SIGTERM: nobody else ends it
            process.terminate()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    watch.stop(seconds)
    if process.returncode != 0:
        raise RunFailed(f"{command[0]} ended with {process.returncode}:\n{''.join(lines)[-TAIL:]}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, main_cpu, watch.spans, watch.changed)


def output(command: Sequence[str], environment: dict[str, str]) -> str:
    """Run one of Ansible's commands in the repository's root; return what it prints. Raises RunFailed."""
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RunFailed(f"{command[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-TAIL:]}")
    return done.stdout


def own_cpu(pid: int, known: float) -> float:
    """Processor seconds of a process without its children; ``known`` when it has just ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return known
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
