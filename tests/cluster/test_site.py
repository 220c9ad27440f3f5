"""What site.yml does to real nodes, from fresh ones to a cluster that is changed, killed and taken away.

The tests of this file are one story: each stands on the state that the one before it left.
"""

from __future__ import annotations

import copy
import hashlib
import re
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from driver import KEY, Cluster

pytestmark = [pytest.mark.lab]


def differences(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Units (node/unit) that were started, stopped, added or removed."""
    return {unit for unit in before.keys() | after.keys() if before.get(unit) != after.get(unit)}


def test_check_mode_on_fresh_nodes_says_what_it_would_do_and_does_nothing(cluster: Cluster) -> None:
    before = {
        node: cluster.shell(node, "ls -A /opt /etc /var/lib /usr/local | sort") for node in ("node1", "node2", "node3")
    }
    run = cluster.site("--check", "--diff").succeeded()
    assert all(run.changed[node] > 0 for node in ("node1", "node2", "node3"))
    assert "+ExecStart=/opt/llamacpp/releases/b11434-cpu-" in run.output
    for node, listing in before.items():
        assert cluster.shell(node, "ls -A /opt /etc /var/lib /usr/local | sort") == listing
        assert cluster.shell(node, "getent passwd llamacpp || echo none").strip() == "none"


def test_fresh_nodes_become_a_cluster_that_chats(cluster: Cluster) -> None:
    run = cluster.site("-vvv").succeeded()
    assert KEY not in run.output
    assert cluster.chat("demo")
    assert set(cluster.invocations()) == {
        *(f"node{number}/llamacpp-firewall.service" for number in (1, 2, 3)),
        "node1/llamacpp-demo.service",
        "node2/llamacpp-rpc-demo.service",
        "node3/llamacpp-rpc-demo.service",
    }


def test_release_was_compiled_on_one_node_and_pushed_to_the_others(cluster: Cluster) -> None:
    """The builder is the Debian 11 node; the others have no compiler and run the same bytes."""
    root = f"/opt/llamacpp/releases/{cluster.planned('demo')['release']}"
    sums = {
        cluster.shell(node, f"sha256sum {root}/bin/* {root}/lib/*") for node in ("node1", "node2", "node3", "node4")
    }
    assert len(sums) == 1
    assert '"os": "debian-11"' in cluster.shell("node1", f"cat {root}/manifest.json")
    for node in ("node1", "node3", "node4"):
        assert cluster.shell(node, "command -v cmake || echo none").strip() == "none"


def test_a_chat_needs_the_key(cluster: Cluster) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    assert cluster.ask("demo", "/v1/chat/completions", body, key=None)[0] == 401
    assert cluster.ask("demo", "/v1/chat/completions", body, key="wrong")[0] == 401
    assert cluster.ask("demo", "/v1/chat/completions", body)[0] == 200


def test_no_key_on_any_command_line_or_in_a_file_that_others_read(cluster: Cluster) -> None:
    assert KEY not in cluster.shell("node1", "ps axwwe")
    assert cluster.shell("node1", "stat -c '%a %U' /etc/llamacpp/keys/demo").split() == ["600", "llamacpp"]
    assert KEY not in cluster.shell("node1", "cat /etc/systemd/system/llamacpp-*.service")
    assert KEY not in (cluster.work / "plan.json").read_text(encoding="utf-8")


def test_second_run_changes_nothing(cluster: Cluster) -> None:
    before = cluster.invocations()
    run = cluster.site().succeeded()
    assert set(run.changed.values()) == {0}, run.output[-4000:]
    assert cluster.invocations() == before


def test_check_mode_reports_nothing_on_a_converged_cluster(cluster: Cluster) -> None:
    run = cluster.site("--check", "--diff").succeeded()
    assert set(run.changed.values()) == {0}, run.output[-4000:]
    assert "+++ after" not in run.output


def test_verify_proves_the_placement(cluster: Cluster) -> None:
    run = cluster.run("verify", "-v").succeeded()
    assert "buffers:" in run.output


def test_ledger_has_three_figures_for_every_device(cluster: Cluster) -> None:
    run = cluster.run("verify").succeeded()
    rows = re.findall(
        r"^ +(?:demo +)(node\d) +(\w+) +(\d+) +(\d+) \((\d+)\) +(\d+) +[+-]\d+$", run.output, re.MULTILINE
    )
    assert [(node, device) for node, device, *_figures in rows] == [
        ("node1", "CPU"),
        ("node2", "RPC0"),
        ("node3", "RPC1"),
    ]
    for _node, _device, predicted, oracle, buffers, real in rows:
        assert abs(int(oracle) - int(buffers)) <= 4  # MiB; the oracle cuts three figures off
        assert 0 < int(real) <= int(predicted) + 256


def test_memory_that_is_not_as_planned_fails_with_the_numbers(cluster: Cluster) -> None:
    context = cluster.variables["llamacpp_instances"][0]["context"]
    cluster.variables["llamacpp_instances"][0]["context"] = 65536
    cluster.site().succeeded()
    # What runs has a larger context than what is declared now.
    cluster.variables["llamacpp_instances"][0]["context"] = context
    run = cluster.run("verify", llamacpp_ledger_margin_mib=16).failed()
    assert re.search(r"demo on RPC0 of node2: it takes \d+ MiB more than planned \(predicted \d+,", run.output)
    assert "plan again with the settings that really run" in run.output
    cluster.site().succeeded()


def test_parallel_restarts_one_head_and_nothing_else(cluster: Cluster) -> None:
    before = cluster.invocations()
    cluster.variables["llamacpp_instances"][0]["parallel"] = 2
    checked = cluster.site("--check", "--diff").succeeded()
    assert checked.changed["node2"] == checked.changed["node3"] == 0
    assert "+  --parallel 2" in checked.output
    run = cluster.site().succeeded()
    assert differences(before, cluster.invocations()) == {"node1/llamacpp-demo.service"}
    assert run.changed["node2"] == run.changed["node3"] == run.changed["node4"] == 0
    assert cluster.chat("demo")


def test_second_instance_touches_only_what_it_must(cluster: Cluster) -> None:
    before = cluster.invocations()
    cluster.variables["llamacpp_instances"].append(cluster.instance("second", ["node4", "node3"]))
    cluster.site().succeeded()
    changed = differences(before, cluster.invocations())
    assert changed == {
        "node4/llamacpp-second.service",
        "node3/llamacpp-rpc-second.service",
        "node4/llamacpp-firewall.service",
        "node3/llamacpp-firewall.service",
    }
    assert cluster.chat("second", key=None)
    assert cluster.chat("demo")


def test_node_added_to_an_instance_leaves_the_other_workers_alone(cluster: Cluster) -> None:
    before = cluster.invocations()
    cluster.variables["llamacpp_instances"][1]["nodes"] = ["node4", "node3", "node2"]
    cluster.site().succeeded()
    assert differences(before, cluster.invocations()) == {
        "node4/llamacpp-second.service",
        "node2/llamacpp-rpc-second.service",
        "node2/llamacpp-firewall.service",
    }
    assert cluster.chat("second", key=None)


def test_removed_instance_takes_units_ports_and_openings_along(cluster: Cluster) -> None:
    gone = cluster.planned("second")
    port, rpc_port = gone["port"], gone["workers"][0]["port"]
    assert f"dport {rpc_port}" in cluster.shell("node3", "nft list ruleset")
    before = cluster.invocations()
    cluster.variables["llamacpp_instances"].pop()
    cluster.site().succeeded()
    changed = differences(before, cluster.invocations())
    assert {unit for unit in changed if "demo" in unit} == set()
    assert not {unit for unit in cluster.invocations() if "second" in unit}
    for node in ("node2", "node3", "node4"):
        assert cluster.shell(node, "ls /etc/systemd/system | grep second || echo none").strip() == "none"
        listening = cluster.shell(node, "ss --no-header --listening --tcp --numeric")
        assert f":{port} " not in listening
        assert node != "node3" or f":{rpc_port} " not in listening
        assert f"dport {rpc_port} ip saddr != {{ 10.214.1.14 }}" not in cluster.shell(
            node, "nft list ruleset 2>/dev/null || true"
        )
    assert cluster.shell("node4", "nft list ruleset").strip() == ""
    assert cluster.chat("demo")
    assert set(cluster.site().succeeded().changed.values()) == {0}


@pytest.mark.parametrize(
    ("marker", "seconds"),
    [
        ("Run the RPC workers of this node]", 0.3),
        ("Run the heads of this node]", 0.2),
        ("Run the heads of this node]", 0.6),
        ("Wait for the model", 0.1),
    ],
)
def test_run_killed_half_way_is_finished_by_the_next(cluster: Cluster, marker: str, seconds: float) -> None:
    """A change of a worker setting reaches workers and head, wherever the run before it was killed."""
    instance = cluster.variables["llamacpp_instances"][0]
    instance["rpc_port"] = instance.get("rpc_port", 51000) + 1
    assert cluster.run_killed_after(seconds, "site", marker), "the run ended before it could be killed"
    cluster.site().succeeded()
    for node in ("node2", "node3"):
        assert f":{instance['rpc_port']} " in cluster.shell(node, "ss --no-header --listening --tcp --numeric")
    assert str(instance["rpc_port"]) in cluster.shell("node1", "ps axww | grep [l]lama-server")
    assert cluster.chat("demo")
    assert set(cluster.site().succeeded().changed.values()) == {0}


def test_file_written_without_a_restart_is_noticed(cluster: Cluster) -> None:
    """As left by a run that was killed between writing the keys and restarting the head."""
    before = cluster.invocations()
    cluster.shell("node1", "sleep 1; touch /etc/llamacpp/keys/demo")
    cluster.site().succeeded()
    assert differences(before, cluster.invocations()) == {"node1/llamacpp-demo.service"}


def test_new_key_replaces_the_old_one(cluster: Cluster) -> None:
    old = copy.deepcopy(cluster.variables["llamacpp_instances"])
    cluster.variables["llamacpp_instances"][0]["api_keys"] = ["another-key-0123456789"]
    run = cluster.site("-vvv").succeeded()
    assert "another-key-0123456789" not in run.output
    assert cluster.chat("demo", key="another-key-0123456789")
    assert cluster.ask("demo", "/v1/models", key=KEY)[0] in (200, 401)  # /v1/models is public in llama.cpp
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    assert cluster.ask("demo", "/v1/chat/completions", body, key=KEY)[0] == 401
    cluster.variables["llamacpp_instances"] = old
    cluster.site().succeeded()


def test_worker_that_dies_is_back_and_so_is_the_answer(cluster: Cluster) -> None:
    cluster.shell("node3", "kill -9 $(systemctl show --value --property MainPID llamacpp-rpc-demo.service)")

    def answers() -> bool:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        return cluster.ask("demo", "/v1/chat/completions", body)[0] == 200

    time.sleep(1)
    cluster.until("the instance answers after its worker died", answers, 90)
    cluster.run("verify").succeeded()


def test_node_that_loses_power_comes_back_and_serves_again(cluster: Cluster) -> None:
    cluster.lab.kill("node2")
    run = cluster.site().failed()
    assert "llamacpp_instances[0].nodes" in run.output
    assert "demo" in run.output
    cluster.lab.start("node2")

    def answers() -> bool:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        return cluster.ask("demo", "/v1/chat/completions", body)[0] == 200

    cluster.until("the instance answers after the power came back", answers, 120)
    assert set(cluster.site().succeeded().changed.values()) == {0}


def test_release_that_lost_a_file_is_installed_again(cluster: Cluster) -> None:
    release = cluster.planned("demo")["release"]
    cluster.shell("node3", f"rm /opt/llamacpp/releases/{release}/bin/llama-bench")
    run = cluster.site().succeeded()
    assert run.changed["node3"] > 0
    assert run.changed["node1"] == 0
    assert (
        cluster.shell("node3", f"test -x /opt/llamacpp/releases/{release}/bin/llama-bench && echo there").strip()
        == "there"
    )


def test_build_that_fails_says_why_and_never_becomes_current(cluster: Cluster, tmp_path: Path) -> None:
    """A source whose CMakeLists.txt is broken: the log stays, the cluster goes on with what it has."""
    (tmp_path / "broken" / "ggml").mkdir(parents=True)
    (tmp_path / "broken" / "CMakeLists.txt").write_text('message(FATAL_ERROR "this source is broken")\n', "utf-8")
    archive = tmp_path / "broken.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "broken", arcname="broken")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    before = cluster.invocations()
    current = cluster.shell("node1", "readlink /opt/llamacpp/current")
    source = {"kind": "archive", "path": str(archive), "sha256": sha256}
    run = cluster.site(llamacpp_release="b1", llamacpp_source=source, llamacpp_plan_path="").failed()
    assert "this source is broken" in run.output
    log = cluster.shell("node2", "cat /var/cache/llamacpp/build/b1-cpu-*.log")
    assert "this source is broken" in log
    assert cluster.shell("node1", "readlink /opt/llamacpp/current") == current
    assert cluster.invocations() == before
    assert cluster.chat("demo")


def test_reset_leaves_nothing_but_the_models(cluster: Cluster) -> None:
    cluster.run("reset").succeeded()
    assert cluster.invocations() == {}
    for node in ("node1", "node2", "node3"):
        assert (
            cluster.shell(
                node, "ls -d /opt/llamacpp /etc/llamacpp /usr/local/libexec/llamacpp 2>/dev/null || echo none"
            ).strip()
            == "none"
        )
        assert cluster.shell(node, "getent passwd llamacpp || echo none").strip() == "none"
    assert cluster.shell("node1", "ls /var/lib/llamacpp/models/names/small").split() == ["small.gguf"]
    assert set(cluster.run("reset").succeeded().changed.values()) == {0}
