# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an estimate of memory is asked about: the devices, and the settings of llama-server."""

from __future__ import annotations

from dataclasses import dataclass

# In `Estimate.layers` and wherever a layer is placed: not on a device, but in the memory of the host.
HOST = -1


class Refused(ValueError):
    """llama.cpp (b11434) would not start with these settings.

    ``setting``: the name of what has to change, as in :class:`Settings`. ``message``: why.
    """

    def __init__(self, setting: str, message: str) -> None:
        super().__init__("%s: %s" % (setting, message))
        self.setting = setting
        self.message = message


@dataclass(frozen=True)
class MemoryDevice:
    """A device of llama-server, in the order of ``--device``.

    ``name``: llama.cpp's (``CUDA0``, ``RPC1``). ``kind``: cuda, rocm, vulkan, metal, rpc or cpu.
    ``total``, ``free``: bytes. ``compute_capability``: of a CUDA device (``9.0``). ``host``: where
    it is, when it is reached over RPC. ``backend``: the kind that is behind it, when ``kind`` is
    rpc; ``None`` stands for the CPU, as in llama.cpp's own tests.
    """

    name: str
    kind: str
    total: int
    free: int
    compute_capability: str | None = None
    host: str | None = None
    backend: str | None = None


@dataclass(frozen=True)
class Settings:
    """Settings of llama-server, under the names of its long flags (b11434).

    ``ctx_size``: tokens of all slots together; 0 is what the model was trained on. ``kv_unified``:
    ``None`` is llama-server's default. ``gpu_layers``: a number, ``"all"`` or ``"auto"``.
    ``tensor_split``: shares of the devices in their order; ``None`` splits by free memory.
    ``logits``: ``"server"`` reserves rows for the slots, ``"fit_params"`` for a whole ubatch,
    as llama-fit-params does. A draft model and mmproj are models of their own.
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
