# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a process takes on a GPU beside the buffers that llama.cpp reports.

Three parts. (1) CUDA's context and the code of the kernels, there after the start. (2) cuBLAS, its
workspace and its kernels, loaded by the first request that multiplies by something other than
quantised weights. (3) The pool: scratch of the largest matrix product, grown by the first full
batch and kept. (1) and (2) are constants of the hardware and were measured; (3) follows from the
model's shapes (ggml_cuda_pool_alloc in ggml/src/ggml-cuda/ggml-cuda.cu and mmq.cu, b11434).

Measured by tests/gpu/measure_memory.py on NVIDIA H200 with CUDA 13.0, driver 580, build b11434:
175 cases of 54 models, figures in docs/bench/gpu_h200.json. A second GPU of the same process takes
what the first one takes, and so does the GPU of a worker. Another compute capability than 9.0 was
not measured: it gets the same constants, and an estimate for it says so.
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
# One number a head: the state space of Mamba 2, which is multiplied out in chunks.
_SCAN = "blk.*.ssm_a"
# Selects the tokens of a sparse attention by multiplying in half precision (DeepSeek 3.2).
_INDEXER = "blk.*.indexer."
# Matrices of their own kernels.
_NOT_MULTIPLIED = ("norm", "ssm_conv1d")
# From this many sequences on, further ones bring no further kernels.
SCAN_SEQUENCES = 3


class Constants(NamedTuple):
    """MiB of a process on one GPU.

    What it takes after requests is the largest that applies: ``working`` always, ``single`` with
    matrices in f32, ``half`` with such in f16 or bf16, ``no_flash`` without flash attention, ``scan``
    with a state space of Mamba 2, and ``scan_sequence`` more for each of its next two sequences.
    ``tensor_split`` (NCCL) comes on top.
    """

    working: int
    single: int
    half: int
    no_flash: int
    scan: int
    scan_sequence: int
    tensor_split: int


class Overhead(NamedTuple):
    """Bytes on one GPU once it is ``working``, and whether they were ``measured``.

    A server that was never asked anything takes some 10 to 190 MiB less.
    """

    working: int
    measured: bool


# The largest value of the class in any case, and 2 MiB or more on top, the granularity of the driver.
MEASURED = {
    "9.0": Constants(working=608, single=714, half=730, no_flash=740, scan=722, scan_sequence=32, tensor_split=860),
}
FALLBACK = "9.0"

# MiB of host memory, the largest of the same measurements: own pages and pages of libraries. Without
# a GPU: two models of 3 billion weights on a Debian 12 machine.
HOST_CUDA, HOST_TENSOR_SPLIT, HOST_PROCESSOR = 512, 448, 64


def process_overhead(
    model: ModelFacts, settings: Settings, device: MemoryDevice, flash_attn: bool, sequences: int = 1
) -> Overhead:
    """Return what the process takes on ``device`` beside its buffers; nothing on a processor.

    ``sequences``: slots that decode side by side. Other GPUs than NVIDIA's were never measured:
    they get what NVIDIA's do, as a guess that is marked.
    """
    hardware = device.hardware
    if hardware == "cpu":
        return Overhead(0, True)
    capability = device.compute_capability or ""
    constants = MEASURED.get(capability, MEASURED[FALLBACK])
    working = constants.working
    types = {group.type for group in model.tensor_groups if _multiplied(group)}
    if "F32" in types:
        working = max(working, constants.single)
    if types & {"F16", "BF16"} or any(group.name.startswith(_INDEXER) for group in model.tensor_groups):
        working = max(working, constants.half)
    if not flash_attn:
        working = max(working, constants.no_flash)
    if any(group.name.startswith(_SCAN) and group.shape[0] == 1 for group in model.tensor_groups):
        working = max(working, constants.scan) + constants.scan_sequence * (min(sequences, SCAN_SEQUENCES) - 1)
    if settings.split_mode == "tensor":
        working += constants.tensor_split
    pool = pool_bytes(model.tensor_groups, settings.ubatch_size, model.number("expert_used_count", 1), capability)
    return Overhead(working * MIB + pool, capability in MEASURED and hardware == "cuda")


def host_overhead(devices: Iterable[MemoryDevice], settings: Settings) -> int:
    """Return what llama-server takes of the head's memory beside its buffers, before it has served anybody.

    Code, vocabulary and what CUDA keeps; more with a tensor split (NCCL). ``devices``: those that
    it uses itself. Prompts that it keeps for later come on top, up to ``--cache-ram`` (8 GiB by
    default) and the checkpoints of recurrent and sliding caches: they are not counted here.
    """
    if all(device.kind in ("rpc", "cpu") for device in devices):
        return HOST_PROCESSOR * MIB
    return (HOST_CUDA + (HOST_TENSOR_SPLIT if settings.split_mode == "tensor" else 0)) * MIB


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
    if not group.layers or len(group.shape) < 2 or not group.name.endswith(".weight"):
        return False
    return not any(word in group.name for word in _NOT_MULTIPLIED)


def _version(capability: str) -> tuple[int, ...]:
    parts = capability.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (99,)
