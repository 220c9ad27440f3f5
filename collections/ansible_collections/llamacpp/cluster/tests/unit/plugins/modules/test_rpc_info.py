# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking a worker, as Ansible does."""

from __future__ import annotations

import socket

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_simulated import (
    SimulatedDevice,
    SimulatedRpcServer,
)
from ansible_collections.llamacpp.cluster.plugins.modules import rpc_info

GIB = 1 << 30


@pytest.fixture
def worker():
    with SimulatedRpcServer([SimulatedDevice(24 * GIB, 20 * GIB)]) as server:
        yield server


@pytest.fixture
def ask(run_module):
    def run(port, **arguments):
        return run_module(rpc_info, port=port, **arguments)

    return run


def test_version_and_devices(ask, worker):
    said = ask(worker.port)
    assert said["changed"] is False
    assert said["state"] == "ok"
    assert said["reachable"] is True
    assert said["protocol"] == "7.0.0"
    assert said["devices"] == [{"index": 0, "total": 24 * GIB, "free": 20 * GIB}]
    assert said["clients"] == []


def test_a_port_that_has_a_client_is_not_opened(ask):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _address = server.accept()
        with accepted:
            said = ask(server.getsockname()[1])
            assert said["state"] == "busy"
            assert said["clients"] == ["127.0.0.1:%d" % client.getsockname()[1]]
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()


def test_nobody_there(ask, worker):
    worker.close()
    said = ask(worker.port)
    assert said["state"] == "refused"
    assert said["reachable"] is False
    assert said["devices"] == []


def test_another_version(ask):
    with SimulatedRpcServer([], protocol=(8, 0, 0)) as worker:
        said = ask(worker.port)
    assert said["state"] == "wrong_protocol"
    assert said["protocol"] == "8.0.0"


def test_from_elsewhere_only_when_that_is_wanted(ask):
    said = ask(50052, host="203.0.113.7")
    assert said["failed"]
    assert "remote: true" in said["msg"]


def test_from_elsewhere(ask, worker, monkeypatch):
    """Nobody looks for clients in the own tables then; the worker is asked."""
    monkeypatch.setattr(rpc_info, "is_local", lambda host: False)
    assert ask(worker.port, remote=True)["state"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"port": 0}, "65535"), ({"port": 70000}, "65535"), ({"port": 1, "timeout": 0}, "timeout")],
)
def test_nonsense_is_refused(run_module, arguments, word):
    said = run_module(rpc_info, **arguments)
    assert said["failed"]
    assert word in said["msg"]


def test_a_host_that_is_none(ask, monkeypatch):
    def unknown(host):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(rpc_info, "is_local", unknown)
    said = ask(50052, host="node7")
    assert said["failed"]
    assert "node7" in said["msg"]


def test_where_nobody_can_see_connections_nobody_asks(ask, worker, monkeypatch):
    def unreadable(port):
        raise OSError("no table")

    monkeypatch.setattr("ansible_collections.llamacpp.cluster.plugins.module_utils._rpc.clients", unreadable)
    assert "no table" in ask(worker.port)["msg"]
