# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking llama.cpp: what it is told, how its answers are read, and that nothing stays behind.

The programs here are stand-ins that say what llama.cpp b11434 says; the figures of the real ones are
compared in tests/fit.
"""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _oracle, _oracle_run
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import estimate
from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle_run import OracleError
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_simulated import SimulatedDevice
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import MemoryDevice, Refused, Settings
from ansible_collections.llamacpp.cluster.tests.unit.builders import transformer

GIB, MIB = 1 << 30, 1 << 20

# Says what it was told, then lines, then waits as llama-server does while it loads.
STAND_IN = """#!%s
import json, os, sys, time
with open(os.path.join(os.path.dirname(__file__), "told.json"), "w") as told:
    json.dump({"words": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}, told)
print(%r, flush=True)
time.sleep(%r)
sys.exit(%r)
"""


def log(text, level="info"):
    return json.dumps({"type": "log", "time": 1, "level": level, "msg": text + "\n"})


def breakdown(*rows):
    return json.dumps({"type": "fit_memory_breakdown", "data": {"unit": "MiB", "rows": list(rows)}})


def row(kind, name, model, context, compute):
    return {"kind": kind, "name": name, "self": 0, "model": model, "context": context, "compute": compute}


ONE_DEVICE = "\n".join(
    [
        log("common_memory_breakdown_print: | memory breakdown [MiB] | total free self model context compute |"),
        breakdown(row("device", "RPC0", 4403, 1024, 120), row("host", "Host", 281, 0, 36)),
    ]
)
CUDA = MemoryDevice("CUDA0", "cuda", 24 * GIB, 20 * GIB, compute_capability="8.9")


@pytest.fixture
def programs(tmp_path):
    """Return a function that puts a stand-in into a directory, and one that reads what it was told."""

    def install(said, name="llama-server", stays=60, code=0):
        program = tmp_path / name
        program.write_text(STAND_IN % (sys.executable, said, stays, code), encoding="utf-8")
        program.chmod(0o755)
        return str(tmp_path)

    def told():
        return json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))

    return install, told


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def after(words, flag):
    return words[words.index(flag) + 1]


def test_a_server_is_asked_and_ended(programs):
    install, told = programs
    answer = _oracle.ask("/m.gguf", [CUDA], Settings(ctx_size=8192, parallel=2), install(ONE_DEVICE))
    assert answer.program == "llama-server"
    assert [device.as_dict() for device in answer.devices] == [
        {"name": "CUDA0", "model": 4403 * MIB, "context": 1024 * MIB, "compute": 120 * MIB, "total": 5547 * MIB}
    ]
    assert answer.host.as_dict()["total"] == 317 * MIB
    assert gone(told()["pid"])


def test_settings_become_flags_and_devices_are_played(programs, monkeypatch):
    install, told = programs
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    settings = Settings(
        ctx_size=8192,
        parallel=2,
        kv_unified=True,
        cache_type_k="q8_0",
        flash_attn="on",
        ubatch_size=128,
        gpu_layers=7,
        tensor_split=(3.0, 1.0),
        n_cpu_moe=5,
        swa_full=True,
        no_kv_offload=True,
    )
    said = breakdown(row("device", "RPC0", 1, 2, 3), row("device", "RPC1", 4, 5, 6), row("host", "Host", 7, 8, 9))
    devices = [CUDA, MemoryDevice("cpu", "cpu", GIB, GIB), MemoryDevice("RPC0", "rpc", GIB, GIB, backend="cuda")]
    answer = _oracle.ask("/m.gguf", devices, settings, install(said))
    assert [device.name for device in answer.devices] == ["CUDA0", "RPC0"]
    words = told()["words"]
    assert words.index("--rpc") < words.index("--device")
    assert after(words, "--device") == "RPC0,RPC1"
    for flag, value in (
        ("--model", "/m.gguf"),
        ("--ctx-size", "8192"),
        ("--parallel", "2"),
        ("--cache-type-k", "q8_0"),
        ("--cache-type-v", "f16"),
        ("--flash-attn", "on"),
        ("--ubatch-size", "128"),
        ("--n-gpu-layers", "7"),
        ("--tensor-split", "3,1"),
        ("--n-cpu-moe", "5"),
        ("--fit", "on"),
        ("--port", "0"),
        ("--host", "127.0.0.1"),
    ):
        assert after(words, flag) == value
    assert {"--kv-unified", "--swa-full", "--no-kv-offload", "--no-repack"} <= set(words)
    environment = told()["environment"]
    assert "LLAMA_ARG_CTX_SIZE" not in environment
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_without_a_device_none_is_named(programs):
    install, told = programs
    answer = _oracle.ask("/m.gguf", [], Settings(), install(breakdown(row("host", "Host", 7, 8, 9))))
    assert answer.devices == ()
    assert after(told()["words"], "--device") == "none"
    assert "--rpc" not in told()["words"]


def test_weights_that_the_cpu_repacked_are_the_hosts(programs):
    install, _told = programs
    said = breakdown(row("host", "Host", 463, 1920, 110), row("buffer_type", "CPU_REPACK", 703, 0, 0))
    assert _oracle.ask("/m.gguf", [], Settings(), install(said)).host.model == 1166 * MIB


def test_the_rows_of_a_whole_ubatch_come_from_the_other_program(programs):
    install, told = programs
    bin_dir = install("RPC0 2113 544 244 \nHost 281 0 112 ", "llama-fit-params", stays=0)
    answer = _oracle.ask("/m.gguf", [CUDA], Settings(logits="fit_params"), bin_dir)
    assert answer.program == "llama-fit-params"
    assert answer.devices[0].compute == 244 * MIB
    assert answer.host.compute == 112 * MIB
    assert after(told()["words"], "--fit-print") == "on"
    assert not {"--log-jsonl", "--port", "--kv-unified", "--no-kv-unified"} & set(told()["words"])


def test_that_program_has_no_word_for_a_unified_cache_of_several_slots(programs):
    install, _told = programs
    with pytest.raises(OracleError, match="unified"):
        _oracle.ask(
            "/m.gguf", [], Settings(logits="fit_params", kv_unified=True, parallel=2), install("", "llama-fit-params")
        )


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("llama_init_from_model: model does not support different K (q8_0) and V (f16) cache types", "cache_type_v"),
        ("llama_init_from_model: quantized V cache requires flash_attn to be enabled", "flash_attn"),
        (
            "llama_init_from_model: failed to initialize the context: quantized V cache was requested, "
            "but this requires Flash Attention",
            "flash_attn",
        ),
        (
            "llama_init_from_model: K cache type q4_0 with block size 32 does not divide n_embd_head_k=80",
            "cache_type_k",
        ),
        ("llama_model_load: error loading model: unknown model architecture: 'gpt5'", "model"),
    ],
)
def test_settings_that_llama_cpp_refuses_are_refused_before_it_loads(programs, line, setting):
    """llama-server reports that it cannot measure, then loads the whole model before it fails."""
    install, told = programs
    gave_up = "common_fit_params: encountered an error while trying to fit params to free device memory: failed"
    started = time.monotonic()
    with pytest.raises(Refused) as caught:
        _oracle.ask("/m.gguf", [CUDA], Settings(), install("\n".join([log(line, "error"), log(gave_up, "error")])))
    assert caught.value.setting == setting
    assert line.rsplit(": ", 1)[-1] in caught.value.message
    assert time.monotonic() - started < 30
    assert gone(told()["pid"])


def test_other_failures_keep_the_last_words(programs):
    install, _told = programs
    said = "%s\nggml.c:3758: GGML_ASSERT(ggml_nelements(a) == ne0*ne1*ne2) failed" % log("nothing to see here")
    with pytest.raises(OracleError) as caught:
        _oracle.ask("/m.gguf", [CUDA], Settings(), install(said, stays=0, code=134))
    assert "GGML_ASSERT" in str(caught.value)
    assert "134" in caught.value.message
    assert "nothing to see here" not in str(caught.value)


def test_a_program_that_says_nothing_is_ended(programs):
    install, told = programs
    with pytest.raises(OracleError, match=r"within 0\.5 s"):
        _oracle.ask("/m.gguf", [], Settings(), install("{half a li"), timeout=0.5)
    assert gone(told()["pid"])


def test_an_answer_that_lacks_a_device_is_none(programs):
    install, _told = programs
    with pytest.raises(OracleError, match="RPC1"):
        _oracle.ask("/m.gguf", [CUDA, CUDA], Settings(), install(ONE_DEVICE))


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(OracleError, match="No such file"):
        _oracle.ask("/m.gguf", [], Settings(), str(tmp_path))


def test_a_tensor_split_is_not_measured(programs):
    install, _told = programs
    with pytest.raises(OracleError, match="tensor"):
        _oracle.ask("/m.gguf", [CUDA, CUDA], Settings(split_mode="tensor"), install(ONE_DEVICE))


def test_a_unit_is_asked_with_its_own_arguments_but_neither_keys_nor_port_nor_workers(programs):
    install, told = programs
    bin_dir = install(
        breakdown(row("device", "RPC0", 1, 2, 3), row("device", "CUDA0", 4, 5, 6), row("host", "Host", 7, 8, 9))
    )
    arguments = ["--model", "/m.gguf", "--rpc", "10.0.1.12:50052", "--device", "RPC0,CUDA0", "--fit", "off"]
    arguments += ["--host", "0.0.0.0", "--port", "8080", "--api-key-file", "/etc/llamacpp/demo.keys", "--metrics"]
    answer = _oracle.ask_real(arguments, {"10.0.1.12:50052": [SimulatedDevice(GIB, GIB, "cuda")]}, bin_dir)
    assert [device.name for device in answer.devices] == ["RPC0", "CUDA0"]
    words = told()["words"]
    assert after(words, "--rpc").startswith("127.0.0.1:")
    assert after(words, "--device") == "RPC0,CUDA0"
    assert "--metrics" in words
    assert words.count("--fit") == 1
    assert after(words, "--fit") == "on"
    assert words.count("--port") == 1
    assert "8080" not in words
    assert not [word for word in words if "key" in word]


def test_a_worker_that_nobody_described_is_not_asked(programs):
    install, _told = programs
    with pytest.raises(OracleError, match=r"10\.0\.1\.12:50052"):
        _oracle.ask_real(["--rpc", "10.0.1.12:50052"], {}, install(ONE_DEVICE))


def test_as_an_estimator_it_replaces_the_buffers_and_nothing_else(programs):
    install, told = programs
    model = transformer()
    devices = [CUDA, MemoryDevice("cpu", "cpu", 64 * GIB, 60 * GIB)]
    settings = Settings(ctx_size=4096)
    found = _oracle.estimator(lambda facts: "/models/%s" % facts.name, install(ONE_DEVICE))(model, devices, settings)
    guess = estimate(model, devices, settings)
    assert after(told()["words"], "--model") == "/models/%s" % model.name
    assert (found.devices[0].model, found.devices[0].context, found.devices[0].compute) == (
        4403 * MIB,
        1024 * MIB,
        120 * MIB,
    )
    assert found.devices[0].overhead == guess.devices[0].overhead
    assert found.host.model == 281 * MIB
    assert found.devices[1].model == 281 * MIB
    assert found.layers == guess.layers
    assert found.exact
    assert "llama-server" in found.notes[0]


def test_the_pattern_of_a_row_takes_no_other_line():
    listener = _oracle_run._Listener("llama-fit-params")
    for line in ("0.00.012.155 I llama_fit_params: printing estimated memory in MiB", "Host is up", "RPC0 1 2"):
        listener.hear(line)
    assert not listener.answered
    assert not listener.rows
