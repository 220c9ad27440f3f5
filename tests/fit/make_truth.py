"""Make truth: ask llama.cpp what models take, in bytes, and write it where the tests of the estimate read it.

    tests/fit/make_truth.py --source LLAMA.CPP --build LLAMA.CPP/build --out DIRECTORY MODEL...

Each MODEL is a GGUF file, or an entry of another set (DIRECTORY:NAME). Of a model its header is kept, without its
vocabulary, whose size alone counts. Devices are processors behind simulated RPC workers. Models that are in DIRECTORY
already are asked again; others stay. The set of this repository was made so:

    cmake -B build -DGGML_RPC=ON -DLLAMA_BUILD_TESTS=ON -DGGML_NATIVE=OFF && cmake --build build   # llama.cpp b11434
    build/bin/test-llama-archs -s 42 -o toys
    tests/fit/make_truth.py --source . --build build --out tests/fit/archs --prefix toy- --grid small toys/*.gguf

and with ``--grid few`` for one model of a realistic size of every architecture, ``--grid full`` for those that are
named after published ones (composed from published hyper-parameters; what nobody published is named "like").

A line of ``truth.jsonl.gz`` has ``model``, ``arch``, ``file_size``, ``config``, then bytes of ``model``, ``context``
and ``compute`` of each of the ``devices`` and of the ``host``, as llama-fit-params counts them, and under ``server``
as llama-server does; ``detail`` is what llama.cpp made of the settings. Or ``error``, where it refuses or crashes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import (
    Array,
    Header,
    padded,
    parse_header,
    read_header,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle_files import header_bytes
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_simulated import (
    SimulatedDevice,
    SimulatedRpcServer,
)

# Nothing may be too large for a simulated device.
DEVICE_BYTES = 24 << 40
# Of any other backend than a CPU, the alignment is 128, as the workers of the first sets of truth said.
BACKEND = "vulkan"
TIMEOUT = 120
COMPLAINT = re.compile(r"error|fail|not support|does not|requires|invalid|ASSERT", re.IGNORECASE)
DETAILS = (
    ("n_ctx", re.compile(r"llama_context: n_ctx += (\d+)")),
    ("n_ctx_seq", re.compile(r"llama_context: n_ctx_seq += (\d+)")),
)
FLASH = re.compile(
    r"llama_context: flash_attn += (\w+)|Flash Attention (?:not supported, set to )?(\w+)$", re.MULTILINE
)
# Times and levels, who speaks, and where somebody keeps the source.
NOISE = re.compile(r"\S*/(?=(?:ggml/)?src/)|^[\d.]*\s*[A-Z]?\s*|common_\w+: |set_abort_callback.*")


@dataclass(frozen=True)
class Entry:
    """A model of a set, as its manifest has it."""

    name: str
    arch: str
    file: str
    header_bytes: int
    file_size: int
    block_count: int
    ctx: int
    moe: bool


# Of a grid that is not full, the questions.
GRIDS = {
    "small": {"base", "2dev", "np4-split-ub2048", "fa-off", "kv-q8", "ngl-half", "3dev-np4-unified", "cpu-moe"}
    | {"2dev-ncmoe-ub2048"},
    "few": {"base", "fa-off", "3dev-np4-unified", "2dev-ncmoe-ub2048", "2dev-ub128-nkvo", "3dev-q4-ub2048-np3"},
}


def configurations(entry: Entry, grid: str) -> list[dict[str, Any]]:
    """Return what to ask about a model: settings that differ in what decides its memory."""
    return [config for config in _every_configuration(entry) if grid == "full" or config["label"] in GRIDS[grid]]


def _every_configuration(entry: Entry) -> Iterator[dict[str, Any]]:

    def config(label: str, **changes: Any) -> dict[str, Any]:
        plain: dict[str, Any] = {"n_dev": 1, "c": 32768, "np": 1, "kvu": None, "ub": 512, "ctk": "f16", "ctv": "f16"}
        plain.update({"fa": "auto", "ngl": 99, "ts": None, "cpu_moe": False, "n_cpu_moe": 0})
        # Weights that the CPU repacks would be in no row.
        plain.update({"swa_full": False, "nkvo": False, "extra": ["-nr"]})
        return {**plain, **changes, "label": label}

    half = max(1, entry.block_count // 2)
    yield config("base")
    yield config("2dev", n_dev=2, ts="1,1", c=16384)
    yield config("np4-split-ub2048", np=4, kvu=False, ub=2048)
    yield config("fa-off", fa="off", c=8192)
    yield config("kv-q8", ctk="q8_0", ctv="q8_0")
    yield config("ngl-half", ngl=half)
    yield config("3dev-np4-unified", n_dev=3, ts="2,1,1", np=4, kvu=True, c=65536)
    if entry.moe:
        yield config("cpu-moe", cpu_moe=True)
        yield config("2dev-ncmoe-ub2048", n_dev=2, ts="1,1", n_cpu_moe=half, ub=2048)
    yield config("np4-unified-swa-full", np=4, kvu=True, swa_full=True)
    yield config("2dev-ub128-nkvo", n_dev=2, ub=128, nkvo=True, ts="3,1")
    yield config("2dev-ngl-L", n_dev=2, ts="1,1", ngl=entry.block_count, c=4096)
    yield config("c0-2dev-byfree", n_dev=2, c=0)
    yield config("ngl-0", ngl=0, c=8192)
    yield config("3dev-q4-ub2048-np3", n_dev=3, ts="1,1,1", np=3, kvu=False, c=10000, ub=2048, ctk="q4_0", ctv="q4_0")
    yield config("2dev-fa-off-np4-unified", n_dev=2, ts="1,1", fa="off", np=4, kvu=True, c=16384)
    yield config("k-q8-v-f16", ctk="q8_0", c=8192)


def without_vocabulary(header: Header) -> tuple[Header, bytes]:
    """Return a header with the number of its tokens instead of the tokens, and its bytes."""
    architecture = str(header.values["general.architecture"])
    tokens = header.values.get("tokenizer.ggml.tokens")
    kept = {
        key: value
        for key, value in header.values.items()
        if not key.startswith("tokenizer.") or key == "tokenizer.ggml.token_type_count"
    }
    types = {key: header.types[key] for key in kept}
    kept["tokenizer.ggml.model"], types["tokenizer.ggml.model"] = "no_vocab", "str"
    if isinstance(tokens, Array):
        size = f"{architecture}.vocab_size"
        kept[size], types[size] = tokens.length, "u32"
    bare = header._replace(values=kept, types=types, data_offset=0)
    offset = padded(len(header_bytes(bare)), header.alignment)
    bare = bare._replace(data_offset=offset, file_bytes=header.file_bytes - header.data_offset + offset)
    return bare, header_bytes(bare)


def build(source: Path, libraries: Path, program: Path) -> None:
    """Compile memory_truth.cpp against a build of llama.cpp with shared libraries."""
    places = [source / "include", source / "ggml" / "include", source / "common", source / "vendor"]
    names = ["llama-common", "llama", "ggml", "ggml-base", "ggml-cpu"]
    command = ["c++", "-std=c++17", "-O1", *(f"-I{place}" for place in places)]
    command += [str(Path(__file__).with_name("memory_truth.cpp")), "-o", str(program), f"-L{libraries}"]
    command += [*(f"-l{name}" for name in names), f"-Wl,-rpath,{libraries.resolve()}"]
    subprocess.run(command, check=True)


def arguments(path: Path, config: dict[str, Any], endpoint: str) -> list[str]:
    """Return a configuration as llama-server's arguments."""
    devices = ",".join(f"RPC{number}" for number in range(config["n_dev"]))
    words = ["-m", str(path), "--rpc", endpoint, "--device", devices]
    words += ["-c", config["c"], "-ub", config["ub"], "-b", max(2048, config["ub"]), "-np", config["np"]]
    words += ["-ctk", config["ctk"], "-ctv", config["ctv"], "-fa", config["fa"], "-ngl", config["ngl"]]
    words += ["-ts", config["ts"]] if config["ts"] else []
    words += [] if config["kvu"] is None else ["-kvu" if config["kvu"] else "-no-kvu"]
    words += ["-ncmoe", config["n_cpu_moe"]] if config["n_cpu_moe"] else []
    for key, flag in (("cpu_moe", "-cmoe"), ("swa_full", "--swa-full"), ("nkvo", "-nkvo")):
        words += [flag] if config[key] else []
    return [str(word) for word in [*words, *config["extra"]]]


def detail(said: str) -> dict[str, Any]:
    """Return what llama.cpp made of the settings, as its log says it."""
    found: dict[str, Any] = {name: int(numbers[-1]) for name, rule in DETAILS if (numbers := rule.findall(said))}
    # What was resolved is said after what was asked for.
    flash = [asked or resolved for asked, resolved in FLASH.findall(said)]
    found["fa"] = flash[-1] if flash else None
    found["pipeline_parallel"] = "pipeline parallelism enabled" in said
    return found


def ask(program: Path, path: Path, config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the program's answers by view, and what went wrong in its words."""
    with SimulatedRpcServer([SimulatedDevice(DEVICE_BYTES, DEVICE_BYTES, BACKEND)] * config["n_dev"]) as worker:
        done = subprocess.run(
            [str(program), *arguments(path, config, worker.endpoint)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            check=False,
        )
    views: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"view"'):
            answer = json.loads(line)
            views[answer["view"]] = answer.get("rows")
    views["detail"] = detail(done.stderr.partition("@@@ server")[2])
    said = [NOISE.sub("", line) for line in done.stderr.splitlines() if COMPLAINT.search(line)]
    return views, " | ".join(dict.fromkeys(line for line in said if line))[:300] or f"exit code {done.returncode}"


def row(entry: Entry, config: dict[str, Any], views: dict[str, Any], complaint: str) -> dict[str, Any]:
    """Return a line of truth."""

    def sizes(values: list[Any]) -> dict[str, Any]:
        return {"model": values[1], "context": values[2], "compute": values[3]}

    def answer(rows: list[Any] | None) -> dict[str, Any]:
        if rows is None:
            return {"error": complaint}
        return {"devices": [{"name": item[0], **sizes(item)} for item in rows[:-1]], "host": sizes(rows[-1])}

    line = {"model": entry.name, "arch": entry.arch, "file_size": entry.file_size, "config": config}
    if views.get("server"):
        line["detail"] = views["detail"]
    return {**line, **answer(views.get("fit")), "server": answer(views.get("server"))}


class TruthSet:
    """A directory with headers and truth."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.headers = root / "headers"
        self.headers.mkdir(parents=True, exist_ok=True)
        manifest = self.headers / "manifest.json"
        known = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else []
        self.entries = {item["name"]: Entry(**item) for item in known}
        self.lines: dict[str, list[dict[str, Any]]] = {}
        if (root / "truth.jsonl.gz").exists():
            with gzip.open(root / "truth.jsonl.gz", "rt", encoding="utf-8") as stream:
                for line in stream:
                    item = json.loads(line)
                    self.lines.setdefault(item["model"], []).append(item)

    def add(self, name: str, header: Header) -> Entry:
        """Keep the header of a model."""
        bare, raw = without_vocabulary(header)
        architecture = str(bare.values["general.architecture"])

        def number(key: str) -> int:
            value = bare.values.get(f"{architecture}.{key}", 0)
            return value if isinstance(value, int) else 0

        file = name + ".header.gz"
        (self.headers / file).write_bytes(gzip.compress(raw, 9, mtime=0))
        entry = Entry(
            name,
            architecture,
            file,
            len(raw),
            bare.file_bytes,
            number("block_count"),
            number("context_length"),
            number("expert_count") > 0,
        )
        self.entries[name] = entry
        return entry

    def save(self) -> None:
        """Write manifest and truth, in the order of names."""
        listed = [vars(self.entries[name]) for name in sorted(self.entries)]
        text = json.dumps(listed, indent=1) + "\n"
        (self.headers / "manifest.json").write_text(text, encoding="utf-8")
        lines = [json.dumps(item, separators=(",", ":")) for name in sorted(self.lines) for item in self.lines[name]]
        data = ("\n".join(lines) + "\n").encode()
        (self.root / "truth.jsonl.gz").write_bytes(gzip.compress(data, 9, mtime=0))


def read(place: str) -> tuple[str, Header]:
    """Return name and header of a GGUF file, or of an entry of another set (``DIRECTORY:NAME``)."""
    if not os.path.exists(place) and ":" in place:
        directory, _colon, name = place.rpartition(":")
        headers = Path(directory) / "headers"
        known = {item["name"]: item for item in json.loads((headers / "manifest.json").read_text(encoding="utf-8"))}
        with gzip.open(headers / known[name]["file"]) as stream:
            return name, parse_header(stream.read, known[name]["file_size"], whole=True)
    return Path(place).stem, read_header(place, whole=True)


def main(words: list[str]) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="llama.cpp's source")
    parser.add_argument("--build", type=Path, required=True, help="where it was built, with bin/ in it")
    parser.add_argument("--out", type=Path, required=True, help="directory of the set")
    parser.add_argument("--prefix", default="", help="what the names of these models begin with")
    parser.add_argument("--grid", choices=["full", *GRIDS], default="full")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    options = parser.parse_args(words)
    found = TruthSet(options.out)
    with tempfile.TemporaryDirectory(prefix="llamacpp-truth-") as work:
        program = Path(work) / "memory_truth"
        build(options.source, options.build / "bin", program)

        def work_on(place: str) -> None:
            name, header = read(place)
            entry = found.add(options.prefix + name, header)
            path = Path(work) / (entry.name + ".gguf")
            with open(path, "wb") as copy:
                copy.write(gzip.decompress((found.headers / entry.file).read_bytes()))
                copy.truncate(entry.file_size)
            found.lines[entry.name] = [
                row(entry, config, *ask(program, path, config)) for config in configurations(entry, options.grid)
            ]
            path.unlink()
            print(f"{entry.name}: {len(found.lines[entry.name])}", flush=True)

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(work_on, options.models))
    found.save()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
