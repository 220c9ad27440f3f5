#!/usr/bin/env python3
"""Measure what llama-server really takes on NVIDIA GPUs, for models that have real headers and no weights.

Headers are inflated to sparse files of the model's full size: zero weights load like any other. For every case the
server is started, asked for completions as long as its slots allow, and looked at through NVML after the start and
after the requests. Writes JSON: one record a case, bytes throughout; `buffers` is what the server's log says of each
device (`model`, `context`, `compute`), `process` what NVML says of the process, `device` what the whole GPU gained.

Needs: the binaries of a release with CUDA, pynvml, headers with a manifest.json as in `make bench`'s accuracy part.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gzip
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pynvml

MIB = 1 << 20
START_SECONDS = 240
REQUEST_SECONDS = 120
BUFFER = re.compile(
    r"(?P<device>[A-Z][\w\[\].:_ -]*?)\s+(?P<what>model|KV|RS|compute|output)\s+buffer size\s*=\s*(?P<mib>[\d.]+) MiB"
)
PARTS = {"model": "model", "KV": "context", "RS": "context", "compute": "compute", "output": "output"}

EVERY = {
    "base": "-c 32768 -np 1",
    "np4-unified-q8": "-c 32768 -np 4 -kvu -ctk q8_0 -ctv q8_0",
    "ub2048": "-c 16384 -np 1 -b 2048 -ub 2048",
    "c4096-np4": "-c 4096 -np 4 --no-kv-unified",
}
SOME = {
    "llama-3.1-8b": {
        "cmax": "-c 131072 -np 1",
        "fa-off": "-c 16384 -np 1 -fa off",
        "ngl-half": "-c 16384 -np 1 -ngl 17",
        "nkvo": "-c 16384 -np 1 -nkvo",
        "ub4096": "-c 32768 -np 1 -b 4096 -ub 4096",
        "q4": "-c 65536 -np 2 -kvu -ctk q4_0 -ctv q4_0",
    },
    "qwen3-30b-a3b": {
        "cpu-moe": "-c 16384 -np 1 --cpu-moe",
        "n-cpu-moe-24": "-c 16384 -np 1 --n-cpu-moe 24 -ub 2048 -b 2048",
        "fa-off": "-c 8192 -np 1 -fa off",
    },
    "gpt-oss-20b": {"cpu-moe": "-c 32768 -np 1 --cpu-moe", "cmax": "-c 131072 -np 2 -kvu"},
    "gemma-3-4b": {"swa-full": "-c 16384 -np 1 --swa-full", "np8": "-c 65536 -np 8 --no-kv-unified"},
    "deepseek-v2-lite": {"fa-off": "-c 16384 -np 1 -fa off"},
}
PAIRS = {
    "llama-3.1-8b": {
        "layer": "-c 32768 -np 1 -sm layer -ts 1,1",
        "layer-np4-ub2048": "-c 32768 -np 4 --no-kv-unified -sm layer -ts 3,1 -b 2048 -ub 2048",
        "tensor": "-c 32768 -np 1 -sm tensor -ts 1,1 -fa on",
        "rpc": "-c 32768 -np 1 -sm layer -ts 1,1",
    },
    "llama-3.1-70b": {
        "layer": "-c 32768 -np 1 -sm layer -ts 1,1",
        "tensor": "-c 32768 -np 1 -sm tensor -ts 1,1 -fa on",
    },
    "qwen3-30b-a3b": {
        "layer": "-c 32768 -np 1 -sm layer -ts 1,1",
        "tensor": "-c 16384 -np 4 -sm tensor -ts 1,1 -fa on",
    },
    "gemma-2-9b": {"layer": "-c 8192 -np 1 -sm layer -ts 1,1"},
    "qwen3-next-80b-a3b": {"layer": "-c 32768 -np 2 -kvu -sm layer -ts 1,1"},
}


def inflate(header: Path, size: int, target: Path) -> Path:
    """Write a sparse model file of `size` bytes that begins with the gzipped header."""
    with gzip.open(header) as stream, target.open("wb") as out:
        out.write(stream.read())
        out.truncate(size)
    return target


def buffers(log: str) -> dict[str, dict[str, int]]:
    """Sum up the buffers that the log names: device -> part -> bytes. Of compute buffers the last one counts."""
    found: dict[str, dict[str, float]] = {}
    for match in BUFFER.finditer(log):
        device = match["device"].strip().split()[-1]
        part = PARTS[match["what"]]
        parts = found.setdefault(device, {})
        value = float(match["mib"])
        parts[part] = value if part == "compute" else parts.get(part, 0.0) + value
    return {device: {part: round(mib * MIB) for part, mib in parts.items()} for device, parts in found.items()}


def used(index: int) -> int:
    """Bytes in use on a GPU, whoever has them."""
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).used)


def process_bytes(index: int, pid: int) -> int | None:
    """Bytes that NVML counts for a process on a GPU; None when it lists no such process."""
    for entry in pynvml.nvmlDeviceGetComputeRunningProcesses_v3(pynvml.nvmlDeviceGetHandleByIndex(index)):
        if entry.pid == pid and entry.usedGpuMemory is not None:
            return int(entry.usedGpuMemory)
    return None


def resident(pid: int) -> dict[str, int]:
    """Bytes of host memory of a process: anonymous, of files, shared."""
    words = dict(re.findall(r"^(Rss\w+|VmRSS):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    return {key: int(value) * 1024 for key, value in words.items()}


def post(port: int, path: str, data: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(data).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
        result: dict[str, Any] = json.load(answer)
        return result


def healthy(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server has loaded its model; False when it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.1)
    return False


def ask(port: int, words: list[str]) -> int:
    """Fill every slot with a prompt of several batches, all at once; returns the tokens of a prompt."""

    def value(flag: str, default: int) -> int:
        return int(words[words.index(flag) + 1]) if flag in words else default

    slots, context, batch = value("-np", 1), value("-c", 4096), value("-ub", 512)
    tokens = min(context // slots - 80, 3 * batch + 100)
    prompt = [1000 + (7 * number) % 9000 for number in range(tokens)]
    data = {"prompt": prompt, "n_predict": 24, "ignore_eos": True, "cache_prompt": False, "temperature": 0}
    with concurrent.futures.ThreadPoolExecutor(slots) as pool:
        for answer in [pool.submit(post, port, "/completion", data) for _slot in range(slots)]:
            answer.result()
    return tokens


def start_worker(options: argparse.Namespace, gpu: int, port: int) -> subprocess.Popen[bytes]:
    """Start a worker that offers one GPU; returns once it had time to listen."""
    command = [f"{options.bin}/ggml-rpc-server", "--host", "127.0.0.1", "--port", str(port), "--device", "CUDA0"]
    worker = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, CUDA_VISIBLE_DEVICES=str(gpu)),
    )
    time.sleep(3)
    return worker


def run_case(
    options: argparse.Namespace, model: str, path: Path, label: str, flags: str, gpus: list[int], port: int
) -> dict[str, Any]:
    """Measure one case on the GPUs given."""
    words = shlex.split(flags)
    words += [] if "-ngl" in words else ["-ngl", "999"]
    remote = "rpc" in label
    names = ",".join(f"CUDA{number}" for number in range(len(gpus) - remote))
    command = [f"{options.bin}/llama-server", "-m", str(path)]
    command += ["--rpc", f"127.0.0.1:{port + 1}", "--device", f"RPC0,{names}"] if remote else ["--device", names]
    command += ["--fit", "off", *words]
    command += ["--host", "127.0.0.1", "--port", str(port), "-lv", "4"]
    before = [used(gpu) for gpu in gpus]
    log_path = Path(options.work) / f"{model}-{label}-{port}.log"
    record: dict[str, Any] = {"model": model, "label": label, "flags": flags, "gpus": len(gpus)}
    # A worker has the first layers, on the last GPU.
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES=",".join(map(str, gpus[: len(gpus) - remote])))
    with log_path.open("wb") as log:
        worker = start_worker(options, gpus[-1], port + 1) if remote else None
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    owners = [process.pid] * (len(gpus) - remote) + ([worker.pid] if worker else [])
    started = time.monotonic()
    try:
        if not healthy(port, process):
            record["error"] = log_path.read_text(errors="replace")[-1500:]
            return record
        record["seconds"] = round(time.monotonic() - started, 1)
        time.sleep(0.3)
        for moment in ("loaded", "asked"):
            if moment == "asked":
                try:
                    record["prompt_tokens"] = ask(port, words)
                except (urllib.error.URLError, OSError) as error:
                    record["error"] = f"{error}: {log_path.read_text(errors='replace')[-1500:]}"
                    return record
            record[moment] = {
                "process": [process_bytes(gpu, pid) for gpu, pid in zip(gpus, owners, strict=True)],
                "device": [used(gpu) - base for gpu, base in zip(gpus, before, strict=True)],
                "host": resident(process.pid),
            }
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        if worker:
            worker.kill()
            worker.wait()
        text = log_path.read_text(errors="replace")
        record["buffers"] = buffers(text)
        if "tensor" in flags:
            record["log"] = [line[-160:] for line in text.splitlines() if "MiB" in line or "NCCL" in line]
        log_path.unlink()
        for _attempt in range(50):
            if all(used(gpu) <= base + 8 * MIB for gpu, base in zip(gpus, before, strict=True)):
                break
            time.sleep(0.1)
    return record


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="directory of llama-server")
    parser.add_argument("--headers", type=Path, required=True, help="directory of manifest.json and *.header.gz")
    parser.add_argument("--work", default="/tmp/measure", help="directory for sparse models and logs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seconds", type=int, default=420, help="begin no further case after this time")
    parser.add_argument("--only", default="", help="regular expression that model/label has to match")
    parser.add_argument("--cases", type=Path, help="JSON {model: {label: flags}} to run in place of the own cases")
    parser.add_argument("--part", choices=["single", "pairs", "all"], default="all")
    options = parser.parse_args()
    Path(options.work).mkdir(parents=True, exist_ok=True)
    pynvml.nvmlInit()
    count = pynvml.nvmlDeviceGetCount()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    result: dict[str, Any] = {
        "gpu": pynvml.nvmlDeviceGetName(handle),
        "compute_capability": ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda": pynvml.nvmlSystemGetCudaDriverVersion(),
        "idle_used": [used(index) for index in range(count)],
        "build": subprocess.run(
            [f"{options.bin}/llama-server", "--version"], capture_output=True, text=True, check=False
        ).stderr.strip()[-300:],
        "cases": [],
    }
    manifest = json.loads((options.headers / "manifest.json").read_text())
    given = json.loads(options.cases.read_text()) if options.cases else None
    deadline = time.monotonic() + options.seconds
    guard = threading.Lock()

    def save(record: dict[str, Any]) -> None:
        with guard:
            result["cases"].append(record)
            options.out.write_text(json.dumps(result, indent=1))
            shown = record.get("asked", {}).get("process", record.get("error", "?")[-200:])
            print(record["model"], record["label"], record.get("seconds"), shown, flush=True)

    def wanted(model: str, label: str) -> bool:
        return re.search(options.only, f"{model}/{label}") is not None and time.monotonic() < deadline

    def single(entries: list[dict[str, Any]], gpu: int) -> None:
        for entry in entries:
            model = entry["name"]
            path = inflate(
                options.headers / entry["file"], entry["file_size"], Path(options.work) / f"{model}-{gpu}.gguf"
            )
            cases = {**EVERY, **SOME.get(model, {})} if given is None else given.get(model, {})
            for label, flags in cases.items():
                if wanted(model, label):
                    save(run_case(options, model, path, label, flags, [gpu], 18100 + gpu))
            path.unlink()

    if options.part in ("single", "all"):
        chosen = [entry for entry in manifest if given is None or entry["name"] in given]
        ordered = sorted(chosen, key=lambda entry: int(entry["file_size"]))
        lanes = [threading.Thread(target=single, args=(ordered[gpu::count], gpu)) for gpu in range(count)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    if options.part in ("pairs", "all") and count > 1:
        for entry in manifest:
            model = entry["name"]
            cases = PAIRS if given is None else {}
            cases = {label: flags for label, flags in cases.get(model, {}).items() if wanted(model, "pair-" + label)}
            if cases:
                path = inflate(
                    options.headers / entry["file"], entry["file_size"], Path(options.work) / f"{model}.gguf"
                )
                for label, flags in cases.items():
                    save(run_case(options, model, path, "pair-" + label, flags, [0, 1], 18200))
                path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
