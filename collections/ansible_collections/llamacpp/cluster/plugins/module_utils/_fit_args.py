# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""llama-server's arguments for an estimate: everything that decides placement, said explicitly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import (
    HOST,
    MemoryDevice,
    Settings,
    offload_devices,
)


def arguments(
    devices: Sequence[MemoryDevice],
    settings: Settings,
    found: Estimate,
    n_layers: int,
    paths: Mapping[str, str],
    draft_gpu_layers: int | str,
    mmproj_device: str | None = None,
) -> list[str]:
    """Return what to pass to llama-server b11434 so that it does what was estimated.

    ``n_layers``: without the output. ``paths``: of ``model``, ``mmproj`` and ``draft``, as far as
    known; ``mmproj_device``: for the second, None for the head's memory. The addresses of workers are said where every
    worker's ``host`` has a port.
    """
    used = [devices[index] for index in offload_devices(devices, settings)]
    words: list[str] = ["--model", paths["model"]] if "model" in paths else []
    workers = list(dict.fromkeys(device.host for device in used if device.kind == "rpc"))
    if workers and all(host and ":" in host for host in workers):
        # llama-server resolves --device while it reads its arguments, so --rpc has to stand before it.
        words += ["--rpc", ",".join(str(host) for host in workers)]
    words += ["--device", ",".join(device.name for device in used) or "none"]
    if used:
        words += ["--split-mode", settings.split_mode]
    if len(used) > 1 and settings.split_mode != "none":
        words += ["--tensor-split", ",".join("%g" % share for share in split_shares(devices, settings, found))]
    words += ["--n-gpu-layers", str(settings.layers_on_devices(n_layers) if used else 0), "--fit", "off"]
    parallel = 4 if settings.parallel < 0 else max(settings.parallel, 1)
    unified = settings.kv_unified or (settings.parallel < 0)
    words += ["--ctx-size", str(settings.ctx_size or found.n_ctx), "--parallel", str(parallel)]
    words += ["--kv-unified" if unified else "--no-kv-unified"]
    words += ["--batch-size", str(settings.batch_size), "--ubatch-size", str(settings.ubatch_size)]
    words += ["--cache-type-k", settings.cache_type_k, "--cache-type-v", settings.cache_type_v]
    words += ["--flash-attn", "on" if found.flash_attn else "off"]
    if settings.cpu_moe:
        words.append("--cpu-moe")
    elif settings.n_cpu_moe:
        words += ["--n-cpu-moe", str(settings.n_cpu_moe)]
    for given, flag in (
        (settings.swa_full, "--swa-full"),
        (settings.no_kv_offload, "--no-kv-offload"),
        (settings.embedding, "--embedding"),
    ):
        if given:
            words.append(flag)
    if "mmproj" in paths:
        # Left out, it would be the first of --device.
        words += ["--mmproj", paths["mmproj"], "--mmproj-device", mmproj_device or "none"]
    if "draft" in paths:
        words += ["--spec-draft-model", paths["draft"], "--spec-draft-ngl", str(draft_gpu_layers)]
        words += ["--spec-draft-n-max", str(settings.draft_max)]
    return words


def split_shares(devices: Sequence[MemoryDevice], settings: Settings, found: Estimate) -> list[float]:
    """Return ``--tensor-split``: as given, or the layers of each device, at which llama.cpp's rule cuts exactly."""
    used = offload_devices(devices, settings)
    given = settings.tensor_split
    if given and any(given):
        return [float(share) for share in given[: len(used)]] + [0.0] * (len(used) - len(given))
    if settings.split_mode == "tensor" or not any(index != HOST for index in found.layers):
        # Layers say nothing here; llama.cpp then divides evenly.
        return [1.0] * len(used)
    return [float(sum(index == item for item in found.layers)) for index in used]
