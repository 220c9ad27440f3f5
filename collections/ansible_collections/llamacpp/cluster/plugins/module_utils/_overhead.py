# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a process takes on a GPU beside the buffers that llama.cpp reports.

Three parts. (1) CUDA's context and the code of the kernels, there after the start. (2) cuBLAS, its
workspace and its kernels, loaded by the first request that multiplies by something other than
quantised weights. (3) The pool: scratch of the largest matrix product, grown by the first full
batch and kept. (1) and (2) are constants of the hardware and were measured; (3) follows from the
model's shapes (ggml_cuda_pool_alloc in ggml/src/ggml-cuda/ggml-cuda.cu and mmq.cu, b11434).

Measured by tests/gpu/measure_memory.py on NVIDIA H200 with CUDA 13.0, driver 580, build b11434:
77 cases of 16 models, figures in docs/bench/gpu_h200.json. A second GPU of the same process takes
what the first one takes. Another compute capability than 9.0 was not measured: it gets the same
constants, and an estimate for it says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import MemoryDevice, Settings

MIB = 1 << 20

# QK8_1 numbers and their scales (block_q8_1 in ggml-common.h), rows padded to MATRIX_ROW_PADDING.
Q8_1_ELEMENTS, Q8_1_BYTES, ROW_PADDING = 32, 36, 512
# On GPUs without integer matrix units, larger batches are multiplied as f16 (ggml_cuda_should_use_mmq).
MMQ_BATCH_WITHOUT_UNITS = 64
INTEGER_UNITS_SINCE = (7, 5)

_FLOATS = ("F32", "F16", "BF16")
# Architectures whose state space is multiplied out in chunks have one of these.
_SCAN = "blk.*.ssm_a"


class Constants(NamedTuple):
    """MiB of a process on one GPU. ``scan_sequence``: for each sequence after the first."""

    started: int
    working: int
    cublas: int
    no_flash: int
    scan: int
    scan_sequence: int
    tensor_split: int


class Overhead(NamedTuple):
    """Bytes on one GPU: after the ``started`` server answers, and once it is ``working``; whether ``measured``."""

    started: int
    working: int
    measured: bool


# Largest value of the class in any case, and 2 MiB, the granularity of the driver. tensor_split: NCCL's buffers.
MEASURED = {
    "9.0": Constants(started=596, working=608, cublas=704, no_flash=740, scan=722, scan_sequence=20, tensor_split=820),
}
FALLBACK = "9.0"


def process_overhead(
    model: ModelFacts, settings: Settings, device: MemoryDevice, flash_attn: bool, sequences: int = 1
) -> Overhead:
    """Return what the process takes on ``device`` beside its buffers; nothing on a device that is no NVIDIA GPU.

    ``sequences``: slots that decode side by side. Other GPUs than NVIDIA's were never measured:
    they get what NVIDIA's do, as a guess that is marked.
    """
    hardware = device.hardware
    if hardware == "cpu":
        return Overhead(0, 0, True)
    capability = device.compute_capability or ""
    constants = MEASURED.get(capability, MEASURED[FALLBACK])
    working = constants.working
    if any(_multiplied(group) and group.type in _FLOATS for group in model.tensor_groups):
        working = max(working, constants.cublas)
    if not flash_attn:
        working = max(working, constants.no_flash)
    if any(group.name.startswith(_SCAN) for group in model.tensor_groups):
        working = max(working, constants.scan) + constants.scan_sequence * (sequences - 1)
    started = constants.started
    if settings.split_mode == "tensor":
        started, working = started + constants.tensor_split, working + constants.tensor_split
    pool = pool_bytes(model.tensor_groups, settings.ubatch_size, model.number("expert_used_count", 1), capability)
    return Overhead(started * MIB, working * MIB + pool, capability in MEASURED and hardware == "cuda")


def pool_bytes(groups: Iterable[TensorGroup], ubatch: int, experts_used: int, capability: str) -> int:
    """Return the scratch of the largest matrix product with ``ubatch`` tokens.

    ``experts_used``: rows that a token makes in a product with experts. ``capability``: as in
    ``7.0``; unknown counts as one with integer matrix units.
    """
    quantised_as_is = _version(capability) >= INTEGER_UNITS_SINCE or ubatch < MMQ_BATCH_WITHOUT_UNITS
    largest = 0
    for group in groups:
        if not _multiplied(group):
            continue
        expert = len(group.shape) > 2
        rows = ubatch * (experts_used if expert else 1)
        columns, outputs = group.shape[0], group.shape[1]
        if group.type in _FLOATS:
            # cuBLAS: activations and result in f16; f32 weights are multiplied in f32, in place.
            size = 0 if group.type == "F32" else 2 * rows * (columns + outputs)
        elif quantised_as_is:
            size = rows * (-(-columns // ROW_PADDING) * ROW_PADDING) // Q8_1_ELEMENTS * Q8_1_BYTES
        else:
            # The whole matrix (of one expert at a time) is written out in f16 first.
            size = 2 * columns * outputs + 2 * rows * (columns + outputs)
        largest = max(largest, size)
    return largest


def _multiplied(group: TensorGroup) -> bool:
    """Say whether it is a matrix of a block that a batch is multiplied by."""
    return bool(group.layers) and len(group.shape) > 1 and group.name.endswith(".weight") and "norm" not in group.name


def _version(capability: str) -> tuple[int, ...]:
    parts = capability.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (99,)
