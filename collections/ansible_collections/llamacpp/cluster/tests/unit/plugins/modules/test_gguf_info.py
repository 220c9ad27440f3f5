# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a model's header, from a file and over HTTP."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _hash_cache
from ansible_collections.llamacpp.cluster.plugins.modules import gguf_info
from ansible_collections.llamacpp.cluster.tests.unit.builders import llama
from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import build, pair, split

SHARDS = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(llama())
    return path


@pytest.fixture
def shards(tmp_path):
    for name, raw in zip(SHARDS, split(2)):
        (tmp_path / name).write_bytes(raw)
    return tmp_path


def test_a_file(run_module, model):
    result = run_module(gguf_info, path=str(model))
    assert result["changed"] is False
    assert result["gguf"]["architecture"] == "llama"
    assert result["gguf"]["hyperparameters"]["block_count"] == 4
    assert result["gguf"]["shards"] == [{"name": "m.gguf", "size": model.stat().st_size, "tensor_count": 11}]
    assert result["gguf"]["sha256"] is None
    assert "tensors" not in result["gguf"]
    assert (result["servable"], result["reason"], result["fetched_bytes"]) == (True, None, 0)


@pytest.mark.parametrize("named", SHARDS)
def test_a_split_model(run_module, shards, named):
    facts = run_module(gguf_info, path=str(shards / named))["gguf"]
    assert [shard["name"] for shard in facts["shards"]] == SHARDS
    assert (facts["architecture"], facts["tensor_count"]) == ("llama", 2)


def test_a_split_model_with_a_file_missing(run_module, shards):
    (shards / SHARDS[1]).unlink()
    result = run_module(gguf_info, path=str(shards / SHARDS[0]))
    assert result["failed"]
    assert result["msg"].endswith("of its 2 files, %s are missing beside it" % SHARDS[1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>", "it is not a GGUF file"),
        (llama()[:-100], "it is truncated: its tensors need"),
        (llama()[:200], "it is truncated"),
        (None, "there is no such file; correct the path, or put the file there"),
    ],
)
def test_what_is_no_gguf(run_module, tmp_path, content, words):
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    result = run_module(gguf_info, path=str(path))
    assert result["failed"]
    assert result["msg"].startswith("%s: %s" % (path, words))


def test_what_is_no_model_is_described(run_module, tmp_path):
    path = tmp_path / "lora.gguf"
    pairs = [pair("general.type", "str", "adapter"), pair("general.architecture", "str", "llama")]
    path.write_bytes(build(pairs))
    result = run_module(gguf_info, path=str(path))
    assert result["gguf"]["metadata"]["general.type"] == "adapter"
    assert (result["servable"], result["reason"]) == (
        False,
        "it is an adapter, which goes beside the model that it was trained for",
    )


def test_all_tensors(run_module, shards):
    facts = run_module(gguf_info, path=str(shards / SHARDS[0]), tensors=True)["gguf"]
    (first, second) = facts["tensors"]
    assert first == {
        "name": "blk.0.w",
        "shape": [32],
        "type": "F32",
        "offset": (shards / SHARDS[0]).stat().st_size - 128,
        "nbytes": 128,
        "shard": SHARDS[0],
    }
    assert second["shard"] == SHARDS[1]


def test_whole_arrays(run_module, model):
    summary = run_module(gguf_info, path=str(model))["gguf"]["metadata"]
    full = run_module(gguf_info, path=str(model), metadata="full")["gguf"]["metadata"]
    assert summary["tokenizer.ggml.tokens"] == {"type": "str", "length": 96}
    assert full["tokenizer.ggml.tokens"][:2] == ["t0", "t1"]
    assert len(full["tokenizer.ggml.tokens"]) == 96


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

        monkeypatch.setattr(_hash_cache.hashlib, "sha256", counted)


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


def test_an_address(run_module, hub, model):
    hub.files["models/m.gguf"] = model.read_bytes()
    result = run_module(gguf_info, url=hub.url + "/models/m.gguf?download=true")
    assert result["gguf"]["file_size"] == model.stat().st_size
    assert result["gguf"]["hyperparameters"]["block_count"] == 4
    assert result["fetched_bytes"] == model.stat().st_size  # a small file is asked for at once


@pytest.mark.parametrize("named", SHARDS)
def test_a_split_model_at_an_address(run_module, hub, named):
    hub.files = dict(zip(SHARDS, split(2)))
    facts = run_module(gguf_info, url="%s/%s" % (hub.url, named))["gguf"]
    assert [shard["name"] for shard in facts["shards"]] == SHARDS


def test_the_hub(run_module, hub, model):
    hub.files["q4/m.gguf"] = model.read_bytes()
    hub.token = "hf_secret"
    result = run_module(gguf_info, url="hf://owner/model/q4/m.gguf", revision="main", token="hf_secret")
    assert result["gguf"]["name"] == "toy"
    assert "hf_secret" not in json.dumps(result["gguf"])


def test_the_hub_says_no(run_module, hub, model):
    hub.files["m.gguf"] = model.read_bytes()
    hub.token = "hf_secret"
    result = run_module(gguf_info, url="hf://owner/model/m.gguf")
    assert result["failed"]
    assert "the server wants a token; set HF_TOKEN, or the option token" in result["msg"]


def test_a_page_instead_of_a_model(run_module, hub):
    hub.files["m.gguf"] = b"<html>please log in</html>"
    url = hub.url + "/m.gguf"
    result = run_module(gguf_info, url=url)
    assert result["msg"].startswith("%s: it is not a GGUF file" % url)


def test_nobody_there(run_module, hub):
    url = hub.url + "/m.gguf"
    hub.stop()
    hub.stop = lambda: None
    result = run_module(gguf_info, url=url, timeout=2)
    assert "see that the server can be reached" in result["msg"]
