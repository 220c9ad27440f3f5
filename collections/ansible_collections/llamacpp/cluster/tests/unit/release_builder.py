# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Archives of releases whose binaries are stand-ins: scripts that behave as llama.cpp's binaries do."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._release import describe_tree

WORKER = "#!/bin/sh\necho 'Usage: rpc-server'\n"
FOREIGN = '#!/bin/sh\necho "libc.so.6: version GLIBC_2.99 not found" >&2\nexit 1\n'

# What a server of the tiny model does; @NAME@ is filled in.
_SERVER = r'''#!@PYTHON@ -S
"""A stand-in for llama-server."""
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

devices, silent, crash, shift = @DEVICES@, @SILENT@, @CRASH@, @SHIFT@
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--version" in sys.argv:
    print("version: 1 (build @BUILD@)")
    sys.exit(0)
if "--list-devices" in sys.argv:
    print("Available devices:")
    print("".join("  %s: a device (1024 MiB, 1000 MiB free)\n" % name for name in devices) or "  (none)")
    sys.exit(0)
with open(arguments["--model"], "rb") as stream:
    assert stream.read(4) == b"GGUF"
wanted = [] if arguments["--device"] == "none" else arguments["--device"].split(",")
if wanted and crash:
    print(crash, file=sys.stderr)
    sys.exit(1)
for name in wanted:
    if name not in silent:
        print("load_tensors:   %s model buffer size =     0.04 MiB" % name, file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({"status": "ok"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        after = ord(asked["prompt"][-1]) + 1 + shift
        self.say({"content": "".join(chr(after + step) for step in range(asked["n_predict"]))})

    def say(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


HTTPServer((arguments["--host"], int(arguments["--port"])), Handler).serve_forever()
'''


def server(
    build: int = 7, devices: tuple[str, ...] = (), silent: tuple[str, ...] = (), crash: str = "", shift: int = 0
) -> str:
    """Return the text of a stand-in for llama-server.

    ``devices``: what it lists. ``silent``: those that it puts nothing on. ``crash``: what it dies with on a device.
    ``shift``: by how much its numbers are wrong.
    """
    filled = {
        "PYTHON": sys.executable,
        "BUILD": build,
        "DEVICES": repr(devices),
        "SILENT": repr(silent),
        "CRASH": repr(crash),
        "SHIFT": shift,
    }
    text = _SERVER
    for name, value in filled.items():
        text = text.replace("@%s@" % name, str(value))
    return text


def pack(
    where: Path,
    release: str,
    binary: str | None = None,
    files: dict[str, str] | None = None,
    spoil: Callable[[Path], None] | None = None,
    **manifest: Any,
) -> dict[str, Any]:
    """Pack a release below ``where``; return the arguments of llama_release that install it to ``where``/opt.

    ``files``: more of them, by path. ``spoil`` may change the tree after its manifest was written.
    """
    root = where / "build" / release
    (root / "bin").mkdir(parents=True)
    texts = {"bin/llama-server": server() if binary is None else binary, "bin/rpc-server": WORKER, **(files or {})}
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if name.startswith("bin/") else 0o644)
    described = {
        "schema": 2,
        "kind": "build",
        "id": release,
        "inputs": {
            "release": release.split("-")[0],
            "backend": "cpu",
            "architectures": [],
            "platform": {"os": "debian-99", "machine": "x86_64"},
        },
        "build_number": 7,
        "commit": "abc",
        "files": describe_tree(str(root)),
        **manifest,
    }
    (root / "manifest.json").write_text(json.dumps(described))
    if spoil:
        spoil(root)
    archive = where / ("%s.tar.gz" % release)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, arcname=".")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return {"id": release, "archive": str(archive), "sha256": sha256, "prefix": os.path.join(where, "opt")}
