# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking a worker who it is, without harm."""

from __future__ import annotations

import errno
import socket
import struct
import threading

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _rpc
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_simulated import (
    SimulatedDevice,
    SimulatedRpcServer,
)

GIB = 1 << 30


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port_of(server):
    return server.getsockname()[1]


def serve_once(server, reply):
    """Accept one client, wait for its greeting, answer with ``reply`` and hang up."""

    def work():
        connection, _address = server.accept()
        with connection:
            connection.recv(64)
            connection.sendall(reply)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_worker_says_its_version_and_the_memory_of_every_device():
    devices = [SimulatedDevice(24 * GIB, 20 * GIB), SimulatedDevice(80 * GIB, 79 * GIB)]
    with SimulatedRpcServer(devices) as worker:
        answer = _rpc.ask(worker.host, worker.port, 5)
    assert answer.state == "ok"
    assert answer.reachable
    assert answer.protocol == "7.0.0"
    assert answer.as_dict()["devices"] == [
        {"index": 0, "total": 24 * GIB, "free": 20 * GIB},
        {"index": 1, "total": 80 * GIB, "free": 79 * GIB},
    ]
    assert answer.milliseconds < 5000


@pytest.mark.parametrize(
    ("theirs", "state"),
    [((7, 0, 9), "ok"), ((8, 0, 0), "wrong_protocol"), ((6, 9, 9), "wrong_protocol"), ((7, 1, 0), "wrong_protocol")],
)
def test_versions_fit_as_llama_cpp_wants_them(theirs, state):
    """An equal major, and a minor that is not newer than the client's."""
    with SimulatedRpcServer([SimulatedDevice(GIB, GIB)], protocol=theirs) as worker:
        answer = _rpc.ask(worker.host, worker.port, 5)
    assert answer.state == state
    assert answer.protocol == "%d.%d.%d" % theirs
    if state != "ok":
        assert "7.0.0" in answer.message


def test_an_older_client_may_be_asked_about():
    with SimulatedRpcServer([], protocol=(6, 1, 0)) as worker:
        assert _rpc.ask(worker.host, worker.port, 5, expected=(6, 2, 0)).state == "ok"


def test_nobody_listens(listener):
    port = port_of(listener)
    listener.close()
    answer = _rpc.ask("127.0.0.1", port, 5)
    assert answer.state == "refused"
    assert not answer.reachable


@pytest.mark.parametrize(
    "error", [OSError(errno.EHOSTUNREACH, "No route to host"), socket.gaierror(-2, "unknown"), socket.timeout("late")]
)
def test_no_way_there(monkeypatch, error):
    def fail(*_arguments):
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    answer = _rpc.ask("198.51.100.1", 50052, 5)
    assert answer.state == "unreachable"
    assert not answer.reachable


def test_a_web_server_is_no_worker(listener):
    thread = serve_once(listener, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    answer = _rpc.ask("127.0.0.1", port_of(listener), 5)
    thread.join(5)
    assert answer.state == "wrong_protocol"
    assert "HTTP/1.1" in answer.message


def test_a_web_server_that_waits_for_the_end_of_a_line_is_no_worker_either(listener):
    """llama-server does; without the end of a line it would look like a worker that has a client."""

    def work():
        connection, _address = listener.accept()
        with connection, connection.makefile("rwb") as stream:
            while stream.readline() != b"\r\n":
                pass
            stream.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    answer = _rpc.ask("127.0.0.1", port_of(listener), 1)
    thread.join(5)
    assert answer.state == "wrong_protocol"
    assert "HTTP/1.1" in answer.message


def test_a_worker_that_is_slow_to_answer_is_busy(listener):
    def work():
        connection, _address = listener.accept()
        with connection:
            while not connection.recv(64).endswith(b"\n"):
                pass
            connection.sendall(struct.pack("<Q28x", 28))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    answer = _rpc.ask("127.0.0.1", port_of(listener), 1)
    thread.join(5)
    assert answer.state == "busy"


def test_who_hangs_up_on_the_greeting_is_no_worker_of_today(listener):
    thread = serve_once(listener, b"")
    answer = _rpc.ask("127.0.0.1", port_of(listener), 5)
    thread.join(5)
    assert answer.state == "wrong_protocol"


def test_an_unbelievable_number_of_devices_is_refused():
    class Boasting(SimulatedRpcServer):
        def answer(self, command, payload):
            if command is _rpc.Command.DEVICE_COUNT:
                return _rpc.NUMBER.pack(0xFFFFFFFF)
            return super().answer(command, payload)

    with Boasting([]) as worker:
        answer = _rpc.ask(worker.host, worker.port, 5)
    assert answer.state == "wrong_protocol"
    assert "4294967295" in answer.message


def test_a_busy_worker_finds_a_reset_connection_when_it_gets_to_the_question(listener):
    """Its first write has to fail, and with ECONNRESET: at the second, SIGPIPE would kill it."""
    answer = _rpc.ask("127.0.0.1", port_of(listener), 0.2)
    assert answer.state == "busy"
    connection, _address = listener.accept()
    with connection:
        assert connection.recv(64)[0] == _rpc.Command.HELLO
        with pytest.raises(ConnectionResetError):
            connection.sendall(struct.pack("<Q", 28))


def test_clients_of_a_port_are_those_that_are_connected_to_it(listener):
    port = port_of(listener)
    assert _rpc.clients(port) == ()
    with socket.create_connection(("127.0.0.1", port)) as client:
        # Not accepted yet: the kernel counts it nevertheless, and so must we.
        assert _rpc.clients(port) == ("127.0.0.1:%d" % client.getsockname()[1],)
        # The other end of it is a port of this machine as well, but nobody listens there.
        assert _rpc.clients(client.getsockname()[1]) == ()


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = " 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1\n"
TO_ME = "0B01D50A:C384"  # 10.213.1.11:50052
CONNECTIONS = (
    "   1: %s 0C01D50A:9C40 01" % TO_ME + REST,
    "   2: %s 0D01D50A:9C41 06" % TO_ME + REST,  # TIME_WAIT: gone
    "   3: 0B01D50A:C385 0D01D50A:9C42 01" + REST,  # another port
    "   4: 0F01D50A:C384 1401D50A:0016 01" + REST,  # another address of this machine; from there it went out
)


@pytest.mark.parametrize(
    ("listener", "expected"),
    [
        (TO_ME, ("10.213.1.12:40000",)),
        ("00000000:C384", ("10.213.1.12:40000", "10.213.1.20:22")),
        ("0100007F:C384", ()),
        ("0B01D50A:C385", ()),
    ],
    ids=["this address", "every address", "loopback", "another port"],
)
def test_clients_are_counted_where_somebody_listens(tmp_path, listener, expected):
    table = tmp_path / "tcp"
    table.write_text(HEAD + "   0: %s 00000000:0000 0A" % listener + REST + "".join(CONNECTIONS), encoding="ascii")
    assert _rpc.clients(50052, (str(table), str(tmp_path / "no tcp6"))) == expected


def test_clients_over_ipv6(tmp_path):
    table = tmp_path / "tcp6"
    table.write_text(
        HEAD
        + "   0: 00000000000000000000000000000000:C384 00000000000000000000000000000000:0000 0A"
        + REST
        + "   1: 0000000000000000FFFF00000B01D50A:C384 0000000000000000FFFF00000E01D50A:9C43 01"
        + REST
        + "   2: B80D0120000000000000000001000000:C384 B80D0120000000000000000002000000:9C44 01"
        + REST,
        encoding="ascii",
    )
    assert _rpc.clients(50052, (str(table),)) == ("10.213.1.14:40003", "[2001:db8::2]:40004")


def test_a_kernel_that_says_nothing_is_not_a_port_without_clients(tmp_path):
    with pytest.raises(OSError, match="table of connections"):
        _rpc.clients(50052, (str(tmp_path / "tcp"),))


def test_addresses_of_this_machine():
    assert _rpc.is_local("127.0.0.1")
    assert not _rpc.is_local("203.0.113.1")
