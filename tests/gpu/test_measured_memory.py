"""The estimate beside what processes really took on two H200s: never too low, and within 3 %.

docs/bench/gpu_h200.json is what measure_memory.py wrote there; h200_models.json.gz are the facts of the models that it
ran, as gguf_info returns them, without their metadata.
"""

from __future__ import annotations

import gzip
import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate, MemoryDevice, Settings, estimate
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts

HERE = Path(__file__).parent
MEASURED = json.loads((HERE.parent.parent / "docs/bench/gpu_h200.json").read_text())
WITHIN = 0.03
H200_BYTES = 150109880320
# llama-server's short flags -> settings.
NUMBERS = {
    "-c": "ctx_size",
    "-np": "parallel",
    "-b": "batch_size",
    "-ub": "ubatch_size",
    "-ngl": "gpu_layers",
    "--n-cpu-moe": "n_cpu_moe",
}
WORDS = {"-ctk": "cache_type_k", "-ctv": "cache_type_v", "-fa": "flash_attn", "-sm": "split_mode"}
SWITCHES = {
    "-kvu": ("kv_unified", True),
    "--no-kv-unified": ("kv_unified", False),
    "-nkvo": ("no_kv_offload", True),
    "--cpu-moe": ("cpu_moe", True),
    "--swa-full": ("swa_full", True),
}


@cache
def models() -> dict[str, ModelFacts]:
    data = json.loads(gzip.decompress((HERE / "h200_models.json.gz").read_bytes()))
    return {name: ModelFacts.from_dict(facts) for name, facts in data.items()}


def settings(flags: str) -> Settings:
    """Read a case's flags."""
    values: dict[str, Any] = {}
    words = iter(shlex.split(flags))
    for word in words:
        if word in SWITCHES:
            key, value = SWITCHES[word]
            values[key] = value
        elif word == "-ts":
            values["tensor_split"] = tuple(float(part) for part in next(words).split(","))
        elif word in NUMBERS:
            values[NUMBERS[word]] = int(next(words))
        else:
            values[WORDS[word]] = next(words)
    return Settings(**values)


def predicted(case: dict[str, Any]) -> tuple[Estimate, list[int]]:
    """Return the estimate, and the number of its device for each process that was measured."""
    cuda = [MemoryDevice(f"CUDA{number}", "cuda", H200_BYTES, H200_BYTES, "9.0") for number in range(case["gpus"])]
    order = list(range(case["gpus"]))
    if "rpc" in case["label"]:
        # The head's own GPU comes last, but its process was noted first.
        cuda = [MemoryDevice("RPC0", "rpc", H200_BYTES, H200_BYTES, "9.0", backend="cuda"), cuda[0]]
        order = [1, 0]
    return estimate(models()[case["model"]], cuda, settings(case["flags"])), order


def name(case: dict[str, Any]) -> str:
    return f"{case['model']} {case['label']}"


@pytest.mark.parametrize("case", MEASURED["cases"], ids=name)
def test_what_a_process_takes_after_requests(case):
    found, order = predicted(case)
    for real, device in zip(case["asked"]["process"], order, strict=True):
        expected = found.devices[device].total
        off = f"{(expected / real - 1) * 100:+.2f} %, {(expected - real) >> 20:+d} MiB"
        assert real <= expected <= real * (1 + WITHIN), f"{off}: {found.devices[device]}"


@pytest.mark.parametrize("case", MEASURED["cases"], ids=name)
def test_what_a_process_takes_after_the_start_is_no_more(case):
    found, order = predicted(case)
    for real, device in zip(case["loaded"]["process"], order, strict=True):
        assert real <= found.devices[device].total


@pytest.mark.parametrize("case", MEASURED["cases"], ids=name)
def test_weights_and_caches_are_as_the_log_says(case):
    found, _order = predicted(case)
    for usage in found.devices:
        logged = next((value for name, value in case["buffers"].items() if name.split("[")[0] == usage.name), None)
        if logged:  # with split mode tensor the log says one device for all
            assert usage.model == pytest.approx(logged["model"], abs=1 << 20)
            assert usage.context == pytest.approx(logged.get("context", 0), abs=1 << 20)


@pytest.mark.parametrize("case", MEASURED["cases"], ids=name)
def test_what_the_process_takes_of_host_memory_after_the_start(case):
    host = predicted(case)[0].host
    taken = case["loaded"]["host"]
    # Mapped pages of the model apart: they are the kernel's to take back.
    assert taken["RssAnon"] + taken["RssShmem"] <= host.context + host.compute + host.overhead
