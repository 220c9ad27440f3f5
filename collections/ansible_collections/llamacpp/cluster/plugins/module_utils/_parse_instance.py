# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read one declared instance, with every problem that needs no node to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils import _checks as checks
from ansible_collections.llamacpp.cluster.plugins.module_utils._checks import Fields
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._flags import conflict, environment_conflict
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import CACHE_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse_model import parse_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import HIDDEN, Problem, listing

INSTANCE_KEYS = (
    "name", "model", "nodes", "head", "workers", "replicas", "devices", "context", "min_context", "parallel",
    "port", "rpc_port", "host", "api_keys", "alias", "gpu_layers", "tensor_split", "split_mode", "cpu_moe",
    "n_cpu_moe", "batch", "ubatch", "cache_type_k", "cache_type_v", "flash_attention", "kv_unified", "swa_full",
    "no_kv_offload", "threads", "threads_batch", "extra_args", "environment",
)  # fmt: skip
UNQUANTISED = ("f32", "f16", "bf16")
MAX_TOKENS = 1 << 27
# A replica adds a hyphen and its number to the name, which has 32 characters at most.
REPLICA_NAME = 28


def parse_instance(
    problems: list[Problem], variable: str, data: object, inventory: Sequence[str], fetcher: str | None = None
) -> Instance | None:
    """Parse one instance; None when it has a problem. ``fetcher``: who fetches models, None for each their own."""
    before = len(problems)
    if not isinstance(data, dict):
        problems.append(Problem(variable, data, "an instance is a mapping with at least name and model"))
        return None
    fields = Fields(problems, variable.replace("%", "%%") + ".%s", data, INSTANCE_KEYS)
    take = fields.take
    name = take("name", checks.instance_name, "")
    if data.get("name") is None:
        fields.problem("name", "give the instance a name, e.g. qwen3-14b")
    tokens = checks.whole(1, MAX_TOKENS, "token", 4096)
    threads = checks.whole(1, 4096, "thread", 16)
    cache_type = checks.one_of(*CACHE_TYPES)
    replicas = take("replicas", checks.replicas, None)
    where = _where(fields, inventory, replicas is not None)
    instance = Instance(
        variable=variable,
        name=name,
        model=parse_model(problems, variable, data.get("model"), "controller" if fetcher == "controller" else "node"),
        nodes=where.nodes,
        head=where.head,
        workers=where.workers,
        among=where.among,
        context=fields.choice("context", tokens, 4096),
        min_context=take("min_context", tokens, None),
        parallel=fields.choice("parallel", checks.whole(1, 256, "slot", 1), 1),
        replicas=replicas,
        port=take("port", checks.port, None),
        rpc_port=take("rpc_port", checks.port, None),
        host=take("host", checks.host, "0.0.0.0"),
        has_api_keys=_api_keys(fields),
        alias=take("alias", checks.text, name),
        devices=take("devices", checks.device_names, None),
        gpu_layers=take("gpu_layers", checks.gpu_layers, None),
        tensor_split=take("tensor_split", checks.shares, None),
        split_mode=fields.choice("split_mode", checks.one_of("layer", "none", "tensor"), None),
        cpu_moe=take("cpu_moe", checks.yes_or_no, False),
        n_cpu_moe=fields.choice("n_cpu_moe", checks.whole(0, 100000, "layers", 10), None),
        batch=fields.choice("batch", tokens, None),
        ubatch=fields.choice("ubatch", tokens, None),
        cache_type_k=fields.choice("cache_type_k", cache_type, None),
        cache_type_v=fields.choice("cache_type_v", cache_type, None),
        flash_attention=take("flash_attention", checks.one_of("auto", "on", "off"), "auto"),
        kv_unified=take("kv_unified", checks.yes_or_no, False),
        swa_full=take("swa_full", checks.yes_or_no, False),
        no_kv_offload=take("no_kv_offload", checks.yes_or_no, False),
        threads=take("threads", threads, None),
        threads_batch=take("threads_batch", threads, None),
        extra_args=take("extra_args", checks.arguments, ()),
        environment=take("environment", checks.environment, {}),
        declared=name,
    )
    _contradictions(fields, instance)
    return instance if len(problems) == before else None


class _Where(NamedTuple):
    """Where an instance may or has to go; see :class:`Instance`."""

    nodes: tuple[str, ...] | None = None
    head: str | None = None
    workers: tuple[str, ...] = ()
    among: tuple[str, ...] | None = None


def _where(fields: Fields, inventory: Sequence[str], replicated: bool) -> _Where:
    """Read nodes, head and workers."""
    data, before = fields.data, len(fields.problems)
    names = checks.node_names(inventory)
    none: tuple[str, ...] = ()
    nodes = fields.choice("nodes", names, none)
    head = fields.choice("head", checks.node_name(inventory), None)
    workers = fields.take("workers", names, none)
    if len(fields.problems) > before:
        return _Where()
    for key, listed in (("nodes", nodes or ()), ("workers", workers)):
        for node in sorted({node for node in listed if listed.count(node) > 1}):
            fields.problem(key, "%s is there twice: a node serves an instance once; list it once" % node, data[key])
    chosen = nodes is None or data.get("nodes") is None
    if replicated:
        for key in ("head", "workers"):
            if data.get(key) not in (None, "auto"):
                fields.problem(key, "each replica has a head of its own; list nodes to choose from instead", data[key])
        return _Where(among=nodes if nodes else None)
    if chosen and data.get("workers") is None and (nodes is None or head is None):
        if len(inventory) == 1:
            return _Where(nodes=(inventory[0],), head=inventory[0])
        # With a head alone it is served there; with nodes: auto, the head may get workers.
        return _Where(head=head)
    if chosen:
        nodes = ((head,) if head else ()) + workers
    if not nodes:
        fields.problem(
            "nodes", "list at least one node, or write auto; known are %s" % listing(inventory), data.get("nodes")
        )
        return _Where()
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
    return _Where(nodes=(head, *workers), head=head, workers=workers)


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
    if instance.workers and instance.split_mode not in (None, "layer"):
        fields.problem(
            "split_mode",
            "workers get whole layers; write layer, or serve it from one node",
            instance.split_mode,
        )
    if instance.ubatch is not None and instance.batch is not None and instance.ubatch > instance.batch:
        fields.problem("ubatch", "must not be larger than batch (%d)" % instance.batch, instance.ubatch)
    if instance.flash_attention == "off" and instance.cache_type_v not in (None, *UNQUANTISED):
        fields.problem(
            "cache_type_v",
            "a quantised V cache needs flash attention; set flash_attention to on, or write f16",
            instance.cache_type_v,
        )
    if instance.flash_attention == "off" and instance.split_mode == "tensor":
        fields.problem("flash_attention", "split_mode tensor needs it; write auto or on", "off")
    if instance.cpu_moe and instance.n_cpu_moe is not None:
        fields.problem(
            "n_cpu_moe", "cpu_moe keeps the experts of all layers on the CPU; write one of them", instance.n_cpu_moe
        )
    if instance.tensor_split is not None and instance.nodes is None:
        fields.problem(
            "tensor_split",
            "its shares follow the order of the nodes; list nodes, or leave it out",
            list(instance.tensor_split),
        )
    sources = [instance.model.source] if instance.model.source else list(instance.model.quants.values())
    if instance.head is None and any(source.local and not source.shared for source in sources):
        fields.problem("model", "a file of the head needs a head: list nodes or head, or take from: controller", None)
    if instance.min_context is not None and fields.data.get("context") != "auto":
        fields.problem("min_context", "it bounds context: auto; write that, or leave it out", instance.min_context)
    if instance.replicas is not None and len(instance.name) > REPLICA_NAME:
        fields.problem(
            "name", "with replicas it has at most %d characters, as a number is added" % REPLICA_NAME, instance.name
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
