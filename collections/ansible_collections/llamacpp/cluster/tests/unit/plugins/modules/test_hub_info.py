# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a repository has, as a module says it."""

from __future__ import annotations

import hashlib

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import hub_info
from ansible_collections.llamacpp.cluster.tests.unit.builders import gguf, llama
from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import split
from ansible_collections.llamacpp.cluster.tests.unit.hub_server import COMMIT

PARTS = ["M-Q8_0-00001-of-00002.gguf", "M-Q8_0-00002-of-00002.gguf"]


@pytest.fixture
def repository(hub):
    hub.files = dict(zip(PARTS, split(2)))
    hub.files["M-Q4_K_M.gguf"] = llama()
    hub.files["README.md"] = b"#"
    return hub


def test_files_and_quantisations(run_module, repository):
    result = run_module(hub_info, repo="owner/model")
    assert result["changed"] is False
    assert result["commit"] == COMMIT
    assert [item["name"] for item in result["files"]] == ["M-Q4_K_M.gguf", *PARTS, "README.md"]
    assert result["files"][3] == {"name": "README.md", "size": 1, "sha256": None}
    assert sorted(result["quantisations"]) == ["Q4_K_M", "Q8_0"]
    found = result["quantisations"]["Q8_0"]
    assert found["files"] == PARTS
    assert found["urls"] == ["%s/owner/model/resolve/%s/%s" % (repository.url, COMMIT, name) for name in PARTS]
    assert found["sha256"] == [hashlib.sha256(repository.files[name]).hexdigest() for name in PARTS]
    assert "gguf" not in found


def test_headers_of_some(run_module, repository):
    result = run_module(hub_info, repo="owner/model", quants=["q8_0"], headers=True)
    assert list(result["quantisations"]) == ["Q8_0"]
    assert result["quantisations"]["Q8_0"]["gguf"]["tensor_count"] == 2


def test_pieces_are_read_as_the_file_that_they_become(run_module, hub):
    whole = llama()
    # The header goes on in the second piece.
    hub.files = {"M-Q8_0.gguf.part1of2": whole[:100], "M-Q8_0.gguf.part2of2": whole[100:]}
    found = run_module(hub_info, repo="owner/model", headers=True)["quantisations"]["Q8_0"]
    assert (found["files"], found["parts"]) == (["M-Q8_0.gguf"], [sorted(hub.files)])
    assert (found["sizes"], found["sha256"]) == ([len(whole)], [None])
    assert found["gguf"]["file_size"] == len(whole)


def test_a_folder_and_what_lies_beside_it(run_module, hub):
    hub.files = {"UD/M-IQ1.gguf": llama(), "UD/mmproj-F16.gguf": b"projector", "tokenizer.json": b"{}"}
    result = run_module(hub_info, repo="owner/model", folder="UD", beside=["mmproj", "tokenizer"], headers=True)
    (found,) = result["quantisations"].values()
    assert found["files"] == ["UD/M-IQ1.gguf"]
    assert [(item["name"], item["role"], bool(item["sha256"])) for item in result["beside"]] == [
        ("UD/mmproj-F16.gguf", "mmproj", True),
        ("tokenizer.json", "tokenizer", False),
    ]


def test_the_header_of_a_projector(run_module, hub):
    hub.files = {
        "M-Q8_0.gguf": llama(),
        "mmproj-F16.gguf": gguf({"general.architecture": "clip"}, []),
        "config.json": b"",
    }
    (eyes, other) = run_module(hub_info, repo="owner/model", beside=["mmproj", "tokenizer"], headers=True)["beside"]
    assert eyes["gguf"]["architecture"] == "clip"
    assert ("gguf" in other, "msg" in other) == (False, False)
    (plain,) = run_module(hub_info, repo="owner/model", beside=["mmproj"])["beside"]
    assert "gguf" not in plain


def test_a_projector_that_cannot_be_read_does_not_hide_the_model(run_module, hub):
    hub.files = {"M-Q8_0.gguf": llama(), "mmproj-F16.gguf": b"projector"}
    result = run_module(hub_info, repo="owner/model", beside=["mmproj"], headers=True)
    assert result["quantisations"]["Q8_0"]["gguf"]["architecture"] == "llama"
    assert "not a GGUF file" in result["beside"][0]["msg"]


def test_the_only_model_needs_no_word_for_it(run_module, hub):
    hub.files = {"toy.gguf": llama()}
    assert list(run_module(hub_info, repo="owner/model", headers=True)["quantisations"]) == ["toy"]


def test_a_repository_without_a_gguf_model_is_listed(run_module, hub):
    hub.files = {"model.safetensors": b"weights", "mmproj-F16.txt": b""}
    result = run_module(hub_info, repo="owner/model")
    assert (result["quantisations"], [item["name"] for item in result["files"]]) == ({}, sorted(hub.files, key=str))


def test_another_hub(run_module, repository, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run_module(hub_info, repo="owner/model", endpoint=repository.url)["commit"] == COMMIT


def test_a_quantisation_that_is_not_there(run_module, repository):
    result = run_module(hub_info, repo="owner/model", quants=["Q6_K"])
    assert result["msg"] == "hf://owner/model: it has no quantisation Q6_K; it has Q8_0 (1 MiB), Q4_K_M (1 MiB)"


def test_a_repository_that_is_not_there(run_module, repository):
    assert "there is no such repository" in run_module(hub_info, repo="owner/none")["msg"]


def test_a_broken_file_is_its_own_fault(run_module, repository):
    repository.files["M-Q4_K_M.gguf"] = b"<html>"
    found = run_module(hub_info, repo="owner/model", headers=True)["quantisations"]
    assert found["Q8_0"]["gguf"]["tensor_count"] == 2
    assert found["Q4_K_M"]["msg"].startswith("hf://owner/model: it is not a GGUF file")
    assert "gguf" not in found["Q4_K_M"]
    result = run_module(hub_info, repo="owner/model", headers=True, quants=["Q4_K_M"])
    assert result["failed"] and result["msg"].startswith("hf://owner/model: it is not a GGUF file")


def test_who_is_away_and_who_refuses(run_module, repository, tmp_path):
    told = run_module(hub_info, repo="owner/model", memory=str(tmp_path / "m"))
    assert (told["away"], told["endpoint"]) == (False, repository.url)
    assert not (tmp_path / "m").exists(), "it is the action plugin's"
    for status, code, away in (
        (429, "", True),
        (503, "", True),
        (401, "", False),
        (403, "GatedRepo", False),
        (404, "RepoNotFound", False),
    ):
        repository.refusals = [(status, {"X-Error-Code": code, "Retry-After": "600"})]
        result = run_module(hub_info, repo="owner/model")
        assert (result["failed"], result["away"]) == (True, away), status
    result = run_module(hub_info, repo="owner/model", endpoint="http://somebody:hidden@127.0.0.1:9")
    assert (result["away"], result["endpoint"]) == (True, "http://127.0.0.1:9")
    assert "hidden" not in result["msg"]
    assert run_module(hub_info, repo="owner/model", endpoint=repository.url, quants=["Q6_K"])["away"] is False
