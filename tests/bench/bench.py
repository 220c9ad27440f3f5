#!/usr/bin/env python3
"""Measure what running the collection costs where nothing has to be done, and how that grows with the nodes.

The parts:
  noop             a run of site.yml that changes nothing beside `ansible all -m ansible.builtin.setup`, three nodes,
                   in turns
  scale            the same with more and more nodes, one instance for every three of them: what a node adds
  second-instance  deploying a second instance of a model that is there, on nodes that have all it needs

The nodes are those of the lab `bench`, which is taken down afterwards. The first run compiles llama.cpp when the
control node has no release in its cache: minutes, which no figure contains. The figures are printed, kept in
docs/bench/site.json and written into docs/bench.md.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from benchlab import NODES_AN_INSTANCE, BenchLab
from figures import (
    Figures,
    PageError,
    compared,
    page,
    scaled,
    size_rows,
    sizes_of,
    span_rows,
    timed,
    verdict_rows,
)
from rich.console import Console
from rich.table import Table
from runs import ROOT, Run, RunFailed

RESULTS = ROOT / "docs" / "bench" / "site.json"
PAGE = ROOT / "docs" / "bench.md"
LOCK = ROOT / ".cache" / "bench" / "lock"
SIZES = (3, 6, 12, 24)
#: How often each part measures at least, if its figures are to be kept.
REPEATS = {"noop": 5, "scale": 3, "second-instance": 3}
SECOND = "second"
BUSY = 0.5  # load for each core, from which on figures are not worth keeping

console = Console(highlight=False)
_started = time.monotonic()


def say(text: str) -> None:
    """One line of progress."""
    console.print(f"[{time.monotonic() - _started:5.0f} s] {text}", markup=False, soft_wrap=True)


class Bench:
    """The parts. Each leaves the lab with its nodes deployed and nothing else, and returns its figures."""

    def __init__(self, lab: BenchLab) -> None:
        self.lab = lab

    def noop(self, repeats: int, _sizes: list[int]) -> Figures:
        """No-op runs and fact gathering on three nodes, in turns."""
        return self._compare(NODES_AN_INSTANCE, repeats)

    def scale(self, repeats: int, sizes: list[int]) -> Figures:
        """The same at every size."""
        return scaled([self._compare(size, repeats) for size in sizes])

    def second_instance(self, repeats: int, _sizes: list[int]) -> Figures:
        """Deploy a second instance beside the first, and take it away again."""
        self._deploy(NODES_AN_INSTANCE)
        runs = []
        for number in range(1, repeats + 1):
            run = self.lab.site(SECOND)
            if set(run.changed) - {node for node, changed in run.changed.items() if changed}:
                raise RunFailed("the second instance was to come onto every node, and one reports no change")
            say(f"second instance, {number} of {repeats}: {run.seconds:.1f} s; removing it")
            runs.append(run)
            self.lab.site()
        return {"nodes": NODES_AN_INSTANCE, "site": timed(runs)}

    def _deploy(self, nodes: int) -> None:
        """Bring lab and cluster to that many nodes, and run once more to see that a run now changes nothing."""
        self.lab.up(nodes)
        say(f"{nodes} nodes: deploying (compiles llama.cpp first where no release is cached: minutes)")
        run = self.lab.site()
        say(f"{nodes} nodes: deployed in {run.seconds:.0f} s; a run of each to warm up")
        self.lab.site().unchanged()
        self.lab.setup()

    def _compare(self, nodes: int, repeats: int) -> Figures:
        self._deploy(nodes)
        site: list[Run] = []
        setup: list[Run] = []
        for number in range(1, repeats + 1):
            site.append(self.lab.site().unchanged())
            setup.append(self.lab.setup())
            say(
                f"{nodes} nodes, {number} of {repeats}: no-op site.yml {site[-1].seconds:.2f} s, "
                f"setup {setup[-1].seconds:.2f} s"
            )
        return compared(nodes, site, setup)


def processor() -> str:
    """The processor's name."""
    return next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )


def machine(lab: BenchLab) -> dict[str, Any]:
    """What about this machine decides the figures; nothing that says whose it is."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "ansible_core": version("ansible-core"),
        "forks": lab.setting("DEFAULT_FORKS"),
    }


def revision() -> str:
    """The commit that is measured, with a plus sign when files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else "an unknown revision"


def measure(lab: BenchLab, parts: list[str], repeats: int | None, sizes: list[int]) -> Figures:
    """Measure the parts; return their figures by name, and the machine's."""
    bench = Bench(lab)
    how: dict[str, Callable[[int, list[int]], Figures]] = {
        "noop": bench.noop,
        "scale": bench.scale,
        "second-instance": bench.second_instance,
    }
    found: Figures = {"machine": machine(lab)}
    for place, name in enumerate(parts, start=1):
        load = os.getloadavg()[0]
        say(f"part {place} of {len(parts)}: {name} (load {load:.1f})")
        if place == 1 and load > BUSY * found["machine"]["cores"]:
            say("others are using this machine: figures will be worse than they are, and differ from run to run")
        times = repeats or REPEATS[name]
        found[name] = {
            "date": date.today().isoformat(),
            "revision": revision(),
            "load": round(load, 1),
            "repeats": times,
            **how[name](times, sizes),
        }
    return found


def show(figures: Figures) -> None:
    """The tables, in a terminal."""
    tables = {"Goals": verdict_rows(figures)}
    if points := sizes_of(figures):
        tables["A run that changes nothing"] = size_rows(points, figures.get("scale", {}).get("a_node"))
        tables["Its slowest tasks"] = span_rows(points)
    for title, (head, *rows) in tables.items():
        table = Table(title=title, title_justify="left")
        for column in head:
            table.add_column(column.replace("`", ""))
        for row in rows:
            table.add_row(*(cell.replace("`", "").replace("*", "") for cell in row))
        console.print(table)


def keep(figures: Figures) -> None:
    """Write the figures down beside those of parts that were not measured now; these go if another machine made them.

    Raises PageError.
    """
    known: Figures = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    if known.get("machine") not in (None, figures["machine"]):
        say("the figures that were there came from another machine or other versions: they are dropped")
        known = {}
    order = ["machine", *REPEATS]
    whole = {name: part for name, part in sorted({**known, **figures}.items(), key=lambda item: order.index(item[0]))}
    text = page(PAGE.read_text("utf-8"), whole)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    PAGE.write_text(text, "utf-8")
    say(f"written: {RESULTS.relative_to(ROOT)}, {PAGE.relative_to(ROOT)}")


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    top = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Run it as `make bench ARGS='site ...'`, which installs what is needed first. Needs root, or sudo.",
    )
    top.add_argument("--only", nargs="+", choices=list(REPEATS), metavar="PART", help="these parts (default: all)")
    top.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help=f"runs of each kind (default: {', '.join(f'{name} {times}' for name, times in REPEATS.items())})",
    )
    top.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=list(SIZES),
        metavar="N",
        help=f"numbers of nodes for the part scale (default: {' '.join(map(str, SIZES))})",
    )
    top.add_argument("--print-only", action="store_true", help="leave docs/ alone: for a first look, or other settings")
    top.add_argument("--keep", action="store_true", help="use the lab bench that is up, and leave it up")
    return top


def arguments_of(argv: list[str] | None) -> argparse.Namespace:
    """The arguments, checked against each other."""
    top = parser()
    arguments = top.parse_args(argv)
    arguments.only = arguments.only or list(REPEATS)
    if arguments.repeats is not None and arguments.repeats < 1:
        top.error(f"--repeats {arguments.repeats}: write at least 1")
    for name in arguments.only:
        if not arguments.print_only and arguments.repeats is not None and arguments.repeats < REPEATS[name]:
            top.error(
                f"--repeats {arguments.repeats}: figures of {name} are kept from {REPEATS[name]} runs on; "
                "write that, or add --print-only"
            )
    arguments.sizes = sorted(set(arguments.sizes))
    if "scale" in arguments.only and (len(arguments.sizes) < 2 or arguments.sizes[0] < 1):
        top.error(f"--sizes {' '.join(map(str, arguments.sizes))}: a slope needs two sizes, each at least 1")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = arguments_of(argv)
    # As with Ctrl-C: the lab is taken down on the way out.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("[bench] ended by SIGTERM"))
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed("another `make bench` is running; wait for it, or end it") from None
        with BenchLab(keep=arguments.keep, say=say) as lab:
            figures = measure(lab, arguments.only, arguments.repeats, arguments.sizes)
    show(figures)
    if not arguments.print_only:
        keep(figures)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RunFailed, PageError) as failure:
        print(f"[bench] error: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("[bench] interrupted", file=sys.stderr)
        sys.exit(130)
