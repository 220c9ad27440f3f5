# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files for peers: the script as systemd runs it, asked over real loopback connections."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _share

DATA = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def share(tmp_path):
    """A function that starts the script; returns its process and port."""
    started = []
    (tmp_path / "model.gguf").write_bytes(DATA)
    (tmp_path / "empty").write_bytes(b"")

    def start(**more):
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # An abstract one, so that whoever the script becomes can reach it, as systemd's.
        name = "llamacpp-%s" % uuid.uuid4().hex
        listening.bind("\0" + name)
        config = {
            "address": "127.0.0.1",
            "port": 0,
            "secret": "s3cret",
            "files": {name: str(tmp_path / name) for name in ("model.gguf", "empty")},
            "peers": ["127.0.0.1"],
            "idle": 60,
            "user": "",
            **more,
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        process = subprocess.Popen(
            [sys.executable, "-I", _share.__file__, tmp_path / "config.json"],
            env=dict(os.environ, NOTIFY_SOCKET="@" + name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        listening.settimeout(20)
        ready, status = listening.recv(1000).decode().splitlines()
        listening.close()
        assert ready == "READY=1"
        return process, int(status.rpartition(" ")[2])

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(port, path, method="GET", source="127.0.0.1", **headers):
    """Return status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20, source_address=(source, 0))
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_a_file(share):
    _process, port = share()
    assert ask(port, "/s3cret/model.gguf")[::2] == (200, DATA)
    assert ask(port, "/s3cret/empty")[::2] == (200, b"")
    status, headers, body = ask(port, "/s3cret/model.gguf", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "3000000", b"")


@pytest.mark.parametrize(
    ("header", "part"),
    [("bytes=0-9", DATA[:10]), ("bytes=2999990-", DATA[-10:]), ("bytes=-5", DATA[-5:]), ("bytes=5-99999999", DATA[5:])],
)
def test_a_part(share, header, part):
    _process, port = share()
    status, headers, body = ask(port, "/s3cret/model.gguf", Range=header)
    assert (status, body) == (206, part)
    assert headers["Content-Range"].endswith("/3000000")


def test_a_part_behind_the_end(share):
    _process, port = share()
    status, headers, _body = ask(port, "/s3cret/model.gguf", Range="bytes=3000000-")
    assert (status, headers["Content-Range"]) == (416, "bytes */3000000")


@pytest.mark.parametrize(
    "path",
    ["/model.gguf", "/wrong/model.gguf", "/s3cret/other", "/s3cret/", "/", "/s3cret/../model.gguf", "/s3cret/%2e"],
)
def test_paths_that_lead_nowhere(share, path):
    _process, port = share()
    assert ask(port, path)[::2] == (404, b"")


def test_other_methods(share):
    _process, port = share()
    assert ask(port, "/s3cret/model.gguf", "PUT")[0] == 501


def test_strangers_get_no_answer(share):
    _process, port = share()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(port, "/s3cret/model.gguf", source="127.0.0.2")
    assert ask(port, "/s3cret/model.gguf")[0] == 200


def test_several_at_a_time(share):
    _process, port = share()
    # Somebody who asks and takes nothing holds up nobody.
    with socket.create_connection(("127.0.0.1", port)) as lazy:
        lazy.sendall(b"GET /s3cret/model.gguf HTTP/1.1\r\nHost: x\r\n\r\n")
        found = []
        clients = [
            threading.Thread(target=lambda: found.append(ask(port, "/s3cret/model.gguf")[2] == DATA))
            for _number in range(6)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert found == [True] * 6


def test_several_requests_on_one_connection(share):
    _process, port = share()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for _request in range(3):
        connection.request("GET", "/s3cret/model.gguf")
        assert connection.getresponse().read() == DATA
    connection.close()


def test_a_file_that_is_removed_meanwhile_is_still_given(share, tmp_path):
    _process, port = share()
    (tmp_path / "model.gguf").unlink()
    assert ask(port, "/s3cret/model.gguf")[2] == DATA


def test_ends_by_itself(share):
    process, _port = share(idle=1)
    assert process.wait(timeout=20) == 0


def test_does_not_end_while_somebody_takes_something(share, tmp_path):
    # More than the kernel keeps between the two.
    (tmp_path / "large").write_bytes(DATA * 10)
    process, port = share(idle=1, files={"model.gguf": str(tmp_path / "large")})
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(b"GET /s3cret/model.gguf HTTP/1.0\r\n\r\n")
        time.sleep(2.5)
        assert process.poll() is None
        got = b"".join(iter(lambda: slow.recv(1 << 20), b""))
    assert got.endswith(DATA[-100:])
    assert process.wait(timeout=20) == 0


def test_ends_when_told(share):
    process, _port = share()
    process.terminate()
    assert process.wait(timeout=20) == 0


def test_log_has_neither_secret_nor_what_clients_make_up(share):
    process, port = share(idle=1)
    ask(port, "/s3cret/model.gguf")
    ask(port, "/s3cret")
    ask(port, "/x/%1b[31mred")
    process.wait(timeout=20)
    said = process.stdout.read().splitlines()
    assert said == ["127.0.0.1 GET model.gguf 200", "127.0.0.1 GET - 404", "127.0.0.1 GET - 404"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_gives_up_root_and_still_gives_a_file_of_root(share, tmp_path):
    (tmp_path / "model.gguf").touch()
    (tmp_path / "model.gguf").chmod(0o600)
    process, port = share(user="nobody")
    with open("/proc/%d/status" % process.pid, encoding="ascii") as stream:
        status = dict(line.split(":\t", 1) for line in stream.read().splitlines() if ":\t" in line)
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    assert (status["Groups"].strip(), int(status["CapEff"], 16), int(status["CapPrm"], 16)) == ("", 0, 0)
    assert ask(port, "/s3cret/model.gguf")[2] == DATA


@pytest.mark.parametrize(
    ("header", "size", "part"),
    [
        (None, 10, None),
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=3-", 10, (3, 7)),
        ("bytes=-20", 10, (0, 10)),
        ("bytes=5-4", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("bytes=-", 10, None),
        ("lines=1-2", 10, None),
    ],
)
def test_byte_range(header, size, part):
    assert _share.byte_range(header, size) == part


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_byte_range_outside(header, size):
    with pytest.raises(_share.UnsatisfiableError):
        _share.byte_range(header, size)
