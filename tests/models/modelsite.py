"""A cluster whose model comes from a simulated hub, and what its nodes have of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from driver import ROOT, Cluster, Run
from fixtures import LiveLab

sys.path.insert(0, str(ROOT / "tests" / "hub"))

from simulated_hub import SimulatedHub

REPO = "owner/dice-GGUF"
QUANT = "Q8_0"
NAME = f"{REPO}/{QUANT}"
FILE = "dice-Q8_0.gguf"
STORE = "/var/lib/llamacpp/models"
NODES = ("node1", "node2", "node3")
FETCHER = "node1"

# What is wrong with a store, seen by somebody who trusts nothing of it: a blob that is not what its name says, and a
# name that does not lead to the bytes that it promises.
_LOOK = """
import hashlib, json, os
root = %r
wrong, names = [], []
def digest(path):
    try:
        with open(path, "rb") as stream:
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError as error:
        return str(error)
for name in sorted(os.listdir(root + "/blobs")) if os.path.isdir(root + "/blobs") else []:
    if digest(root + "/blobs/" + name) != name:
        wrong.append("blob " + name)
for folder, _folders, files in os.walk(root + "/manifests"):
    for file in sorted(files):
        if not file.endswith(".json"):
            continue
        path = os.path.join(folder, file)
        name = os.path.relpath(path, root + "/manifests")[:-5]
        names.append(name)
        for item in json.load(open(path))["files"]:
            found = digest(os.path.join(root, "names", name, item["name"]))
            if found != item["sha256"]:
                wrong.append("%%s: %%s is %%s" %% (name, item["name"], found))
print(json.dumps({"wrong": wrong, "names": sorted(names)}))
"""

# Processes that have a file open which is on its way into the store.
_FETCHING = """
for process in /proc/[0-9]*; do
    if ls -l $process/fd 2>/dev/null | grep -q ' %s/incoming/'; then echo ${process#/proc/}; fi
done
"""


class ModelSite(Cluster):
    """Three heads that need one model of a repository; ``hub`` has it."""

    def __init__(self, live: LiveLab, work: Path, model: Path, hub: SimulatedHub) -> None:
        super().__init__(live, work, model)
        self.hub = hub
        self.size = model.stat().st_size
        self.variables.update(
            llamacpp_hub_endpoint=hub.url,
            llamacpp_models_fetcher=FETCHER,
            llamacpp_models_transport="http",
            llamacpp_instances=self.instances(),
        )

    def instances(self, **model: Any) -> list[dict[str, Any]]:
        """Declare an instance on every node; ``model``: what is different about their model."""
        source = {"repo": REPO, "quant": QUANT, "from": "node", **model}
        return [self.instance(f"head{node[-1]}", [node], model=source) for node in NODES]

    def start_site(self, **changes: Any) -> subprocess.Popen[str]:
        """Start site.yml in the background."""
        return subprocess.Popen(
            self.command("site", **changes),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"},
        )

    def end(self, process: subprocess.Popen[str]) -> Run:
        """Wait for a run of :meth:`start_site`."""
        output, _errors = process.communicate(timeout=900)
        return Run(process.returncode, output)

    def slowly(self, seconds: float) -> None:
        """Let a fetch of the model take so long."""
        self.hub.fault("slow", rate=int(self.size / seconds), times=0)

    def until_fetched(self, share: float) -> None:
        """Wait until this share of the model's bytes has come; what the hub has sent are headers, too."""
        self.until(f"{share:.0%} of the model", lambda: self.incoming(FETCHER) >= share * self.size, 300)

    def until_swarming(self, node: str, run: subprocess.Popen[str]) -> None:
        """Wait until an eighth of the model has come to a node; say what the run said when it ends before.

        The engine says how far it is; of what it holds in memory its file says nothing.
        """

        def swarming() -> bool:
            assert run.poll() is None, self.end(run).output[-4000:]
            said = self.shell(node, "systemctl show --value --property StatusText 'llamacpp-swarm-*.service'")
            done, whole = (re.search(f'"{word}": ([0-9]+)', said) for word in ("done", "bytes"))
            return done is not None and whole is not None and 8 * int(done.group(1)) >= int(whole.group(1)) > 0

        self.until(f"a part of the model on {node}", swarming, 300)

    def kill_fetch(self) -> int:
        """Kill what fetches with SIGKILL; return how many processes that were."""
        found = self.shell(FETCHER, _FETCHING % STORE).split()
        if found:
            self.shell(FETCHER, f"kill -9 {' '.join(found)}")
        return len(found)

    def incoming(self, node: str) -> int:
        """Bytes on disk of what is on its way into a node's store."""
        script = f"find {STORE}/incoming -type f -printf '%b\\n' 2>/dev/null || true"
        return 512 * sum(map(int, self.shell(node, script).split()))

    def forget(self) -> None:
        """Take the stores away; services keep the files that they have open."""
        for node in NODES:
            self.shell(node, f"rm -rf {STORE}")

    def names(self, node: str) -> list[str]:
        """The names in a node's store, after a look that nothing that is named is corrupt."""
        found = json.loads(self.shell(node, f"python3 -c {shlex.quote(_LOOK % STORE)}"))
        assert found["wrong"] == [], f"{node}: {found['wrong']}"
        return list(found["names"])

    def assert_nothing_corrupt(self) -> None:
        """Look at every store."""
        for node in NODES:
            self.names(node)

    def assert_nothing_named(self) -> None:
        """Nobody has the model under its name, whole or not."""
        assert {node: self.names(node) for node in NODES} == {node: [] for node in NODES}

    def finish(self, **changes: Any) -> Run:
        """Run site.yml once more, now that all is well: every node has the model, and answers with it."""
        self.hub.heal()
        run = self.site(**changes).succeeded()
        assert {node: self.names(node) for node in NODES} == {node: [NAME] for node in NODES}
        for node in NODES:
            # Locks stay.
            assert self.incoming(node) < 1 << 20, "what was on its way is still there"
        assert self.chat("head1", key=None)
        return run
