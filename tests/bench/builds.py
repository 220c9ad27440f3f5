#!/usr/bin/env python3
"""Measure builds: compile, compile again, push, flip, nothing to do, and what releases take of a disk.

On the lab `bench`, which is taken down afterwards, and with caches that are empty at the start: half an hour with two
cores. A CPU release; what a CUDA release takes is in docs/backends.md. Steps:
  compile  one release with an empty compiler's cache, again with a flag of one part changed, again with nothing changed
           but its name
  push     a release that the control node has already, onto 2, 4 and 8 fresh nodes: one gets it, the others fetch it
           from that one over the fabric; every node tries it
  flip     rollback.yml on the largest cluster, there and back, with the instance that runs on it
  noop     site.yml when there is nothing to do
  disk     two releases beside each other on a node

Prints its figures as JSON; seconds are wall time, sizes are bytes.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))

from bench import LOCK
from benchlab import BenchLab
from figures import Figures
from runs import ROOT, Run, RunFailed

sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_settings import BuildSettings
from ansible_collections.llamacpp.cluster.plugins.module_utils._cmake import cmake_arguments
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import build_number, release_id

SIZES = (2, 4, 8)
REPEATS = 3
# A flag of one part, as an operator changes it: the CPU backend alone is compiled again.
FLAG = "-DGGML_CPU_REPACK=OFF"
SCRATCH = "/var/cache/llamacpp-bench"  # on the node that compiles; its own cache of the compiler is in it
ROLE = "llama_cpp : "
FLIP = ROLE + "Make the release current"
# What brings a release to nodes; the packages that it needs to run, and directories, are not counted.
PUSH = (
    ROLE + "Copy the release to the node that hands it on",
    ROLE + "Offer the release to the other nodes over the fabric",
    ROLE + "Install the release and try it on this node's devices",
    ROLE + "Offer the release no more",
)

_started = time.monotonic()


def say(text: str) -> None:
    """One line of progress; stdout is for the figures."""
    print(f"[{time.monotonic() - _started:5.0f} s] {text}", file=sys.stderr, flush=True)


class Builds:
    """The steps. Each returns its figures; they stand on each other in the order of :meth:`all`."""

    def __init__(self, lab: BenchLab, cache: Path, sizes: list[int], repeats: int) -> None:
        self.lab = lab
        self.sizes = sizes
        self.repeats = repeats
        # Not the operator's: whether a release has to be built must not depend on what was done before.
        self.common = {"llamacpp_cache": str(cache), "llamacpp_keep_releases": 2}

    def all(self) -> Figures:
        """Measure everything."""
        found: Figures = {"cores": len(os.sched_getaffinity(0)), "load_before": round(os.getloadavg()[0], 1)}
        found["compile"] = self.compile()
        found["push"] = [self.push(size) for size in self.sizes]
        found["noop"] = self.noop()
        found["disk"], found["flip"] = self.second_release()
        return found

    def compile(self) -> Figures:
        """Compile three times through the module, with a cache of its own that is empty at first."""
        self.lab.fresh(1)
        self._prepare_builder()
        kinds = {"cold": (), "flag_changed": (FLAG,), "nothing_changed": ("-DLLAMACPP_BENCH=1",)}
        found = {}
        for name, more in kinds.items():
            say(f"compiling: {name}")
            result = self._compile(more)
            files = result["ccache"]["hits"] + result["ccache"]["misses"]
            found[name] = {
                "seconds": result["duration"],
                "ccache_hits": result["ccache"]["hits"],
                "files": files,
                "hit_rate": round(result["ccache"]["hits"] / files, 3),
                "sizes": result["sizes"],
            }
            say(f"{name}: {result['duration']} s, {found[name]['ccache_hits']} of {files} from the compiler's cache")
        return found

    def push(self, nodes: int) -> Figures:
        """Deploy to fresh nodes; the first size builds the release for the control node's cache beforehand."""
        if nodes == self.sizes[0]:
            say("a release for the control node's cache")
            self.lab.fresh(1)
            self._site()
        self.lab.fresh(nodes)
        say(f"{nodes} nodes: pushing")
        run = self._site()
        spans = {label.removeprefix(ROLE): round(seconds_of(run, label), 2) for label in (*PUSH, FLIP)}
        return {
            "nodes": nodes,
            "seconds": round(sum(seconds_of(run, label) for label in PUSH), 2),
            "bytes": self._installed("node1")[0]["bytes"],
            "spans": spans,
            "site_seconds": round(run.seconds, 1),
        }

    def noop(self) -> Figures:
        """Runs that change nothing, on the largest cluster; of each the whole and the part of builds."""
        runs = []
        for number in range(1, self.repeats + 1):
            runs.append(self._site().unchanged())
            say(f"nothing to do, {number} of {self.repeats}: {runs[-1].seconds:.1f} s")
        nodes = self.lab.nodes
        builds = median(role_seconds(run) for run in runs)
        whole = median(run.seconds for run in runs)
        return {
            "nodes": nodes,
            "changed": 0,
            "seconds": round(whole, 2),
            "seconds_a_node": round(whole / nodes, 2),
            "builds_seconds": round(builds, 2),
            "builds_seconds_a_node": round(builds / nodes, 3),
        }

    def second_release(self) -> tuple[Figures, Figures]:
        """Deploy a second release; return what both take of a disk, and how long it takes to go back and forth."""
        say("a second release")
        self._site(llamacpp_cmake_args=[FLAG])
        # A node that did not compile them.
        releases = self._installed(f"node{self.lab.nodes}")
        disk = [{name: release[name] for name in ("id", "bytes", "own_bytes", "current")} for release in releases]
        runs = []
        for number in range(1, self.repeats + 1):
            run = self.lab.playbook("rollback", {**self.common, "llamacpp_cmake_args": [FLAG]})
            if any(changed == 0 for changed in run.changed.values()):
                raise RunFailed("rollback.yml was to change every node, and one reports no change")
            runs.append(run)
            say(f"rollback.yml, {number} of {self.repeats}: {run.seconds:.1f} s, flip {seconds_of(run, FLIP):.2f} s")
        flip = median(seconds_of(run, FLIP) for run in runs)
        return {"releases": disk}, {
            "nodes": self.lab.nodes,
            "rollback_seconds": round(median(run.seconds for run in runs), 2),
            "flip_seconds": round(flip, 2),
            "flip_seconds_a_node": round(flip / self.lab.nodes, 3),
        }

    def _site(self, **more: Any) -> Run:
        return self.lab.playbook("site", {**self.common, **more})

    def _installed(self, node: str) -> list[dict[str, Any]]:
        """What release_info says of a node's releases."""
        releases: list[dict[str, Any]] = self.lab.module(node, "llamacpp.cluster.release_info", {})["releases"]
        return releases

    def _prepare_builder(self) -> None:
        """Give node1 compilers and the source."""
        declared = self.lab.release
        source = self.lab.module(
            "localhost",
            "llamacpp.cluster.llama_source",
            {
                **declared["llamacpp_source"],
                "release": declared["llamacpp_release"],
                "cache": self.common["llamacpp_cache"] + "/sources",
            },
        )
        self.lab.module("node1", "llamacpp.cluster.packages", {"name": self.lab.build_packages()})
        self.lab.module("node1", "ansible.builtin.file", {"path": SCRATCH, "state": "directory", "mode": "0755"})
        self.source = f"{SCRATCH}/{Path(source['archive']).name}"
        self.lab.module(
            "node1", "ansible.builtin.copy", {"src": source["archive"], "dest": self.source, "mode": "0644"}
        )
        self.commit = source["commit"]

    def _compile(self, more: tuple[str, ...]) -> dict[str, Any]:
        """Compile a CPU release as the role would, ``more`` standing for llamacpp_cmake_args."""
        release = self.lab.release["llamacpp_release"]
        inputs = {
            "release": release,
            "backend": "cpu",
            "architectures": [],
            "build_type": "Release",
            "cmake_args": cmake_arguments(BuildSettings(cmake_args=more), "cpu", ()),
        }
        return self.lab.module(
            "node1",
            "llamacpp.cluster.llama_build",
            {
                "id": release_id(inputs),
                "inputs": inputs,
                "source": self.source,
                "build_number": build_number(release) or 0,
                "commit": self.commit,
                "directory": f"{SCRATCH}/build",
                "ccache_directory": f"{SCRATCH}/ccache",
            },
        )


def seconds_of(run: Run, label: str) -> float:
    """Seconds of a run that went into one task. Raises RunFailed when there was none of that name."""
    if label not in run.spans:
        raise RunFailed(f"no task {label!r} in this run: what is measured has another name now")
    return run.spans[label].seconds


def role_seconds(run: Run) -> float:
    """Seconds of a run that went into tasks of role llama_cpp."""
    return sum(span.seconds for label, span in run.spans.items() if label.startswith(ROLE))


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="numbers of nodes")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help="runs of flip and noop")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1 or min(arguments.sizes) < 2:
        parser.error("at least one run, and two nodes")
    # As with Ctrl-C: the lab is taken down on the way out.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("[bench] ended by SIGTERM"))
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed("another `make bench` is running; wait for it, or end it") from None
        with BenchLab(keep=arguments.keep, say=say) as lab:
            found = Builds(lab, lab.work / "cache", sorted(set(arguments.sizes)), arguments.repeats).all()
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RunFailed as failure:
        print(f"[bench] error: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("[bench] interrupted", file=sys.stderr)
        sys.exit(130)
