# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an estimate of memory is asked about: the devices, and the settings of llama-server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# In `Estimate.layers` and wherever a layer is placed: not on a device, but in the memory of the host.
HOST = -1

# llama_max_devices() and LLAMA_MAX_SEQ (src/llama.cpp, src/llama-cparams.h, b11434).
MAX_DEVICES = 16
MAX_SEQUENCES = 256

SPLIT_MODES = ("none", "layer", "row", "tensor")
FLASH_ATTENTION = ("on", "off", "auto")


class Refused(ValueError):
    """llama.cpp (b11434) would not start with these settings.

    ``setting``: the name of what has to change, as in :class:`Settings`. ``message``: why, and what
    to write instead. ``value``: what it was, where that helps.
    """

    def __init__(self, setting: str, message: str, value: object = None) -> None:
        super().__init__("%s: %s" % (setting if value is None else "%s %s" % (setting, value), message))
        self.setting = setting
        self.message = message
        self.value = value


@dataclass(frozen=True)
class MemoryDevice:
    """A device of llama-server, in the order of ``--device``.

    ``name``: llama.cpp's (``CUDA0``, ``RPC1``). ``kind``: cuda, rocm, vulkan, metal, rpc or cpu.
    ``total``, ``free``: bytes. ``compute_capability``: of a CUDA device (``9.0``). ``host``: where
    it is, when it is reached over RPC. ``backend``: the kind that is behind it, when ``kind`` is
    rpc; ``None`` stands for the CPU, as in llama.cpp's own tests. A device of kind cpu is the
    head's own memory, which llama-server never names as a device.
    """

    name: str
    kind: str
    total: int
    free: int
    compute_capability: str | None = None
    host: str | None = None
    backend: str | None = None

    @property
    def hardware(self) -> str:
        """What keeps its buffers: the kind, or what is behind a worker."""
        return (self.backend or "cpu") if self.kind == "rpc" else self.kind


@dataclass(frozen=True)
class Settings:
    """Settings of llama-server, under the names of its long flags (b11434).

    ``ctx_size``: tokens of all slots together; 0 is what the model was trained on. ``parallel``:
    slots; below 0 it is llama-server's choice, 4 that share a unified cache. ``kv_unified``:
    ``None`` is llama-server's default, which is unified only where ``parallel`` is its choice.
    ``gpu_layers``: a number, ``"all"`` or ``"auto"`` (all, as ``--fit`` is off).
    ``tensor_split``: shares of the devices in their order; ``None`` splits by free memory.
    ``logits``: ``"server"`` reserves rows for the slots, ``"fit_params"`` for a whole ubatch,
    as llama-fit-params does. ``draft_max``: tokens that are drafted ahead, each a row of logits
    more; ``n_rs_seq``: snapshots of recurrent state that some ways of drafting want;
    ``for_draft``: the model itself drafts for another one. Draft models and mmproj are models of
    their own.
    """

    ctx_size: int = 0
    parallel: int = 1
    kv_unified: bool | None = None
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: str = "auto"
    batch_size: int = 2048
    ubatch_size: int = 512
    gpu_layers: int | str = "all"
    tensor_split: tuple[float, ...] | None = None
    split_mode: str = "layer"
    cpu_moe: bool = False
    n_cpu_moe: int = 0
    swa_full: bool = False
    no_kv_offload: bool = False
    embedding: bool = False
    logits: str = "server"
    draft_max: int = 0
    n_rs_seq: int = 0
    for_draft: bool = False

    def layers_on_devices(self, n_layers: int) -> int:
        """Return ``--n-gpu-layers`` as a number, the output counted (llama_model::n_gpu_layers)."""
        if isinstance(self.gpu_layers, str) or self.gpu_layers < 0:
            return n_layers + 1
        return self.gpu_layers


def offload_devices(devices: Sequence[MemoryDevice], settings: Settings) -> tuple[int, ...]:
    """Return the numbers of those ``devices`` that llama-server uses: no CPU, and one only with split mode none."""
    found = tuple(index for index, device in enumerate(devices) if device.kind != "cpu")
    return found[:1] if settings.split_mode == "none" else found
