#!/usr/bin/env python3
"""Measure everything, or one part of it: make bench [ARGS='PART [its arguments]'].

Parts run one after the other, each as a program of its own that can also be run alone. Their figures are kept in
docs/bench/PART.json, with the date, the commit and the processor; arguments of a part are for looking, so nothing is
kept then (`site` decides that for itself). Exits with 1 when a part did, and says which.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
RESULTS = ROOT / "docs" / "bench"
sys.path[:0] = [str(ROOT / "scripts"), str(HERE)]

from bench import processor, revision  # noqa: E402
from bootstrap import requirements  # noqa: E402


@dataclass(frozen=True)
class Part:
    """A program of this directory. ``prints``: whether it prints its figures as JSON, instead of keeping them."""

    program: str
    what: str
    prints: bool = True
    group: str = ""  # of pyproject.toml, which it needs beside what `make setup` installs
    kept: tuple[str, ...] = ()  # arguments with which it keeps its figures itself


PARTS = {
    "gguf_speed": Part("gguf_speed.py", "a header of 16 MB beside gguf.GGUFReader; half a minute"),
    "gguf_hostile": Part("gguf_hostile.py", "files made to fill memory or to take for ever; seconds"),
    "accuracy": Part(
        "accuracy.py",
        "estimates beside llama.cpp's own figures; a minute or two",
        prints=False,
        kept=("--json", str(RESULTS / "accuracy.json")),
    ),
    "plan_speed": Part("plan_speed.py", "a plan of 64 nodes with 8 GPUs, 10 instances, 20 quantisations; seconds"),
    "fuzz_gguf": Part("fuzz_gguf.py", "ten minutes of files that coverage guides into the reader", group="bench"),
    "builds": Part("builds.py", "compile, push, flip, disk, on up to 8 nodes; half an hour, as root"),
    "models": Part("models.py", "models to nodes, hashing, head starts, on up to 9 nodes; most of an hour, as root"),
    "site": Part("bench.py", "runs that change nothing, on up to 24 nodes; an hour, as root", prints=False),
}


def say(text: str) -> None:
    """One line of progress."""
    print(f"[bench] {text}", flush=True)


def last_json(text: str) -> object:
    """Return what a part printed last; ValueError when that is no JSON, on one line or on all that there are."""
    text = text.strip()
    return json.loads(text if text.startswith("{\n") else text.rpartition("\n")[2])


def install(group: str) -> None:
    """Install a group of pyproject.toml into the environment that this runs in, unless it is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wanted = requirements(project, group)
    names = [requirement.partition("==")[0] for requirement in wanted]
    if all(importlib.util.find_spec(name) for name in names):
        return
    say(f"installing {', '.join(wanted)}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)


def run(name: str, arguments: list[str]) -> bool:
    """Run a part and keep its figures; return whether it was satisfied."""
    part = PARTS[name]
    if part.group:
        install(part.group)
    command = [sys.executable, str(HERE / part.program), *(arguments or part.kept)]
    if not part.prints or arguments:
        return subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        return False
    kept = {"date": date.today().isoformat(), "revision": revision(), "processor": processor()}
    kept["figures"] = last_json(done.stdout)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    say(f"written: {path.relative_to(ROOT)}")
    return True


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:<13} {part.what}" for name, part in PARTS.items()),
    )
    parser.add_argument("part", nargs="?", choices=list(PARTS), help="measure this alone")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the part, such as --help")
    given = parser.parse_args()
    failed = []
    names = [given.part] if given.part else list(PARTS)
    for place, name in enumerate(names, start=1):
        say(f"part {place} of {len(names)}: {name}, {PARTS[name].what}")
        begun = time.monotonic()
        if not run(name, given.arguments):
            failed.append(name)
        say(f"{name}: {'not as promised' if name in failed else 'done'} after {time.monotonic() - begun:.0f} s")
    if failed:
        say(f"see above: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
