# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an operator declares, typed. :mod:`_parse` makes it from variables and checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """Defaults of the cluster. Sizes in bytes unless the name says MiB.

    ``memory_margin_mib`` stays free on every device; ``memory_check`` and ``os_check`` switch
    the checks of memory and of the operating system off, for an operator who knows better.
    """

    models_dir: str = "/var/lib/llamacpp/models"
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
class Model:
    """Where a model comes from (``path`` or ``url``, read on ``from_``) and its name in the store."""

    path: str | None
    url: str | None
    from_: str
    sha256: str | None
    file: str
    renamed: bool

    @property
    def source(self) -> dict[str, str]:
        """Return it as the plan says it."""
        return {"path": self.path, "from": self.from_} if self.path else {"url": self.url or "", "from": self.from_}


@dataclass(frozen=True)
class Instance:
    """One declared instance. None where the planner decides. API keys are left out on purpose."""

    variable: str
    name: str
    model: Model
    nodes: tuple[str, ...]
    head: str
    workers: tuple[str, ...]
    context: int
    parallel: int
    port: int | None
    rpc_port: int | None
    host: str
    has_api_keys: bool
    alias: str
    gpu_layers: int | str | None
    tensor_split: tuple[float, ...] | None
    split_mode: str
    batch: int
    ubatch: int
    cache_type_k: str
    cache_type_v: str
    flash_attention: str
    threads: int | None
    threads_batch: int | None
    extra_args: tuple[str, ...]
    environment: dict[str, str]


@dataclass(frozen=True)
class Device:
    """What computes on a node. Sizes in bytes; ``free_bytes`` None where nobody looked."""

    kind: str
    name: str
    index: int
    memory_bytes: int
    free_bytes: int | None = None
    compute_capability: str | None = None

    @property
    def local_name(self) -> str:
        """Return llama.cpp's name of it on its own node."""
        return "CPU" if self.kind == "cpu" else "%s%d" % (self.kind.upper(), self.index)


@dataclass(frozen=True)
class DeclaredNode:
    """What the inventory says of a node; None where facts decide."""

    fabric_address: str | None = None
    devices: tuple[Device, ...] | None = None
    cores: int | None = None


@dataclass(frozen=True)
class Declared:
    """Everything that is declared. ``static`` means that no node can be asked."""

    release: str
    instances: tuple[Instance, ...]
    settings: Settings
    inventory: tuple[str, ...]
    nodes: Mapping[str, DeclaredNode] = field(default_factory=dict)
    builders: tuple[str, ...] = ()
    static: bool = False

    def node(self, name: str) -> DeclaredNode:
        """Return what is declared of a node."""
        return self.nodes.get(name, DeclaredNode())
