"""How long the planner takes: 64 nodes with 8 GPUs, 10 instances that may have any of 20 quantisations.

    .venv/bin/python tests/bench/plan_speed.py [--nodes 64] [--instances 10] [--repeat 3]

Prints JSON: seconds of each run, with models that nobody looked at before (``first``) and again
(``again``), estimates that were asked for, and what was chosen. At most 2 s is the goal.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "collections"))

from ansible_collections.llamacpp.cluster.plugins.module_utils import _placement  # noqa: E402
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts  # noqa: E402
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan  # noqa: E402
from ansible_collections.llamacpp.cluster.tests.unit import builders  # noqa: E402

# Twenty tensor types, as a repository with many quantisations has them; largest first.
KINDS = (
    "F32", "F16", "Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "Q4_0",
    "IQ4_NL", "MXFP4", "IQ4_XS", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XXS", "IQ1_S",
)  # fmt: skip


def shapes() -> list[dict[str, int]]:
    """Ten models: dense ones from 8 to 120 billion weights, and mixtures."""
    return [
        {"n_layers": 32, "width": 4096, "feed": 14336, "heads": 32},
        {"n_layers": 80, "width": 8192, "feed": 28672, "heads": 64},
        {"n_layers": 40, "width": 5120, "feed": 17408, "heads": 40},
        {"n_layers": 64, "width": 5120, "feed": 27648, "heads": 40},
        {"n_layers": 88, "width": 12288, "feed": 28672, "heads": 96},
        {"n_layers": 48, "width": 2048, "feed": 768, "heads": 32, "heads_kv": 4, "experts": 128},
        {"n_layers": 94, "width": 4096, "feed": 1536, "heads": 64, "heads_kv": 4, "experts": 128},
        {"n_layers": 32, "width": 4096, "feed": 14336, "heads": 32, "experts": 8},
        {"n_layers": 28, "width": 3072, "feed": 8192, "heads": 24},
        {"n_layers": 62, "width": 5376, "feed": 21504, "heads": 32, "heads_kv": 16},
    ]


def models(count: int) -> dict[str, dict[str, ModelFacts]]:
    """Return 20 quantisations for each instance; every model is an object of its own."""
    return {
        f"i{number}": {kind: builders.transformer(kind=kind, **shapes()[number % 10]) for kind in KINDS}
        for number in range(count)
    }


def declared(count: int, names: list[str]) -> Any:
    """Return the declaration of instances that leave everything open."""
    instances = [
        {
            "name": f"i{number}",
            "model": {"quants": {kind: {"path": f"/srv/{number}-{kind}.gguf"} for kind in KINDS}},
            "nodes": "auto",
            "context": "auto" if number % 2 else 16384,
            "parallel": "auto" if number % 2 else 4,
        }
        for number in range(count)
    ]
    return builders.accept(*instances, inventory=names)


def cluster(count: int) -> Mapping[str, Any]:
    """Return facts of nodes: H100s joined by NVLink, some with other cards and with less free."""
    found = {}
    for number in range(1, count + 1):
        kind, gib = ("H100", 80) if number % 4 else ("RTX 4090", 24)
        devices = builders.gpus(kind, gib, 8, linked=kind == "H100", free=gib - 0.01 * (number % 5))
        found[f"node{number}"] = builders.machine(number, devices, 1024 - number % 7)
    return found


def timed(plan: Any, *arguments: Any) -> tuple[dict[str, float], Any]:
    """Return seconds on the clock and of the processor, and the result."""
    gc.collect()
    clock, processor = time.perf_counter(), time.process_time()
    result = plan(*arguments)
    spent = {"clock_s": time.perf_counter() - clock, "cpu_s": time.process_time() - processor}
    return {key: round(value, 3) for key, value in spent.items()}, result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--instances", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    found = cluster(options.nodes)
    said = declared(options.instances, sorted(found))
    runs = []
    plan: dict[str, Any] = {}
    with mock.patch.object(_placement, "estimate", wraps=_placement.estimate) as estimate:
        for _number in range(options.repeat):
            given = models(options.instances)
            estimate.reset_mock()
            first, plan = timed(make_plan, said, found, given)
            asked = estimate.call_count
            again, plan = timed(make_plan, said, found, given)
            runs.append({"first": first, "again": again, "estimates": asked})
    chosen = [
        {key: item[key] for key in ("name", "strategy", "nodes", "context", "parallel")}
        | {"quant": item["model"]["quant"], "devices": len(item["devices"]), "alternatives": len(item["alternatives"])}
        for item in plan["instances"]
    ]
    print(json.dumps({"runs": runs, "chosen": chosen}, indent=2))


if __name__ == "__main__":
    main()
