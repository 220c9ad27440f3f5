#!/usr/bin/env python3
"""A simulated hub: the part of Hugging Face's HTTP API that its client asks for, with faults on demand.

It answers as huggingface_hub 1.8 and 2.4 expect (hf_api.py, file_download.py, utils/_http.py): model info, tree with
pages, paths-info, search, resolve with ETag, LFS sha256 and ranges. Large files come from a second address, the
"CDN", which refuses a token, as S3 does. Everything is on loopback unless another address is asked for.

    python tests/hub/simulated_hub.py --port 8081 DIR      DIR/owner/repo/... becomes the repositories
    curl -X POST -d '[{"kind": "cut", "at": 1000}]' http://127.0.0.1:8081/_control/faults

Real hubs keep their manners: without a token a missing repository is 401, a gated one lists its files and refuses
their bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_repos import LFS_FROM, Asked, Blob, Fault, Repo, blocks, entry_of, info_of

_API = re.compile(r"^/api/models/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.+))?)?$")
_RESOLVE = re.compile(r"^/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
_CACHED = re.compile(r"^/api/resolve-cache/models/([^/]+/[^/]+)/([^/]+)/(.+)$")
_RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")


class SimulatedHub:
    """The hub, and what it holds. Threads; :meth:`stop` and :meth:`start` keep the addresses."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, page: int = 1000) -> None:
        self.host = host
        self.page = page
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.sent = 0  # bytes of files
        self.away = False
        self.lock = threading.Lock()
        self._ports = [port, 0]
        self._servers: list[_Server] = []
        self.start()

    def start(self) -> None:
        """Listen, on the ports of the last time."""
        self._servers = [_Server(self, place, port) for place, port in zip(("hub", "cdn"), self._ports, strict=True)]
        self._ports = [server.server_address[1] for server in self._servers]

    def stop(self) -> None:
        """Refuse connections; those that are open end at once."""
        self.away = True
        for server in self._servers:
            server.end()
        self._servers = []
        self.away = False

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self._ports[0]}"

    @property
    def cdn_port(self) -> int:
        return self._ports[1]

    def add(
        self, name: str, files: Mapping[str, bytes | Path], revision: str = "main", lfs_from: int = LFS_FROM
    ) -> str:
        """Commit ``files`` as all that ``revision`` of a repository has; return the commit."""
        repo = self.repos.setdefault(name, Repo())
        blobs = {path: Blob.of(content, lfs_from) for path, content in sorted(files.items())}
        text = json.dumps([name, repo.refs.get(revision), [(path, blob.oid) for path, blob in blobs.items()]])
        commit = hashlib.sha1(text.encode()).hexdigest()
        repo.commits[commit] = blobs
        repo.refs[revision] = commit
        return commit

    def add_tree(self, root: Path) -> None:
        """Commit every ``owner/repo`` below a directory."""
        for repo in sorted(path for path in root.glob("*/*") if path.is_dir()):
            files = {str(path.relative_to(repo)): path for path in sorted(repo.rglob("*")) if path.is_file()}
            self.add(f"{repo.parent.name}/{repo.name}", files)

    def fault(self, kind: str, **values: Any) -> Fault:
        """Add one fault, and return it: what it says can be changed while it strikes."""
        fault = Fault(kind, **values)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Forget all faults and all requests."""
        self.faults, self.asked, self.away, self.sent = [], [], False, 0

    def gets(self, place: str = "cdn") -> list[Asked]:
        """Return the requests for bytes of files."""
        return [asked for asked in self.asked if asked.place == place and asked.method == "GET"]

    def take(self, kinds: tuple[str, ...], method: str, path: str) -> Fault | None:
        """Return the fault that strikes now, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault.kind in kinds and fault.method in (method, "") and re.search(fault.path, path):
                    if fault.times == 1:
                        self.faults.remove(fault)
                    elif fault.times:
                        fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, hub: SimulatedHub, place: str, port: int) -> None:
        self.hub, self.place = hub, place
        self.open: set[socket.socket] = set()
        super().__init__((hub.host, port), _Handler)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.open.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self.handle_request("GET")

    def do_HEAD(self) -> None:
        self.handle_request("HEAD")

    def do_POST(self) -> None:
        self.handle_request("POST")

    def handle_request(self, method: str) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        path = unquote(parts.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith("/_control/"):
            self.control(method, path, body)
            return
        found = _RANGE.match(self.headers.get("Range") or "")
        first = int(found.group(1)) if found else None
        hub.asked.append(Asked(self.server.place, method, path, "Authorization" in self.headers, first))
        if hub.away or hub.take(("drop",), method, path):
            self.close_connection = True
            return
        status = hub.take(("status",), method, path)
        if status:
            self.refuse(status.status, "", "simulated", status.headers)
        elif self.server.place == "cdn":
            self.from_cdn(method, path)
        elif api := _API.match(path):
            self.api(method, api.group(1), api.group(2) or "", api.group(3), api.group(4) or "", body)
        elif path == "/api/models":
            self.search(parse_qs(parts.query))
        elif cached := _CACHED.match(path):
            repo, commit, name = cached.groups()
            self.send_blob(method, path, hub.repos[repo].commits[commit][name], commit)
        elif resolve := _RESOLVE.match(path):
            self.resolve(method, *resolve.groups())
        else:
            self.refuse(404, "", "Not Found")

    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def repo(self, name: str, revision: str | None) -> tuple[Repo, str] | None:
        """Return the repository and the commit that is meant, or refuse."""
        repo = self.server.hub.repos.get(name)
        if repo is None or (repo.private and self.token() != repo.private):
            if self.token():
                self.refuse(404, "RepoNotFound", "Repository not found")
            else:
                self.refuse(401, "RepoNotFound", "Invalid username or password.")
            return None
        if repo.moved:
            self.answer(307, b"", {"Location": self.path.replace(name, repo.moved, 1)})
            return None
        commit = repo.commit_of(revision or "main")
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit

    def api(self, method: str, name: str, question: str, revision: str | None, below: str, body: bytes) -> None:
        found = self.repo(name, revision)
        if found is None:
            return
        repo, commit = found
        files = repo.commits[commit]
        if question == "tree":
            self.tree(files, below.strip("/"))
        elif question == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self.json([entry_of(path, blob) for path, blob in files.items() if path in wanted])
        else:
            blobs = "blobs" in parse_qs(urlsplit(self.path).query)
            self.json(info_of(name, repo, commit, blobs))

    def tree(self, files: Mapping[str, Blob], below: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        prefix = below + "/" if below else ""
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in files.items():
            if not path.startswith(prefix):
                continue
            inner = path[len(prefix) :].split("/")
            for depth in range(1, len(inner) if recursive else min(len(inner), 2)):
                folder = prefix + "/".join(inner[:depth])
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            if recursive or len(inner) == 1:
                entries[path] = entry_of(path, blob)
        page = self.server.hub.page
        start = int(query.get("cursor", ["0"])[0])
        link = {}
        if start + page < len(entries):
            place = f"http://{self.headers.get('Host')}{urlsplit(self.path).path}"
            link = {"Link": f'<{place}?recursive={recursive}&cursor={start + page}>; rel="next"'}
        self.json(list(entries.values())[start : start + page], link)

    def search(self, query: Mapping[str, list[str]]) -> None:
        words = query.get("search", [""])[0].lower()
        limit = int(query.get("limit", ["100"])[0])
        repos = self.server.hub.repos
        names = [
            name for name in sorted(repos) if words in name.lower() and not (repos[name].private or repos[name].moved)
        ]
        self.json([info_of(name, repos[name], repos[name].refs["main"], False) for name in names[:limit]])

    def resolve(self, method: str, name: str, revision: str, path: str) -> None:
        found = self.repo(name, revision)
        if found is None:
            return
        repo, commit = found
        if repo.gated and self.token() != repo.gated:
            words = f"Access to model {name} is restricted. You must have access to it and be authenticated."
            self.refuse(403 if self.token() else 401, "GatedRepo", words)
            return
        blob = repo.commits[commit].get(path)
        if blob is None:
            self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.sha256 if blob.lfs else blob.oid}"'}
        if not blob.lfs:
            self.answer(307, b"", {**headers, "Location": f"/api/resolve-cache/models/{name}/{commit}/{quote(path)}"})
            return
        headers.update({"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'})
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        place = f"http://{host}:{self.server.hub.cdn_port}/cdn/{name}/{commit}/{quote(path)}?X-Signature=simulated"
        self.answer(302, b"", {**headers, "Location": place})

    def from_cdn(self, method: str, path: str) -> None:
        if "Authorization" in self.headers:
            self.refuse(400, "", "Only one auth mechanism allowed")
            return
        owner, repo, commit, name = path.removeprefix("/cdn/").split("/", 3)
        blob = self.server.hub.repos[f"{owner}/{repo}"].commits[commit].get(name)
        if blob is None:
            self.refuse(404, "", "NoSuchKey")
        else:
            self.send_blob(method, path, blob, "")

    def send_blob(self, method: str, path: str, blob: Blob, commit: str) -> None:
        hub = self.server.hub
        found = _RANGE.match(self.headers.get("Range") or "")
        if method == "GET" and hub.take(("norange",), method, path):
            found = None
        first = int(found.group(1)) if found else 0
        end = min(int(found.group(2)) + 1, blob.size) if found and found.group(2) else blob.size
        headers = {"ETag": f'"{blob.sha256 if blob.lfs else blob.oid}"', "Accept-Ranges": "bytes"}
        if commit:
            headers["X-Repo-Commit"] = commit
        if found and first >= blob.size:
            self.refuse(416, "", "Range Not Satisfiable", {"Content-Range": f"bytes */{blob.size}"})
            return
        if found:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{blob.size}"
        headers["Content-Length"] = str(end - first)
        self.send_response(206 if found else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if method == "GET":
            self.send_bytes(path, blob, first, end)

    def send_bytes(self, path: str, blob: Blob, first: int, end: int) -> None:
        hub = self.server.hub
        broken = hub.take(("cut", "gone"), "GET", path)
        flip, slow = hub.take(("flip",), "GET", path), hub.take(("slow",), "GET", path)
        stall = hub.take(("stall",), "GET", path)
        stop = min(max(broken.at, first), end) if broken else end
        started, done = time.monotonic(), 0
        pause = min(max(stall.at, first), stop) if stall else first
        for block in chain(blocks(blob.content, first, pause), blocks(blob.content, pause, stop)):
            start = first + done
            while stall and start >= pause and not stall.rate and self.connection in self.server.open:
                time.sleep(0.01)
            if flip and start <= flip.at < start + len(block):
                wrong = bytearray(block)
                wrong[flip.at - start] ^= 0xFF
                block = bytes(wrong)
            try:
                self.wfile.write(block)
            except OSError:
                return  # The reader has gone.
            done += len(block)
            with hub.lock:
                hub.sent += len(block)
            if slow:
                time.sleep(max(0.0, started + done / slow.rate - time.monotonic()))
        if broken:
            hub.away = hub.away or broken.kind == "gone"
            self.close_connection = True

    def control(self, method: str, path: str, body: bytes) -> None:
        """``faults`` (GET, POST a list), ``asked`` (GET), ``heal`` (POST), ``repo`` (POST name, gated, private)."""
        hub, what = self.server.hub, path.removeprefix("/_control/")
        if what == "faults" and method == "POST":
            hub.faults, hub.away = [Fault(**item) for item in json.loads(body)], False
        elif what == "heal" and method == "POST":
            hub.heal()
        elif what == "repo" and method == "POST":
            values = json.loads(body)
            repo = hub.repos[values.pop("name")]
            for key, value in values.items():
                setattr(repo, key, value)
        elif what not in ("faults", "asked"):
            self.refuse(404, "", "Not Found")
            return
        self.json([asdict(item) for item in (hub.asked if what == "asked" else hub.faults)])

    def json(self, data: Any, headers: Mapping[str, str] | None = None) -> None:
        self.answer(200, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, code: str, words: str, headers: Mapping[str, str] | None = None) -> None:
        said = {"X-Error-Code": code, "X-Error-Message": words} if code else {}
        self.answer(status, json.dumps({"error": words}).encode(), {**said, **(headers or {})})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet; :attr:`SimulatedHub.asked` has what was asked."""


def main() -> int:
    parser = argparse.ArgumentParser(description="A simulated hub that serves DIR/owner/repo/...")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    hub = SimulatedHub(options.host, options.port)
    hub.add_tree(options.directory)
    print(hub.url, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        hub.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
