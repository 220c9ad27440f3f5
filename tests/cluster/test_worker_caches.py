"""The cache of real workers: what is seeded is what they would have written themselves, and nothing is sent then."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cached_models
import pytest
from driver import ROOT, Cluster

pytestmark = [pytest.mark.lab]

WORKERS = ("node2", "node3")
DIRECTORY = "/var/cache/llamacpp/rpc"
PROGRAM = "/opt/llamacpp/current/bin/llamacpp-rpc-cache"
MIB = 1 << 20


@pytest.fixture(scope="module")
def declared(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whatever it had declared before."""
    kept = dict(cluster.variables)
    yield cluster
    cluster.variables = kept


def deploy(cluster: Cluster, model: Path, **settings: Any) -> None:
    """Bring one instance over three nodes to run, with whatever weights its workers need in their caches."""
    given = cluster.instance("demo", ["node1", *WORKERS], model={"path": str(model)}, **settings)
    cluster.variables["llamacpp_instances"] = [given]
    cluster.site().succeeded()


@pytest.fixture(scope="module")
def dense(declared: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A dense model, deployed."""
    path = tmp_path_factory.mktemp("dense") / "dense.gguf"
    deploy(declared, cached_models.write(path, cached_models.KINDS["dense"]))
    return declared


def forget(cluster: Cluster, node: str) -> None:
    """Empty the cache of a worker. The directory stays: the sandbox of a worker that runs has just that one."""
    cluster.shell(
        node, f"mkdir -p {DIRECTORY} && find {DIRECTORY} -type f -delete && rm -rf {DIRECTORY}-* {DIRECTORY}.*"
    )


def cached(cluster: Cluster, node: str) -> dict[str, str]:
    """Entries of a worker: name -> sha256 of the bytes."""
    listed = cluster.shell(node, f"mkdir -p {DIRECTORY} && cd {DIRECTORY} && find . -type f -exec sha256sum {{}} +")
    return {name.removeprefix("./"): digest for digest, name in (line.split() for line in listed.splitlines())}


def sizes(cluster: Cluster, node: str) -> dict[str, int]:
    """Entries of a worker: name -> bytes."""
    listed = cluster.shell(node, f"find {DIRECTORY} -type f -printf '%f %s\\n'")
    return {name: int(size) for name, size in (line.split() for line in listed.splitlines())}


def received(cluster: Cluster, node: str) -> int:
    """Bytes that a node got over the fabric since it booted."""
    return int(cluster.shell(node, "sed -n 's/^ *fab0: *//p' /proc/net/dev").split()[0])


def written(cluster: Cluster, node: str) -> list[str]:
    """Entries that the worker of a node wrote itself since its unit was started: it says so in its journal."""
    script = (
        "journalctl --quiet --output cat"
        " _SYSTEMD_INVOCATION_ID=$(systemctl show --value --property InvocationID llamacpp-rpc-demo.service)"
    )
    return [line for line in cluster.shell(node, script).splitlines() if "saved to" in line]


def restart_head(cluster: Cluster) -> dict[str, int]:
    """Let the head load its model anew; return how many bytes each worker got over the fabric."""
    cluster.shell("node1", "systemctl stop llamacpp-demo.service")
    before = {node: received(cluster, node) for node in WORKERS}
    cluster.shell("node1", "systemctl start llamacpp-demo.service")
    cluster.until("the instance answers", lambda: cluster.ask("demo", "/health", key=None)[0] == 200, 120)
    return {node: received(cluster, node) - before[node] for node in WORKERS}


def module(cluster: Cluster, node: str, **arguments: Any) -> dict[str, Any]:
    """Run the module on a node."""
    done = subprocess.run(
        [
            str(ROOT / ".venv" / "bin" / "ansible"),
            f"--inventory={cluster.lab.inventory}",
            node,
            "--become",
            "--module-name=llamacpp.cluster.rpc_cache",
            f"--args={json.dumps({'program': PROGRAM, **arguments})}",
            "--one-line",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return answer


@pytest.mark.parametrize("kind", sorted(cached_models.KINDS))
def test_what_is_seeded_is_what_a_worker_writes_itself(declared: Cluster, tmp_path: Path, kind: str) -> None:
    """Same names, same bytes, and the very first start of the head sent none of them."""
    for node in WORKERS:
        forget(declared, node)
    # A worker outlives a change of its head's model, and so does what it said.
    before = {node: written(declared, node) for node in WORKERS}
    deploy(declared, cached_models.write(tmp_path / f"{kind}.gguf", cached_models.KINDS[kind]))
    seeded = {node: cached(declared, node) for node in WORKERS}
    assert all(seeded.values())
    for node in WORKERS:
        assert [line for line in written(declared, node) if line not in before[node]] == []
    with_cache = restart_head(declared)
    saved = {node: sum(sizes(declared, node).values()) for node in WORKERS}
    declared.shell("node1", "systemctl stop llamacpp-demo.service")
    for node in WORKERS:
        declared.shell(node, f"find {DIRECTORY} -type f -delete")
    without = restart_head(declared)
    assert {node: cached(declared, node) for node in WORKERS} == seeded
    for node in WORKERS:
        # What is smaller than the threshold is sent in both cases.
        assert without[node] - with_cache[node] >= 0.95 * saved[node]
    # What the workers wrote themselves is as good.
    assert set(declared.site().succeeded().changed.values()) == {0}
    assert {node: cached(declared, node) for node in WORKERS} == seeded


def test_experts_that_stay_with_the_head_are_not_seeded(declared: Cluster, tmp_path: Path) -> None:
    for node in WORKERS:
        forget(declared, node)
    model = cached_models.write(tmp_path / "experts.gguf", cached_models.KINDS["experts"])
    deploy(declared, model, cpu_moe=True)
    assert {node: cached(declared, node) for node in WORKERS} == {node: {} for node in WORKERS}


def test_a_truncated_entry_is_quarantined_and_seeded_again(dense: Cluster) -> None:
    """llama.cpp would serve it as it is: a worker that answers with half a tensor, and nobody the wiser."""
    before = cached(dense, "node2")
    name = sorted(before)[0]
    dense.shell("node2", f"truncate -s 1000 {DIRECTORY}/{name}")
    found = module(dense, "node2", state="scrubbed")
    assert [item["name"] for item in found["findings"]] == [name]
    assert dense.shell("node2", f"stat -c %s {shlex.quote(found['findings'][0]['path'])}").strip() == "1000"
    assert module(dense, "node2", state="scrubbed")["findings"] == []
    run = dense.site().succeeded()
    assert [node for node, changed in run.changed.items() if changed] == ["node2"]
    assert cached(dense, "node2") == before


def test_one_flipped_bit_is_found_while_the_instance_serves(dense: Cluster) -> None:
    before = cached(dense, "node3")
    name = sorted(before)[0]
    dense.shell("node3", f"cd {DIRECTORY} && printf x | dd of={name} bs=1 seek=4096 conv=notrunc status=none")
    running = dense.invocations()
    assert [item["name"] for item in module(dense, "node3", state="scrubbed")["findings"]] == [name]
    assert dense.chat("demo", key=None)
    dense.site().succeeded()
    assert cached(dense, "node3") == before
    assert dense.invocations() == running


def test_what_no_instance_needs_any_more_is_evicted_for_what_one_does(dense: Cluster, tmp_path: Path) -> None:
    before = {node: set(cached(dense, node)) for node in WORKERS}
    deploy(dense, cached_models.write(tmp_path / "tied.gguf", cached_models.KINDS["tied"], seed=2))
    both = {node: sizes(dense, node) for node in WORKERS}
    needed = {node: set(both[node]) - before[node] for node in WORKERS}
    assert all(before[node] < set(both[node]) for node in WORKERS)
    quota = max(sum(both[node][name] for name in needed[node]) for node in WORKERS) // MIB + 1
    assert all(sum(both[node].values()) > quota * MIB for node in WORKERS)
    dense.site(llamacpp_rpc_cache_quota=f"{quota} MiB").succeeded()
    for node in WORKERS:
        left = sizes(dense, node)
        assert needed[node] <= set(left)
        assert sum(left.values()) <= quota * MIB


def test_switched_off_there_is_no_cache(dense: Cluster) -> None:
    dense.site(llamacpp_rpc_cache=False).succeeded()
    for node in WORKERS:
        started = dense.shell(node, "systemctl show --property ExecStart llamacpp-rpc-demo.service")
        assert " -c " not in started and "--cache" not in started
    assert dense.chat("demo", key=None)
