# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Give some files to some peers over HTTP for a while; run by systemd, for module fabric_share.

  python3 _share.py CONFIG.json

The module hands this file as it is to systemd on a node, so it uses the standard library alone and nothing of
the collection. CONFIG: ``address``, ``port`` (0: any), ``secret`` (first part of every path), ``files`` (name -> path),
``peers`` (addresses that are answered), ``idle`` (seconds without a transfer after which it ends), ``user`` (whom to
become when started as root, once files and port are open; empty: stay).

A peer that is not listed gets its connection closed without a word; a wrong path gets 404. ``Range`` with one range
is understood, and several clients are served at a time, straight from the page cache (sendfile).
"""

from __future__ import annotations

import hmac
import json
import os
import pwd
import re
import signal
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn
from urllib.parse import unquote

# Progress is noted, and an idle client noticed, at least this often.
CHUNK = 8 << 20
# A client that takes nothing for so long is gone.
SILENCE_SECONDS = 60.0
WATCH_SECONDS = 0.5
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


class UnsatisfiableError(ValueError):
    """A range outside of the file."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return first byte and length of a ``Range`` header; None for the whole file (also for what is not understood).

    Raises :class:`UnsatisfiableError` for a range behind the end (RFC 9110, section 14).
    """
    match = _RANGE.match(header or "")
    if not match or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        start, end = size - length, size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    if start >= size or end < start:
        raise UnsatisfiableError(header)
    return start, end - start + 1


class Share(ThreadingHTTPServer):
    """The server: open files, who may ask, and when somebody last took something."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, config: dict[str, Any]) -> None:
        self.address_family = socket.AF_INET6 if ":" in config["address"] else socket.AF_INET
        self.secret: str = config["secret"]
        self.peers = frozenset(config["peers"])
        # Open from now on: whom this process becomes need not be able to open them.
        self.files: dict[str, int] = {name: os.open(path, os.O_RDONLY) for name, path in config["files"].items()}
        self.touched = time.monotonic()
        self.active = 0
        self.guard = threading.Lock()
        super().__init__((config["address"], config["port"]), Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a client is one of the peers."""
        return client_address[0] in self.peers

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours; any other is told in one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            say("%s: %r" % (client_address[0], error))

    def touch(self, change: int = 0) -> None:
        """Note that somebody takes something; ``change``: how many more (or fewer) do so now."""
        with self.guard:
            self.active += change
            self.touched = time.monotonic()

    def idle(self) -> float:
        """Return for how many seconds nobody took anything."""
        with self.guard:
            return 0.0 if self.active else time.monotonic() - self.touched


class Handler(BaseHTTPRequestHandler):
    """One client."""

    server: Share
    protocol_version = "HTTP/1.1"
    timeout = SILENCE_SECONDS
    server_version = "share"
    sys_version = ""

    def do_HEAD(self) -> None:
        """Say how large a file is."""
        self.answer(with_body=False)

    def do_GET(self) -> None:
        """Send a file, or a part of it."""
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        """Answer a request for a file."""
        _empty, _slash, path = unquote(self.path).partition("/")
        secret, _slash, name = path.partition("/")
        file = self.server.files.get(name)
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()) or file is None:
            self.refuse(404)
            return
        size = os.fstat(file).st_size
        try:
            part = byte_range(self.headers.get("Range"), size)
        except UnsatisfiableError:
            self.refuse(416, ("Content-Range", "bytes */%d" % size))
            return
        start, length = part or (0, size)
        self.send_response(206 if part else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")
        if part:
            self.send_header("Content-Range", "bytes %d-%d/%d" % (start, start + length - 1, size))
        self.end_headers()
        if with_body:
            self.server.touch(1)
            try:
                self.send(file, start, length)
            finally:
                self.server.touch(-1)

    def send(self, file: int, start: int, length: int) -> None:
        """Send bytes of a file; several threads share its descriptor, so its position is not used."""
        # sendfile() on a socket with a timeout of Python's does not wait: let the kernel wait, and give up (socket(7)).
        self.connection.settimeout(None)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(SILENCE_SECONDS), 0))
        end = start + length
        while start < end:
            sent = os.sendfile(self.connection.fileno(), file, start, min(CHUNK, end - start))
            if sent == 0:
                raise ConnectionAbortedError("the file became shorter")
            start += sent
            self.server.touch()
        self.connection.settimeout(SILENCE_SECONDS)

    def refuse(self, status: int, *headers: tuple[str, str]) -> None:
        """Answer without a body."""
        self.send_response(status)
        self.send_header("Content-Length", "0")
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say who took what, without the secret, and without what a client made up."""
        name = self.path.rpartition("/")[2]
        known = name if name in self.server.files else "-"
        say("%s %s %s %s" % (self.client_address[0], self.command, known, int(code)))

    def log_error(self, format: str, *arguments: Any) -> None:
        """Silence: a client that went away or sent nothing is no news."""


def say(text: str) -> None:
    """Write a line for the journal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def notify(text: str) -> None:
    """Tell systemd something (sd_notify(3)); without systemd say it."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        say(text)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect("\0" + path[1:] if path.startswith("@") else path)
        connection.sendall(text.encode())


def become(user: str) -> None:
    """Give up root for good."""
    entry = pwd.getpwnam(user)
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def stop(_number: int, _frame: object) -> NoReturn:
    """End at once; transfers that are under way break off."""
    os._exit(0)


def main() -> None:
    """Serve until nobody asks any more."""
    signal.signal(signal.SIGTERM, stop)
    with open(sys.argv[1], encoding="utf-8") as stream:
        config = json.load(stream)
    with Share(config) as server:
        if config["user"] and os.geteuid() == 0:
            become(config["user"])
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": WATCH_SECONDS}, daemon=True).start()
        notify("READY=1\nSTATUS=port %d" % server.server_address[1])
        while server.idle() < config["idle"]:
            time.sleep(WATCH_SECONDS)
        server.shutdown()


if __name__ == "__main__":
    main()
