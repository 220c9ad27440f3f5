# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Place one instance on given devices: their order, the layers of each, and what they take.

Order: the workers' devices first, the head's GPUs last, so that the output layer and with it
the logits stay on the head. A head without a GPU keeps the first layers in its own memory
instead, which is where llama.cpp leaves what ``--n-gpu-layers`` does not cover. Which devices,
and with which settings, is decided by :mod:`_search` and :mod:`_choose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Device, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._layers import distribute, fill
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate, Usage, estimate, layer_costs
from ansible_collections.llamacpp.cluster.plugins.module_utils._mmproj import Eyes
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._pool import CPU, PoolNode
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Settings

GIB = 1 << 30
# llama.cpp's limit for the devices of one process (GGML_SCHED_MAX_BACKENDS less the host, b11434).
MAX_DEVICES = 15
# More than any model has: llama.cpp takes it for "all" in every version.
ALL_LAYERS = 999
# llama-server's own defaults (common/common.h, b11434), said explicitly because they move.
BATCH, UBATCH, CACHE_TYPE = 2048, 512, "f16"


@dataclass(frozen=True)
class Slot:
    """A device in the order of ``--device``; ``device_name`` as the head calls it.

    ``room``: bytes that the instance may take of it; ``share``: what of the whole memory counts
    when layers are handed out.
    """

    node: str
    device_name: str
    device: Device
    room: int
    share: int

    @property
    def remote(self) -> bool:
        """Whether the head reaches it over RPC."""
        return self.device_name.startswith("RPC")

    @property
    def capacity(self) -> int:
        """Whole GiB of its share, at least one.

        Of total and not of free memory, and rounded: what runs on a device already is ours more
        often than not, and a second run has to come to the same plan.
        """
        return max(1, round(self.share / GIB))

    @property
    def memory(self) -> MemoryDevice:
        """Return it as the estimate wants it."""
        item = self.device
        free = item.memory_bytes if item.free_bytes is None else item.free_bytes
        if not self.remote:
            return MemoryDevice(self.device_name, item.kind, item.memory_bytes, free, item.compute_capability)
        return MemoryDevice(
            self.device_name, "rpc", item.memory_bytes, free, item.compute_capability, self.node, item.kind
        )


@dataclass(frozen=True)
class Knobs:
    """The settings of an instance while they are being chosen; ``context``: tokens a slot.

    ``gpu_layers`` and ``tensor_split``: None where they follow from memory. ``eyes``: the projector that the plan adds.
    """

    context: int
    parallel: int
    gpu_layers: int | str | None
    tensor_split: tuple[float, ...] | None
    split_mode: str
    cpu_moe: bool
    n_cpu_moe: int
    batch: int
    ubatch: int
    cache_type_k: str
    cache_type_v: str
    flash_attention: str
    kv_unified: bool
    swa_full: bool
    no_kv_offload: bool
    eyes: Eyes | None = None

    @classmethod
    def of(cls, instance: Instance) -> Knobs:
        """Return what is declared, and the defaults for what is not."""
        ubatch = instance.ubatch or min(UBATCH, instance.batch or UBATCH)
        return cls(
            context=instance.context or 0,
            parallel=instance.parallel or 1,
            gpu_layers=instance.gpu_layers,
            tensor_split=instance.tensor_split,
            split_mode=instance.split_mode or "layer",
            cpu_moe=instance.cpu_moe,
            n_cpu_moe=instance.n_cpu_moe or 0,
            batch=instance.batch or max(BATCH, ubatch),
            ubatch=ubatch,
            cache_type_k=instance.cache_type_k or CACHE_TYPE,
            cache_type_v=instance.cache_type_v or CACHE_TYPE,
            flash_attention=instance.flash_attention,
            kv_unified=instance.kv_unified,
            swa_full=instance.swa_full,
            no_kv_offload=instance.no_kv_offload,
        )

    def settings(self, gpu_layers: int, tensor_split: tuple[float, ...]) -> Settings:
        """Return llama-server's settings."""
        return Settings(
            ctx_size=self.context * self.parallel,
            parallel=self.parallel,
            kv_unified=self.kv_unified,
            cache_type_k=self.cache_type_k,
            cache_type_v=self.cache_type_v,
            flash_attn=self.flash_attention,
            batch_size=self.batch,
            ubatch_size=self.ubatch,
            gpu_layers=gpu_layers,
            tensor_split=tensor_split or None,
            split_mode=self.split_mode,
            cpu_moe=self.cpu_moe,
            n_cpu_moe=self.n_cpu_moe,
            swa_full=self.swa_full,
            no_kv_offload=self.no_kv_offload,
        )


@dataclass(frozen=True)
class Share:
    """What a slot gets. ``layers``: first and last (the output counts as one more layer); None when unknown."""

    slot: Slot
    layers: tuple[int, int] | None
    n_layers: int | None
    usage: Usage | None

    @property
    def excess(self) -> int:
        """Bytes that it takes above its room; 0 when it fits."""
        return max(0, self.usage.total - self.slot.room) if self.usage else 0


@dataclass(frozen=True)
class Placement:
    """Where an instance goes, and with which settings.

    ``offload``: the devices of ``--device``; ``host``: the head's own memory, None where nobody
    knows it. ``shares``: what each takes; the host is among them when it holds layers or the
    head has no GPU. ``beside``: what the host takes when it is not among them.
    """

    head: str
    offload: tuple[Slot, ...]
    host: Slot | None
    knobs: Knobs
    gpu_layers: int
    tensor_split: tuple[float, ...]
    shares: tuple[Share, ...]
    beside: Share | None
    estimate: Estimate | None

    @property
    def all_shares(self) -> tuple[Share, ...]:
        """Return every share, also that of the host that holds no layer."""
        return self.shares + ((self.beside,) if self.beside else ())

    @cached_property
    def excess(self) -> int:
        """Bytes that are missing on all devices together; 0 when everything fits."""
        return sum(share.excess for share in self.all_shares)

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Return the head and then the workers, in order."""
        return tuple(dict.fromkeys([self.head, *(slot.node for slot in self.offload)]))

    @property
    def on_host(self) -> int:
        """Return how many layers are left in the head's memory."""
        return sum(share.n_layers or 0 for share in self.shares if share.slot.device_name == CPU)


def slot_of(node: PoolNode, name: str, device: Device, margin: int, whole: bool = False) -> Slot:
    """Return a device of a node as the head calls it; ``margin`` and ``whole`` as in :meth:`PoolNode.room`."""
    share = device.memory_bytes - node.used(device.local_name)
    return Slot(node.name, name, device, node.room(device, margin, whole), share)


def place(
    head: str,
    offload: Sequence[Slot],
    host: Slot | None,
    on_host: bool,
    knobs: Knobs,
    model: ModelFacts | None,
    beside: int = 0,
) -> Placement:
    """Place an instance on devices.

    ``on_host``: the head's processor takes a share like a device. ``model``: None when its header
    cannot be read; then layers are left to llama.cpp, in proportion to memory. ``beside``: bytes
    that each device keeps for other than layers, about, where the devices will be filled to the
    brim; the first try is better then. Raises :class:`ValueError` when there are fewer layers than
    devices, and :class:`Refused` for what llama.cpp would not start with.
    """
    slots = tuple(offload)
    if model is None:
        split = knobs.tensor_split or tuple(float(slot.capacity) for slot in slots)
        layers = 0 if not slots else knobs.gpu_layers if isinstance(knobs.gpu_layers, int) else ALL_LAYERS
        shown = slots or ((host,) if host else ())
        unknown = tuple(Share(slot, None, None, None) for slot in shown)
        return Placement(head, slots, host, knobs, layers, split, unknown, None, None)
    first = _placement(head, slots, host, on_host, knobs, model, beside)
    if not first.excess or len(first.shares) < 2 or knobs.split_mode != "layer" or knobs.tensor_split:
        return first
    second = _rearranged(first, on_host, model)
    return second if second.excess < first.excess else first


def _placement(
    head: str,
    slots: tuple[Slot, ...],
    host: Slot | None,
    on_host: bool,
    knobs: Knobs,
    model: ModelFacts,
    beside: int,
) -> Placement:
    every = model.n_layers + 1
    share = host.capacity if host and on_host else 0
    if not slots:
        return _estimated(head, slots, host, on_host, knobs, model, 0, ())
    gpu_layers, split = _split(model, knobs, float(share), [float(slot.capacity) for slot in slots], every)
    if beside and len(slots) > 1 and knobs.split_mode == "layer" and not knobs.tensor_split:
        layers = layer_costs(model, knobs.settings(every, ())).layers[every - gpu_layers :]
        split = tuple(float(count) for count in fill(layers, [slot.room - beside for slot in slots]))
    return _estimated(head, slots, host, on_host, knobs, model, gpu_layers, split)


def _split(
    model: ModelFacts, knobs: Knobs, host: float, capacities: Sequence[float], every: int
) -> tuple[int, tuple[float, ...]]:
    """Return ``--n-gpu-layers`` and ``--tensor-split``, in proportion to capacities.

    ``host``: the capacity of the head's memory when it takes a share, else 0.
    """
    costs = layer_costs(model, knobs.settings(every, ()))
    if knobs.gpu_layers is not None:
        gpu_layers = every if knobs.gpu_layers == "all" else min(int(knobs.gpu_layers), every)
    elif host:
        # What stays on the host whatever the split, the embedding above all, counts against its share.
        gpu_layers = every - distribute([costs.layers[0] + costs.host, *costs.layers[1:]], [host, *capacities])[0]
    else:
        gpu_layers = every
    if knobs.tensor_split is not None:
        return gpu_layers, knobs.tensor_split
    if knobs.split_mode == "tensor":
        return gpu_layers, tuple(capacities)
    if not gpu_layers:
        return 0, tuple(capacities)
    # A share of as many units as layers: llama.cpp's rule then cuts exactly there.
    return gpu_layers, tuple(float(count) for count in distribute(costs.layers[every - gpu_layers :], capacities))


def _rearranged(first: Placement, on_host: bool, model: ModelFacts) -> Placement:
    """Hand the layers out anew, by what is left on each device when all but layers is taken off.

    The loads of all devices stay as equal as whole layers allow, in parts of what they can hold.
    """
    if first.estimate is None:
        raise AssertionError("layers are handed out anew where an estimate was made")
    knobs, every = first.knobs, model.n_layers + 1
    costs = layer_costs(model, knobs.settings(every, ()))
    rooms = [slot.room - usage.compute - usage.overhead for slot, usage in zip(first.offload, first.estimate.devices)]
    layers = list(costs.layers[every - first.gpu_layers :])
    hosted = on_host and first.host is not None and knobs.gpu_layers is None
    if hosted and first.host:
        rooms.insert(0, first.host.room - first.estimate.host.compute - first.estimate.host.overhead - costs.host)
        layers = list(costs.layers)
    counts = fill(layers, rooms)
    if hosted:
        gpu_layers, counts = every - counts[0], counts[1:]
    else:
        gpu_layers = first.gpu_layers
    split = tuple(float(count) for count in counts)
    if not sum(split):
        return first
    return _estimated(first.head, first.offload, first.host, on_host, knobs, model, gpu_layers, split)


def _estimated(
    head: str,
    slots: tuple[Slot, ...],
    host: Slot | None,
    on_host: bool,
    knobs: Knobs,
    model: ModelFacts,
    gpu_layers: int,
    split: tuple[float, ...],
) -> Placement:
    settings = knobs.settings(gpu_layers, split)
    if len(slots) < 2:
        settings = replace(settings, tensor_split=None)
    if knobs.split_mode == "tensor":
        found = _sliced(model, slots, settings, split)
    else:
        found = remembered(model, tuple(slot.memory for slot in slots), settings)
    if knobs.eyes:
        found = knobs.eyes.added(found, [slot.memory for slot in slots], knobs.flash_attention != "off")
    shares = []
    beside = None
    if knobs.split_mode == "tensor":
        placed: dict[int, tuple[int, int, int]] = {
            index: (0, model.n_layers, model.n_layers + 1) for index in range(len(slots))
        }
    else:
        placed = _runs(found.layers)
    if host:
        layers = placed.get(HOST)
        share = Share(host, layers[:2] if layers else None, layers[2] if layers else 0, found.host)
        if layers or on_host:
            shares.append(share)
        else:
            beside = share
    for index, (slot, usage) in enumerate(zip(slots, found.devices)):
        layers = placed.get(index)
        shares.append(Share(slot, layers[:2] if layers else None, layers[2] if layers else 0, usage))
    return Placement(head, slots, host, knobs, gpu_layers, split, tuple(shares), beside, found)


def _sliced(model: ModelFacts, slots: Sequence[Slot], settings: Settings, split: Sequence[float]) -> Estimate:
    """Return the estimate for a slice of every layer on each device (``--split-mode tensor``).

    llama-fit-params refuses this mode, so this is a bound: weights and context in parts as
    llama_meta_device_get_split_state (src/llama-model.cpp, b11434) cuts them, up to a head; the
    buffers for computing as on a device alone, though most of them are cut too.
    """
    alone = remembered(model, (slots[0].memory,), replace(settings, tensor_split=None))
    (whole,) = alone.devices
    heads = max(min(model.per_layer("attention.head_count_kv", model.number("attention.head_count", 1)), default=1), 1)
    usages = []
    for slot, part in zip(slots, split):
        # A cut is made at whole heads, so a slice may be larger than its share by one.
        share = min(1.0, -(-part / sum(split) * heads // 1) / heads)
        usages.append(
            Usage(slot.device_name, int(whole.model * share), int(whole.context * share), whole.compute, whole.overhead)
        )
    notes = (*alone.notes, "llama.cpp does not say what a tensor split takes: compute buffers are a bound")
    return replace(alone, devices=tuple(usages), exact=False, notes=notes)


@per_model
def _estimates(model: ModelFacts) -> dict[tuple[object, ...], Estimate]:
    return {}


def remembered(model: ModelFacts, devices: tuple[MemoryDevice, ...], settings: Settings) -> Estimate:
    """Return :func:`estimate`'s answer, asked once: a search comes by the same placement more than once.

    With more than one device there is always a tensor split here, so what is free on them does not matter.
    """
    known = _estimates(model)
    key = (tuple((item.name, item.hardware, item.compute_capability) for item in devices), settings)
    if key not in known:
        known[key] = estimate(model, devices, settings)
    return known[key]


def _runs(layers: Sequence[int]) -> dict[int, tuple[int, int, int]]:
    """Return device -> first layer, last layer and number of layers."""
    runs: dict[int, tuple[int, int, int]] = {}
    for layer, device in enumerate(layers):
        first, _last, count = runs.get(device, (layer, layer, 0))
        runs[device] = (first, layer, count + 1)
    return runs
