"""Composed plans (schema 4) to look at. Sizes are plausible, not counted."""

from __future__ import annotations

from typing import Any

MIB = 1 << 20
GIB = 1 << 30
MARGIN = 256 * MIB
PARTS = ("model", "context", "compute", "overhead")
SETTINGS = {
    "ctx_size": 4096,
    "parallel": 1,
    "kv_unified": False,
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "flash_attn": "auto",
    "batch_size": 2048,
    "ubatch_size": 512,
    "gpu_layers": 99,
    "tensor_split": [],
    "split_mode": "layer",
    "cpu_moe": False,
    "n_cpu_moe": 0,
}
RELEASE = "b11434-1a2b3c4d5e6f-cuda"

Plan = dict[str, Any]


def parts(model: int, context: int, compute: int, overhead: int) -> dict[str, int]:
    """MiB of each part -> keys of the plan, in bytes."""
    sizes = dict(zip((f"{part}_bytes" for part in PARTS), (model, context, compute, overhead), strict=True))
    return {name: size * MIB for name, size in sizes.items()}


def share(node: str, device: str, layers: tuple[int, int] | None, sizes: tuple[int, int, int, int]) -> dict[str, Any]:
    """What an instance has on a device; what only the device knows is filled in by `compose`."""
    number = layers[1] - layers[0] + 1 if layers else 0
    return {"node": node, "device": device, "layers": list(layers) if layers else None, "n_layers": number} | parts(
        *sizes
    )


def instance(
    name: str, shares: list[dict[str, Any]], *, strategy: str, why: str, port: int = 8080, **more: Any
) -> dict[str, Any]:
    """An instance whose head is the node of its first share."""
    nodes = list(dict.fromkeys(item["node"] for item in shares))
    layers = max(item["layers"][1] for item in shares if item["layers"])
    file = more.pop("file", f"{name}-Q4_K_M.gguf")
    path = f"/var/lib/llamacpp/models/{file}"
    settings = SETTINGS | more.pop("settings", {})
    workers = [
        {
            "node": node,
            "host": f"10.100.0.{30 + place}",
            "port": 50052,
            "unit": f"llamacpp-rpc-{name}.service",
            "devices": ["CUDA0"],
            "args": ["--host", f"10.100.0.{30 + place}", "--port", "50052", "--device", "CUDA0"],
        }
        for place, node in enumerate(nodes[1:], 2)
    ]
    bare = {
        "name": name,
        "unit": f"llamacpp-{name}.service",
        "head": nodes[0],
        "nodes": nodes,
        "release": RELEASE,
        "model": {
            "name": f"owner/name/{name}",
            "file": file,
            "path": path,
            "files": [path],
            "bytes": sum(item["model_bytes"] for item in shares),
            "sha256": "0" * 64,
            "architecture": "llama",
            "n_layers": layers,
            "source": {"path": f"/opt/models/{file}", "url": None, "from": "node"},
        },
        "host": "0.0.0.0",
        "port": port,
        "context": settings["ctx_size"] // settings["parallel"],
        "parallel": settings["parallel"],
        "devices": shares,
        "host_memory": parts(400, 0, 180, 96),
        "workers": workers,
        "gpu_layers": settings["gpu_layers"],
        "tensor_split": settings["tensor_split"],
        "settings": settings,
        "strategy": strategy,
        "exact": True,
        "notes": [],
        "choices": [],
        "alternatives": [],
        "args": [
            *("--model", path, "--alias", name, "--split-mode", settings["split_mode"], "--fit", "off"),
            *("--ctx-size", str(settings["ctx_size"]), "--host", "0.0.0.0", "--port", str(port), "--metrics"),
        ],
        "environment": {},
        "start_timeout": 1260,
        "api_key_file": None,
        "why": why,
    }
    return bare | more


def compose(hardware: dict[str, list[tuple[str, str, str, int]]], instances: list[dict[str, Any]]) -> Plan:
    """A plan; `hardware`: (device, name, kind, memory in MiB) of each node. Devices of workers are called RPC<n>."""
    devices: dict[str, list[dict[str, Any]]] = {}
    for node, found in hardware.items():
        devices[node] = [
            {
                "device": device,
                "name": name,
                "kind": kind,
                "memory_bytes": size * MIB,
                "margin_bytes": MARGIN,
                "uses": [],
            }
            for device, name, kind, size in found
        ]
    for item in instances:
        for taken in [*item["devices"], {"node": item["head"], "device": "host"} | item["host_memory"]]:
            of_node = devices[taken["node"]]
            host = next((device for device in of_node if device["kind"] == "cpu"), None)
            wanted = taken.get("on", taken["device"])
            device = next((device for device in of_node if device["device"] == wanted), host)
            if device is None or (taken["device"] == "host" and any(share["host"] for share in item["devices"])):
                continue
            role = "head" if taken["node"] == item["head"] else "worker"
            device["uses"].append(
                {"instance": item["name"], "role": role} | {f"{part}_bytes": taken[f"{part}_bytes"] for part in PARTS}
            )
            taken |= {
                "kind": device["kind"],
                "local_device": device["device"],
                "name": device["name"],
                "memory_bytes": device["memory_bytes"],
            }
            taken |= {"host": device is host and role == "head", "endpoint": None, "compute_capability": None}
            taken["total_bytes"] = sum(taken[f"{part}_bytes"] for part in PARTS)
            taken["of"] = device
    for found in devices.values():
        for device in found:
            used = sum(use[f"{part}_bytes"] for use in device["uses"] for part in PARTS)
            device["free_bytes"] = device["memory_bytes"] - used - device["margin_bytes"]
    for item in instances:
        item["host_memory"]["total_bytes"] = sum(item["host_memory"][f"{part}_bytes"] for part in PARTS)
        for taken in item["devices"]:
            taken["free_bytes"] = taken.pop("of")["free_bytes"]
    return {
        "schema": 4,
        "release": RELEASE,
        "releases": {RELEASE: _release(list(hardware))},
        "nodes": {node: _node(node, place, instances) for place, node in enumerate(hardware, 1)},
        "devices": devices,
        "models": {item["model"]["name"]: _model(item) for item in instances},
        "instances": instances,
    }


def _model(item: dict[str, Any]) -> dict[str, Any]:
    file = {"name": item["model"]["file"], "bytes": item["model"]["bytes"], "sha256": None, "role": "model"}
    return {
        "files": [file],
        "source": {"repo": "owner/name", "commit": "c0ffee0000000000", "quant": "Q4_K_M", "from": "node"},
        "holders": [item["head"]],
        "workers": {},
        "fetcher": item["head"],
        "transport": "none",
        "why": f"only {item['head']} needs it",
        "addresses": {},
    }


def _release(nodes: list[str]) -> dict[str, Any]:
    toolchain = {"gcc": {"version": 12}, "cuda": {"version": "12.2", "provider": "package"}}
    return {
        "id": RELEASE,
        "nodes": nodes,
        "builder": nodes[0],
        "toolchain": toolchain,
        "inputs": {"cmake_args": ["-D"]},
    }


def _node(node: str, place: int, instances: list[dict[str, Any]]) -> dict[str, Any]:
    units, firewall = [], []
    for item in instances:
        if item["head"] == node:
            units.append(item["unit"])
            firewall.append({"port": item["port"], "sources": [], "purpose": "http", "instance": item["name"]})
        for worker in item["workers"]:
            if worker["node"] == node:
                units.append(worker["unit"])
                opening = {"port": worker["port"], "sources": ["10.100.0.31"], "purpose": "rpc"}
                firewall.append(opening | {"instance": item["name"]})
    return {"fabric_address": f"10.100.0.{30 + place}", "units": units, "firewall": firewall}


def lab() -> Plan:
    """Three CPU nodes."""
    hardware = {f"node{number}": [("CPU", "AMD EPYC", "cpu", 24106)] for number in (1, 2, 3)}
    shares = [
        share("node1", "CPU", (0, 7), (101, 64, 30, 90)),
        share("node2", "RPC0", (8, 15), (98, 64, 30, 90)),
        share("node3", "RPC1", (16, 24), (101, 64, 30, 90)),
    ]
    why = "The layers are spread over 3 devices of the declared nodes (node1, node2, node3) in proportion to memory."
    return compose(hardware, [instance("demo", shares, strategy="rpc", why=why, settings={"tensor_split": [8, 9]})])


def v100s() -> Plan:
    """Three V100S joined by InfiniBand, one 72B model over all of them."""
    hardware = {
        f"vllm-node{number}": [
            ("CUDA0", "Tesla V100S-PCIE-32GB", "cuda", 32768),
            ("CPU", "Intel Xeon Gold 6226R", "cpu", 191488),
        ]
        for number in (1, 2, 3)
    }
    shares = [
        share("vllm-node1", "CUDA0", (0, 26), (15360, 432, 1108, 346)),
        share("vllm-node2", "RPC0", (27, 53), (15180, 432, 790, 346)) | {"on": "CUDA0"},
        share("vllm-node3", "RPC1", (54, 80), (15940, 416, 1104, 346)) | {"on": "CUDA0"},
    ]
    choices = [
        {
            "what": "quantisation",
            "chosen": "Q4_K_M",
            "why": "The largest in the repository that fits with 3 slots of 4,096 tokens.",
            "rejected": [
                {
                    "option": "Q8_0",
                    "why": "71.9 GiB of weights leave nothing for the context: 1.4 GiB too much on each GPU.",
                },
                {"option": "Q6_K", "why": "fits, but leaves less than the margin on vllm-node1 (184 MiB of 256 MiB)."},
            ],
        },
        {
            "what": "nodes",
            "chosen": "vllm-node1, vllm-node2, vllm-node3",
            "why": "45.4 GiB of weights need two V100S at least; all three share the fastest fabric (100 Gbit/s).",
            "rejected": [{"option": "vllm-node1, vllm-node2", "why": "3.1 GiB are missing with 3 slots."}],
        },
        {
            "what": "strategy",
            "chosen": "RPC over nodes",
            "why": "No node has the memory for the whole model.",
            "rejected": [
                {"option": "one device", "why": "14.6 GiB are missing on a 32 GiB device."},
                {"option": "tensor split", "why": "no node has two GPUs that NVLink joins."},
                {"option": "partial offload", "why": "it fits, at about a tenth of the speed."},
            ],
        },
        {
            "what": "slots",
            "chosen": "3",
            "why": "Declared.",
            "rejected": [],
        },
    ]
    three = [f"vllm-node{number}" for number in (1, 2, 3)]
    alternatives = [
        placement(1, "rpc", "Q4_K_M", three, ["CUDA0"] * 3, token=95, total=50.1, room=41.4),
        placement(2, "rpc", "Q4_K_M", three[:2], ["CUDA0"] * 2, token=96, total=49.4, room=10.1),
        placement(3, "partial-offload", "Q4_K_M", three[:1], ["CPU", "CUDA0"], token=605, total=48.8, room=0.6),
        placement(4, "cpu", "Q4_K_M", three[:1], ["CPU"], token=1693, total=48.4, room=138.2),
    ]
    split = {"ctx_size": 12288, "parallel": 3, "tensor_split": [27, 27, 27], "gpu_layers": 81}
    behemoth = instance(
        "behemoth",
        shares,
        strategy="rpc",
        why="No node has the memory for the whole model, so its layers lie on the GPUs of all three nodes, in "
        "proportion to memory; a token crosses the fabric twice.",
        port=8000,
        file="OR1-Behemoth.Q4_K_M.gguf",
        settings=split,
        choices=choices,
        alternatives=alternatives,
        api_key_file="/etc/llamacpp/keys/behemoth",
    )
    behemoth["model"] |= {"architecture": "qwen2", "n_layers": 80}
    return compose(hardware, [behemoth])


def placement(
    rank: int, strategy: str, quant: str, nodes: list[str], devices: list[str], *, token: int, total: float, room: float
) -> dict[str, Any]:
    """An entry of `alternatives`; a token in ms, total and headroom in GiB."""
    return {
        "rank": rank,
        "chosen": rank == 1,
        "strategy": strategy,
        "nodes": nodes,
        "quant": quant,
        "fits": True,
        "devices": len(devices),
        "device_names": devices,
        "gpu_layers": 81,
        "tensor_split": [],
        "ctx_size": 12288,
        "cost": 300000.0 + 1000 * rank + token,
        "token_ms": float(token),
        "why": "Best." if rank == 1 else "Slower.",
        "total_bytes": int(total * GIB),
        "headroom_bytes": int(room * GIB),
    }


def h100s() -> Plan:
    """Eight H100 joined by NVSwitch: a tensor split over four of them, two smaller models that share the fifth."""
    hardware = {
        "dgx1": [(f"CUDA{index}", "NVIDIA H100 80GB HBM3", "cuda", 81559) for index in range(8)]
        + [("CPU", "Intel Xeon Platinum 8480C", "cpu", 2063872)]
    }
    big = instance(
        "llama-3.3-70b",
        [share("dgx1", f"CUDA{index}", (0, 80), (18210, 5120, 1320, 612)) for index in range(4)],
        strategy="tensor-split",
        why="Each of four GPUs that NVSwitch joins holds a slice of every layer, so that all work on each token.",
        file="Llama-3.3-70B-Instruct-Q8_0.gguf",
        settings={"split_mode": "tensor", "tensor_split": [1, 1, 1, 1], "ctx_size": 131072, "parallel": 4},
    )
    coder = instance(
        "coder",
        [share("dgx1", "CUDA4", (0, 48), (32890, 6144, 1210, 498))],
        strategy="one-device",
        why="The whole model fits on one device.",
        port=8081,
        file="Qwen3-Coder-30B-A3B-Instruct-Q8_0.gguf",
        settings={"ctx_size": 65536, "parallel": 2},
    )
    embed = instance(
        "embed",
        [share("dgx1", "CUDA4", (0, 28), (610, 1792, 305, 498))],
        strategy="one-device",
        why="The whole model fits beside coder on one device.",
        port=8082,
        file="Qwen3-Embedding-0.6B-Q8_0.gguf",
        exact=False,
        notes=["the compute buffers are a bound, the rest is exact"],
    )
    return compose(hardware, [big, coder, embed])


def empty() -> Plan:
    """Nodes, and nothing declared."""
    return compose({f"node{number}": [("CUDA0", "NVIDIA L4", "cuda", 23034)] for number in (1, 2, 10)}, [])


def large() -> Plan:
    """64 nodes with eight GPUs each; ten instances, of which two cross nodes."""
    hardware = {
        f"gpu{number:03d}.cluster.example": [
            (f"CUDA{index}", "NVIDIA H100 80GB HBM3", "cuda", 81559) for index in range(8)
        ]
        + [("CPU", "AMD EPYC 9654", "cpu", 1547000)]
        for number in range(1, 65)
    }
    names = list(hardware)
    instances = []
    for number in range(8):
        shares = [
            share(names[number * 5], f"CUDA{index}", (index * 10, index * 10 + 9), (61000, 8192, 1320, 612))
            for index in range(8)
        ]
        text = "The layers are spread over the 8 GPUs of one node."
        instances.append(instance(f"model-{number}", shares, strategy="layer-split", why=text, port=8080 + number))
    for number in (8, 9):
        shares = [
            share(node, f"RPC{place * 8 + index}" if place else f"CUDA{index}", (at, at + 3), (64000, 4096, 1320, 612))
            | {"on": f"CUDA{index}"}
            for place, node in enumerate(names[40 + number : 60 : 10])
            for index in range(8)
            for at in [(place * 8 + index) * 4]
        ]
        text = "No node has the memory for the whole model."
        instances.append(instance(f"giant-{number}", shares, strategy="rpc", why=text, port=8080 + number))
    return compose(hardware, instances)


def static() -> Plan:
    """Planned from declared devices alone: no header was read, so nobody knows sizes and layers."""
    plan = v100s()
    (item,) = plan["instances"]
    unknown = {f"{part}_bytes": None for part in (*PARTS, "total")}
    item["exact"] = False
    item["choices"] = item["alternatives"] = []
    item["model"] |= {"bytes": None, "architecture": None, "n_layers": None}
    item["host_memory"] = None
    for taken in item["devices"]:
        taken |= unknown | {"layers": None, "n_layers": None, "free_bytes": None}
    for device in [device for found in plan["devices"].values() for device in found]:
        device["uses"] = [use | unknown for use in device["uses"]]
        device["free_bytes"] = None if device["uses"] else device["free_bytes"]
    return plan


def hostile() -> Plan:
    """An operator's names with everything in them that means something to HTML."""
    nasty = "\"><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'&amp;"
    plan = v100s()
    item = plan["instances"][0]
    item["why"] = item["head"] = item["release"] = plan["release"] = nasty
    item["model"]["file"] = item["model"]["architecture"] = nasty
    item["args"] += ["--alias", nasty, nasty]
    item["strategy"] = item["settings"]["cache_type_k"] = nasty
    item["choices"][0] = {"what": nasty, "chosen": nasty, "why": nasty, "rejected": [{"option": nasty, "why": nasty}]}
    item["alternatives"][0] |= {"strategy": nasty, "nodes": [nasty], "quant": nasty, "why": nasty}
    item["devices"][0] |= {"node": nasty, "device": nasty, "name": nasty}
    item["workers"][0] |= {"node": nasty, "host": nasty}
    for found in plan["devices"].values():
        for device in found:
            device["name"] = device["device"] = nasty
            for use in device["uses"]:
                use["instance"] = use["role"] = nasty
    item["name"] = nasty
    plan["nodes"] = {node + nasty: facts | {"fabric_address": nasty} for node, facts in plan["nodes"].items()}
    plan["devices"] = {node + nasty: found for node, found in plan["devices"].items()}
    return plan


PLANS = {
    "lab": lab,
    "v100s": v100s,
    "h100s": h100s,
    "empty": empty,
    "large": large,
    "static": static,
    "hostile": hostile,
}
