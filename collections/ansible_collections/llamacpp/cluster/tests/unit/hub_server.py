# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A web server on loopback that behaves like a hub, well or badly."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34
_RESOLVE = re.compile(r"^/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
_API = re.compile(r"^/api/models/([^/]+/[^/]+)/(tree|revision)/([^/?]+)$")


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        time.sleep(self.server.silence)
        if self.server.refusals:
            status, headers = self.server.refusals.pop(0)
            self.refuse(status, headers)
            return
        path = unquote(self.path.partition("?")[0])
        api, resolve = _API.match(path), _RESOLVE.match(path)
        if api:
            self.api(*api.groups())
        elif resolve:
            self.resolve(*resolve.groups())
        else:
            self.send_file(self.server.files.get(path.lstrip("/")))

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def allowed(self, repo: str, revision: str) -> bool:
        """Refuse as the hub does, with the reason in a header; what is there goes on."""
        if self.server.token and self.headers["Authorization"] != "Bearer " + self.server.token:
            self.refuse(*((403, {"X-Error-Code": "GatedRepo"}) if self.headers["Authorization"] else (401, {})))
        elif repo != self.server.repo:
            self.refuse(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    def api(self, repo: str, question: str, revision: str) -> None:
        if not self.allowed(repo, revision):
            return
        if question == "revision":
            self.answer({"sha": COMMIT, "id": repo})
            return
        entries: list[dict[str, Any]] = [{"type": "directory", "path": "folder", "size": 0}]
        for name, raw in sorted(self.server.files.items()):
            entry = {"type": "file", "path": name, "size": len(raw), "oid": "1" * 40}
            if name.endswith(".gguf"):
                entry["lfs"] = {"oid": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 134}
            entries.append(entry)
        start = int((re.findall(r"cursor=(\d+)", self.path) or ["0"])[0])
        end = start + self.server.page_size
        link = {}
        if end < len(entries):
            link = {"Link": '<%s?recursive=true&cursor=%d>; rel="next"' % (self.path.partition("?")[0], end)}
        self.answer(entries[start:end], link)

    def answer(self, data: Any, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(data).encode()
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if not self.allowed(repo, revision):
            return
        if name not in self.server.files:
            self.refuse(404, {"X-Error-Code": "EntryNotFound"})
        elif self.server.elsewhere:
            self.refuse(302, {"Location": "%s/%s?signature=secret" % (self.server.elsewhere, name)})
        else:
            self.send_file(self.server.files[name])

    def send_file(self, raw: bytes | None) -> None:
        if raw is None:
            self.refuse(404, {})
            return
        match = re.match(r"bytes=(\d+)-(\d+)$", self.headers["Range"] or "")
        if match and self.server.ranges:
            first, last = int(match.group(1)), min(int(match.group(2)), len(raw) - 1)
            if first > last:
                self.refuse(416, {})
                return
            self.send_response(206)
            self.send_header("Content-Range", "bytes %d-%d/%d" % (first, last, len(raw)))
            part = memoryview(raw)[first : last + 1]
        else:
            self.send_response(200)
            part = memoryview(raw)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"%s"' % self.server.tag)
        self.end_headers()
        if self.server.cuts:
            part = part[: self.server.cuts.pop(0)]
            self.close_connection = True
        step = self.server.drip or 1 << 14
        try:
            for start in range(0, len(part), step):
                self.server.sent += len(part[start : start + step])
                self.wfile.write(part[start : start + step])
                time.sleep(0.01 if self.server.drip else 0)
        except OSError:
            return  # the reader has seen enough

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


class HubServer(ThreadingHTTPServer):
    """Serves ``files`` at ``/name`` and as the repository ``repo``.

    ``token``: without it nothing of the repository is given. ``elsewhere``: where downloads are redirected to.
    ``refusals``: (status, headers) of the next answers. ``cuts``: bytes after which the next downloads break.
    ``silence``: seconds before each answer. ``drip``: bytes that are sent at a time, slowly.
    ``sent``: bytes of files so far, and ``requests``: (path, headers).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.repo = "owner/model"
        self.token = ""
        self.elsewhere = ""
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.cuts: list[int] = []
        self.ranges = True
        self.tag = "1"
        self.page_size = 1000
        self.silence = 0.0
        self.drip = 0
        self.sent = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return "http://127.0.0.1:%d" % self.server_address[1]

    def stop(self) -> None:
        """End it."""
        self.shutdown()
        self._thread.join()
        self.server_close()
