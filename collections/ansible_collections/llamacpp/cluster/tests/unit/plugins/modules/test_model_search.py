# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A search on a simulated hub, by huggingface_hub's own client, for clusters of several sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _model_search, _model_tables
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._tiny_model import tiny_model
from ansible_collections.llamacpp.cluster.plugins.modules import model_search
from ansible_collections.llamacpp.cluster.tests.unit.builders import device, gguf, gpus, node
from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import split

pytest.importorskip("huggingface_hub")

sys.path.insert(0, str(Path(__file__).resolve().parents[8] / "tests" / "hub"))

from hub_repos import Blob, Repo
from simulated_hub import SimulatedHub

TOKEN = "hf_a-token-that-no-output-may-show"
COMMIT = "c0ffee" + "0" * 34
WIDTH, FEED, LAYERS, VOCABULARY = 8192, 28672, 80, 32000


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a hub that has nothing yet; whoever asks has no token, and no other hub."""
    for name in ("HF_TOKEN", "HF_HOME", "HF_TOKEN_PATH", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    simulated = SimulatedHub()
    yield simulated
    simulated.stop()


@pytest.fixture
def search(run_module, hub):
    def run(query="", **arguments):
        return run_module(model_search, query=query, endpoint=hub.url, **arguments)

    return run


def cluster(devices, count=2, **changes):
    """Return what cluster_plan would be given: nodes with these devices."""
    names = ["node%d" % number for number in range(1, count + 1)]
    return {
        "release": "b11434",
        "inventory_nodes": names,
        "builders": ["node1"],
        "nodes": {name: node("10.0.1.1%d" % number, devices=devices) for number, name in enumerate(names, 1)},
        **changes,
    }


def seventy_billion(path, kind):
    """Write a whole llama model of 70 billion weights, all of it but its header a hole; return its size."""
    block = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (WIDTH, WIDTH // 8),
        "attn_v": (WIDTH, WIDTH // 8),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (WIDTH, FEED),
        "ffn_up": (WIDTH, FEED),
        "ffn_down": (FEED, WIDTH),
    }
    shapes = {"token_embd.weight": (WIDTH, VOCABULARY), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes.update({"blk.%d.%s.weight" % (layer, name): shape for name, shape in block.items()})
    shapes["output.weight"] = (WIDTH, VOCABULARY)
    tensors = [(name, shape, kind if len(shape) > 1 else "F32") for name, shape in shapes.items()]
    values = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.context_length": 131072,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FEED,
        "llama.attention.head_count": 64,
        "llama.attention.head_count_kv": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["t%d" % number for number in range(VOCABULARY)],
        "tokenizer.chat_template": "{{ messages }}",
    }
    header = gguf(values, tensors, data=False)
    rows = [(by_name(one).row_bytes(shape[0]), shape[1] if len(shape) > 1 else 1) for _name, shape, one in tensors]
    size = len(header) + sum((row * count + 31) & -32 for row, count in rows)
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(size)
    return size


def commit_large(hub, name, files):
    """Commit files that are too large to be hashed; their sha256 is made up."""
    blobs = {
        path.name: Blob(path, path.stat().st_size, "%064x" % place, "1" * 40, True) for place, path in enumerate(files)
    }
    hub.repos[name] = Repo({COMMIT: blobs}, {"main": COMMIT})


def quantisations(result, place=0):
    return {item["name"]: item for item in result["repositories"][place]["quantisations"]}


def test_what_there_is(search, hub):
    tiny = tiny_model()
    commit = hub.add("owner/Toy-GGUF", {"toy-Q8_0.gguf": tiny + b"\0" * 64, "toy-Q4_K_M.gguf": tiny, "README.md": b"#"})
    hub.add("owner/another-GGUF", {"a-Q8_0.gguf": tiny})
    result = search("toy")
    (repository,) = result["repositories"]
    assert (repository["repo"], repository["commit"], repository["gated"]) == ("owner/Toy-GGUF", commit, False)
    assert (repository["downloads"], repository["likes"], repository["error"]) == (1, 0, "")
    # Largest first.
    assert list(quantisations(result)) == ["Q8_0", "Q4_K_M"]
    found = quantisations(result)["Q4_K_M"]
    assert (found["bytes"], found["files"]) == (len(tiny), ["toy-Q4_K_M.gguf"])
    assert found["urls"] == ["%s/owner/Toy-GGUF/resolve/%s/toy-Q4_K_M.gguf" % (hub.url, commit)]
    assert found["sha256"] == [hub.repos["owner/Toy-GGUF"].commits[commit]["toy-Q4_K_M.gguf"].sha256]
    assert found["verdict"]["fits"] is None
    assert hub.gets() == [], "no cluster, and a header was read"
    assert result["changed"] is False


def test_a_large_model_is_planned_from_its_header(search, hub, tmp_path):
    sizes = {}
    for kind, name in (("Q4_K", "Q4_K_M"), ("F16", "F16")):
        sizes[name] = seventy_billion(tmp_path / ("big-%s.gguf" % name), kind)
    commit_large(hub, "owner/big-GGUF", sorted(tmp_path.glob("*.gguf")))
    result = search("big", cluster=cluster(gpus("RTX 4090", 24, 1), count=3))
    assert result["problems"] == []
    found = quantisations(result)
    assert {name: item["bytes"] for name, item in found.items()} == sizes
    fits = found["Q4_K_M"]["verdict"]
    assert (fits["fits"], fits["strategy"], fits["n_ctx_train"]) == (True, "rpc", 131072)
    assert fits["devices"] == ["CUDA0 of node2", "CUDA0 of node3", "CUDA0 of node1"]
    assert 4096 < fits["context"] < 131072
    refused = found["F16"]["verdict"]
    assert (refused["fits"], refused["strategy"], refused["devices"]) == (False, None, [])
    assert "MiB" in refused["why"] or "GiB" in refused["why"]
    # Of 180 GB, headers alone.
    assert hub.sent < 16 << 20


def test_of_a_split_model_in_a_folder_every_header_is_read(search, hub):
    names = ["UD-Q2_K_XL/a b-UD-Q2_K_XL-0000%d-of-00002.gguf" % number for number in (1, 2)]
    hub.add("owner/split-GGUF", dict(zip(names, split(2))), lfs_from=1)
    result = search("split", cluster=cluster(gpus("RTX 4090", 24, 1)))
    found = quantisations(result)["UD-Q2_K_XL"]
    assert found["files"] == names
    assert {asked.path.rsplit("/", 1)[1] for asked in hub.gets()} == {name.rsplit("/", 1)[1] for name in names}
    # Their two tensors are no model; the planner had them both to say so.
    assert found["verdict"]["fits"] is False


def test_what_fits_no_more_when_the_cluster_is_smaller(search, hub):
    hub.add("owner/toy-GGUF", {"toy-Q8_0.gguf": tiny_model()})
    fits = quantisations(search("toy", cluster=cluster(gpus("RTX 4090", 24, 1))))["Q8_0"]["verdict"]
    assert (fits["fits"], fits["strategy"], fits["context"]) == (True, "one-device", 256)
    small = cluster([device("cpu", 0.25)], count=1)
    assert quantisations(search("toy", cluster=small))["Q8_0"]["verdict"]["fits"] is False


def test_as_many_headers_as_are_asked_for_one_of_each_repository_first(search, hub):
    for name in ("a/toy", "b/toy"):
        files = {
            "toy-%s.gguf" % quant: tiny_model() + b"\0" * size for size, quant in enumerate(("Q2_K", "Q4_0", "Q8_0"))
        }
        hub.add(name, files)
    result = search("toy", cluster=cluster(gpus("RTX 4090", 24, 1)), headers=3)
    looked = [
        {name for name, item in quantisations(result, place).items() if item["verdict"]["fits"] is not None}
        for place in (0, 1)
    ]
    # The largest that the memory could hold come first.
    assert looked == [{"Q8_0", "Q4_0"}, {"Q8_0"}]
    assert quantisations(result)["Q2_K"]["verdict"]["why"] == _model_search.NOT_LOOKED_AT
    assert {asked.path.rsplit("/", 1)[1] for asked in hub.gets()} == {"toy-Q8_0.gguf", "toy-Q4_0.gguf"}


def test_what_is_larger_than_all_memory_comes_last():
    def each(name, size):
        return _model_search.Quantisation(name, (), (), (), (), size)

    repository = _model_search.Repository(
        "a/b", None, None, None, None, False, (each("F32", 9), each("F16", 7), each("Q8_0", 5), each("Q2_K", 1))
    )
    assert [item.name for _repo, item in _model_search.in_turn([repository], 6)] == ["Q8_0", "Q2_K", "F16", "F32"]
    assert list(_model_search.in_turn([], 6)) == []


def test_a_gated_repository_is_listed_and_its_header_is_not_to_be_had(search, hub):
    hub.add("owner/toy", {"toy-Q8_0.gguf": tiny_model()})
    hub.repos["owner/toy"].gated = TOKEN
    result = search("toy", cluster=cluster(gpus("RTX 4090", 24, 1)))
    assert result["repositories"][0]["gated"] is True
    verdict = quantisations(result)["Q8_0"]["verdict"]
    assert verdict["fits"] is None
    assert "licence" in verdict["why"]


@pytest.mark.parametrize("how", ["token", "token_file"])
def test_with_a_token_a_gated_repository_is_planned_and_the_token_stays_secret(search, hub, how, tmp_path):
    hub.add("owner/toy", {"toy-Q8_0.gguf": tiny_model()})
    hub.repos["owner/toy"].gated = TOKEN
    (tmp_path / "token").write_text(TOKEN + "\n", encoding="utf-8")
    given = {"token": TOKEN} if how == "token" else {"token_file": str(tmp_path / "token")}
    result = search("toy", cluster=cluster(gpus("RTX 4090", 24, 1)), **given)
    assert quantisations(result)["Q8_0"]["verdict"]["fits"] is True
    assert TOKEN not in json.dumps(result)


def test_the_machines_token_goes_to_no_other_hub(search, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("owner/toy", {"toy-Q8_0.gguf": tiny_model()})
    search("toy", cluster=cluster(gpus("RTX 4090", 24, 1)))
    assert hub.asked
    assert not any(asked.token for asked in hub.asked)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    search("toy")
    assert hub.asked[-1].token


def test_a_repository_that_breaks_does_not_hide_the_others(search, hub):
    hub.add("a/toy", {"toy-Q8_0.gguf": tiny_model()})
    hub.add("b/toy", {"toy-Q8_0.gguf": tiny_model()})
    hub.fault("status", path="/api/models/a/toy/tree", status=403, times=0)
    first, second = search("toy")["repositories"]
    assert first["quantisations"] == [] and "403" in first["error"]
    assert second["error"] == "" and len(second["quantisations"]) == 1


def test_a_broken_header_is_said_and_the_next_one_is_read(search, hub):
    hub.add("owner/toy", {"toy-Q8_0.gguf": b"<html>" * 1000, "toy-Q2_K.gguf": tiny_model()[:-6000]})
    hub.add("z/toy", {"toy-Q8_0.gguf": tiny_model()})
    result = search("toy", cluster=cluster(gpus("RTX 4090", 24, 1)))
    verdicts = {name: item["verdict"] for name, item in quantisations(result).items()}
    assert [verdict["fits"] for verdict in verdicts.values()] == [None, None]
    assert "not a GGUF file" in verdicts["Q8_0"]["why"] or "not a GGUF file" in verdicts["Q2_K"]["why"]
    assert quantisations(result, 1)["Q8_0"]["verdict"]["fits"] is True


def test_a_cluster_that_cannot_be_planned_at_all_is_said_once(search, hub):
    hub.add("owner/toy", {"toy-Q8_0.gguf": tiny_model()})
    broken = cluster(gpus("RTX 4090", 24, 1), settings={"memory_margin_mib": -1})
    result = search("toy", cluster=broken)
    assert len(result["problems"]) == 1 and result["problems"][0].startswith("llamacpp_memory_margin_mib = -1")
    assert quantisations(result)["Q8_0"]["verdict"]["fits"] is None
    assert hub.gets() == []
    assert "llamacpp_memory_margin_mib" in _model_tables.search_table(result)


def test_a_hub_that_is_not_there(run_module, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    result = run_module(model_search, query="toy", endpoint="http://127.0.0.1:9")
    assert result["failed"] is True
    assert result["msg"].startswith("http://127.0.0.1:9 does not answer: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "query, author"),
        ({"query": "a", "limit": 0}, "limit = 0: write at least 1"),
        ({"query": "a", "headers": -1}, "headers = -1: write at least 0"),
        ({"query": "a", "token_file": "/nowhere/token"}, "token_file = /nowhere/token: it cannot be read"),
    ],
)
def test_wrong_arguments(run_module, hub, arguments, words):
    result = run_module(model_search, **arguments)
    assert result["failed"] is True
    assert words in result["msg"]


def test_progress_is_told_and_its_file_goes(search, hub, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(_model_search.Cluster, "problems", lambda self: lines.append(path.exists()) or [])
    path = tmp_path / "progress"
    hub.add("owner/toy", {"toy-Q8_0.gguf": tiny_model()})
    search("toy", cluster=cluster(gpus("RTX 4090", 24, 1)), progress_file=str(path))
    assert lines == [True]
    assert not path.exists()
