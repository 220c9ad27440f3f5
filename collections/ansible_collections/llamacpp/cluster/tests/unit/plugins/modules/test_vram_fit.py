# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module vram_fit: from arguments to an answer."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import gguf_info, vram_fit
from ansible_collections.llamacpp.cluster.tests.unit.builders import llama

GPU = {"name": "CUDA0", "kind": "cuda", "total": "2 GiB", "compute_capability": "9.0"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(llama())
    return path


def test_a_file(run_module, path):
    result = run_module(vram_fit, path=str(path), devices=[GPU], ctx_size=512)
    assert result["changed"] is False
    fit = result["fit"]
    assert fit["fits"] is True
    # 4 layers, 2 heads of 16 numbers for keys and for values, in half precision.
    assert fit["devices"][0]["context"] == 4 * 512 * 2 * (2 * 16) * 2
    assert fit["args"][:4] == ["--model", str(path), "--device", "CUDA0"]
    assert fit["settings"]["ctx_size"] == 512
    assert "for_draft" not in fit["settings"]


def test_what_gguf_info_returned(run_module, path):
    gguf = run_module(gguf_info, path=str(path))["gguf"]
    result = run_module(vram_fit, gguf=gguf, devices=[GPU], ctx_size=512)
    same = run_module(vram_fit, path=str(path), devices=[GPU], ctx_size=512)
    assert result["fit"]["devices"] == same["fit"]["devices"]
    assert "--model" not in result["fit"]["args"]


def test_check_mode_answers_too(run_module, path):
    assert run_module(vram_fit, check=True, path=str(path), devices=[GPU])["fit"]["n_ctx"] == 2048


@pytest.mark.parametrize(("value", "flag"), [(True, "on"), (False, "off"), ("on", "on"), ("auto", "on")])
def test_flash_attention_as_yaml_reads_it(run_module, path, value, flag):
    words = run_module(vram_fit, path=str(path), devices=[GPU], flash_attn=value)["fit"]["args"]
    assert words[words.index("--flash-attn") + 1] == flag


def test_it_does_not_fit(run_module, path):
    fit = run_module(vram_fit, path=str(path), devices=[dict(GPU, total="100 MiB")])["fit"]
    assert fit["fits"] is False
    assert "CUDA0 lacks" in fit["explanation"]


def test_a_draft_model_from_a_file(run_module, path, tmp_path):
    draft = tmp_path / "d.gguf"
    draft.write_bytes(llama(2))
    fit = run_module(vram_fit, path=str(path), model_draft=str(draft), devices=[GPU])["fit"]
    assert fit["args"][-5] == str(draft)
    assert fit["parts"]["draft"]["devices"][0]["context"] == 2 * 2048 * 2 * (2 * 16) * 2


@pytest.mark.parametrize(
    ("arguments", "words", "setting"),
    [
        ({"cache_type_v": "q8_0", "flash_attn": "off"}, "write f16", "cache_type_v"),
        ({"split_mode": "row", "devices": [GPU, dict(GPU, name="CUDA1")]}, "write layer or tensor", "split_mode"),
        ({"parallel": 300}, "at most 256", "parallel"),
        ({"gpu_layers": "some"}, "gpu_layers some", "gpu_layers"),
    ],
)
def test_settings_that_llama_server_refuses(run_module, path, arguments, words, setting):
    result = run_module(vram_fit, **dict({"path": str(path), "devices": [GPU]}, **arguments))
    assert result["failed"] is True
    assert words in result["msg"]
    assert result["setting"] == setting


def test_a_file_that_is_none(run_module, tmp_path):
    missing = run_module(vram_fit, path=str(tmp_path / "none.gguf"), devices=[GPU])
    assert missing["failed"] and "none.gguf" in missing["msg"]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    result = run_module(vram_fit, path=str(broken), devices=[GPU])
    assert result["failed"] and "broken.gguf" in result["msg"]


def test_a_draft_that_cannot_be_read_is_named(run_module, path, tmp_path):
    result = run_module(vram_fit, path=str(path), model_draft=str(tmp_path / "no.gguf"), devices=[GPU])
    assert result["failed"] and result["msg"].startswith("model_draft")


def test_a_projector_is_no_model(run_module, path):
    result = run_module(vram_fit, path=str(path), mmproj=str(path), devices=[GPU])
    assert result["failed"] and "not a projector" in result["msg"]
