# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Starting and stopping shares. Scripts that run the real share simulate systemd; a booted one is in the lab."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import urllib.error
import urllib.request

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _transient
from ansible_collections.llamacpp.cluster.plugins.modules import fabric_share

# Starts what is behind the options in the background, waits until it says that it is ready, and keeps what it said.
SYSTEMD_RUN = '''#!@PYTHON@
"""A stand-in for systemd-run."""
import os, pathlib, re, socket, subprocess, sys, time

state = pathlib.Path("@STATE@")
words = sys.argv[1:]
(state / "arguments").write_text("\\n".join(words))
command = words[words.index("@PYTHON@"):]
listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listening.bind("\\0" + str(state))
process = subprocess.Popen(command, env=dict(os.environ, NOTIFY_SOCKET="@" + str(state)),
                           stdout=subprocess.DEVNULL, stderr=open(state / "log", "w"))
listening.settimeout(0.1)
while process.poll() is None:
    try:
        said = listening.recv(1000).decode()
    except OSError:
        continue
    (state / "status").write_text("StatusText=" + re.search("STATUS=(.*)", said).group(1))
    (state / "pid").write_text(str(process.pid))
    sys.exit(0)
sys.exit("Job failed")
'''
SYSTEMCTL = """#!/bin/sh
# A stand-in for systemctl.
cd @STATE@
case "$1" in
stop) kill "$(cat pid)"; rm pid status ;;
reset-failed) ;;
show) if test -e pid; then echo "ActiveState=active"; cat status; else echo "ActiveState=inactive"; fi ;;
esac
"""
JOURNALCTL = """#!/bin/sh
# A stand-in for journalctl.
cat @STATE@/log
"""


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Where the simulated systemd keeps what it knows; what still runs at the end is stopped."""
    state = tmp_path / "state"
    binaries = tmp_path / "bin"
    for directory in (state, binaries):
        directory.mkdir()
    for name, text in (("systemd-run", SYSTEMD_RUN), ("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
        (binaries / name).write_text(text.replace("@PYTHON@", sys.executable).replace("@STATE@", str(state)))
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (binaries, os.environ["PATH"]))
    # /run is root's.
    monkeypatch.setattr(_transient, "RUNTIME", str(tmp_path))
    yield state
    if (state / "pid").exists():
        os.kill(int((state / "pid").read_text()), 15)


@pytest.fixture
def given(tmp_path):
    """Arguments of a share of two files."""
    for name in ("one", "two with space"):
        (tmp_path / name).write_text("this is %s" % name)
    files = [str(tmp_path / "one"), str(tmp_path / "two with space")]
    return {"name": "test", "files": files, "address": "127.0.0.1", "peers": ["127.0.0.1"]}


def get(url):
    """Return what an address gives, without the proxies of this machine."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as answer:
        return answer.read().decode()


def test_start_and_stop(run_module, state, given, tmp_path):
    result = run_module(fabric_share, **given)
    assert (result["changed"], result["unit"]) == (True, "llamacpp-share-test.service")
    assert [get(url) for url in result["urls"]] == ["this is one", "this is two with space"]
    assert "127.0.0.1:%d/" % result["port"] in result["urls"][0]
    assert run_module(fabric_share, name="test", state="stopped")["changed"] is True
    assert run_module(fabric_share, name="test", state="stopped")["changed"] is False
    with pytest.raises(urllib.error.URLError):
        get(result["urls"][0])


def test_the_secret_is_on_no_command_line_and_in_no_file(run_module, state, given, tmp_path):
    secret = run_module(fabric_share, **given)["urls"][0].split("/")[3]
    assert len(secret) >= 32
    assert secret not in (state / "arguments").read_text()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_text(errors="replace")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "one", "state", "two with space"]


def test_is_started_in_a_sandbox(run_module, state, given):
    run_module(fabric_share, **given)
    words = (state / "arguments").read_text().splitlines()
    for word in ("Type=notify", "NoNewPrivileges=yes", "ProtectSystem=strict", "llamacpp-share-test.service"):
        assert word in words


def test_a_second_start_replaces_the_first(run_module, state, given):
    first = run_module(fabric_share, **given)["urls"]
    second = run_module(fabric_share, **given)["urls"]
    assert get(second[0]) == "this is one"
    with pytest.raises(urllib.error.URLError):
        get(first[0])


def test_a_peer_of_ipv6_however_it_is_written(run_module, state, given):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    result = run_module(fabric_share, **dict(given, address="::1", peers=["0:0:0:0:0:0:0:1"]))
    assert get(result["urls"][0]) == "this is one"


def test_check_mode(run_module, state, given):
    result = run_module(fabric_share, check=True, **dict(given, files=["/not/built/yet"]))
    assert (result["changed"], result["urls"]) == (True, [])
    assert not (state / "pid").exists()
    run_module(fabric_share, **given)
    assert run_module(fabric_share, check=True, name="test", state="stopped")["changed"] is True
    assert (state / "pid").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"files": ["/nowhere/x"]}, "/nowhere/x is no file of this node"),
        ({"files": ["/a/x", "/b/x"]}, "have the same name"),
        ({"address": "node1"}, "address = 'node1': write an IP address"),
        ({"peers": ["node2"]}, "peers = 'node2': write an IP address"),
        ({"user": "no-such-user"}, "no such user"),
        ({"name": "a/b"}, "write letters"),
        ({"idle": 0}, "write 1 or more"),
        ({"port": 65536}, "port = 65536: write 1 to 65535"),
        ({"address": "192.0.2.1"}, "Cannot assign requested address"),
    ],
)
def test_bad_input(run_module, state, given, change, words, monkeypatch):
    if change.get("files") == ["/a/x", "/b/x"]:
        monkeypatch.setattr(os.path, "isfile", lambda _path: True)
    result = run_module(fabric_share, **{**given, **change})
    assert result["failed"]
    assert words in result["msg"]


def test_nothing_is_left_when_it_does_not_start(run_module, state, given, tmp_path):
    assert run_module(fabric_share, **dict(given, address="192.0.2.1"))["failed"]
    assert not [name for name in os.listdir(tmp_path) if name.startswith("llamacpp-share-")]
    assert not [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("llamacpp-share-")]
