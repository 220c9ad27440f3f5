"""The demonstration's client parts, against a hub and a chat server of this machine's loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import chat
import hub
import pytest

FILE = b"GGUF" + bytes(range(256)) * 64
SHA256 = hashlib.sha256(FILE).hexdigest()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on a free loopback port; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Hub(Quiet):
    """The two calls that a download makes, for owner/dice and dice.gguf."""

    downloads: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "/owner/dice/resolve/main/dice" not in self.path and "/owner/dice/resolve/" not in self.path:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        elif "absent" in self.path:
            self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        else:
            if self.command == "GET":
                self.downloads.append(self.path.rsplit("/", 1)[1])
            etag, size = f'"{SHA256}"', str(len(FILE))
            self.answer(200, FILE, ETag=etag, X_Linked_Etag=etag, X_Linked_Size=size, X_Repo_Commit="1" * 40)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        lfs = {"oid": SHA256, "size": len(FILE), "pointerSize": 130}
        entry = {"type": "file", "path": "dice.gguf", "size": len(FILE), "oid": "2" * 40, "lfs": lfs}
        self.answer(200, json.dumps([entry]).encode(), Content_Type="application/json")


@pytest.fixture
def hub_address() -> Iterator[str]:
    Hub.downloads.clear()
    with serving(Hub) as address:
        yield address


def test_hub_file_is_downloaded_once_with_its_sha256(hub_address: str, tmp_path: Path) -> None:
    for _ in range(2):
        source = hub.from_hub("hf://owner/dice/dice.gguf", tmp_path, hub_address)
        assert source.path.read_bytes() == FILE
        assert source.sha256 == SHA256
    assert Hub.downloads == ["dice.gguf"]


def test_all_shards_of_a_set_are_downloaded(hub_address: str, tmp_path: Path) -> None:
    source = hub.from_hub("hf://owner/dice/dice-00001-of-00003.gguf", tmp_path, hub_address)
    assert source.path.name == "dice-00001-of-00003.gguf"
    assert source.sha256 is None
    assert Hub.downloads == [f"dice-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf://owner/dice/absent.gguf", "has no such file"),
        ("hf://owner/other/dice.gguf", "has no model owner/other"),
        ("hf://owner/dice", "write hf://owner/repo/file.gguf"),
        ("hf://owner/dice/readme.md", "write hf://owner/repo/file.gguf"),
    ],
)
def test_bad_addresses_say_what_is_wrong(hub_address: str, tmp_path: Path, address: str, says: str) -> None:
    with pytest.raises(hub.ModelError, match=says):
        hub.from_hub(address, tmp_path, hub_address)


def test_local_file_must_be_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with pytest.raises(hub.ModelError, match="no such file"):
        hub.find(str(path), tmp_path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(hub.ModelError, match="not a GGUF file"):
        hub.find(str(path), tmp_path)
    path.write_bytes(FILE)
    assert hub.find(str(path), tmp_path) == hub.Source(path)


class Server(Quiet):
    """llama-server's streamed answer, for the key `secret`."""

    chunks: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer secret":
            self.answer(401, b'{"error": "Invalid API Key"}')
            return
        body = "".join(f"data: {chunk}\n\n" for chunk in self.chunks).encode()
        self.answer(200, body, Content_Type="text/event-stream")


def piece(text: str | None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]})


LAST = json.dumps(
    {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}],
        "timings": {"prompt_n": 9, "prompt_per_second": 90.5, "predicted_n": 2, "predicted_per_second": 50.25},
    }
)


def test_answer_comes_in_pieces_and_then_the_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "chunks", [piece(None), piece(" a"), piece(" word"), LAST, "[DONE]"])
    with serving(Server) as address:
        assert list(chat.stream(address, "secret", "?", 2)) == [" a", " word", chat.Timings(9, 90.5, 2, 50.25)]


@pytest.mark.parametrize(
    ("key", "chunks", "says"),
    [
        ("wrong", [], "answered 401"),
        (None, [], "answered 401"),
        ("secret", [piece(" a")], "stopped in the middle"),
        ("secret", [piece(" a"), '{"error": {"message": "a worker died"}}'], "a worker died"),
        ("secret", ["not json"], "did not answer as it should"),
    ],
)
def test_a_server_that_does_not_answer_well_is_an_error(
    monkeypatch: pytest.MonkeyPatch, key: str | None, chunks: list[str], says: str
) -> None:
    monkeypatch.setattr(Server, "chunks", chunks)
    with serving(Server) as address, pytest.raises(chat.ChatError, match=says):
        list(chat.stream(address, key, "?", 2))


def test_no_server_is_an_error() -> None:
    with serving(Server) as address:
        pass
    with pytest.raises(chat.ChatError, match="did not answer"):
        list(chat.stream(address, None, "?", 2))
