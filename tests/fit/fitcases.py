"""Cases with llama.cpp's own figures, and ours for them.

A set is a directory with ``headers/manifest.json``, ``headers/*.header.gz`` and ``truth.jsonl.gz``, as
make_truth.py writes it. Two are known: ``stored``, small and in this repository, and ``shared``, beside
it where it was handed over (../shared/fit, or LLAMACPP_FIT_TRUTH).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import parse_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate, Usage, estimate
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, describe
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._weights import EXPERTS, INPUT

MIB = 1 << 20
GIB = 1 << 30
REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("LLAMACPP_FIT_TRUTH", REPOSITORY.parent / "shared" / "fit"))
STORED = Path(__file__).resolve().parent / "archs"

# Of 2,587 stored cases of 322 models, tests take this many a model: all of them take minutes.
SAMPLE = 3
ALL = bool(os.environ.get("LLAMACPP_FIT_ALL"))

# What is promised: model and context within 1 MiB; a total against llama-server's within 2 % or 32 MiB,
# and never more than 1 % or 16 MiB too low. Truth is in whole MiB, cut off.
PART_MIB = 1.0
HIGH, HIGH_MIB = 0.02, 32.0
LOW, LOW_MIB = 0.01, 16.0

# What a CPU with AVX2 repacks (ggml_repack_get_optimal_repack_type in ggml-cpu/repack.cpp, b11434).
REPACKED = ("Q2_K", "Q4_0", "Q4_K", "IQ4_NL", "MXFP4")


@dataclass(frozen=True)
class Case:
    """One configuration of one model. ``truth``: the line of truth.jsonl; ``model``: its facts."""

    model: ModelFacts
    truth: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.truth['model']} {self.truth['config']['label']}"

    @property
    def refused(self) -> bool:
        return "error" in self.truth

    @property
    def devices(self) -> list[MemoryDevice]:
        """The truth was made with processors behind RPC, equally large."""
        count = self.truth["config"]["n_dev"]
        return [MemoryDevice(f"RPC{index}", "rpc", 64 * GIB, 60 * GIB) for index in range(count)]

    def settings(self, logits: str = "server") -> Settings:
        """The configuration under the names of llama-server's flags."""
        config = self.truth["config"]
        split = tuple(float(share) for share in config["ts"].split(",")) if config["ts"] else None
        return Settings(
            ctx_size=config["c"],
            parallel=config["np"],
            kv_unified=config["kvu"],
            cache_type_k=config["ctk"],
            cache_type_v=config["ctv"],
            flash_attn=config["fa"],
            batch_size=max(2048, config["ub"]),
            ubatch_size=config["ub"],
            gpu_layers=config["ngl"],
            tensor_split=split,
            cpu_moe=config["cpu_moe"],
            n_cpu_moe=config["n_cpu_moe"],
            swa_full=config["swa_full"],
            no_kv_offload=config["nkvo"],
            logits=logits,
        )

    def estimate(self, logits: str = "server") -> Estimate:
        return estimate(self.model, self.devices, self.settings(logits))

    def repacked(self, found: Estimate) -> int:
        """Bytes of weights in the head's memory that llama-fit-params leaves out, as they were repacked."""
        config = self.truth["config"]
        if "-nr" in (config.get("extra") or []):
            return 0
        kept = len(found.layers) - 1 if config["cpu_moe"] else config["n_cpu_moe"]
        total = 0
        for group in self.model.tensor_groups:
            expert = bool(EXPERTS.search(group.name))
            if group.type not in REPACKED or group.name.startswith(INPUT) or len(group.shape) != (3 if expert else 2):
                continue
            if group.shape[1] % 8:
                continue
            for layer in group.layers or (len(found.layers) - 1,):
                if found.layers[layer] == HOST or (expert and layer < kept):
                    total += group.nbytes
        return total


@dataclass(frozen=True)
class Error:
    """Ours less llama.cpp's, in MiB. ``part``: model, context, compute or total; ``where``: a device or host."""

    case: Case
    where: str
    part: str
    ours: float
    theirs: float

    @property
    def mib(self) -> float:
        return self.ours - self.theirs

    @property
    def within(self) -> bool:
        """Whether it is within what is promised; compute buffers alone are promised nothing."""
        # Truth is cut off to whole MiB.
        over, under = max(self.mib - 1, 0.0), max(-self.mib, 0.0)
        if self.part in ("model", "context"):
            return abs(self.mib) <= PART_MIB
        if self.part == "total":
            return over <= max(HIGH * self.theirs, HIGH_MIB) and under <= max(LOW * self.theirs, LOW_MIB)
        return True

    def __str__(self) -> str:
        what = f"{self.case.name}, {self.part} of {self.where}"
        return f"{what}: {self.ours:.1f} MiB, llama.cpp has {self.theirs:.0f}"


@lru_cache(maxsize=2)
def _manifest(root: Path) -> dict[str, Any]:
    entries = json.loads((root / "headers" / "manifest.json").read_text(encoding="utf-8"))
    return {entry["name"]: entry for entry in entries}


@lru_cache(maxsize=256)
def model(root: Path, name: str) -> ModelFacts:
    """Return the facts of a model of a set."""
    entry = _manifest(root)[name]
    raw = gzip.decompress((root / "headers" / entry["file"]).read_bytes())
    return describe([parse_header(io.BytesIO(raw).read, entry["file_size"])], [name + ".gguf"])


@lru_cache(maxsize=2)
def lines(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the truth of a set by model; empty where the set is not there."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if (root / "truth.jsonl.gz").exists():
        with gzip.open(root / "truth.jsonl.gz", "rt", encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                found[row["model"]].append(row)
    return dict(found)


def cases(root: Path, name: str, every: bool = ALL) -> list[Case]:
    """Return the cases of a model; of the stored set a few, another few of every model, unless all are wanted."""
    rows = lines(root)[name]
    if root == STORED and not every:
        rows = sorted(rows, key=lambda row: zlib.crc32(f"{name} {row['config']['label']}".encode()))[:SAMPLE]
    return [Case(model(root, name), row) for row in rows]


def errors(case: Case, view: str = "server") -> Iterator[Error]:
    """Compare every part on every device and the host. ``view``: server, or fit_params (logits of a whole batch)."""
    truth = case.truth["server"] if view == "server" else case.truth
    found = case.estimate(view)
    rows = [*zip(found.devices, truth["devices"], strict=True), (found.host, truth["host"])]
    for usage, told in rows:
        where = told.get("name", "host")
        less = case.repacked(found) if where == "host" else 0
        yield from _compare(case, where, usage, told, less)


def _compare(case: Case, where: str, usage: Usage, told: Mapping[str, Any], less: int) -> Iterator[Error]:
    ours = {"model": usage.model - less, "context": usage.context, "compute": usage.compute}
    theirs = {part: _mib(told, part) for part in ours}
    for part, size in ours.items():
        yield Error(case, where, part, size / MIB, theirs[part])
    # Overhead is of the process; a device behind RPC that is a processor has none.
    overhead = 0 if where == "host" else usage.overhead
    yield Error(case, where, "total", (sum(ours.values()) + overhead) / MIB, sum(theirs.values()))


def _mib(told: Mapping[str, Any], part: str) -> float:
    """Exact where the truth has bytes."""
    return told[part] / MIB if part in told else float(told[part + "_mib"])


def broken(found: Sequence[Error], parts: Sequence[str]) -> list[str]:
    """Name the errors that are more than what is promised."""
    return [str(error) for error in found if error.part in parts and not error.within]
