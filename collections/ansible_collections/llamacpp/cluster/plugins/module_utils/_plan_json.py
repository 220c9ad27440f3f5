# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write decisions down as the plan says them (schema 4), with every flag that follows from them."""

from __future__ import annotations

import ipaddress
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._builds import Release, Releases
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._flags import (
    RPC_CACHE_FROM,
    server_arguments,
    worker_arguments,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._option import Option
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import GIB, Knobs, Placement, Share
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import CPU, Pool, PoolNode
from ansible_collections.llamacpp.cluster.plugins.module_utils._ports import Ports
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import build_number
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._sources import Offer

# LocalAI's deadline for a load through RPC: five minutes and 20 s a GiB.
START_SECONDS = 300
START_SECONDS_PER_GIB = 20
LOG_LEVEL = "4"


@dataclass(frozen=True)
class Decision:
    """What was decided for an instance, which now has nodes. ``files``: of the model in the head's store."""

    instance: Instance
    offer: Offer
    option: Option
    files: tuple[str, ...]
    why: str
    choices: Sequence[Mapping[str, Any]]
    alternatives: Sequence[Mapping[str, Any]]

    @property
    def placement(self) -> Placement:
        """Return where it goes."""
        return self.option.placement

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the head and then the workers."""
        return self.instance.nodes or ()


def instance_json(
    declared: Declared,
    decision: Decision,
    ports: Ports,
    addresses: Mapping[str, str],
    nodes: Mapping[str, NodeFacts],
    pool: Pool,
    releases: Releases,
) -> dict[str, Any]:
    """Write one instance down. ``addresses``: of its nodes on the fabric."""
    instance, offer, placement = decision.instance, decision.offer, decision.placement
    facts = offer.facts
    head = placement.head
    workers = [
        {
            **_worker(
                declared,
                instance.name,
                node,
                addresses[node],
                int(ports.rpc or 0),
                placement,
                nodes,
                _caches(declared, releases, node),
            ),
            "release": releases.of_node.get(node),
        }
        for node in instance.workers
    ]
    endpoints = {worker["node"]: "%s:%d" % (worker["host"], worker["port"]) for worker in workers}
    key_file = "%s/keys/%s" % (declared.settings.config_dir, instance.name) if instance.has_api_keys else None
    estimate = placement.estimate
    values = _server_values(declared, decision, ports, list(endpoints.values()), nodes, key_file)
    return {
        "name": instance.name,
        "declared": instance.declared,
        "unit": "llamacpp-%s.service" % instance.name,
        "head": head,
        "nodes": list(decision.nodes),
        "release": releases.of_node.get(head),
        "model": {
            "name": offer.source.name,
            "file": offer.file_names[0],
            "path": decision.files[0],
            "manifest": "%s/manifests/%s.json" % (declared.settings.models_dir, offer.source.name),
            "files": list(decision.files),
            "bytes": facts.file_size if facts else None,
            "sha256": offer.checksums.get(offer.file_names[0]),
            "architecture": facts.architecture if facts else None,
            "quant": offer.quant or (facts.file_type if facts else None),
            "n_layers": facts.n_layers if facts else None,
            "n_ctx_train": facts.n_ctx_train if facts else None,
        },
        "host": instance.host,
        "port": ports.http,
        "context": placement.knobs.context,
        "parallel": placement.knobs.parallel,
        "strategy": decision.option.strategy,
        "devices": [_device(share, endpoints, pool, declared) for share in placement.shares],
        "host_memory": _host_memory(placement),
        "projector": _projector(decision),
        "workers": workers,
        "gpu_layers": placement.gpu_layers,
        "tensor_split": [plain(part) for part in placement.tensor_split],
        "settings": _settings(placement),
        "args": server_arguments(values, instance.extra_args),
        "environment": dict(instance.environment),
        "start_timeout": _start_timeout(decision),
        "api_key_file": key_file,
        "exact": bool(estimate and estimate.exact),
        "notes": list(estimate.notes) if estimate else [],
        "why": decision.why,
        "choices": list(decision.choices),
        "alternatives": list(decision.alternatives),
    }


def _worker(
    declared: Declared,
    name: str,
    node: str,
    address: str,
    port: int,
    placement: Placement,
    nodes: Mapping[str, NodeFacts],
    cache: bool,
) -> dict[str, Any]:
    devices = [slot.device.local_name for slot in placement.offload if slot.node == node]
    return {
        "node": node,
        "host": address,
        "port": port,
        "unit": "llamacpp-rpc-%s.service" % name,
        "devices": devices,
        "cache": cache,
        "args": worker_arguments(address, port, devices, threads(declared, node, nodes), cache),
    }


def _caches(declared: Declared, releases: Releases, node: str) -> bool:
    """Whether a node's workers keep what they were sent; not with a release that nobody knows to do it well."""
    release = releases.by_id.get(releases.of_node.get(node, ""))
    number = build_number(str(release.inputs.get("release", ""))) if release else None
    return declared.settings.rpc_cache and number is not None and number >= RPC_CACHE_FROM


def _server_values(
    declared: Declared,
    decision: Decision,
    ports: Ports,
    endpoints: Sequence[str],
    nodes: Mapping[str, NodeFacts],
    key_file: str | None,
) -> dict[str, str]:
    """Return the value of every flag of llama-server; an empty value is a switch."""
    instance, placement = decision.instance, decision.placement
    knobs = placement.knobs
    values = {
        "--model": decision.files[0],
        "--alias": instance.alias,
        "--device": ",".join(slot.device_name for slot in placement.offload) or "none",
        "--split-mode": knobs.split_mode,
        "--n-gpu-layers": str(placement.gpu_layers),
        "--fit": "off",
        "--ctx-size": str(knobs.context * knobs.parallel),
        "--parallel": str(knobs.parallel),
        "--kv-unified" if knobs.kv_unified else "--no-kv-unified": "",
        "--batch-size": str(knobs.batch),
        "--ubatch-size": str(knobs.ubatch),
        "--cache-type-k": knobs.cache_type_k,
        "--cache-type-v": knobs.cache_type_v,
        "--flash-attn": knobs.flash_attention,
        "--load-mode": "auto",
        "--host": instance.host,
        "--port": str(ports.http),
        "--metrics": "",
        "--verbosity": LOG_LEVEL,
    }
    values.update({flag: "" for flag, wanted in _switches(knobs) if wanted})
    if knobs.n_cpu_moe:
        values["--n-cpu-moe"] = str(knobs.n_cpu_moe)
    if endpoints:
        values["--rpc"] = ",".join(endpoints)
    if len(placement.offload) > 1:
        values["--tensor-split"] = ",".join(str(plain(part)) for part in placement.tensor_split)
    if key_file:
        values["--api-key-file"] = key_file
    projector = _projector(decision)
    if projector:
        values["--mmproj"] = projector["path"]
        if knobs.eyes and knobs.eyes.device is None:
            values["--mmproj-device"] = projector["device"]
    count = instance.threads or threads(declared, placement.head, nodes)
    batch_count = instance.threads_batch or count
    if count:
        values["--threads"] = str(count)
    if batch_count:
        values["--threads-batch"] = str(batch_count)
    return values


def _projector(decision: Decision) -> dict[str, Any] | None:
    """Return the projector that the plan adds, and what of the overhead of its device (``none``: host) it is."""
    knobs, slots = decision.placement.knobs, decision.placement.offload
    eyes = knobs.eyes
    if eyes is None:
        return None
    devices = [slot.memory for slot in slots]
    index, takes = eyes.seat(devices), eyes.takes(devices, knobs.flash_attention != "off")
    return {
        "path": posixpath.join(posixpath.dirname(decision.files[0]), eyes.file),
        "device": eyes.device if index is None else "none" if index == HOST else slots[index].device_name,
        "model_bytes": takes.model if takes else None,
        "compute_bytes": takes.compute if takes else None,
    }


def _switches(knobs: Knobs) -> list[tuple[str, bool]]:
    return [("--cpu-moe", knobs.cpu_moe), ("--swa-full", knobs.swa_full), ("--no-kv-offload", knobs.no_kv_offload)]


def _settings(placement: Placement) -> dict[str, Any]:
    """Return llama-server's settings under the names of its long flags."""
    settings: Settings = placement.knobs.settings(placement.gpu_layers, placement.tensor_split)
    names = (
        "ctx_size", "parallel", "kv_unified", "cache_type_k", "cache_type_v", "flash_attn", "batch_size",
        "ubatch_size", "gpu_layers", "split_mode", "cpu_moe", "n_cpu_moe", "swa_full", "no_kv_offload",
    )  # fmt: skip
    found: dict[str, Any] = {name: getattr(settings, name) for name in names}
    found["tensor_split"] = [plain(part) for part in placement.tensor_split]
    return found


def _device(share: Share, endpoints: Mapping[str, str], pool: Pool, declared: Declared) -> dict[str, Any]:
    usage, slot = share.usage, share.slot
    node = pool.nodes[slot.node]
    return {
        "node": slot.node,
        "device": slot.device_name,
        "local_device": slot.device.local_name,
        "kind": slot.device.kind,
        "name": slot.device.name,
        "compute_capability": slot.device.compute_capability,
        "host": slot.device_name == CPU,
        "endpoint": endpoints.get(slot.node),
        "layers": list(share.layers) if share.layers else None,
        "n_layers": share.n_layers,
        "model_bytes": usage.model if usage else None,
        "context_bytes": usage.context if usage else None,
        "compute_bytes": usage.compute if usage else None,
        "overhead_bytes": usage.overhead if usage else None,
        "total_bytes": usage.total if usage else None,
        "memory_bytes": slot.device.memory_bytes,
        "free_bytes": left(node, slot.device.local_name, slot.device.memory_bytes, declared) if usage else None,
    }


def left(node: PoolNode, name: str, memory: int, declared: Declared) -> int:
    """Return what is left of a device when all planned instances and the margin are taken off."""
    return memory - node.used(name) - (declared.settings.memory_margin_mib << 20)


def _host_memory(placement: Placement) -> dict[str, int] | None:
    """Return what the head's own memory has to hold; None when no header was read."""
    if placement.estimate is None:
        return None
    host = placement.estimate.host
    return {
        "model_bytes": host.model,
        "context_bytes": host.context,
        "compute_bytes": host.compute,
        "overhead_bytes": host.overhead,
        "total_bytes": host.total,
    }


SIZES = ("model_bytes", "context_bytes", "compute_bytes", "overhead_bytes")


def devices_json(
    pool: Pool, declared: Declared, planned: Sequence[Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the devices of every node, the memory of its host last, and what is planned on each.

    What an instance takes whose model nobody read (``planned`` says where it is) is null, and so is what it leaves.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for node in pool.nodes.values():
        shown = [*node.gpus, *((node.host,) if node.host else ())]
        found[node.name] = [
            {
                "device": device.local_name,
                "name": device.name,
                "kind": device.kind,
                "compute_capability": device.compute_capability,
                "memory_bytes": device.memory_bytes,
                "uses": [
                    {
                        "instance": use.instance,
                        "role": use.role,
                        "model_bytes": use.model,
                        "context_bytes": use.context,
                        "compute_bytes": use.compute,
                        "overhead_bytes": use.overhead,
                    }
                    for use in sorted(node.uses.get(device.local_name, ()))
                ],
                "margin_bytes": declared.settings.memory_margin_mib << 20,
                "free_bytes": left(node, device.local_name, device.memory_bytes, declared),
            }
            for device in shown
        ]
    for instance in planned:
        for share in instance["devices"]:
            for device in found.get(share["node"], ()):
                if share["total_bytes"] is None and device["device"] == share["local_device"]:
                    role = "head" if share["node"] == instance["head"] else "worker"
                    device["uses"].append({"instance": instance["name"], "role": role, **dict.fromkeys(SIZES)})
                    device["free_bytes"] = None
    return found


def node_json(
    node: str,
    declared: Declared,
    planned: Sequence[Mapping[str, Any]],
    heads: Mapping[str, str | None],
    releases: Releases,
) -> dict[str, Any]:
    """Write down what belongs on a node: its release, the devices that compute, units, openings of the firewall.

    ``heads``: the fabric address of every instance's head, the only one who may speak to its workers.
    """
    address = declared.node(node).fabric_address
    units, firewall = [], []
    for instance in planned:
        if instance["head"] == node:
            address = address or heads[instance["name"]]
            units.append(instance["unit"])
            if not ipaddress.ip_address(instance["host"]).is_loopback:
                firewall.append(_opening(instance["port"], [], "http", instance["name"]))
        for worker in instance["workers"]:
            if worker["node"] == node:
                address = address or worker["host"]
                units.append(worker["unit"])
                firewall.append(_opening(worker["port"], [heads[instance["name"]]], "rpc", instance["name"]))
    devices = {share["local_device"] for instance in planned for share in instance["devices"] if share["node"] == node}
    return {
        "release": releases.of_node.get(node),
        "devices": sorted(devices - {"CPU"}),
        "fabric_address": address,
        "units": sorted(units),
        "firewall": sorted(firewall, key=lambda item: (item["port"], item["instance"])),
    }


def release_json(release: Release, addresses: Mapping[str, str]) -> dict[str, Any]:
    """Write one release down. ``addresses``: of its nodes, by which they can copy it from each other."""
    return {**release.as_dict, "addresses": dict(sorted(addresses.items()))}


def _opening(port: int, sources: Sequence[str | None], purpose: str, instance: str) -> dict[str, Any]:
    return {"port": port, "sources": list(sources), "purpose": purpose, "instance": instance}


def threads(declared: Declared, node: str, nodes: Mapping[str, NodeFacts]) -> int | None:
    """Return the cores of a node; None when nobody knows them."""
    return declared.node(node).cores or (nodes[node].cores if node in nodes else None)


def plain(number: float) -> int | float:
    """Return a whole number as one."""
    return int(number) if number == int(number) else number


def _start_timeout(decision: Decision) -> int:
    """Return the seconds that a start may take; without a header the devices' memory bounds the model."""
    facts = decision.offer.facts
    size = facts.file_size if facts else sum(share.slot.device.memory_bytes for share in decision.placement.shares)
    return START_SECONDS + START_SECONDS_PER_GIB * -(-size // GIB)
