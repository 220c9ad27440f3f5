# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module that pulls; what a transfer does in detail is in test__pull.py."""

from __future__ import annotations

import functools
import http.server
import threading

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.plugins.modules import model_pull
from ansible_collections.llamacpp.cluster.tests.unit.store_builder import manifest_of

MODEL = manifest_of("owner/repo/Q4", one=b"one" * 1000, two=b"two" * 1000)


@pytest.fixture
def source(tmp_path):
    """A web server that knows no ranges, with both files; their addresses by sha256."""
    directory = tmp_path / "peer"
    directory.mkdir()
    for file, data in zip(MODEL.files, (b"one" * 1000, b"two" * 1000)):
        (directory / file.sha256).write_bytes(data)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            """Silence."""

    handler = functools.partial(Handler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = "http://127.0.0.1:%d/" % server.server_address[1]
        yield {file.sha256: url + file.sha256 for file in MODEL.files}
        server.shutdown()


def test_pull(run_module, source, tmp_path):
    given = {"store": str(tmp_path / "store"), "manifest": MODEL.as_dict(), "sources": [source]}
    assert run_module(model_pull, check=True, **given)["changed"] is True
    assert not (tmp_path / "store").exists()
    result = run_module(model_pull, progress_file=str(tmp_path / "progress"), **given)
    assert (result["changed"], result["fetched_bytes"], result["name"]) == (True, 6000, MODEL.name)
    assert Store(str(tmp_path / "store")).present(MODEL)
    assert not (tmp_path / "progress").exists()
    for check in (True, False):
        again = run_module(model_pull, check=check, **given)
        assert (again["changed"], again["fetched_bytes"]) == (False, 0)


def test_who_was_left_out_is_a_warning(run_module, source, tmp_path):
    gone = {sha256: "https://127.0.0.1:1/s3cret/" + sha256 for sha256 in source}
    result = run_module(model_pull, store=str(tmp_path / "store"), manifest=MODEL.as_dict(), sources=[gone, source])
    assert result["changed"] is True
    assert "127.0.0.1:1 was left out while one.bin came" in str(result["warnings"])
    assert "s3cret" not in str(result["warnings"])


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"name": "../../etc/passwd"}, "name = '../../etc/passwd'"),
        ({"files": []}, "it has no file"),
        ({"files": [dict(MODEL.files[0].as_dict(), name="../x")]}, "file name '../x'"),
        ({"files": [dict(MODEL.files[0].as_dict(), sha256="../x")]}, "sha256 = '../x'"),
    ],
)
def test_manifests_that_lead_elsewhere(run_module, tmp_path, manifest, words):
    result = run_module(
        model_pull, store=str(tmp_path / "store"), manifest=dict(MODEL.as_dict(), **manifest), sources=[]
    )
    assert result["failed"] and words in result["msg"]
    assert not (tmp_path / "store").exists()


def test_nobody_has_it(run_module, tmp_path):
    result = run_module(model_pull, store=str(tmp_path / "store"), manifest=MODEL.as_dict(), sources=[])
    assert result["failed"] and "one.bin: 0 of 3000 bytes are here, and nobody gives the rest" in result["msg"]
