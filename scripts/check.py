#!/usr/bin/env python3
"""Run the repository's checks, one stage after the other, and say which of them hold.

Stands on Python's standard library alone, because its first stage is what installs everything else. Each stage says
its place and how long it took. The first failure ends the run, unless KEEP_GOING=1 is set. The last line counts: every
test of pytest is one, and so is every other command.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
REPORTS = ROOT / ".cache" / "report"
OLDEST_MYPY = "3.10"  # nodes have 3.9, which ruff and a Debian 11 node look after; no current mypy does
MODULE_UTILS = "collections/ansible_collections/llamacpp/cluster/plugins/module_utils"


@dataclass(frozen=True)
class Stage:
    """Commands that belong together. All of them run, also when one fails."""

    name: str
    what: str
    commands: tuple[tuple[str, ...], ...]
    report: bool = False  # whether the commands are pytest's, which can count
    asked: bool = False  # whether it runs only when it is asked for by name


@dataclass
class Count:
    """How many tests ended how."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: Count) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def text(self) -> str:
        """In the words of pytest's summary."""
        text = f"{self.passed} passed, {self.failed} failed"
        return f"{text}, {self.skipped} skipped" if self.skipped else text


@dataclass
class Outcome:
    """What became of a stage; `seconds` is wall time."""

    stage: Stage
    seconds: float = 0.0
    status: str = "not run"
    count: Count = field(default_factory=Count)


def pytest(*arguments: str) -> tuple[str, ...]:
    return (str(BIN / "pytest"), *arguments)


STAGES = (
    Stage("setup", "apt packages and .venv", ((sys.executable, "scripts/bootstrap.py"),)),
    Stage(
        "lint",
        "ruff, mypy, yamllint, ansible-lint",
        (
            (str(BIN / "ruff"), "check", "."),
            (str(BIN / "ruff"), "format", "--check", "."),
            (str(BIN / "mypy"),),
            (str(BIN / "mypy"), f"--python-version={OLDEST_MYPY}", MODULE_UTILS),
            (str(BIN / "yamllint"), "--strict", "."),
            (str(BIN / "ansible-lint"),),
        ),
    ),
    Stage("unit", "pytest without nodes", (pytest("-m", "not lab and not truth and not slow_build"),), report=True),
    Stage("truth", "estimates beside llama.cpp's own figures (a minute or two)", (pytest("-m", "truth"),), report=True),
    Stage(
        "sanity",
        "ansible-test sanity (a minute the first time)",
        ((str(BIN / "python"), "scripts/sanity.py"),),
    ),
    Stage(
        "lab",
        "pytest on real nodes (minutes; the first time it builds llama.cpp)",
        (pytest("-m", "lab and not slow_build", "--verbose", "--capture=tee-sys"),),
        True,
    ),
    Stage(
        "molecule",
        "a cluster from nothing, then another build of llama.cpp and back",
        (
            (str(BIN / "molecule"), "test", "--all"),
            # molecule cleans up after every failure but that of `create`; this costs nothing when nothing is left.
            (str(BIN / "molecule"), "destroy", "--scenario-name", "default"),
        ),
    ),
    Stage(
        "cuda",
        "whole builds with CUDA, Vulkan, OpenBLAS, and on a simulated EL host (an hour the first time)",
        (pytest("-m", "slow_build", "--verbose", "--capture=tee-sys"),),
        True,
        asked=True,
    ),
)


def count_of(report: Path) -> Count:
    """What a JUnit report says; raises OSError or ParseError when there is none to read."""
    count = Count()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        count.add(Count(tests - skipped - failed, failed, skipped))
    return count


def environment() -> dict[str, str]:
    """Ours, with .venv first on PATH (molecule and ansible-lint look for ansible there)."""
    colour = {} if sys.stdout.isatty() else {"NO_COLOR": "1"}
    return {**os.environ, **colour, "PATH": f"{BIN}:{os.environ['PATH']}", "VIRTUAL_ENV": str(BIN.parent)}


def run_command(stage: Stage, command: tuple[str, ...]) -> Count:
    """Run one command of a stage, its output going where ours goes."""
    report = REPORTS / f"{stage.name}.xml"
    line = [*command, f"--junit-xml={report}"] if stage.report else list(command)
    report.unlink(missing_ok=True)
    print(f"$ {shlex.join(command)}", flush=True)
    status = subprocess.run(line, cwd=ROOT, env=environment(), check=False).returncode
    if not stage.report:
        return Count(passed=1) if status == 0 else Count(failed=1)
    try:
        count = count_of(report)
    except (OSError, ElementTree.ParseError):
        return Count(failed=1)  # it died before it could report
    if status != 0 and count.failed == 0:
        count.failed = 1  # no tests collected, interrupted, or an error outside the tests
    return count


def run_stage(outcome: Outcome, place: int, total: int) -> None:
    """Run one stage and note in `outcome` what became of it."""
    stage = outcome.stage
    width = min(shutil.get_terminal_size().columns, 120)
    print(f"\n{f'== {place} of {total}: {stage.name}: {stage.what} ':=<{width}}", flush=True)
    started = time.monotonic()
    for command in stage.commands:
        outcome.count.add(run_command(stage, command))
    outcome.seconds = time.monotonic() - started
    outcome.status = "failed" if outcome.count.failed else "passed"
    print(f"== {stage.name}: {outcome.status} in {outcome.seconds:.0f} s", flush=True)


def table(outcomes: list[Outcome]) -> str:
    """The summary: one line a stage."""
    lines = [f"{'stage':<10} {'result':<8} {'seconds':>8}  counted"]
    for outcome in outcomes:
        seconds = f"{outcome.seconds:8.0f}" if outcome.status != "not run" else " " * 8
        counted = outcome.count.text() if outcome.status != "not run" else ""
        lines.append(f"{outcome.stage.name:<10} {outcome.status:<8} {seconds}  {counted}".rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [stage.name for stage in STAGES]
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"which stages, of {', '.join(names)}; default: all but cuda"
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.stages if name not in names]
    if unknown:
        parser.error(f"no stage {unknown[0]!r}; there are {', '.join(names)}")

    wanted = arguments.stages or [stage.name for stage in STAGES if not stage.asked]
    outcomes = [Outcome(stage) for stage in STAGES if stage.name in wanted]
    keep_going = os.environ.get("KEEP_GOING", "") not in ("", "0")
    REPORTS.mkdir(parents=True, exist_ok=True)
    for place, outcome in enumerate(outcomes, start=1):
        run_stage(outcome, place, len(outcomes))
        if outcome.status == "failed" and (not keep_going or outcome.stage.name == "setup"):
            break

    total = Count()
    for outcome in outcomes:
        total.add(outcome.count)
    print(f"\n{table(outcomes)}")
    if any(outcome.status == "not run" for outcome in outcomes):
        print("The first failure ends the run; KEEP_GOING=1 goes on to the end.")
    print(total.text(), flush=True)
    (REPORTS / "total.txt").write_text(total.text() + "\n", "utf-8")
    return 1 if total.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
