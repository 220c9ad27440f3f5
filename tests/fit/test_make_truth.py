"""The tool that makes truth: what it keeps of a header, what it asks, and what it reads out of a log."""

from __future__ import annotations

import io

import pytest
from make_truth import GRIDS, Entry, TruthSet, configurations, detail, read, without_vocabulary

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import parse_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import describe
from ansible_collections.llamacpp.cluster.tests.unit.builders import llama

DENSE = Entry("toy", "llama", "toy.header.gz", 100, 1000, 4, 2048, False)
MIXTURE = Entry("toy", "qwen3moe", "toy.header.gz", 100, 1000, 4, 2048, True)


@pytest.fixture
def header():
    raw = llama(vocabulary=1000)
    return parse_header(io.BytesIO(raw).read, len(raw), whole=True)


def test_of_the_vocabulary_only_its_size_is_kept(header):
    bare, raw = without_vocabulary(header)
    again = parse_header(io.BytesIO(raw).read, bare.file_bytes, whole=True)
    assert again == bare
    assert len(raw) < header.data_offset / 3
    assert again.tensors == header.tensors
    before, after = describe([header], ["toy.gguf"]), describe([again], ["toy.gguf"])
    assert after.hyperparameters == before.hyperparameters
    assert after.hyperparameters["vocab_size"] == 1000
    assert after.tensor_groups == before.tensor_groups


def test_a_set_is_read_as_it_was_written(header, tmp_path):
    written = TruthSet(tmp_path)
    entry = written.add("toy", header)
    written.lines["toy"] = [{"model": "toy", "config": {"label": "base"}}]
    written.save()
    again = TruthSet(tmp_path)
    assert again.entries == {"toy": entry}
    assert again.lines == written.lines
    name, copy = read(f"{tmp_path}:toy")
    assert name == "toy"
    assert copy == without_vocabulary(header)[0]
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    again.save()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == files


@pytest.mark.parametrize("entry", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_every_question_is_another_one(entry):
    asked = configurations(entry, "full")
    labels = [config["label"] for config in asked]
    assert len(set(labels)) == len(labels)
    settings = [tuple(sorted((key, str(value)) for key, value in config.items() if key != "label")) for config in asked]
    assert len(set(settings)) == len(settings)
    assert any(config["cpu_moe"] for config in asked) == entry.moe
    for grid, wanted in GRIDS.items():
        chosen = [config["label"] for config in configurations(entry, grid)]
        assert chosen == [label for label in labels if label in wanted]
        assert not entry.moe or set(chosen) == wanted


@pytest.mark.parametrize(
    ("lines", "flash"),
    [
        (["llama_context: flash_attn            = auto", "resolve_fused_ops: Flash Attention enabled"], "enabled"),
        (
            [
                "llama_context: flash_attn            = auto",
                "resolve_fused_ops: Flash Attention not supported, set to disabled",
            ],
            "disabled",
        ),
        (["llama_context: flash_attn            = disabled"], "disabled"),
        ([], None),
    ],
)
def test_what_became_of_the_settings(lines, flash):
    said = ["D llama_context: n_ctx                 = 32768", "D llama_context: n_ctx_seq             = 8192", *lines]
    found = detail("\n".join([*said, "I llama_context: pipeline parallelism enabled"]))
    assert found == {"n_ctx": 32768, "n_ctx_seq": 8192, "fa": flash, "pipeline_parallel": True}
    assert not detail("\n".join(said))["pipeline_parallel"]
