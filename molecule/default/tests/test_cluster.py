"""The converged cluster, seen from outside: units, sockets, files and a chat, by testinfra on the real nodes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

PLAN = Path(__file__).resolve().parents[3] / ".cache" / "molecule" / "plan.json"
KEY = "molecule-key-0123456789"


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    """The plan that converge wrote."""
    loaded: dict[str, Any] = json.loads(PLAN.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def name(host: Any) -> str:
    """The node's name in the inventory."""
    return str(host.backend.get_hostname())


@pytest.fixture
def planned_units(plan: dict[str, Any], name: str) -> list[str]:
    """The units that the plan gives the node."""
    return list(plan["nodes"][name]["units"])


def ask(address: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, Any]:
    """Ask the server over the management network; return status and decoded answer."""
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode() if body else None
    question = urllib.request.Request(f"http://{address}:8080{path}", data=data, headers=headers)
    try:
        with urllib.request.urlopen(question, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, None


def test_every_planned_unit_runs_and_survives_a_reboot(host: Any, planned_units: list[str]) -> None:
    assert planned_units
    for unit in planned_units:
        assert host.service(unit).is_running, unit
        assert host.service(unit).is_enabled, unit


def test_services_run_as_their_own_user(host: Any, planned_units: list[str]) -> None:
    for unit in planned_units:
        pid = host.check_output("systemctl show --value --property MainPID %s", unit)
        assert host.check_output("ps -o user= -p %s", pid).strip() == "llamacpp"


def test_workers_listen_on_the_fabric_alone(host: Any, plan: dict[str, Any], name: str) -> None:
    for instance in plan["instances"]:
        for worker in instance["workers"]:
            if worker["node"] == name:
                assert worker["host"] == plan["nodes"][name]["fabric_address"]
                listening = host.check_output("ss --no-header --listening --tcp --numeric")
                addresses = [line.split()[3] for line in listening.splitlines()]
                ours = [address for address in addresses if address.endswith(f":{worker['port']}")]
                assert ours == [f"{worker['host']}:{worker['port']}"]


def test_nobody_but_the_head_reaches_a_worker(host: Any, plan: dict[str, Any], name: str) -> None:
    """A node that is not the head tries each worker's port: the packet filter drops it, while SSH beside it answers."""
    script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1); print('connected')"
    for instance in plan["instances"]:
        for worker in instance["workers"]:
            if name in (instance["head"], worker["node"]):
                continue
            beside = host.run("python3 -c %s %s 22", script, worker["host"])
            assert "connected" in beside.stdout
            tried = host.run("python3 -c %s %s %s", script, worker["host"], str(worker["port"]))
            assert "timed out" in tried.stderr


def test_release_finds_its_own_libraries(host: Any, plan: dict[str, Any], name: str) -> None:
    root = f"/opt/llamacpp/releases/{plan['nodes'][name]['release']}"
    assert host.file("/opt/llamacpp/current").linked_to == root
    resolved = host.check_output("ldd %s/bin/llama-server", root)
    assert "not found" not in resolved
    assert f"{root}/bin/../lib" in resolved
    assert "build 11434" in host.check_output("%s/bin/llama-server --version 2>&1", root)


def test_key_file_is_closed_and_no_command_line_shows_a_key(host: Any, plan: dict[str, Any], name: str) -> None:
    for instance in plan["instances"]:
        if instance["head"] == name:
            keys = host.file(instance["api_key_file"])
            with host.sudo():
                assert keys.mode == 0o600
                assert keys.user == "llamacpp"
                assert keys.content_string.split() == [KEY]
    assert KEY not in host.check_output("ps axww")


def test_chat_answers_with_the_key_and_only_with_it(host: Any, plan: dict[str, Any], name: str) -> None:
    if name != plan["instances"][0]["head"]:
        return
    address = host.check_output("ip -4 -o addr show mgmt0").split()[3].split("/")[0]
    question = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    assert ask(address, "/health")[0] == 200
    assert ask(address, "/v1/chat/completions", question)[0] == 401
    assert ask(address, "/v1/chat/completions", question, "wrong")[0] == 401
    status, answer = ask(address, "/v1/chat/completions", question, KEY)
    assert status == 200
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] == 8
