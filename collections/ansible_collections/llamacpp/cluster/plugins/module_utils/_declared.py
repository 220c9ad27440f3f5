# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an operator declares, typed. :mod:`_parse` makes it from variables and checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_settings import BuildSettings

# How llama.cpp's backends name their devices (ggml/src/ggml-*/, b11434).
_BACKENDS = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}


@dataclass(frozen=True)
class Settings:
    """Defaults of the cluster. Sizes in bytes unless the name says MiB.

    ``memory_margin_mib`` stays free on every device; ``memory_check`` and ``os_check`` switch
    the checks of memory and of the operating system off, for an operator who knows better.
    ``models_quota``: bytes that the store of a node may have, 0 for no limit. ``models_fetcher``: the node that fetches
    for all, None for the first that needs a model. ``rpc_cache``: workers keep the tensors that they were sent,
    ``rpc_cache_quota`` bytes of them at most, 0 for no limit.
    """

    models_dir: str = "/var/lib/llamacpp/models"
    models_quota: int = 0
    models_transport: str = "auto"
    models_fetcher: str | None = None
    rpc_cache: bool = True
    rpc_cache_quota: int = 0
    rpc_cache_dir: str = "/var/cache/llamacpp/rpc"
    prefix: str = "/opt/llamacpp"
    config_dir: str = "/etc/llamacpp"
    build_dir: str = "/var/cache/llamacpp/build"
    http_port_base: int = 8080
    rpc_port_base: int = 50052
    memory_margin_mib: int = 256
    build_bytes_needed: int = 3 << 30
    memory_check: bool = True
    os_check: bool = True


@dataclass(frozen=True)
class Convert:
    """How safetensors become GGUF: ``outtype`` of convert_hf_to_gguf.py, then ``quant`` of llama-quantize, if any."""

    outtype: str
    quant: str | None = None


@dataclass(frozen=True)
class Source:
    """Where the files of one model come from.

    ``name``: of the model in the store. ``file``: name of the first file, which llama.cpp is given. One of ``path``,
    ``urls`` and ``repo`` says where they are; ``from_``, who reads them there. ``shared``: all nodes see ``path``.
    ``pieces``: names of what the file at ``path`` was cut into, beside each other.
    ``checksums``: sha256 by file name, as far as they are known; ``sizes``: bytes by file name where a hub said them.
    ``commit``: what ``revision`` of a repository was when somebody looked. ``selection``: which of its files, one of
    quant, folder and file with its value. ``beside``: what else of the repository, or which other paths, lie beside
    them; ``extra``: these files, as (name, bytes, sha256, role), None for what nobody knows.
    """

    name: str
    file: str
    from_: str
    path: str | None = None
    urls: tuple[str, ...] = ()
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None
    selection: tuple[str, str] | None = None
    shared: bool = False
    pieces: tuple[str, ...] = ()
    checksums: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    extra: tuple[tuple[str, int | None, str | None, str], ...] = ()
    convert: Convert | None = None

    @property
    def where(self) -> str:
        """Return path, address or repository, for messages."""
        return self.path or self.repo or (self.urls[0] if self.urls else "")

    @property
    def local(self) -> bool:
        """Whether the files lie where they are wanted: on a head, or on a file system that all nodes see."""
        return self.shared or bool(self.path and self.from_ == "node")

    @property
    def as_dict(self) -> dict[str, Any]:
        """Return it as the plan says it: all that brings these files, and no others."""
        found: dict[str, Any] = {"from": self.from_}
        if self.path:
            found["path"] = self.path
        if self.shared:
            found["shared"] = True
        if self.pieces:
            found["pieces"] = list(self.pieces)
        if self.urls:
            found["urls"] = list(self.urls)
        if self.repo:
            found.update(repo=self.repo, revision=self.revision, commit=self.commit)
            found.update([self.selection] if self.selection else [])
        if self.beside:
            found["beside"] = list(self.beside)
        if self.convert:
            found["convert"] = {"outtype": self.convert.outtype, "quant": self.convert.quant}
        return found


@dataclass(frozen=True)
class Model:
    """Which model: one ``source``, or several by the name of their quantisation, or a ``repo`` of a hub.

    ``wanted``: names of the quantisations to choose among; empty for any. ``folder``, ``file``: which files of the
    repository instead of a quantisation. ``name``: in the store, where it is declared.
    """

    source: Source | None = None
    quants: Mapping[str, Source] = field(default_factory=dict)
    repo: str | None = None
    revision: str | None = None
    wanted: tuple[str, ...] = ()
    folder: str | None = None
    file: str | None = None
    beside: tuple[str, ...] = ()
    name: str | None = None
    from_: str = "node"

    @property
    def label(self) -> str:
        """Return what people call it in a message."""
        if self.source:
            return self.source.where
        return self.repo or "one of %s" % ", ".join(self.quants)


@dataclass(frozen=True)
class Instance:
    """One declared instance. None where the planner decides. API keys are left out on purpose.

    ``nodes``: the head and then the workers, all of which serve it; ``among``: the nodes to choose
    from, None for all. ``context``: tokens a slot; ``min_context``: what it must at least be. ``replicas``: how many of
    it, 0 for as many as fit, None for one that keeps its name. ``declared``: its name as it was
    written, which is that of its API keys; replicas add a number to it.
    """

    variable: str
    name: str
    model: Model
    nodes: tuple[str, ...] | None
    head: str | None
    workers: tuple[str, ...]
    context: int | None
    min_context: int | None
    parallel: int | None
    among: tuple[str, ...] | None
    replicas: int | None
    port: int | None
    rpc_port: int | None
    host: str
    has_api_keys: bool
    alias: str
    devices: tuple[str, ...] | None
    gpu_layers: int | str | None
    tensor_split: tuple[float, ...] | None
    split_mode: str | None
    cpu_moe: bool
    n_cpu_moe: int | None
    batch: int | None
    ubatch: int | None
    cache_type_k: str | None
    cache_type_v: str | None
    flash_attention: str
    kv_unified: bool
    swa_full: bool
    no_kv_offload: bool
    threads: int | None
    threads_batch: int | None
    extra_args: tuple[str, ...]
    environment: dict[str, str]
    declared: str = ""


@dataclass(frozen=True)
class Device:
    """What computes on a node. Sizes in bytes; ``free_bytes`` None where nobody looked.

    ``nvlink``: indices of the GPUs of this node that NVLink joins it with.
    """

    kind: str
    name: str
    index: int
    memory_bytes: int
    free_bytes: int | None = None
    compute_capability: str | None = None
    nvlink: tuple[int, ...] = ()

    @cached_property
    def local_name(self) -> str:
        """Return llama.cpp's name of it on its own node."""
        return "CPU" if self.kind == "cpu" else "%s%d" % (_BACKENDS.get(self.kind, self.kind.upper()), self.index)


@dataclass(frozen=True)
class DeclaredNode:
    """What the inventory says of a node; None where facts decide."""

    fabric_address: str | None = None
    devices: tuple[Device, ...] | None = None
    cores: int | None = None
    build: BuildSettings = field(default_factory=BuildSettings)


@dataclass(frozen=True)
class Declared:
    """Everything that is declared. ``static`` means that no node can be asked.

    ``pinned``: ids of releases by node that are taken as they are installed; empty for none.
    """

    release: str
    instances: tuple[Instance, ...]
    settings: Settings
    inventory: tuple[str, ...]
    nodes: Mapping[str, DeclaredNode] = field(default_factory=dict)
    builders: tuple[str, ...] = ()
    static: bool = False
    pinned: Mapping[str, str] = field(default_factory=dict)

    def node(self, name: str) -> DeclaredNode:
        """Return what is declared of a node."""
        return self.nodes.get(name, DeclaredNode())
