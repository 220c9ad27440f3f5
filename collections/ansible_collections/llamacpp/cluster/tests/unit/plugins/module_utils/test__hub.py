# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Addresses and tokens of a hub, and what a repository has."""

from __future__ import annotations

import hashlib
import http.client
import io

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _hub
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import RemoteError
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import (
    Address,
    HubFile,
    find_token,
    hub_client,
    hub_commit,
    hub_files,
    is_away,
    parse_address,
    quantisation_name,
    quantisations,
)
from ansible_collections.llamacpp.cluster.tests.unit.hub_server import COMMIT


def test_the_hub_that_its_own_client_asks():
    constants = pytest.importorskip("huggingface_hub.constants")
    assert _hub.DEFAULT_ENDPOINT == constants._HF_DEFAULT_ENDPOINT
    assert _hub.DEFAULT_REVISION == constants.DEFAULT_REVISION


@pytest.mark.parametrize(
    ("text", "revision", "address"),
    [
        ("hf://owner/model/m.gguf", None, Address("owner/model", "m.gguf", "main")),
        ("hf://owner/model/m.gguf", "v1", Address("owner/model", "m.gguf", "v1")),
        ("hf://owner/model/m.gguf@v1", "v1", Address("owner/model", "m.gguf", "v1")),
        ("hf://owner/model/q4/deep/m.gguf@refs/pr/1", None, Address("owner/model", "q4/deep/m.gguf", "refs/pr/1")),
        ("hf://o.w-n_er/M.o-d_el/a b@c.gguf", None, Address("o.w-n_er/M.o-d_el", "a b@c.gguf", "main")),
    ],
)
def test_addresses(text, revision, address):
    assert parse_address(text, revision) == address


@pytest.mark.parametrize(
    "text",
    [
        "hf://m.gguf",
        "hf://owner/m.gguf",
        "hf://owner/model/m.bin",
        "hf://owner/model/",
        "hf://owner/model/../../m.gguf",
        "hf://../model/m.gguf",
        "hf://owner/mo del/m.gguf",
        "https://owner/model/m.gguf",
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(RemoteError, match=r"write hf://owner/repo/file\.gguf|written owner/name"):
        parse_address(text)


def test_two_revisions():
    with pytest.raises(RemoteError, match="names the revision v1, revision is v2"):
        parse_address("hf://owner/model/m.gguf@v1", "v2")


def test_where_a_file_is_fetched_from(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/")
    address = Address("owner/model", "q4/a b.gguf", "refs/pr/1")
    assert address.url() == "https://hub.example/owner/model/resolve/refs%2Fpr%2F1/q4/a%20b.gguf"


@pytest.fixture
def home(monkeypatch, tmp_path):
    for name in ("HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_tokens(home, monkeypatch):
    assert find_token() is None
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text("saved\n")
    assert find_token() == "saved"
    (home / "elsewhere").write_text("other")
    monkeypatch.setenv("HF_TOKEN_PATH", str(home / "elsewhere"))
    assert find_token() == "other"
    monkeypatch.setenv("HF_TOKEN", " environment ")
    assert find_token() == "environment"
    assert find_token("given") == "given"


def test_files_of_a_repository(hub):
    hub.files = {"m-%02d.gguf" % number: b"x" * number for number in range(1, 8)}
    hub.files["README.md"] = b"# hello"
    hub.page_size = 3
    files = hub_files("owner/model")
    assert files[0] == HubFile("README.md", 7, None)
    assert files[3] == HubFile("m-03.gguf", 3, hashlib.sha256(b"xxx").hexdigest())
    assert len(files) == 8
    assert len(hub.requests) == 3


def test_a_commit(hub):
    assert hub_commit("owner/model", "main") == COMMIT


@pytest.mark.parametrize(
    ("repo", "revision", "words"),
    [("owner/none", None, "no such repository"), ("owner/model", "v9", "no such revision")],
)
def test_what_the_hub_does_not_have(hub, repo, revision, words):
    for ask in (hub_files, hub_commit):
        with pytest.raises(RemoteError, match=words):
            ask(repo, revision)


def test_a_gated_repository(hub):
    hub.token = "secret"
    with pytest.raises(RemoteError, match="wants a token"):
        hub_files("owner/model")
    with pytest.raises(RemoteError, match="licence has to be accepted"):
        hub_files("owner/model", client=hub_client("wrong"))
    assert hub_files("owner/model", client=hub_client("secret")) == []


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b"[" * 100_000, b"\xff\xfe", b"null"])
def test_an_answer_that_is_no_list(hub, monkeypatch, answer):
    monkeypatch.setattr(_hub, "endpoint", lambda: hub.url + "/fake")
    hub.files["fake/api/models/owner/model/tree/main"] = answer
    with pytest.raises(RemoteError, match="see that HF_ENDPOINT is a hub"):
        hub_files("owner/model")


class Answer(io.BytesIO):
    """An answer of which less comes than was announced, or an error."""

    def __init__(self, error):
        super().__init__(b"[{")
        self.headers = {"Content-Length": "9000"}
        self.error = error

    def read(self, size=-1):
        if self.error:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("error", [None, TimeoutError("timed out"), http.client.IncompleteRead(b"")])
def test_an_answer_that_is_cut_short_is_no_bad_list(error):
    client = hub_client()
    client.open = lambda url: (Answer(error), url)
    for ask in (hub_files, hub_commit):
        with pytest.raises(RemoteError, match="the connection broke") as caught:
            ask("owner/model", client=client)
        assert is_away(caught.value)


def test_a_list_without_end(hub, monkeypatch):
    monkeypatch.setattr(_hub, "_PAGES", 3)
    hub.files = {"m-%02d.gguf" % number: b"" for number in range(9)}
    hub.page_size = 1
    with pytest.raises(RemoteError, match="more than 3 pages"):
        hub_files("owner/model")


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-14B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Model.i1-IQ3_XXS.gguf", "IQ3_XXS"),
        ("Model.f16.gguf", "F16"),
        ("gemma-3-27b-it-BF16-00001-of-00002.gguf", "BF16"),
        ("Q8_0/Model-00002-of-00002.gguf", "Q8_0"),
        ("UD-Q4_K_XL/Model-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4_MOE"),
        ("phi-2-fp16.gguf", "F16"),
        ("gemma-3-4b-it-qat-q4_0.gguf", "Q4_0"),
        ("Model-Q3_K_XL.gguf", "Q3_K_XL"),
        ("Model-Q4_0-Q8_0.gguf", "Q8_0"),
        ("Q4-Model.gguf", None),
        ("ModelQ4_K_M.gguf", None),
        ("model.gguf", None),
    ],
)
def test_quantisations_in_names(name, quant):
    assert quantisation_name(name) == quant


def test_quantisations_of_a_repository():
    names = [
        "M-Q4_K_M.gguf",
        "M-Q8_0-00002-of-00002.gguf",
        "M-Q8_0-00001-of-00002.gguf",
        "old/M-Q4_K_M.gguf",
        "M-BF16-00001-of-00003.gguf",
        "M-BF16-00003-of-00003.gguf",
        "mmproj-M-F16.gguf",
        "M.imatrix-Q4_0.gguf",
        "README.md",
        "notes-Q5_0.txt",
    ]
    found = quantisations([HubFile(name, 10, name[-9:]) for name in names])
    assert found == {
        "Q4_K_M": {"files": ["M-Q4_K_M.gguf"], "bytes": 10, "sha256": ["_K_M.gguf"]},
        "Q8_0": {
            "files": ["M-Q8_0-00001-of-00002.gguf", "M-Q8_0-00002-of-00002.gguf"],
            "bytes": 20,
            "sha256": ["0002.gguf", "0002.gguf"],
        },
    }
