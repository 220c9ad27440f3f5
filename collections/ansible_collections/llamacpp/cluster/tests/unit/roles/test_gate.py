# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The gate, run as systemd runs it, against sockets that behave as workers and servers do (simulated)."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

GATE = os.path.join(os.path.dirname(__file__), *[os.pardir] * 3, "roles", "common", "files", "gate.py")


def gate(*arguments, timeout="1"):
    """Run the gate; return exit code and what it said."""
    done = subprocess.run(
        [sys.executable, GATE, *arguments, "--timeout", timeout], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def listen():
    """A function that listens on a free loopback port and answers each client with ``answer(connection)``."""
    sockets = []

    def start(answer):
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def serve():
            while True:
                try:
                    connection, _peer = listening.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        return "127.0.0.1:%d" % listening.getsockname()[1]

    yield start
    for listening in sockets:
        listening.close()


def worker(connection):
    """Answer HELLO as protocol 7.0.0 does."""
    request = connection.recv(64)
    assert request[0] == 14
    connection.sendall(struct.pack("<Q", 28) + bytes([7, 0, 0, 0]) + bytes(24))


def stranger(connection):
    """Answer as something else does."""
    connection.recv(64)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_workers_that_answer(listen):
    assert gate("workers", listen(worker), listen(worker)) == (0, "")


def test_worker_that_is_not_there(listen):
    rc, said = gate("workers", listen(worker), "127.0.0.1:1")
    assert rc == 1
    assert "worker 127.0.0.1:1: " in said
    assert "gave up after 1 s" in said


def test_port_that_speaks_something_else(listen):
    rc, said = gate("workers", listen(stranger))
    assert rc == 1
    assert "does not speak llama.cpp's RPC protocol" in said


def test_listening_does_not_open_the_port(listen):
    opened = []
    endpoint = listen(opened.append)
    assert gate("listening", endpoint) == (0, "")
    assert opened == []


def test_nothing_listens():
    rc, said = gate("listening", "127.0.0.1:1")
    assert rc == 1
    assert "nothing listens on 127.0.0.1:1 yet" in said


@pytest.mark.parametrize(
    ("status", "rc", "words"), [(200, 0, ""), (503, 1, "loading the model"), (404, 1, "answers 404")]
)
def test_health(status, rc, words):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments):
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found, said = gate("health", "http://127.0.0.1:%d/health" % server.server_port)
    server.shutdown()
    server.server_close()
    assert found == rc
    assert words in said


def test_waits_for_a_worker_that_comes_late():
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    process = subprocess.Popen([sys.executable, GATE, "workers", "127.0.0.1:%d" % port, "--timeout", "20"])
    with socket.create_server(("127.0.0.1", port)) as listening:
        connection, _peer = listening.accept()
        with connection:
            worker(connection)
    assert process.wait(timeout=10) == 0
