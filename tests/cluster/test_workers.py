"""Asking real workers who they are, while a head uses them and while none does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from driver import ROOT, Cluster

pytestmark = [pytest.mark.lab]

# Nobody listens here.
SILENT_PORT = 50999


@pytest.fixture(scope="module")
def deployed(cluster: Cluster) -> Iterator[Cluster]:
    """One instance over three nodes, whatever the tests before this one left."""
    kept = cluster.variables["llamacpp_instances"]
    cluster.variables["llamacpp_instances"] = [cluster.instance("demo", ["node1", "node2", "node3"])]
    cluster.site().succeeded()
    yield cluster
    cluster.variables["llamacpp_instances"] = kept


@pytest.fixture(scope="module")
def worker(deployed: Cluster) -> dict[str, Any]:
    """The worker on node2 as planned: host, port, unit."""
    planned: dict[str, Any] = next(item for item in deployed.planned("demo")["workers"] if item["node"] == "node2")
    return planned


def rpc_info(cluster: Cluster, node: str, **arguments: Any) -> dict[str, Any]:
    """Run the module on a node."""
    done = subprocess.run(
        [
            str(ROOT / ".venv" / "bin" / "ansible"),
            f"--inventory={cluster.lab.inventory}",
            node,
            "--module-name=llamacpp.cluster.rpc_info",
            f"--args={json.dumps(arguments)}",
            "--one-line",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return answer


def started(cluster: Cluster, worker: dict[str, Any]) -> str:
    """How often systemd started the worker, and when."""
    return cluster.shell("node2", f"systemctl show --property NRestarts,InvocationID,ActiveState {worker['unit']}")


def test_a_worker_that_serves_a_head_is_not_touched(deployed: Cluster, worker: dict[str, Any]) -> None:
    said = rpc_info(deployed, "node2", host=worker["host"], port=worker["port"])
    assert said["state"] == "busy"
    assert len(said["clients"]) == 1
    assert said["devices"] == []
    assert deployed.chat("demo", key=None)


def test_from_elsewhere_one_has_to_insist(deployed: Cluster, worker: dict[str, Any]) -> None:
    said = rpc_info(deployed, "node1", host=worker["host"], port=worker["port"])
    assert "state" not in said
    assert "remote: true" in said["msg"]


def test_a_question_that_waits_in_vain_does_no_harm_later(deployed: Cluster, worker: dict[str, Any]) -> None:
    """The worker finds it in its queue when the head has gone; an ordinary close would kill it then."""
    before = started(deployed, worker)
    for _time in range(2):
        said = rpc_info(deployed, "node1", host=worker["host"], port=worker["port"], remote=True, timeout=1)
        assert said["state"] == "busy"
    assert deployed.chat("demo", key=None)
    deployed.shell("node1", "systemctl stop llamacpp-demo.service")
    try:
        deployed.until(
            "the worker answers",
            lambda: rpc_info(deployed, "node2", host=worker["host"], port=worker["port"])["state"] == "ok",
            30,
        )
        said = rpc_info(deployed, "node2", host=worker["host"], port=worker["port"])
        assert said["protocol"].startswith("7.")
        assert [device["index"] for device in said["devices"]] == [0]
        assert said["devices"][0]["total"] >= said["devices"][0]["free"] > 0
        assert started(deployed, worker) == before
        # Asked from where a head would be, without one in the way.
        assert rpc_info(deployed, "node1", host=worker["host"], port=worker["port"], remote=True)["state"] == "ok"
    finally:
        deployed.shell("node1", "systemctl start llamacpp-demo.service")
    deployed.until("the instance answers again", lambda: deployed.ask("demo", "/health", key=None)[0] == 200)
    assert deployed.chat("demo", key=None)


def test_nobody_listens(deployed: Cluster) -> None:
    assert rpc_info(deployed, "node2", port=SILENT_PORT)["state"] == "refused"


def test_the_head_is_no_worker(deployed: Cluster) -> None:
    said = rpc_info(deployed, "node1", port=deployed.planned("demo")["port"])
    assert said["state"] == "wrong_protocol"
    assert said["protocol"] is None
