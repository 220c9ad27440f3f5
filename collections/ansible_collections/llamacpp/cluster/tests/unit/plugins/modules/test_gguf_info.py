# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a model's header, from a file and over HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import gguf_info
from ansible_collections.llamacpp.cluster.tests.unit.builders import gguf, llama

SHARDS = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(llama())
    return path


@pytest.fixture
def shards(tmp_path):
    values = {"general.architecture": "llama", "llama.block_count": 2, "split.count": 2}
    (tmp_path / SHARDS[0]).write_bytes(gguf(values, [("blk.0.w", (8,), "F32")]))
    (tmp_path / SHARDS[1]).write_bytes(gguf({"split.count": 2}, [("blk.1.w", (16,), "F32")]))
    return tmp_path


def test_a_file(run_module, model):
    result = run_module(gguf_info, path=str(model))
    assert result["changed"] is False
    assert result["gguf"]["architecture"] == "llama"
    assert result["gguf"]["n_layers"] == 4
    assert result["gguf"]["files"] == ["m.gguf"]
    assert result["gguf"]["sha256"] is None


def test_a_split_model(run_module, shards):
    assert run_module(gguf_info, path=str(shards / SHARDS[0]))["gguf"]["files"] == SHARDS


def test_a_split_model_with_a_file_missing(run_module, shards):
    (shards / SHARDS[1]).unlink()
    result = run_module(gguf_info, path=str(shards / SHARDS[0]))
    assert result["failed"]
    assert result["msg"].endswith("%s: there is no such file; correct the path, or put the file there" % SHARDS[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>", "it is not a GGUF file"),
        (llama()[:-100], "it is truncated: its tensors need"),
        (llama()[:200], "it is truncated"),
        (gguf({}, []), "it names no architecture"),
        (None, "there is no such file; correct the path, or put the file there"),
    ],
)
def test_what_is_no_model(run_module, tmp_path, content, words):
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    result = run_module(gguf_info, path=str(path))
    assert result["failed"]
    assert result["msg"].startswith("%s: %s" % (path, words))


def test_the_right_checksum(run_module, model):
    wanted = hashlib.sha256(model.read_bytes()).hexdigest()
    assert run_module(gguf_info, path=str(model), sha256=wanted.upper())["gguf"]["sha256"] == wanted


def test_the_wrong_checksum(run_module, model):
    result = run_module(gguf_info, path=str(model), sha256="ab" * 32)
    found = hashlib.sha256(model.read_bytes()).hexdigest()
    assert result["msg"] == (
        "%s: its sha256 is %s, not %s as declared; correct the checksum, or get the file again"
        % (model, found, "ab" * 32)
    )


class Hashes:
    """Counts how often a file was hashed."""

    def __init__(self, monkeypatch):
        self.count = 0
        real = hashlib.sha256

        def counted(*arguments):
            self.count += 1
            return real(*arguments)

        monkeypatch.setattr(gguf_info.hashlib, "sha256", counted)


def test_an_unchanged_file_is_hashed_once(run_module, model, tmp_path, monkeypatch):
    wanted = hashlib.sha256(model.read_bytes()).hexdigest()
    hashes = Hashes(monkeypatch)
    arguments = {"path": str(model), "sha256": wanted, "hash_cache": str(tmp_path / "deep" / "cache.json")}
    for _time in range(3):
        assert run_module(gguf_info, **arguments)["gguf"]["sha256"] == wanted
    assert hashes.count == 1


def test_a_changed_file_is_hashed_again(run_module, model, tmp_path):
    wanted = hashlib.sha256(model.read_bytes()).hexdigest()
    arguments = {"path": str(model), "sha256": wanted, "hash_cache": str(tmp_path / "cache.json")}
    run_module(gguf_info, **arguments)
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    os.utime(model, ns=(1, 1))
    assert run_module(gguf_info, **arguments)["failed"]


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}'])
def test_a_broken_cache_is_no_obstacle(run_module, model, tmp_path, content):
    cache = tmp_path / "cache.json"
    cache.write_text(content)
    wanted = hashlib.sha256(model.read_bytes()).hexdigest()
    assert "gguf" in run_module(gguf_info, path=str(model), sha256=wanted, hash_cache=str(cache))
    assert json.loads(cache.read_text())[str(model)]["sha256"] == wanted


def test_check_mode_writes_no_cache(run_module, model, tmp_path):
    cache = tmp_path / "cache.json"
    wanted = hashlib.sha256(model.read_bytes()).hexdigest()
    assert "gguf" in run_module(gguf_info, check=True, path=str(model), sha256=wanted, hash_cache=str(cache))
    assert not cache.exists()


@pytest.fixture
def server(tmp_path):
    """Serve ``tmp_path`` over HTTP; ``server.ranges = False`` makes it ignore ranges."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = tmp_path / self.path.lstrip("/").split("?")[0]
            if not path.is_file():
                self.send_error(404)
                return
            raw = path.read_bytes()
            wanted = self.headers["Range"]
            if wanted and self.server.ranges:
                last = min(int(wanted.split("-")[1]), len(raw) - 1)
                self.send_response(206)
                self.send_header("Content-Range", "bytes 0-%d/%d" % (last, len(raw)))
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            try:
                for start in range(0, len(raw), 1 << 16):
                    self.wfile.write(raw[start : start + (1 << 16)])
                    sent.append(1 << 16)
            except OSError:
                return  # the reader has seen enough

        def log_message(self, *arguments):
            """Keep quiet."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.ranges = True
    httpd.sent = sent
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def address(server, name):
    return "http://127.0.0.1:%d/%s" % (server.server_address[1], name)


def test_an_address(run_module, server, model):
    result = run_module(gguf_info, url=address(server, "m.gguf?download=true"))
    assert result["gguf"]["file_bytes"] == model.stat().st_size
    assert result["gguf"]["n_layers"] == 4


def test_a_split_model_at_an_address(run_module, server, shards):
    result = run_module(gguf_info, url=address(server, SHARDS[0]))
    assert result["gguf"]["layer_bytes"] == [32, 64]


def test_the_weights_are_not_fetched(run_module, server, tmp_path):
    values = {"general.architecture": "llama", "llama.block_count": 1}
    (tmp_path / "big.gguf").write_bytes(gguf(values, [("blk.0.w", (1024, 1024, 16), "F32")]))
    assert run_module(gguf_info, url=address(server, "big.gguf"))["gguf"]["tensor_bytes"] == 64 << 20
    assert sum(server.sent) < 32 << 20


def test_a_server_without_ranges(run_module, server, model):
    server.ranges = False
    result = run_module(gguf_info, url=address(server, "m.gguf"))
    assert "does not support ranges; download the file and give its path instead" in result["msg"]


def test_an_address_of_nothing(run_module, server):
    assert (
        "the server says 404 Not Found; correct the address"
        in run_module(gguf_info, url=address(server, "none.gguf"))["msg"]
    )


def test_a_page_instead_of_a_model(run_module, server, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"<html>please log in</html>")
    assert "not a GGUF file" in run_module(gguf_info, url=address(server, "m.gguf"))["msg"]


def test_nobody_there(run_module, server):
    server.shutdown()
    server.server_close()
    result = run_module(gguf_info, url=address(server, "m.gguf"), timeout=2)
    assert "see that the server can be reached" in result["msg"]
