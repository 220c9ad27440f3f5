"""The demonstration's model is a GGUF that a reader accepts, the same for the same seed, and split as asked."""

from __future__ import annotations

from pathlib import Path

import make_model
import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize

SMALL = ["--megabytes", "12", "--layers", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "dice.gguf"
    assert make_model.main([str(path), *SMALL]) == 0
    return path


def test_size_and_layers_are_as_asked(model: Path) -> None:
    reader = GGUFReader(model)
    assert abs(model.stat().st_size / make_model.MIB - 12) < 1
    assert reader.fields["llama.block_count"].contents() == 6
    blocks = {tensor.name.split(".")[1] for tensor in reader.tensors if tensor.name.startswith("blk.")}
    assert blocks == {str(layer) for layer in range(6)}


def test_same_seed_same_bytes_other_seed_other_bytes(model: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.gguf", tmp_path / "other.gguf"
    make_model.main([str(again), *SMALL])
    make_model.main([str(other), *SMALL, "--seed", "2"])
    assert make_model.sha256_of(again) == make_model.sha256_of(model)
    assert make_model.sha256_of(other) != make_model.sha256_of(model)


def test_a_current_model_is_left_alone_and_a_damaged_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dice.gguf"
    make_model.main([str(path), *SMALL])
    written = path.stat()
    capsys.readouterr()

    make_model.main([str(path), *SMALL])
    assert "is there already" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == written.st_mtime_ns

    with path.open("ab") as handle:
        handle.write(b"more")
    make_model.main([str(path), *SMALL])
    assert path.stat().st_size == written.st_size


def test_only_whole_words_can_be_said(model: Path) -> None:
    reader = GGUFReader(model)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    output = next(tensor for tensor in reader.tensors if tensor.name == "output.weight")
    bias = dequantize(output.data, output.tensor_type)[:, 0]
    assert bias[tokens.index("Ġcluster")] > -1
    for silent in (make_model.END_OF_TEXT, make_model.IM_START, make_model.IM_END, "Ā", "Ġ"):
        assert bias[tokens.index(silent)] < make_model.UNWANTED / 2


def test_no_layer_writes_to_the_constant_dimension(model: Path) -> None:
    for tensor in GGUFReader(model).tensors:
        if tensor.name.endswith(("attn_output.weight", "ffn_down.weight")):
            assert not np.any(dequantize(tensor.data[:1], tensor.tensor_type)), tensor.name


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = make_model.train_tokenizer(make_model.VOCABULARY)
    text = "Größe 7 🙂 — a cluster\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_qwen2_has_its_biases(tmp_path: Path) -> None:
    path = tmp_path / "qwen2.gguf"
    make_model.main([str(path), *SMALL, "--arch", "qwen2"])
    names = {tensor.name for tensor in GGUFReader(path).tensors}
    assert {"blk.0.attn_q.bias", "blk.5.attn_v.bias"} <= names


def test_too_small_a_size_says_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        make_model.main([str(tmp_path / "x.gguf"), "--megabytes", "3", "--layers", "24"])
    assert stopped.value.code == 2
    assert "write at least --megabytes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
