#!/usr/bin/env python3
"""Measure models: how fast they get to nodes, what it costs when they are there, and what a seeded cache saves.

On the lab `bench`, which is taken down afterwards: three quarters of an hour with two cores. Each node's link is shaped
to 200 Mbit/s on both networks, and so is the control machine's. A model of 500 MB and random weights. Steps:
  first    one node gets it: from the control machine, from a simulated hub (huggingface_hub's own client asks it)
  spread   the node that has it gives it to 1, 2, 4 and 8 others: each transport, beside ansible.builtin.copy and
           ansible.posix.synchronize from the control machine to as many
  noop     the same run when everything is in place
  hashing  sha256 by the store, FNV-1a-64 for the RPC cache, sha256sum and cat, of the same bytes on a node
  start    a head and a worker, 1 Gbit/s between them: how long the head takes to serve without a cache, with the one
           that a worker writes itself, and with a seeded one

`ratio` is time / (size / link): 1 is as fast as the wire of one node. What is timed are the tasks of role models, with
all that Ansible takes for them, or the task that pushes; not the start of ansible-playbook, and no plan.

Prints its figures as JSON; seconds are wall time, sizes are bytes, rates are bytes a second.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "collections"))

from bench import LOCK
from benchlab import MODEL, NAME
from bootstrap import requirements
from figures import Figures
from llamalab.names import Lab, rate_bits
from modelslab import POSIX, ModelsLab
from runs import BIN, ROOT, Run, RunFailed
from simulated_hub import SimulatedHub

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import read_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._worker_tensors import THRESHOLD

SIZES = (1, 2, 4, 8)
TRANSPORTS = ("http", "swarm")
PUSHES = {"copy": "ansible.builtin.copy", "synchronize": "ansible.posix.synchronize"}
REPEATS = 3
LINK = "200mbit"
FABRIC = "1gbit"  # between a head and its worker
# Few layers, so that most matrices are large enough for a worker's cache, as those of real models are.
BIG = ROOT / ".cache" / "bench" / "model-500.gguf"
BIG_SIZE = ("--megabytes=477", "--layers=4")
STORE = "/var/lib/llamacpp/models"
RPC_CACHE = "/var/cache/llamacpp/rpc"
PUSHED = "/var/tmp/pushed.gguf"
HUB_REPO = "bench/model-GGUF"
ROLE = "models : "
SPLIT = "split"

_started = time.monotonic()


def say(text: str) -> None:
    """One line of progress; stdout is for the figures."""
    print(f"[{time.monotonic() - _started:5.0f} s] {text}", file=sys.stderr, flush=True)


class Models:
    """The steps. Each returns its figures; they stand on each other in the order of :meth:`all`."""

    def __init__(self, lab: ModelsLab, sizes: list[int], repeats: int) -> None:
        self.lab = lab
        self.sizes = sizes
        self.repeats = repeats
        self.bytes = BIG.stat().st_size
        self.wire = self.bytes * 8 / rate_bits(LINK)
        self.common = {"llamacpp_cache": str(lab.work / "cache"), "llamacpp_models_fetcher": "node1"}

    def all(self) -> Figures:
        """Measure everything."""
        found: Figures = {
            "cores": len(os.sched_getaffinity(0)),
            "load_before": round(os.getloadavg()[0], 1),
            "model_bytes": self.bytes,
            "link": LINK,
            "wire_seconds": round(self.wire, 2),
        }
        self._prepare()
        found["first"] = self.first()
        found["spread"] = self.spread()
        found["noop"] = self.noop()
        self._two_nodes()
        found["hashing"] = self.hashing()
        found["start"] = self.start()
        return found

    def _prepare(self) -> None:
        """Nodes that have all that is needed for models, but not the model."""
        self.lab.fresh(max(self.sizes) + 1)
        for transport in TRANSPORTS:
            say(f"what {transport} needs comes to the nodes, with a small model")
            self._place(self.lab.nodes, transport, {"path": str(MODEL)})
            self._forget("all")
        self.lab.on("all", "llamacpp.cluster.packages", {"name": ["rsync"]})
        self.lab.shape(LINK, "management", "fabric")

    def first(self) -> Figures:
        """The first node, from outside; the control machine's own store does not have the model at first, either."""
        found = {"controller": self._place(1, "auto", {"path": str(BIG)})}
        self._forget("node1")
        hub = SimulatedHub(Lab(NAME).host_address("management"))
        try:
            hub.add(HUB_REPO, {"model-Q8_0.gguf": BIG, "small-Q4_0.gguf": MODEL})
            # What asks the hub comes with the small one.
            for quant in ("Q4_0", "Q8_0"):
                model = {"repo": HUB_REPO, "quant": quant, "from": "node"}
                found["hub"] = self._place(1, "auto", model, llamacpp_hub_endpoint=hub.url)
        finally:
            hub.stop()
        self._forget("node1")
        self._place(1, "auto", {"path": str(BIG)})
        return {name: self._ratio(seconds) for name, seconds in found.items()}

    def spread(self) -> list[Figures]:
        """From the node that has it to so many others, and beside it the pushes to as many."""
        found = []
        for size in self.sizes:
            entry: Figures = {"receivers": size}
            for transport in TRANSPORTS:
                self._forget("all:!node1")
                entry[transport] = self._ratio(self._place(size + 1, transport, {"path": str(BIG)}))
                say(f"{size} receivers, {transport}: {entry[transport]}")
            for push in PUSHES:
                entry[push] = self._ratio(self._push(size, push))
                say(f"{size} receivers, {push}: {entry[push]}")
            found.append(entry)
        return found

    def noop(self) -> Figures:
        """The last run again, when everything is in place on all nodes."""
        nodes = self.lab.nodes
        self._place(nodes, "http", {"path": str(BIG)})
        seconds = [self._place(nodes, "http", {"path": str(BIG)}, unchanged=True) for _ in range(self.repeats)]
        return {
            "nodes": nodes,
            "seconds": round(median(seconds), 2),
            "seconds_a_node": round(median(seconds) / nodes, 3),
        }

    def hashing(self) -> Figures:
        """Rates of what reads all bytes of the model, on a node, from its page cache; `cold`: from the disk."""
        (release,) = {item["release"] for item in self._plan()["nodes"].values()}
        program = f"/opt/llamacpp/releases/{release}/bin/llamacpp-rpc-cache"
        blob = f"$(ls -S {STORE}/blobs/* | head -n 1)"
        evict = f"dd if={blob} iflag=nocache count=0 status=none"
        header = read_header(str(BIG))
        large = [(header.data_offset + item.offset, item.nbytes) for item in header.tensors if item.nbytes > THRESHOLD]
        ranges = "\\n".join(f"{offset} {size}" for offset, size in large)
        hashed = sum(size for _offset, size in large)
        found = {
            "cold": self._rate(f"cat {blob} >/dev/null", self.bytes, before=evict),
            "cat": self._rate(f"cat {blob} >/dev/null", self.bytes),
            "sha256sum": self._rate(f"sha256sum {blob} >/dev/null", self.bytes),
            "fnv1a64": self._rate(f"printf '{ranges}\\n' | {program} hash {blob} >/dev/null", hashed),
            "seed": self._rate(
                f"printf '{ranges}\\n' | {program} seed {blob} /var/tmp/seeded >/dev/null",
                hashed,
                before="rm -rf /var/tmp/seeded; mkdir /var/tmp/seeded",
            ),
        }
        # The module's own start is in both of its runs.
        whole, nothing = (self._store_seconds(state) for state in ("scrubbed", "swept"))
        found["scrub"] = round(self.bytes / max(whole - nothing, 0.001))
        return found

    def start(self) -> Figures:
        """How long a head takes, from its start to its first healthy answer, and what its worker receives for that."""
        self._split(llamacpp_rpc_cache=False)
        found = {"unseeded": self._starts()}
        say(f"unseeded: {found['unseeded']}")
        self._split(llamacpp_rpc_cache=True)
        self._stop(empty=True)
        filling = self._one_start()
        found["warm"] = {**self._starts(), "filling_seconds": filling["seconds"]}
        say(f"warm: {found['warm']}")
        # What site.yml does beside a start takes its share of the processors, so both first starts are its own.
        found["warm"]["site_seconds"] = self._first(seeded=False)
        firsts = self._first(seeded=True)
        found["seeded"] = {**self._starts(), "first_seconds": firsts}
        found["seeded_to_warm"] = round(firsts / found["warm"]["site_seconds"], 2)
        return found

    def _first(self, seeded: bool) -> float:
        """Seconds of a start by site.yml, the median of some: with an empty cache seeded, or with the worker's own."""
        seconds = []
        for _ in range(self.repeats):
            self._stop(empty=seeded)
            run = self._split(llamacpp_rpc_cache=True)
            seconds.append(self._active_after(self._instance()))
            say(f"seeded {seeded}, by site.yml: {seconds[-1]:.2f} s, role models {role_seconds(run):.1f} s")
        return round(median(seconds), 2)

    def _place(self, count: int, transport: str, model: dict[str, Any], unchanged: bool = False, **more: Any) -> float:
        """Bring a model to the first ``count`` nodes; return the seconds of role models."""
        instances = [
            {"name": f"bench{number}", "model": model, "nodes": [f"node{number}"], "context": 512, "parallel": 1}
            for number in range(1, count + 1)
        ]
        variables = {
            **self.common,
            "llamacpp_nodes_group": f"first{count}",
            "llamacpp_instances": instances,
            "llamacpp_models_transport": transport,
            **more,
        }
        run = self.lab.play(ROOT / "tests" / "bench" / "place_models.yml", variables)
        if unchanged:
            run.unchanged()
        elif transport != "auto":
            (planned,) = self._plan()["models"].values()
            if planned["transport"] != transport and count > 1:
                raise RunFailed(f"{transport} was asked for, and the plan says {planned['transport']}")
        return role_seconds(run)

    def _push(self, count: int, how: str) -> float:
        self.lab.on("all", "ansible.builtin.file", {"path": PUSHED, "state": "absent"})
        seconds = self.lab.task(f"first{count}", how, PUSHES[how], {"src": str(BIG), "dest": PUSHED}).seconds
        self.lab.on("all", "ansible.builtin.file", {"path": PUSHED, "state": "absent"})
        return seconds

    def _forget(self, nodes: str) -> None:
        self.lab.on(nodes, "ansible.builtin.file", {"path": STORE, "state": "absent"})

    def _ratio(self, seconds: float) -> Figures:
        return {"seconds": round(seconds, 2), "ratio": round(seconds / self.wire, 2)}

    def _two_nodes(self) -> None:
        """A head and a worker with a release; the only ones that are up."""
        self.lab.fresh(2)
        say("a head and a worker")
        self._split(llamacpp_rpc_cache=True)
        self.lab.shape(FABRIC, "fabric")

    def _split(self, **more: Any) -> Run:
        instance = {
            "name": SPLIT,
            "model": {"path": str(BIG)},
            "nodes": ["node1", "node2"],
            "head": "node1",
            "context": 512,
            "parallel": 1,
        }
        return self.lab.play(ROOT / "playbooks" / "site.yml", {**self.common, "llamacpp_instances": [instance], **more})

    def _plan(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.lab.work / "plan.json").read_text("utf-8"))
        return plan

    def _instance(self) -> dict[str, Any]:
        (instance,) = self._plan()["instances"]
        return dict(instance)

    def _rate(self, script: str, size: int, before: str = "true") -> int:
        """Bytes a second of a command on node1, the best of some: others use this machine, too."""
        clock = f"{before}; a=$(date +%s%N); {script}; b=$(date +%s%N); echo $((b - a))"
        best = min(int(self.lab.shell("node1", clock).split()[-1]) for _ in range(self.repeats))
        return round(size * 1e9 / best)

    def _store_seconds(self, state: str) -> float:
        began = time.monotonic()
        self.lab.module("node1", "llamacpp.cluster.model_store", {"state": state, "store": STORE})
        return time.monotonic() - began

    def _stop(self, empty: bool) -> None:
        """Stop both; ``empty``: forget what the worker has cached, and that it was seeded."""
        instance = self._instance()
        (worker,) = instance["workers"]
        self.lab.shell(instance["head"], f"systemctl stop {instance['unit']}")
        forget = f"find {RPC_CACHE} -type f -delete 2>/dev/null || true; rm -rf {RPC_CACHE}-*" if empty else "true"
        self.lab.shell(worker["node"], f"systemctl stop {worker['unit']}; {forget}")

    def _starts(self) -> Figures:
        """Start both again and again, the worker first; medians."""
        starts = [self._one_start() for _ in range(self.repeats)]
        return {name: round(median(start[name] for start in starts), 2) for name in starts[0]}

    def _one_start(self) -> dict[str, float]:
        instance = self._instance()
        (worker,) = instance["workers"]
        self.lab.shell(instance["head"], f"systemctl stop {instance['unit']}")
        self.lab.shell(worker["node"], f"systemctl restart {worker['unit']}")
        before = self._received(worker["node"])
        self.lab.shell(instance["head"], f"systemctl start {instance['unit']}")
        return {
            "seconds": self._active_after(instance),
            "worker_received_bytes": self._received(worker["node"]) - before,
        }

    def _active_after(self, instance: dict[str, Any]) -> float:
        """Seconds from the start of a head's process to the answer of its /health, as systemd says them."""
        stamps = "ExecMainStartTimestampMonotonic ActiveEnterTimestampMonotonic"
        script = f"for name in {stamps}; do systemctl show --value --property $name {instance['unit']}; done"
        began, active = (int(word) for word in self.lab.shell(instance["head"], script).split())
        if active <= began:
            raise RunFailed(f"{instance['unit']} is not active")
        return (active - began) / 1e6

    def _received(self, node: str) -> int:
        # A node's /sys shows the network of the machine that the lab runs on.
        return int(self.lab.shell(node, "sed -n 's/^ *fab0: *//p' /proc/net/dev").split()[0])


def role_seconds(run: Run) -> float:
    """Seconds of a run that went into tasks of role models."""
    return sum(span.seconds for label, span in run.spans.items() if label.startswith(ROLE))


def prepare() -> None:
    """Make the model, and get ansible.posix where it is not there. Raises RunFailed."""
    subprocess.run([str(BIN / "python"), "demo/make_model.py", str(BIG), *BIG_SIZE], cwd=ROOT, check=True, stdout=2)
    if (POSIX / "ansible_collections" / "ansible" / "posix").is_dir():
        return
    wanted = requirements(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8")), "synchronize")
    say(f"installing {', '.join(wanted)}, for ansible.posix")
    shutil.rmtree(POSIX, ignore_errors=True)
    command = [str(BIN / "python"), "-m", "pip", "install", "--quiet", "--no-deps", f"--target={POSIX}", *wanted]
    if subprocess.run(command, check=False, stdout=2).returncode:
        raise RunFailed("pip ended with an error, see above")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), metavar="N", help="numbers of receivers")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help="runs of noop, hashing and start")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1 or min(arguments.sizes) < 1:
        parser.error("at least one run, and one receiver")
    # As with Ctrl-C: the lab is taken down on the way out.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("[bench] ended by SIGTERM"))
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed("another `make bench` is running; wait for it, or end it") from None
        prepare()
        lab = ModelsLab(keep=arguments.keep, say=say)
        with lab:
            found = Models(lab, sorted(set(arguments.sizes)), arguments.repeats).all()
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
