"""Releases on real nodes: over the fabric, forth and back, and everything that can go wrong on the way.

A release with another id but the same object files (an unused definition for CMake) stands for another version, so
that the compiler's cache answers; two real versions are molecule's scenario `upgrade`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import KEY, ROOT, Cluster

pytestmark = [pytest.mark.lab]

NODES = ("node1", "node2", "node3", "node4")
CACHE = Path.home() / ".cache" / "llamacpp-cluster"
LINKS = "readlink /opt/llamacpp/current; readlink /opt/llamacpp/previous || echo none"


@pytest.fixture(scope="module")
def deployed(cluster: Cluster) -> Iterator[Cluster]:
    """One instance over three nodes, whatever the tests before this one left; nothing of a release is on a node."""
    kept = cluster.variables["llamacpp_instances"]
    cluster.variables["llamacpp_instances"] = [
        cluster.instance("demo", ["node1", "node2", "node3"], api_keys=[KEY]),
    ]
    yield cluster
    cluster.variables["llamacpp_instances"] = kept


@pytest.fixture(scope="module")
def variant(deployed: Cluster) -> Iterator[dict[str, Any]]:
    """Variables of a release that nobody has built before."""
    yield {"llamacpp_cmake_args": [f"-DLLAMACPP_CLUSTER_TEST={uuid.uuid4().hex}"]}
    for path in (CACHE / "releases").glob("*"):
        if path.name.startswith(tuple(other_releases(deployed))):
            path.unlink()


def other_releases(cluster: Cluster) -> list[str]:
    """Ids of the releases that the plan does not name."""
    known = set(cluster.plan["releases"])
    listed = cluster.shell("node1", "ls /opt/llamacpp/releases").split()
    return [name for name in listed if name not in known] or ["none of them"]


def links(cluster: Cluster) -> dict[str, list[str]]:
    """Where current and previous lead to, by node."""
    return {node: [os.path.basename(line) for line in cluster.shell(node, LINKS).split()] for node in NODES}


def received(cluster: Cluster) -> dict[str, int]:
    """Bytes that each node got over the fabric since it booted."""
    # A node's /sys shows the network of the machine that the lab runs on.
    return {node: int(cluster.shell(node, "sed -n 's/^ *fab0: *//p' /proc/net/dev").split()[0]) for node in NODES}


def left_behind(cluster: Cluster, node: str) -> list[str]:
    """What lies beside releases and in the build directory that should not."""
    script = (
        "find /opt/llamacpp/releases /opt/llamacpp/incoming -mindepth 1 -maxdepth 1 -name '.*' 2>/dev/null;"
        "find /var/cache/llamacpp/build -mindepth 1 -maxdepth 1 -type d 2>/dev/null;"
        "find /var/cache/llamacpp/build -name '*.new' 2>/dev/null"
    )
    return cluster.shell(node, script).split()


def test_a_kept_release_reaches_the_nodes_over_the_fabric(deployed: Cluster) -> None:
    deployed.run("reset").succeeded()
    before = received(deployed)
    deployed.site().succeeded()
    (release,) = deployed.plan["releases"].values()
    assert release["nodes"] == list(NODES)
    size = (CACHE / "releases" / f"{release['id']}.tar.gz").stat().st_size
    taken = {node: count - before[node] for node, count in received(deployed).items()}
    assert [node for node in NODES if taken[node] >= size] == ["node2", "node3", "node4"]
    assert links(deployed) == {node: [release["id"], "none"] for node in NODES}
    for node in NODES:
        assert not deployed.shell(node, "systemctl list-units --plain --no-legend 'llamacpp-share-*'").strip()
    assert set(deployed.site().succeeded().changed.values()) == {0}


def test_a_patch_that_does_not_apply_names_file_and_hunk(deployed: Cluster, tmp_path: Path) -> None:
    patch = tmp_path / "fix.patch"
    patch.write_text(
        "--- a/CMakeLists.txt\n+++ b/CMakeLists.txt\n@@ -1,2 +1,2 @@\n-no line of llama.cpp\n+another\n nor this\n",
        encoding="utf-8",
    )
    before, running = links(deployed), deployed.invocations()
    run = deployed.site(llamacpp_patches=[{"path": str(patch)}], llamacpp_plan_path="").failed()
    for word in ("fix.patch", "CMakeLists.txt", "unk"):
        assert word in run.output, run.output[-3000:]
    assert links(deployed) == before and deployed.invocations() == running
    assert left_behind(deployed, "node2") == []


def test_no_compiler(deployed: Cluster) -> None:
    before = links(deployed)
    run = deployed.site(
        llamacpp_cmake_args=["-DLLAMACPP_CLUSTER_TEST=none"],
        llama_cpp_build_environment={"CC": "/nowhere/gcc", "CXX": "/nowhere/g++"},
        llamacpp_plan_path="",
    ).failed()
    assert "/nowhere/g" in run.output
    assert "robable cause" in run.output, run.output[-3000:]
    assert links(deployed) == before
    assert left_behind(deployed, "node2") == []


def test_a_disk_that_fills_up_during_the_build(deployed: Cluster, variant: dict[str, Any]) -> None:
    before = links(deployed)
    deployed.shell(
        "node2", "mkdir -p /var/cache/llamacpp/small && mount -t tmpfs -o size=90m tmpfs /var/cache/llamacpp/small"
    )
    try:
        run = deployed.site(
            **variant,
            llamacpp_build_dir="/var/cache/llamacpp/small",
            llamacpp_build_bytes_needed=0,
            llamacpp_plan_path="",
        ).failed()
        assert "disk" in run.output and "/var/cache/llamacpp/small" in run.output, run.output[-3000:]
        assert not deployed.shell("node2", "find /var/cache/llamacpp/small -name '*.tar.gz' -path '*cpu*'").strip()
    finally:
        deployed.shell("node2", "umount /var/cache/llamacpp/small && rmdir /var/cache/llamacpp/small")
    assert links(deployed) == before


def test_a_builder_that_dies_and_then_two_runs_at_once(deployed: Cluster, variant: dict[str, Any]) -> None:
    """The first run loses its builder; of the next two, one builds, the other waits and says for whom."""
    (base,) = {item[0] for item in links(deployed).values()}
    command = deployed.command("site", **variant)
    first = start(command)
    freeze_build(deployed)
    deployed.lab.kill("node2")
    output, _errors = first.communicate(timeout=300)
    assert first.returncode != 0, output[-3000:]
    deployed.lab.start("node2")
    assert {item[0] for item in links(deployed).values()} == {base}

    one = start(command)
    freeze_build(deployed)
    two = start(command)
    try:
        said = wait_for(two, "waiting for the build of")
    finally:
        deployed.shell("node2", "pkill -CONT -x ninja")
    assert " by " in said
    one_output, two_output = one.communicate(timeout=900)[0], two.communicate(timeout=900)[0]
    assert one.returncode == 0, one_output[-4000:]
    assert two.returncode == 0, two_output[-4000:]
    (now,) = {tuple(item) for item in links(deployed).values()}
    assert now[0] != base and now[1] == base
    assert deployed.chat("demo")
    assert left_behind(deployed, "node2") == []


def freeze_build(cluster: Cluster) -> None:
    """Stop the build on node2 as soon as it runs: where the compiler's cache answers, it is over in a moment."""
    cluster.shell("node2", "timeout 300 sh -c 'until pkill -STOP -x ninja; do sleep 0.05; done'")


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a run in the background."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"},
    )


def wait_for(process: subprocess.Popen[str], words: str) -> str:
    """Read a run's output up to the line with these words, and return that line."""
    assert process.stdout
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return line
    raise AssertionError(f"the run ended without {words!r}:\n{''.join(seen)[-4000:]}")


def test_a_disk_that_is_full_on_a_node(deployed: Cluster, variant: dict[str, Any]) -> None:
    """node4 gets a small empty disk below its releases: it lacks the release, and there is no room for it."""
    deployed.shell("node4", "mount -t tmpfs -o size=12m tmpfs /opt/llamacpp")
    try:
        run = deployed.site(**variant, llamacpp_plan_path="").failed()
        assert "node4" in run.output and "MiB" in run.output, run.output[-3000:]
        assert not deployed.shell("node4", "ls -A /opt/llamacpp/releases 2>/dev/null").strip()
        assert not deployed.shell("node4", "ls -A /opt/llamacpp/current 2>/dev/null || true").strip()
    finally:
        deployed.shell("node4", "umount /opt/llamacpp")
    assert set(deployed.site(**variant).succeeded().changed.values()) == {0}


def test_back_and_forth_again(deployed: Cluster, variant: dict[str, Any]) -> None:
    now = links(deployed)["node1"]
    deployed.run("rollback").succeeded()
    assert links(deployed) == {node: now[::-1] for node in NODES}
    assert f"/releases/{now[1]}/" in deployed.shell(
        "node1", "systemctl show --property ExecStart llamacpp-demo.service"
    )
    assert deployed.chat("demo")
    deployed.run("rollback").succeeded()
    assert links(deployed) == {node: now for node in NODES}
    running = deployed.invocations()
    # The plan that is kept is the one without a way back again; services are not touched.
    deployed.site(**variant).succeeded()
    assert deployed.invocations() == running
    assert set(deployed.site(**variant).succeeded().changed.values()) == {0}


def test_updates_are_shown(deployed: Cluster) -> None:
    run = deployed.run("updates").succeeded()
    for word in (*links(deployed)["node1"], "b11434"):
        assert word in run.output
    assert set(run.changed.values()) == {0}


def test_an_archive_of_binaries_is_a_release_too(deployed: Cluster) -> None:
    """The kept archive of the release before, as somebody else's tarball."""
    before = links(deployed)["node1"][1]
    archive = CACHE / "releases" / f"{before}.tar.gz"
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    source = {"kind": "release_archive", "path": str(archive), "sha256": sha256}
    refused = deployed.site(llamacpp_source={**source, "sha256": "0" * 64}, llamacpp_plan_path="").failed()
    assert sha256 in refused.output, refused.output[-3000:]
    deployed.site(llamacpp_source=source, llamacpp_keep_releases=0).succeeded()
    (now,) = {item[0] for item in links(deployed).values()}
    assert now not in (before, "none")
    assert deployed.chat("demo")
    # Nothing else keeps the one before last.
    assert sorted(deployed.shell("node3", "ls /opt/llamacpp/releases").split()) == sorted(links(deployed)["node3"])
    for path in (archive.with_name(f"{now}.tar.gz"), archive.with_name(f"{now}.tar.gz.sha256")):
        path.unlink()
