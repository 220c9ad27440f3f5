# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the converter and llama-quantize say, as progress and as messages. The words are recorded from b11434."""

from __future__ import annotations

import sys

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _convert_run as runs
from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_source import ConvertError
from ansible_collections.llamacpp.cluster.tests.unit.simulated_converter import PACKAGES, make_python

# The words of failures, each from a run of the real tools; paths shortened.
RECORDED = {
    "disk of the converter": (
        "    return eager.tofile(*args, **kwargs)\nOSError: Not enough free space to write 23440896 bytes",
        "the disk of the store is full",
    ),
    "disk, Linux' words": ("OSError: [Errno 28] No space left on device", "the disk of the store is full"),
    "disk of llama-quantize": (
        "llama_model_quantize: failed to quantize: basic_ios::clear: iostream error\n"
        "llama_quantize: failed to quantize model from 'converted.gguf'",
        "the disk of the store is full",
    ),
    "architecture": (
        "INFO:hf-to-gguf:Model architecture: NopeForCausalLM\nERROR:hf-to-gguf:Model NopeForCausalLM is not supported",
        "does not know the architecture NopeForCausalLM: set llamacpp_release to a newer one",
    ),
    "tokenizer": (
        "NotImplementedError: BPE pre-tokenizer was not recognized - update get_vocab_base_pre()",
        "does not know the tokenizer",
    ),
    "code that the converter will not run": (
        "ValueError: The repository m3 contains custom code which must be executed to correctly load the model.",
        "does not run for this architecture",
    ),
    "code that was withheld": (
        "OSError: m3 does not appear to have a file named tokenization_x.py. Checkout 'https://hf.co/m3' for files.",
        "set trust_code",
    ),
    "environment": ("ModuleNotFoundError: No module named 'mistral_common'", "has no mistral_common"),
    "importance matrix": (
        " ERROR: this quantization requires an importance matrix!\n        - offending tensor: blk.0.ffn_down.weight",
        "give imatrix",
    ),
    "quantisation": ("llama_quantize: invalid ftype 'NOPE'", "does not know the quantisation NOPE"),
    "twice": (
        "llama_model_quantize: failed to quantize: requantizing from type q8_0 is disabled",
        "it is quantised already (q8_0)",
    ),
    "memory": ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "it got no memory"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_a_failure_means(name):
    said, meaning = RECORDED[name]
    message = runs.failure("the tool", 1, said, said)
    assert message.startswith("the tool failed: ") and meaning in message
    assert said in message, "the tool's own words are always shown"


def test_unknown_words_are_shown_with_the_exit_code():
    assert runs.failure("the tool", 3, "KeyError: 'x'", "KeyError: 'x'") == (
        "the tool failed (exit code 3). Its last words:\nKeyError: 'x'"
    )


def test_killed():
    assert "killed, most likely because memory ran out" in runs.failure("the tool", -9, "", "")
    assert "killed by signal 15" in runs.failure("the tool", -15, "INFO", "INFO")


def script(tmp_path, text):
    """Return the command of a Python script."""
    path = tmp_path / "script.py"
    path.write_text(text)
    return [sys.executable, str(path)]


# tqdm ends what it writes with carriage returns.
CONVERTER = r"""
import sys, time
w = lambda text: (sys.stderr.write(text), sys.stderr.flush())
w("INFO:hf-to-gguf:Model architecture: BertModel\n")
w("INFO:hf-to-gguf:token_embd_norm.bias,           torch.float32 --> F32, shape = {384}\n")
w("INFO:hf-to-gguf:token_embd.weight,              torch.float32 --> F16, shape = {384, 30522}\n")
w("INFO:gguf.gguf_writer:out-f16.gguf: n_tensors = 101, total_size = 45.6M\n")
open(sys.argv[1], "wb").truncate(24 << 20)
w("\rWriting:   0%|          | 0.00/45.6M [00:00<?, ?byte/s]")
w("\rWriting:  53%|█████▎    | 24.2M/45.6M [00:00<00:00, 208Mbyte/s]")
w("\rWriting: 100%|██████████| 45.6M/45.6M [00:00<00:00, 248Mbyte/s]\n")
"""


def test_progress_of_the_converter(tmp_path):
    said = []
    result = tmp_path / "result.gguf"
    argv = [*script(tmp_path, CONVERTER), str(result)]
    runs.convert(argv, {"PYTHONIOENCODING": "utf-8"}, str(result), 101, said.append)
    assert said[:2] == [
        "converting: looked at 1 of about 101 tensors",
        "converting: looked at 2 of about 101 tensors",
    ]
    assert len(said) == 5 and all(line.startswith("converting: 24 of 43 MiB, 55 %, ") for line in said[2:])


def test_progress_of_llama_quantize(tmp_path):
    said = []
    text = "print('[  87/ 101] blk.5.attn_k.weight  - [   384,    384,      1,      1], type =    f16, converting')"
    runs.quantize(script(tmp_path, text), {}, said.append)
    assert said == ["quantizing: tensor 87 of 101, 86 %"]


def test_the_last_words_are_not_those_that_count(tmp_path):
    text = "\n".join(
        [
            "import sys",
            "print('the reason')",
            "for number in range(500): print('[%4d/ 500] blk.weight  - [   384], type = f16' % number)",
            "print('llama_model_loader: - kv   0:  general.architecture str  = bert')",
            "sys.exit(1)",
        ]
    )
    with pytest.raises(ConvertError) as caught:
        runs.quantize(script(tmp_path, text), {}, lambda line: None)
    assert str(caught.value) == "llama-quantize failed (exit code 1). Its last words:\nthe reason"


def test_a_tool_that_is_not_there(tmp_path):
    with pytest.raises(ConvertError, match="llama-quantize does not start"):
        runs.quantize([str(tmp_path / "llama-quantize")], {}, lambda line: None)


def test_nothing_of_the_operators_reaches_a_tool(monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PYTHONPATH", "NO_LOCAL_GGUF", "LD_PRELOAD", "https_proxy"):
        monkeypatch.setenv(name, "secret")
    env = runs.environment("/scratch", 2, {"MARK": "/scratch"})
    assert "secret" not in env.values()
    assert (env["HF_HUB_OFFLINE"], env["OMP_NUM_THREADS"], env["MARK"]) == ("1", "2", "/scratch")


def test_packages_of_an_environment(tmp_path):
    found = runs.packages(str(make_python(tmp_path / "venv")))
    assert found == {**PACKAGES, "python": "%d.%d.%d" % sys.version_info[:3]}


def test_an_environment_that_lacks_something(tmp_path):
    python = str(make_python(tmp_path / "venv", {"numpy": "2.2.6", "torch": "2.13.0"}))
    with pytest.raises(ConvertError, match="has no transformers, sentencepiece"):
        runs.packages(python)


def test_an_environment_that_is_not_there(tmp_path):
    with pytest.raises(ConvertError, match="let the role make the virtual environment"):
        runs.packages(str(tmp_path / "bin" / "python"))
