# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turn an operator's variables into :mod:`_declared`'s types, with every problem that needs no node to be seen."""

from __future__ import annotations

import dataclasses
import posixpath
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _checks as checks
from ansible_collections.llamacpp.cluster.plugins.module_utils._checks import Fields
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import (
    Declared,
    DeclaredNode,
    Device,
    Instance,
    Model,
    Settings,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._flags import conflict, environment_conflict
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import CACHE_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import HIDDEN, Problem, Rejected, listing

INSTANCES = "llamacpp_instances"
MODEL_KEYS = ("path", "url", "sha256", "from", "name")
# Understood by nothing yet, but what people write; they deserve a better answer than "no such key".
HUB_KEYS = ("repo", "quant", "file", "revision")
INSTANCE_KEYS = (
    "name", "model", "nodes", "head", "workers", "context", "parallel", "port", "rpc_port", "host", "api_keys",
    "alias", "gpu_layers", "tensor_split", "split_mode", "batch", "ubatch", "cache_type_k", "cache_type_v",
    "flash_attention", "threads", "threads_batch", "extra_args", "environment",
)  # fmt: skip
NODE_KEYS = ("fabric_address", "devices", "cores")
DEVICE_KEYS = ("kind", "name", "memory", "memory_bytes", "compute_capability")
UNQUANTISED = ("f32", "f16", "bf16")
MAX_TOKENS = 1 << 27


def parse(
    release: object,
    instances: object,
    settings: Mapping[str, Any],
    inventory: Sequence[str],
    nodes: Mapping[str, Mapping[str, Any]],
    builders: Sequence[str],
    static: bool,
) -> tuple[Declared, list[Problem]]:
    """Parse and check all that is declared.

    ``nodes``: host variables by node, keys of :data:`NODE_KEYS`. ``static``: no node can be asked.
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
    parsed = [
        _instance(problems, "%s[%d]" % (INSTANCES, index), data, inventory) for index, data in enumerate(instances)
    ]
    declared = Declared(
        release=checked_release,
        instances=tuple(instance for instance in parsed if instance),
        settings=_settings(problems, settings),
        inventory=tuple(inventory),
        nodes={name: _node(problems, name, data) for name, data in sorted(nodes.items())},
        builders=tuple(builders),
        static=static,
    )
    return declared, problems + _clashes(declared)


def _settings(problems: list[Problem], data: Mapping[str, Any]) -> Settings:
    default = Settings()
    take = Fields(problems, "llamacpp_%s", data, [item.name for item in dataclasses.fields(Settings)]).take
    ports = checks.whole(1024, 65000, "", default.http_port_base)
    return Settings(
        models_dir=take("models_dir", checks.absolute_path, default.models_dir).rstrip("/"),
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
    fields = Fields(problems, pattern, data, NODE_KEYS)
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
    )


def _device(problems: list[Problem], pattern: str, data: object, index: int) -> Device:
    if not isinstance(data, dict):
        problems.append(Problem(pattern % "kind", data, "a device is a mapping, e.g. {kind: cuda, memory: 32 GiB}"))
        return Device("cpu", "", index, 1 << 30)
    fields = Fields(problems, pattern, data, DEVICE_KEYS)
    kind = fields.take("kind", checks.one_of("cuda", "cpu"), "cuda")
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
    )


def _instance(problems: list[Problem], variable: str, data: object, inventory: Sequence[str]) -> Instance | None:
    """Parse one instance; None when it has a problem."""
    before = len(problems)
    if not isinstance(data, dict):
        problems.append(Problem(variable, data, "an instance is a mapping with at least name, model and nodes"))
        return None
    fields = Fields(problems, variable.replace("%", "%%") + ".%s", data, INSTANCE_KEYS)
    take = fields.take
    name = take("name", checks.instance_name, "")
    if data.get("name") is None:
        fields.problem("name", "give the instance a name, e.g. qwen3-14b")
    tokens = checks.whole(1, MAX_TOKENS, "token", 4096)
    threads = checks.whole(1, 4096, "thread", 16)
    cache_type = checks.one_of(*CACHE_TYPES)
    head, workers, nodes = _placement(fields, inventory)
    instance = Instance(
        variable=variable,
        name=name,
        model=_model(problems, variable, data.get("model")),
        nodes=nodes,
        head=head,
        workers=workers,
        context=take("context", tokens, 4096),
        parallel=take("parallel", checks.whole(1, 256, "slot", 1), 1),
        port=take("port", checks.port, None),
        rpc_port=take("rpc_port", checks.port, None),
        host=take("host", checks.host, "0.0.0.0"),
        has_api_keys=_api_keys(fields),
        alias=take("alias", checks.text, name),
        gpu_layers=take("gpu_layers", checks.gpu_layers, None),
        tensor_split=take("tensor_split", checks.shares, None),
        split_mode=take("split_mode", checks.one_of("layer", "none", "tensor"), "layer"),
        batch=take("batch", tokens, 2048),
        ubatch=take("ubatch", tokens, 512),
        cache_type_k=take("cache_type_k", cache_type, "f16"),
        cache_type_v=take("cache_type_v", cache_type, "f16"),
        flash_attention=take("flash_attention", checks.one_of("auto", "on", "off"), "auto"),
        threads=take("threads", threads, None),
        threads_batch=take("threads_batch", threads, None),
        extra_args=take("extra_args", checks.arguments, ()),
        environment=take("environment", checks.environment, {}),
    )
    _contradictions(fields, instance)
    return instance if len(problems) == before else None


def _placement(fields: Fields, inventory: Sequence[str]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return head, workers and nodes of an instance; nodes are the head and then the workers."""
    data, before = fields.data, len(fields.problems)
    names = checks.node_names(inventory)
    none: tuple[str, ...] = ()
    nodes = fields.take("nodes", names, none)
    head = fields.take("head", checks.node_name(inventory), "")
    workers = fields.take("workers", names, none)
    if len(fields.problems) > before:
        return "", (), ()
    for key, listed in (("nodes", nodes), ("workers", workers)):
        for node in sorted({node for node in listed if listed.count(node) > 1}):
            fields.problem(key, "%s is there twice: a node serves an instance once; list it once" % node, data[key])
    if data.get("nodes") is None:
        if data.get("head") is None and data.get("workers") is None:
            if len(inventory) == 1:
                return inventory[0], (), (inventory[0],)
            fields.problem("nodes", "list the nodes that serve it, the head first; known are %s" % listing(inventory))
            return "", (), ()
        nodes = (head,) * bool(head) + workers
    if not nodes:
        fields.problem("nodes", "list at least one node; known are %s" % listing(inventory), data.get("nodes"))
        return "", (), ()
    head = head or nodes[0]
    if data.get("workers") is None:
        workers = tuple(node for node in nodes if node != head)
    if head in workers:
        fields.problem(
            "workers", "%s is the head, which uses its own devices without a worker; take it out" % head, list(workers)
        )
    outside = sorted(({head} | set(workers)) - set(nodes))
    if outside:
        fields.problem("nodes", "%s serves it but is not among its nodes; add it" % listing(outside), list(nodes))
    idle = sorted(set(nodes) - {head} - set(workers))
    if idle:
        fix = "%s is neither head nor worker; add it to workers or take it out" % listing(idle)
        fields.problem("nodes", fix, list(nodes))
    return head, workers, (head, *workers)


def _model(problems: list[Problem], variable: str, data: object) -> Model:
    nothing = Model("", None, "controller", None, "", False)
    if not isinstance(data, dict):
        problems.append(Problem(variable + ".model", data, "say where it is, e.g. {path: /srv/models/model.gguf}"))
        return nothing
    pattern = variable.replace("%", "%%") + ".model.%s"
    hub = [key for key in HUB_KEYS if key in data]
    for key in hub:
        problems.append(
            Problem(pattern % key, data[key], "fetching from a hub is not there yet; give path, or url and sha256")
        )
    fields = Fields(problems, pattern, {key: data[key] for key in data if key not in HUB_KEYS}, MODEL_KEYS)
    path = fields.take("path", checks.absolute_path, None)
    url = fields.take("url", checks.url, None)
    given = [key for key in ("path", "url") if data.get(key) is not None]
    if len(given) == 2:
        fields.problem("url", "give either path or url, not both", data["url"])
    elif not given and not hub:
        fields.problem("path", "give path (a file) or url (an address) of the model")
    sha256 = fields.take("sha256", checks.sha256, None)
    if url and data.get("sha256") is None:
        fields.problem("sha256", "a model from a url needs its sha256; whoever offers the file publishes it")
    default = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path) if url else path or "")
    file = fields.take("name", checks.file_name, "")
    if not file and (path or url):
        try:
            file = checks.file_name(default)
        except Rejected as error:
            fields.problem("name", "%s; give the model such a name" % error, default)
    return Model(
        path=path,
        url=url,
        from_=fields.take("from", checks.one_of("controller", "node"), "node" if url else "controller"),
        sha256=sha256,
        file=file,
        renamed=file != default,
    )


def _api_keys(fields: Fields) -> bool:
    """Check the API keys without ever showing one; return whether there are any."""
    keys = fields.data.get("api_keys")
    if keys is None:
        return False
    if not isinstance(keys, list) or not keys:
        fields.problem("api_keys", "must be a list of at least one key; leave it out to serve without a key", HIDDEN)
        return False
    for index, key in enumerate(keys):
        where = "api_keys[%d]" % index
        if not isinstance(key, str):
            fields.problem(where, "a key is text; quote it", HIDDEN)
        elif not key.strip():
            fields.problem(where, "it is empty, which would let everybody in; write a key or take it out", HIDDEN)
        elif key != key.strip() or any(ord(letter) < 32 for letter in key):
            fields.problem(where, "a key is one line without spaces around it", HIDDEN)
        elif key.startswith("#"):
            # llama-server reads such a line as a comment, and a file of comments switches authentication off.
            fields.problem(where, "a key must not begin with #, which begins a comment in the key file", HIDDEN)
    return True


def _contradictions(fields: Fields, instance: Instance) -> None:
    """Find settings of one instance that contradict each other."""
    if instance.workers and instance.split_mode != "layer":
        fields.problem(
            "split_mode",
            "workers get whole layers; write layer, or serve it from one node",
            instance.split_mode,
        )
    if instance.ubatch > instance.batch:
        fields.problem("ubatch", "must not be larger than batch (%d)" % instance.batch, instance.ubatch)
    if instance.flash_attention == "off" and instance.cache_type_v not in UNQUANTISED:
        fields.problem(
            "cache_type_v",
            "a quantised V cache needs flash attention; set flash_attention to on, or write f16",
            instance.cache_type_v,
        )
    for index, word in enumerate(instance.extra_args):
        advice = conflict(word)
        if advice:
            # The word may carry a secret after an equals sign.
            fields.problem("extra_args[%d]" % index, advice, word.split("=", 1)[0])
    for name in instance.environment:
        advice = environment_conflict(name)
        if advice:
            fields.problem("environment.%s" % name, advice, HIDDEN)


def _clashes(declared: Declared) -> list[Problem]:
    """Find instances that contradict each other: names, ports on one node, files in one store."""
    problems = []
    names: dict[str, str] = {}
    ports: dict[tuple[str, int], str] = {}
    files: dict[tuple[str, str], Instance] = {}
    for instance in declared.instances:
        if instance.name in names:
            fix = "%s has this name; choose another" % names[instance.name]
            problems.append(Problem(instance.variable + ".name", instance.name, fix))
        names.setdefault(instance.name, instance.variable)
        wanted = [("port", instance.head, instance.port)]
        wanted += [("rpc_port", node, instance.rpc_port) for node in instance.workers]
        for key, node, port in wanted:
            if port is None:
                continue
            variable = "%s.%s" % (instance.variable, key)
            taken = ports.get((node, port))
            if taken and taken != variable:
                fix = "%s uses this port of %s; choose another, or leave it out to get a free one" % (taken, node)
                problems.append(Problem(variable, port, fix))
            ports.setdefault((node, port), variable)
        other = files.setdefault((instance.head, instance.model.file), instance)
        if other.model != instance.model:
            fix = "%s puts another file of this name on %s; give one of them a name" % (other.variable, instance.head)
            problems.append(Problem(instance.variable + ".model.name", instance.model.file, fix))
    return problems
