# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bringing a model file: whatever happens, nothing wrong is ever under its name."""

from __future__ import annotations

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import model_file
from ansible_collections.llamacpp.cluster.tests.unit.builders import llama

MODEL = llama()
SHA256 = hashlib.sha256(MODEL).hexdigest()


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "store" / "m.gguf"


@pytest.fixture
def server():
    """A real HTTP server on loopback: /m.gguf in full or by ranges; ``cut`` breaks the first answer off there."""

    class Handler(BaseHTTPRequestHandler):
        cut = None
        asked: ClassVar[list] = []

        def do_GET(self):
            start = 0
            wanted = self.headers.get("Range")
            Handler.asked.append(wanted)
            if self.path != "/m.gguf":
                self.send_error(404)
                return
            if wanted:
                start = int(wanted.split("=")[1].split("-")[0])
            if start >= len(MODEL):
                self.send_error(416)
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(MODEL) - start))
            self.end_headers()
            end = Handler.cut or len(MODEL)
            Handler.cut = None
            self.wfile.write(MODEL[start:end])
            self.close_connection = True

        def log_message(self, *_arguments):
            """Stay silent."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    Handler.asked.clear()
    Handler.url = "http://127.0.0.1:%d/m.gguf" % listening.server_port
    yield Handler
    listening.shutdown()
    listening.server_close()


def files(dest):
    """Names in the store."""
    return sorted(os.listdir(dest.parent)) if dest.parent.exists() else []


def test_download(run_module, server, dest):
    arguments = {"url": server.url, "sha256": SHA256, "dest": str(dest)}
    result = run_module(model_file, **arguments)
    assert (result["changed"], result["sha256"], result["bytes"]) == (True, SHA256, len(MODEL))
    assert dest.read_bytes() == MODEL
    assert files(dest) == ["m.gguf", "m.gguf.json"]
    server.asked.clear()
    assert run_module(model_file, **arguments)["changed"] is False
    assert server.asked == []


def test_download_that_broke_is_resumed(run_module, server, dest):
    arguments = {"url": server.url, "sha256": SHA256, "dest": str(dest)}
    server.cut = 1000
    broken = run_module(model_file, **arguments)
    assert broken["failed"]
    assert not dest.exists()
    assert (dest.parent / "m.gguf.part").stat().st_size == 1000
    server.asked.clear()
    assert run_module(model_file, **arguments)["changed"] is True
    assert server.asked == ["bytes=1000-"]
    assert dest.read_bytes() == MODEL


def test_download_with_wrong_bytes_is_thrown_away(run_module, server, dest):
    result = run_module(model_file, url=server.url, sha256="0" * 64, dest=str(dest))
    assert result["failed"]
    for words in ("0" * 64, SHA256, server.url):
        assert words in result["msg"]
    assert files(dest) == []


def test_download_of_what_is_not_there(run_module, server, dest):
    result = run_module(model_file, url=server.url + "x", sha256=SHA256, dest=str(dest))
    assert result["failed"]
    assert "404" in result["msg"]
    assert files(dest) == []


def test_url_needs_a_checksum(run_module, server, dest):
    assert "sha256" in run_module(model_file, url=server.url, dest=str(dest))["msg"]


def test_check_mode_brings_nothing(run_module, server, dest):
    assert run_module(model_file, check=True, url=server.url, sha256=SHA256, dest=str(dest))["changed"] is True
    assert files(dest) == []


def test_file_on_the_node_is_linked_not_copied(run_module, tmp_path, dest):
    source = tmp_path / "m.gguf"
    source.write_bytes(MODEL)
    result = run_module(model_file, path=str(source), dest=str(dest))
    assert result["changed"] is True
    assert os.path.samefile(source, dest)
    assert run_module(model_file, path=str(source), dest=str(dest))["changed"] is False


def test_file_on_the_node_that_was_replaced_is_linked_anew(run_module, tmp_path, dest):
    source = tmp_path / "m.gguf"
    source.write_bytes(MODEL)
    run_module(model_file, path=str(source), dest=str(dest))
    (tmp_path / "new").write_bytes(llama() + b"\0" * 32)
    os.rename(tmp_path / "new", source)
    assert run_module(model_file, path=str(source), dest=str(dest))["changed"] is True
    assert os.path.samefile(source, dest)


@pytest.mark.parametrize("content", [b"not a model", MODEL[:-50], b""])
def test_file_that_is_no_model_is_refused(run_module, tmp_path, dest, content):
    source = tmp_path / "m.gguf"
    source.write_bytes(content)
    result = run_module(model_file, path=str(source), dest=str(dest))
    assert result["failed"]
    assert str(source) in result["msg"]
    assert files(dest) == []
    assert source.read_bytes() == content


def upload(run_module, dest, content, **arguments):
    """What the action plugin does with a file of the control node."""
    dest.parent.mkdir(exist_ok=True)
    incoming = dest.parent / "incoming"
    incoming.write_bytes(content)
    return run_module(model_file, src="/there", incoming=str(incoming), dest=str(dest), **arguments)


def test_uploaded_file_is_moved(run_module, dest):
    assert upload(run_module, dest, MODEL, stamp="1")["changed"] is True
    assert files(dest) == ["m.gguf", "m.gguf.json"]
    probed = run_module(model_file, src="/there", dest=str(dest), stamp="1", probe=True)
    assert probed["present"] is True


def test_source_that_changed_on_the_control_node_is_noticed(run_module, dest):
    upload(run_module, dest, MODEL, stamp="1")
    assert run_module(model_file, src="/there", dest=str(dest), stamp="2", probe=True)["present"] is False


def test_checksum_settles_it_whatever_the_time_of_the_source(run_module, dest):
    upload(run_module, dest, MODEL, stamp="1", sha256=SHA256)
    probed = run_module(model_file, src="/there", dest=str(dest), stamp="2", sha256=SHA256, probe=True)
    assert probed["present"] is True


def test_file_that_was_touched_is_looked_at_again(run_module, dest):
    upload(run_module, dest, MODEL, stamp="1", sha256=SHA256)
    with open(dest, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\xff")
    probed = run_module(model_file, src="/there", dest=str(dest), stamp="1", sha256=SHA256, probe=True)
    assert probed["present"] is False


def test_same_bytes_from_a_newer_source_change_nothing(run_module, dest):
    upload(run_module, dest, MODEL, stamp="1")
    record = dest.parent / "m.gguf.json"
    before = dest.stat().st_ino, record.stat().st_mtime_ns
    assert upload(run_module, dest, MODEL, stamp="2")["changed"] is False
    assert (dest.stat().st_ino, record.stat().st_mtime_ns) == before
    assert files(dest) == ["m.gguf", "m.gguf.json"]
    assert run_module(model_file, src="/there", dest=str(dest), stamp="2", probe=True)["present"] is True


def test_new_bytes_replace_the_old_ones_and_the_record_says_when(run_module, dest):
    upload(run_module, dest, MODEL, stamp="1")
    record = dest.parent / "m.gguf.json"
    before = record.stat().st_mtime_ns
    changed = llama() + b"\0" * 32
    assert upload(run_module, dest, changed, stamp="2")["changed"] is True
    assert dest.read_bytes() == changed
    assert record.stat().st_mtime_ns > before
