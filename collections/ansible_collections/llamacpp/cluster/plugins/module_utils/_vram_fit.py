# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Does a model fit on these devices with these settings? Bytes, llama-server's arguments, and a sentence.

The questions of the module ``vram_fit``, as a plain function: :func:`vram_fit`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Callable, Union

from ansible_collections.llamacpp.cluster.plugins.module_utils._fit_args import arguments
from ansible_collections.llamacpp.cluster.plugins.module_utils._fit_words import explain
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import hparams
from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate, Usage, estimate
from ansible_collections.llamacpp.cluster.plugins.module_utils._mmproj import Projector, projector
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, MemoryDevice, Refused, Settings

MIB = 1 << 20
KINDS = ("cuda", "rocm", "vulkan", "metal", "sycl", "rpc", "cpu")
# MiB that stay free on every device. What a process takes beside its buffers is counted, so this
# is for what nobody can know, such as the fragments of other processes.
MARGIN_MIB = 256
# Settings that llama-server is not told: they say what an estimate is for.
INNER = ("logits", "n_rs_seq", "for_draft")
# llama-server drafts so many tokens at a time (common_params_speculative_draft in common/common.h, b11434).
DRAFT_MAX = 3

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?)b?|b)?\s*$", re.IGNORECASE)

Model = Union[ModelFacts, Mapping[str, Any]]
Estimator = Callable[[ModelFacts, Sequence[MemoryDevice], Settings], Estimate]


@dataclass(frozen=True)
class Room:
    """What one memory holds and has left, in bytes. ``free`` None: nobody said; then everything fits."""

    usage: Usage
    kind: str
    free: int | None
    margin: int
    layers: int

    @property
    def left(self) -> int | None:
        """Free bytes afterwards, below 0 where it does not fit."""
        return None if self.free is None else self.free - self.usage.total

    @property
    def fits(self) -> bool:
        """With the margin, where anything of the model is on it."""
        return self.left is None or self.left >= (self.margin if self.usage.total else 0)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        sizes = asdict(self.usage)
        return dict(
            sizes,
            kind=self.kind,
            total=self.usage.total,
            free=self.free,
            free_after=self.left,
            layers=self.layers,
            fits=self.fits,
        )


def size_bytes(value: object, name: str) -> int:
    """Return a size in bytes: a number of bytes, or words such as ``24 GiB``; raises :class:`Refused`."""
    if isinstance(value, bool) or value is None:
        raise Refused(name, "write bytes, or a size such as 24 GiB", value)
    if isinstance(value, (int, float)):
        if value < 0:
            raise Refused(name, "a size cannot be below 0", value)
        return int(value)
    match = _SIZE.match(str(value))
    if not match:
        raise Refused(name, "write bytes, or a size such as 24 GiB", value)
    number, prefix, binary = match.groups()
    power = " kmgtp".index(prefix.lower()) if prefix else 0
    return int(float(number) * (1024 if binary or not prefix else 1000) ** power)


def device_of(item: Mapping[str, Any], index: int) -> MemoryDevice:
    """Return a device as it was described; raises :class:`Refused` for what is missing or wrong."""
    where = "devices[%d]" % index
    known = {field.name for field in fields(MemoryDevice)}
    unknown = sorted(set(item) - known)
    if unknown:
        raise Refused(where, "it knows no %s; write %s" % (unknown[0], ", ".join(sorted(known))))
    for key in ("name", "kind"):
        if not isinstance(item.get(key), str) or not item[key]:
            raise Refused(where, "it needs a %s" % key)
    kind, backend = item["kind"].lower(), item.get("backend")
    for key, value in (("kind", kind), ("backend", backend)):
        if value is not None and (value not in KINDS or (key == "backend" and value == "rpc")):
            raise Refused("%s.%s" % (where, key), "write one of %s" % ", ".join(KINDS), value)
    total = size_bytes(item.get("total", 0) or 0, where + ".total")
    free = item.get("free")
    return MemoryDevice(
        name=item["name"],
        kind=kind,
        total=total,
        free=total if free is None else size_bytes(free, where + ".free"),
        compute_capability=None if item.get("compute_capability") is None else str(item["compute_capability"]),
        host=item.get("host"),
        backend=backend,
    )


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Return settings by llama-server's long flag names; those that are None keep their default.

    Raises :class:`Refused` for an unknown name or a value that llama-server could not read.
    """
    known = {field.name: field.default for field in fields(Settings)}
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise Refused(name, "llama-server has no such setting here; write one of %s" % ", ".join(sorted(known)))
        if value is None:
            continue
        chosen[name] = _value(name, value, known[name])
    return Settings(**chosen)


def _value(name: str, value: Any, default: Any) -> Any:
    """Bring a value into the form that :class:`Settings` has; text comes from templates."""
    if name == "tensor_split":
        parts = re.split(r"[,/]", value) if isinstance(value, str) else value
        try:
            return tuple(float(part) for part in parts)
        except (TypeError, ValueError) as error:
            raise Refused(name, "write one share a device, such as 3,1", value) from error
    if name == "flash_attn" and isinstance(value, bool):
        # YAML reads a bare on and off as booleans.
        return "on" if value else "off"
    if name == "kv_unified" or isinstance(default, bool):
        if isinstance(value, bool):
            return value
        raise Refused(name, "write true or false", value)
    if name == "gpu_layers" and str(value) in ("all", "auto"):
        return str(value)
    if name == "gpu_layers" or isinstance(default, int):
        try:
            return int(str(value))
        except ValueError as error:
            raise Refused(name, "write a whole number", value) from error
    return str(value)


def facts_of(model: Model, name: str) -> ModelFacts:
    """Return a model's facts from themselves or from what gguf_info returned; raises :class:`Refused`."""
    if isinstance(model, ModelFacts):
        return model
    try:
        return ModelFacts.from_dict(model)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(name, "it is not what gguf_info returns as gguf (%s)" % error) from error


def vram_fit(
    gguf: Model,
    devices: Sequence[MemoryDevice | Mapping[str, Any]],
    *,
    mmproj: Model | None = None,
    draft: Model | None = None,
    draft_gpu_layers: int | str = "all",
    margin: int = MARGIN_MIB,
    paths: Mapping[str, str] | None = None,
    estimator: Estimator = estimate,
    **settings: Any,
) -> dict[str, Any]:
    """Say whether a model fits, with what on each device, and how to start llama-server so.

    ``gguf``, ``mmproj``, ``draft``: facts of a model, or gguf_info's result. ``devices``: in the
    order of ``--device``; mappings with ``name``, ``kind``, ``total``, ``free`` (bytes or text) and
    optionally ``compute_capability``, ``host``, ``backend``; one of kind cpu is the head's own
    memory. ``margin``: MiB that stay free on each. ``paths``: where ``model``, ``mmproj`` and
    ``draft`` are, for the arguments. ``estimator``: who is asked. ``settings``: llama-server's long
    flag names, ``ctx_size`` as ``-c``. Returns JSON-able data. Raises :class:`Refused` for what
    llama-server would not start with.
    """
    model = facts_of(gguf, "gguf")
    listed = tuple(
        item if isinstance(item, MemoryDevice) else device_of(item, index) for index, item in enumerate(devices)
    )
    if margin < 0:
        raise Refused("margin", "write MiB, 0 or more", margin)
    chosen = settings_of(settings)
    if draft is not None and not chosen.draft_max:
        chosen = replace(chosen, draft_max=DRAFT_MAX)
    found = estimator(model, listed, chosen)
    usages, host = list(found.devices), found.host
    notes = list(found.notes)
    exact = found.exact
    parts: dict[str, Any] = {}
    if draft is not None:
        drafting = _draft(facts_of(draft, "draft"), listed, chosen, draft_gpu_layers, estimator)
        usages = [_sum(one, other) for one, other in zip(usages, drafting.devices)]
        host = _sum(host, drafting.host)
        exact = exact and drafting.exact
        notes += ["draft: %s" % note for note in drafting.notes]
        parts["draft"] = {"devices": [_plain(item) for item in drafting.devices], "host": _plain(drafting.host)}
    if mmproj is not None:
        eyes = projector(facts_of(mmproj, "mmproj"), listed, found.flash_attn)
        usages, host = _with_projector(usages, host, eyes)
        notes.append("mmproj: its weights are exact, its buffers a bound for the largest picture")
        exact = False
        parts["mmproj"] = {
            "device": None if eyes.device == HOST else listed[eyes.device].name,
            "model": eyes.model,
            "compute": eyes.compute,
        }
    rooms = _rooms(listed, usages, host, found, margin * MIB)
    own = next((room for room in rooms if room.kind == "cpu"), None)
    host_room = own or Room(host, "cpu", None, margin * MIB, sum(index == HOST for index in found.layers))
    every = [*rooms, *([] if own else [host_room])]
    eyes_on = parts["mmproj"]["device"] if mmproj is not None else None
    return {
        "fits": all(room.fits for room in every),
        "exact": exact,
        "devices": [room.as_dict() for room in rooms],
        "host": dict(host_room.as_dict(), name="host"),
        "args": arguments(listed, chosen, found, hparams(model).n_layer_all, paths or {}, draft_gpu_layers, eyes_on),
        "explanation": explain(every, found, chosen, margin),
        "notes": notes,
        "layers": ["host" if index == HOST else listed[index].name for index in found.layers],
        "n_ctx": found.n_ctx,
        "n_ctx_slot": found.n_ctx_slot,
        "flash_attn": found.flash_attn,
        "pipeline": found.pipeline,
        "settings": {name: value for name, value in asdict(chosen).items() if name not in INNER},
        "parts": parts,
    }


def _draft(
    model: ModelFacts, devices: Sequence[MemoryDevice], main: Settings, gpu_layers: int | str, estimator: Estimator
) -> Estimate:
    """A draft model shares devices, context and split with the model (common_base_params_to_speculative)."""
    settings = replace(
        main,
        gpu_layers=gpu_layers,
        cache_type_k="f16",
        cache_type_v="f16",
        cpu_moe=False,
        n_cpu_moe=0,
        embedding=False,
        draft_max=0,
        n_rs_seq=0,
        for_draft=True,
    )
    found = estimator(model, devices, settings)
    # One process runs both, and what it takes is counted with the model.
    return replace(
        found,
        devices=tuple(replace(item, overhead=0) for item in found.devices),
        host=replace(found.host, overhead=0),
    )


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.name,
        one.model + other.model,
        one.context + other.context,
        one.compute + other.compute,
        one.overhead + other.overhead,
    )


def _with_projector(usages: Sequence[Usage], host: Usage, eyes: Projector) -> tuple[list[Usage], Usage]:
    more = Usage("", eyes.model, 0, eyes.compute, 0)
    if eyes.device == HOST:
        return list(usages), _sum(host, more)
    return [_sum(item, more) if index == eyes.device else item for index, item in enumerate(usages)], host


def _rooms(
    devices: Sequence[MemoryDevice], usages: Sequence[Usage], host: Usage, found: Estimate, margin: int
) -> list[Room]:
    rooms = []
    for index, (device, usage) in enumerate(zip(devices, usages)):
        own = device.kind == "cpu"
        layers = sum(item == (HOST if own else index) for item in found.layers)
        free = device.free if device.total or device.free else None
        rooms.append(Room(replace(host, name=device.name) if own else usage, device.kind, free, margin, layers))
    return rooms


def _plain(usage: Usage) -> dict[str, Any]:
    return dict(asdict(usage), total=usage.total)
