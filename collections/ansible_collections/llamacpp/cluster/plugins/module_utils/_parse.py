# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turn an operator's variables into :mod:`_declared`'s types, with every problem that needs no node to be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _checks as checks
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_settings import BUILD_KEYS, parse_build
from ansible_collections.llamacpp.cluster.plugins.module_utils._checks import Fields
from ansible_collections.llamacpp.cluster.plugins.module_utils._clashes import (
    model_clashes,
    name_clashes,
    place_clashes,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import (
    Declared,
    DeclaredNode,
    Device,
    Settings,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._distribution import TRANSPORTS
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse_instance import parse_instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, Rejected

INSTANCES = "llamacpp_instances"
NODE_KEYS = ("fabric_address", "devices", "cores")
# What host variables may say of a node.
HOST_KEYS = (*NODE_KEYS, *BUILD_KEYS)
DEVICE_KEYS = ("kind", "name", "memory", "memory_bytes", "compute_capability", "nvlink")


def parse(
    release: object,
    instances: object,
    settings: Mapping[str, Any],
    inventory: Sequence[str],
    nodes: Mapping[str, Mapping[str, Any]],
    builders: Sequence[str],
    static: bool,
    pinned: Mapping[str, str] | None = None,
) -> tuple[Declared, list[Problem]]:
    """Parse and check all that is declared.

    ``nodes``: host variables by node, keys of :data:`HOST_KEYS`. ``static``: no node can be asked.
    ``pinned``: releases by node that are taken as they are.
    Returns what could be parsed (instances with a problem are left out) and all problems.
    """
    problems: list[Problem] = []
    checked_release = "unknown"
    try:
        checked_release = checks.release(release)
    except Rejected as error:
        problems.append(Problem("llamacpp_release", release, str(error)))
    if not isinstance(instances, list):
        problems.append(Problem(INSTANCES, instances, "must be a list of instances; write [] for none"))
        instances = []
    checked = _settings(problems, settings, inventory)
    parsed = [
        parse_instance(problems, "%s[%d]" % (INSTANCES, index), data, inventory, checked.models_fetcher)
        for index, data in enumerate(instances)
    ]
    declared = Declared(
        release=checked_release,
        instances=tuple(instance for instance in parsed if instance),
        settings=checked,
        inventory=tuple(inventory),
        nodes={name: _node(problems, name, data) for name, data in sorted(nodes.items())},
        builders=tuple(builders),
        static=static,
        pinned=dict(pinned or {}),
    )
    known = declared.instances
    return declared, problems + name_clashes(known) + place_clashes(known) + model_clashes(known)


def _settings(problems: list[Problem], data: Mapping[str, Any], inventory: Sequence[str]) -> Settings:
    default = Settings()
    take = Fields(problems, "llamacpp_%s", data, [item.name for item in dataclasses.fields(Settings)]).take
    ports = checks.whole(1024, 65000, "", default.http_port_base)
    return Settings(
        models_dir=take("models_dir", checks.absolute_path, default.models_dir).rstrip("/"),
        models_quota=take("models_quota", checks.quota, default.models_quota),
        models_transport=take("models_transport", checks.one_of(*TRANSPORTS), default.models_transport),
        models_fetcher=take("models_fetcher", checks.fetcher(inventory), default.models_fetcher),
        rpc_cache=take("rpc_cache", checks.yes_or_no, default.rpc_cache),
        rpc_cache_dir=take("rpc_cache_dir", checks.cache_path, default.rpc_cache_dir).rstrip("/"),
        rpc_cache_quota=take("rpc_cache_quota", checks.quota, default.rpc_cache_quota),
        prefix=take("prefix", checks.absolute_path, default.prefix).rstrip("/"),
        config_dir=take("config_dir", checks.absolute_path, default.config_dir).rstrip("/"),
        build_dir=take("build_dir", checks.absolute_path, default.build_dir).rstrip("/"),
        http_port_base=take("http_port_base", ports, default.http_port_base),
        rpc_port_base=take("rpc_port_base", ports, default.rpc_port_base),
        memory_margin_mib=take("memory_margin_mib", checks.whole(0, 1 << 20, "MiB", 1024), default.memory_margin_mib),
        build_bytes_needed=take(
            "build_bytes_needed", checks.whole(0, 1 << 50, "bytes", 3 << 30), default.build_bytes_needed
        ),
        memory_check=take("memory_check", checks.yes_or_no, default.memory_check),
        os_check=take("os_check", checks.yes_or_no, default.os_check),
    )


def _node(problems: list[Problem], name: str, data: Mapping[str, Any]) -> DeclaredNode:
    pattern = "llamacpp_%s of " + name.replace("%", "%%")
    build = {key: value for key, value in data.items() if key in BUILD_KEYS}
    fields = Fields(problems, pattern, {key: data[key] for key in data if key not in build}, NODE_KEYS)
    devices: tuple[Device, ...] | None = None
    listed = data.get("devices")
    if listed is not None and (not isinstance(listed, list) or not listed):
        fields.problem("devices", "must be a list, e.g. [{kind: cuda, name: V100S, memory: 32 GiB}]", listed)
    elif listed is not None:
        devices = tuple(
            _device(problems, "llamacpp_devices[%d].%%s of %s" % (index, name.replace("%", "%%")), item, index)
            for index, item in enumerate(listed)
        )
        if len({device.kind for device in devices}) > 1 or (devices[0].kind == "cpu" and len(devices) > 1):
            fields.problem("devices", "list either GPUs of one kind or a single cpu", listed)
    return DeclaredNode(
        fabric_address=fields.take("fabric_address", checks.ipv4, None),
        devices=devices,
        cores=fields.take("cores", checks.whole(1, 4096, "cores", 16), None),
        build=parse_build(problems, name, build),
    )


def _device(problems: list[Problem], pattern: str, data: object, index: int) -> Device:
    if not isinstance(data, dict):
        problems.append(Problem(pattern % "kind", data, "a device is a mapping, e.g. {kind: cuda, memory: 32 GiB}"))
        return Device("cpu", "", index, 1 << 30)
    fields = Fields(problems, pattern, data, DEVICE_KEYS)
    kind = fields.take("kind", checks.one_of("cuda", "rocm", "vulkan", "cpu"), "cuda")
    memory = fields.take("memory_bytes", checks.size, fields.take("memory", checks.size, 0))
    if not memory and data.get("memory_bytes", data.get("memory")) is None:
        fields.problem("memory", "say how much memory it has, e.g. 32 GiB")
    capability = data.get("compute_capability")
    return Device(
        kind=kind,
        name=fields.take("name", checks.text, kind),
        index=index,
        memory_bytes=memory or 1 << 30,
        compute_capability=None if capability is None else str(capability),
        nvlink=fields.take("nvlink", checks.indices, ()),
    )
