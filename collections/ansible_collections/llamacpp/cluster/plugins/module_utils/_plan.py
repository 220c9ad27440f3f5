# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make the plan: a pure function of what is declared, what was found, and the models' headers.

``make_plan`` gathers; the decisions are made one module each: :mod:`_ports`, :mod:`_fabric`,
:mod:`_placement` (which asks :mod:`_layers` how to spread layers), :mod:`_fit`, :mod:`_flags`.
The same input gives the same plan, byte for byte, and a cluster that runs the plan gives it again.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Device, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._fabric import fabric_addresses
from ansible_collections.llamacpp.cluster.plugins.module_utils._fit import check_memory
from ansible_collections.llamacpp.cluster.plugins.module_utils._flags import server_arguments, worker_arguments
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import (
    NodeFacts,
    check_model_disk,
    check_nodes,
    check_reachable,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, shard_names
from ansible_collections.llamacpp.cluster.plugins.module_utils._placement import GIB, Placement, Share, place
from ansible_collections.llamacpp.cluster.plugins.module_utils._ports import Ports, assign_ports
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import PlanError, Problem, listing

SCHEMA = 1
# LocalAI's deadline for a load through RPC: five minutes and 20 s a GiB.
START_SECONDS = 300
START_SECONDS_PER_GIB = 20
LOG_LEVEL = "4"

Plan = dict[str, Any]


def make_plan(declared: Declared, nodes: Mapping[str, NodeFacts], models: Mapping[str, ModelFacts | str]) -> Plan:
    """Make the plan.

    ``nodes``: facts by node; a node that did not answer is absent. ``models``: facts by instance,
    or what was wrong with the model's file, in words. Static planning takes neither.
    Returns JSON-able data (schema 1). Raises :class:`PlanError` with all problems.
    """
    problems = check_nodes(declared, nodes)
    if not declared.static:
        problems += check_reachable(declared, nodes)
    ports, found = assign_ports(declared, nodes)
    problems += found
    placements: list[tuple[Instance, Placement]] = []
    planned = []
    heads: dict[str, str | None] = {}
    for instance in declared.instances:
        complete = declared.static or all(node in nodes for node in instance.nodes)
        model = models.get(instance.name)
        files, found = _check_model(declared, instance, nodes, model)
        problems += found
        if not complete or not files:
            continue
        facts = model if isinstance(model, ModelFacts) else None
        devices, found = _devices(declared, instance, nodes)
        addresses, missing = fabric_addresses(declared, instance, nodes)
        problems += found + missing
        if found or missing:
            continue
        own = devices[instance.head][0]
        host = nodes[instance.head].host if own.kind != "cpu" and instance.head in nodes else own
        placement, found = place(instance, devices, host, facts)
        problems += found
        if placement is None:
            continue
        placements.append((instance, placement))
        heads[instance.name] = addresses.get(instance.head)
        planned.append(
            _instance(declared, instance, placement, ports[instance.name], addresses, devices, nodes, facts, files)
        )
    if declared.settings.memory_check:
        problems += check_memory(placements, nodes, declared.settings.memory_margin_mib << 20)
    if problems:
        raise PlanError(problems)
    return {
        "schema": SCHEMA,
        "release": declared.release,
        "nodes": {node: _node(node, declared, planned, heads) for node in sorted(declared.inventory)},
        "instances": planned,
    }


def plan_json(plan: Plan) -> str:
    """Return the plan as it is written to a file."""
    return json.dumps(plan, sort_keys=True, indent=2) + "\n"


def _check_model(
    declared: Declared, instance: Instance, nodes: Mapping[str, NodeFacts], model: ModelFacts | str | None
) -> tuple[list[str], list[Problem]]:
    """Return the model's files in the head's store, and what is wrong with model, file or disk.

    No files when the model cannot be planned with.
    """
    variable = instance.variable + ".model"
    source = instance.model.path or instance.model.url
    if isinstance(model, str):
        # gguf_info begins with what the problem says anyway.
        return [], [
            Problem(variable, source, model[len("%s: " % source) :] if model.startswith("%s: " % source) else model)
        ]
    if model is None and not declared.static:
        return [], [Problem(variable, source, "its header was not read; run the playbook that makes the plan")]
    try:
        names = shard_names(instance.model.file)
    except GgufError as error:
        return [], [Problem(variable, source, error.message)]
    n_files = len(model.files) if model else len(names)
    if n_files != len(names) or (n_files > 1 and instance.model.renamed):
        fix = "the model is in %d files, which keep their names; leave name out" % n_files
        return [], [Problem(variable + ".name", instance.model.file, fix)]
    files = ["%s/%s" % (declared.settings.models_dir, name) for name in names]
    if model is None or instance.head not in nodes:
        return files, []
    return files, check_model_disk(declared, instance, nodes[instance.head], files, model.file_bytes)


def _devices(
    declared: Declared, instance: Instance, nodes: Mapping[str, NodeFacts]
) -> tuple[dict[str, Sequence[Device]], list[Problem]]:
    """Return the devices of every node of an instance: declared ones, else found ones."""
    devices: dict[str, Sequence[Device]] = {}
    problems = []
    for node in instance.nodes:
        known = declared.node(node).devices
        if known is None and node in nodes:
            known = nodes[node].devices
        if known:
            devices[node] = known
        else:
            fix = "list what it has, e.g. [{kind: cuda, name: V100S, memory: 32 GiB}]"
            problems.append(Problem("llamacpp_devices of %s" % node, None, fix))
    return devices, problems


def _instance(
    declared: Declared,
    instance: Instance,
    placement: Placement,
    ports: Ports,
    addresses: Mapping[str, str],
    devices: Mapping[str, Sequence[Device]],
    nodes: Mapping[str, NodeFacts],
    model: ModelFacts | None,
    files: Sequence[str],
) -> dict[str, Any]:
    """Write one instance down."""
    workers: list[dict[str, Any]] = [
        {
            "node": node,
            "host": addresses[node],
            "port": ports.rpc,
            "unit": "llamacpp-rpc-%s.service" % instance.name,
            "devices": [device.local_name for device in devices[node]],
            "args": worker_arguments(
                addresses[node],
                int(ports.rpc or 0),
                [device.local_name for device in devices[node]],
                _threads(declared, node, nodes),
            ),
        }
        for node in instance.workers
    ]
    endpoints = {worker["node"]: "%s:%d" % (worker["host"], worker["port"]) for worker in workers}
    key_file = "%s/keys/%s" % (declared.settings.config_dir, instance.name) if instance.has_api_keys else None
    return {
        "name": instance.name,
        "unit": "llamacpp-%s.service" % instance.name,
        "head": instance.head,
        "nodes": list(instance.nodes),
        "release": declared.release,
        "model": {
            "file": instance.model.file,
            "path": files[0],
            "files": list(files),
            "bytes": model.file_bytes if model else None,
            "sha256": instance.model.sha256 or (model.sha256 if model else None),
            "architecture": model.architecture if model else None,
            "n_layers": model.n_layers if model else None,
            "source": instance.model.source,
        },
        "host": instance.host,
        "port": ports.http,
        "context": instance.context,
        "parallel": instance.parallel,
        "devices": [_device(share, endpoints) for share in placement.shares],
        "workers": workers,
        "gpu_layers": placement.gpu_layers,
        "tensor_split": [_plain(part) for part in placement.tensor_split],
        "args": server_arguments(
            _server_values(declared, instance, placement, ports, list(endpoints.values()), nodes, files[0], key_file),
            instance.extra_args,
        ),
        "environment": dict(instance.environment),
        "start_timeout": _start_timeout(placement, model),
        "api_key_file": key_file,
        "why": _why(instance, placement, model),
    }


def _server_values(
    declared: Declared,
    instance: Instance,
    placement: Placement,
    ports: Ports,
    endpoints: Sequence[str],
    nodes: Mapping[str, NodeFacts],
    model_path: str,
    key_file: str | None,
) -> dict[str, str]:
    """Return the value of every flag of llama-server; an empty value is a switch."""
    values = {
        "--model": model_path,
        "--alias": instance.alias,
        "--device": ",".join(placement.offload) or "none",
        "--split-mode": instance.split_mode,
        "--n-gpu-layers": str(placement.gpu_layers),
        "--fit": "off",
        "--ctx-size": str(instance.context * instance.parallel),
        "--parallel": str(instance.parallel),
        "--no-kv-unified": "",
        "--batch-size": str(instance.batch),
        "--ubatch-size": str(instance.ubatch),
        "--cache-type-k": instance.cache_type_k,
        "--cache-type-v": instance.cache_type_v,
        "--flash-attn": instance.flash_attention,
        "--load-mode": "auto",
        "--host": instance.host,
        "--port": str(ports.http),
        "--metrics": "",
        "--verbosity": LOG_LEVEL,
    }
    if endpoints:
        values["--rpc"] = ",".join(endpoints)
    if len(placement.offload) > 1:
        values["--tensor-split"] = ",".join(str(_plain(part)) for part in placement.tensor_split)
    if key_file:
        values["--api-key-file"] = key_file
    threads = instance.threads or _threads(declared, instance.head, nodes)
    batch_threads = instance.threads_batch or threads
    if threads:
        values["--threads"] = str(threads)
    if batch_threads:
        values["--threads-batch"] = str(batch_threads)
    return values


def _device(share: Share, endpoints: Mapping[str, str]) -> dict[str, Any]:
    demand = share.demand
    return {
        "node": share.slot.node,
        "device": share.slot.device_name,
        "kind": share.slot.device.kind,
        "name": share.slot.device.name,
        "endpoint": endpoints.get(share.slot.node),
        "layers": list(share.layers) if share.layers else None,
        "n_layers": share.n_layers,
        "model_bytes": demand.model if demand else None,
        "context_bytes": demand.context if demand else None,
        "compute_bytes": demand.compute if demand else None,
        "memory_bytes": share.slot.device.memory_bytes,
    }


def _node(
    node: str, declared: Declared, planned: Sequence[Mapping[str, Any]], heads: Mapping[str, str | None]
) -> dict[str, Any]:
    """Write down what belongs on a node: units and openings of the firewall.

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
    return {
        "fabric_address": address,
        "units": sorted(units),
        "firewall": sorted(firewall, key=lambda item: (item["port"], item["instance"])),
    }


def _opening(port: int, sources: Sequence[str | None], purpose: str, instance: str) -> dict[str, Any]:
    return {"port": port, "sources": list(sources), "purpose": purpose, "instance": instance}


def _threads(declared: Declared, node: str, nodes: Mapping[str, NodeFacts]) -> int | None:
    """Return the cores of a node; None when nobody knows them."""
    return declared.node(node).cores or (nodes[node].cores if node in nodes else None)


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _start_timeout(placement: Placement, model: ModelFacts | None) -> int:
    """Return the seconds that a start may take; without a header the devices' memory bounds the model."""
    size = model.file_bytes if model else sum(share.slot.device.memory_bytes for share in placement.shares)
    return START_SECONDS + START_SECONDS_PER_GIB * -(-size // GIB)


def _why(instance: Instance, placement: Placement, model: ModelFacts | None) -> str:
    """Say in one sentence why the plan looks as it does."""
    if instance.split_mode == "tensor":
        return "Every GPU of %s holds a slice of every layer, as split_mode says." % instance.head
    if len(placement.shares) < 2:
        return "The whole model runs on one device of %s, the only node declared." % instance.head
    reason = "in proportion to memory"
    if instance.tensor_split is not None:
        reason = "as tensor_split says"
    counted = "" if model else "; llama.cpp counts them, as the model's header was not read"
    return "The layers are spread over %d devices of the declared nodes (%s) %s%s." % (
        len(placement.shares),
        listing(instance.nodes),
        reason,
        counted,
    )
