# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What llama-server keeps of its context: KV caches and recurrent state, layer by layer.

Source (b11434): the constructor of llama_context and llama_init_from_model
(src/llama-context.cpp), llama_model::create_memory (src/llama-model.cpp), and the memory
classes in src/llama-kv-cache*.cpp and src/llama-memory-*.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._architectures import (
    DRAFT_ONLY,
    HYBRID,
    NO_MEMORY,
    NO_TENSOR_SPLIT,
    ONE_SEQUENCE,
    RECURRENT,
    ROLLBACK,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import CACHE_TYPES, by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import Hparams, hparams
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import (
    FLASH_ATTENTION,
    MAX_SEQUENCES,
    SPLIT_MODES,
    Refused,
    Settings,
)

# DSV4_CSA_RATIO and DSV4_HCA_RATIO (src/llama-kv-cache-dsv4.cpp).
_CSA, _HCA = 4, 128


def padded(value: int, step: int) -> int:
    """Round up (GGML_PAD)."""
    return -(-value // step) * step


@dataclass(frozen=True)
class Context:
    """The settings as llama_context resolves them (its cparams).

    ``n_ctx``: tokens in all; ``n_ctx_seq``: of one slot, or of all when they share; ``n_tokens``:
    those of the largest graph that is reserved. ``flash_attn``: True, False, or None where
    llama.cpp tries first (``auto``). ``v_trans``: values lie transposed, without flash attention.
    ``n_outputs``: rows of logits in the largest graph. ``kv_unified``: one cache for all slots.
    """

    n_ctx: int
    n_ctx_seq: int
    n_seq_max: int
    kv_unified: bool
    n_batch: int
    n_ubatch: int
    n_tokens: int
    n_outputs: int
    type_k: str
    type_v: str
    flash_attn: bool | None
    offload_kqv: bool
    swa_full: bool
    n_rs_seq: int

    @property
    def v_trans(self) -> bool:
        """``auto`` counts as on when caches are made, whatever it turns out to be."""
        return self.flash_attn is False

    @property
    def n_stream(self) -> int:
        """Separate caches."""
        return 1 if self.kv_unified else self.n_seq_max


class CacheTensor(NamedTuple):
    """One tensor of a cache: ``shape`` is numbers in a row, rows, streams. ``nbytes`` without padding."""

    layer: int
    role: str
    shape: tuple[int, int, int]
    type: str
    nbytes: int


class Cache(NamedTuple):
    """One memory module. ``kind``: kv, swa, indexer, csa, hca, recurrent or state; ``cells``: rows of a stream."""

    kind: str
    cells: int
    n_stream: int
    tensors: tuple[CacheTensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have it, in order."""
        return tuple(sorted({tensor.layer for tensor in self.tensors}))


def resolve(model: ModelFacts, settings: Settings) -> Context:
    """Work out what llama-server makes of the settings; raises :class:`Refused` where it would not start."""
    h = hparams(model)
    _check_words(settings)
    if h.architecture in DRAFT_ONLY and not settings.for_draft:
        raise Refused("model", "it only drafts for another model; give it as the draft model", h.architecture)
    parallel, unified = settings.parallel, bool(settings.kv_unified)
    if parallel < 0:
        # tools/server/server.cpp: what it does when --parallel is not given.
        parallel, unified = 4, True
    parallel = max(parallel, 1)
    if parallel > MAX_SEQUENCES:
        raise Refused("parallel", "llama-server has at most %d slots" % MAX_SEQUENCES, parallel)
    if settings.batch_size <= 0 and settings.ubatch_size <= 0:
        raise Refused("batch_size", "write a number of tokens above 0, such as 2048", settings.batch_size)
    if settings.ctx_size < 0:
        raise Refused("ctx_size", "write a number of tokens, or 0 for what the model was trained on", settings.ctx_size)
    n_ctx = settings.ctx_size or h.n_ctx_train
    if n_ctx == 0:
        raise Refused("ctx_size", "the model does not say how much context it was trained on; write a number", 0)
    flash = _flash_attention(h, settings)
    _check_caches(h, settings, flash)
    batch = settings.batch_size
    if settings.embedding and batch > settings.ubatch_size:
        batch = settings.ubatch_size
    n_batch = min(n_ctx, batch) if h.causal else batch
    n_ubatch = min(n_batch, settings.ubatch_size or batch)
    n_ctx = padded(n_ctx, 256)
    n_ctx_seq = n_ctx
    if not unified:
        n_ctx_seq = padded(n_ctx // parallel, 256)
        if n_ctx_seq == 0:
            raise Refused("ctx_size", "nothing is left for each of %d slots" % parallel, settings.ctx_size)
        n_ctx = n_ctx_seq * parallel
        if h.architecture == "t5" and parallel > 1:
            # Its position bias has no dimension for streams: GGML_ASSERT(ggml_can_repeat) when graphs are reserved.
            raise Refused("kv_unified", "t5 cannot split its cache over %d slots; write true" % parallel, "false")
    n_tokens = min(n_ctx, n_ubatch)
    if h.architecture in ONE_SEQUENCE and not unified and n_tokens % parallel and not all(h.recurrent[: h.n_layer]):
        # GGML_ASSERT(ggml_can_repeat) when graphs are reserved.
        message = "%s needs a multiple of its %d slots; write %d, or kv_unified: true"
        raise Refused("ubatch_size", message % (h.architecture, parallel, padded(n_tokens, parallel)), n_tokens)
    rows = parallel * (1 + settings.draft_max)
    if settings.logits == "fit_params" or settings.embedding or h.architecture in ("t5", "t5encoder"):
        rows = n_batch
    return Context(
        n_ctx=n_ctx,
        n_ctx_seq=n_ctx_seq,
        n_seq_max=parallel,
        kv_unified=unified,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        n_tokens=n_tokens,
        n_outputs=min(n_tokens, rows, n_batch),
        type_k=settings.cache_type_k.lower(),
        type_v=settings.cache_type_v.lower(),
        flash_attn=flash,
        offload_kqv=not settings.no_kv_offload,
        swa_full=settings.swa_full,
        n_rs_seq=settings.n_rs_seq if h.architecture in ROLLBACK else 0,
    )


def _check_words(settings: Settings) -> None:
    for name in ("cache_type_k", "cache_type_v"):
        value = getattr(settings, name)
        if value.lower() not in CACHE_TYPES:
            raise Refused(name, "write one of %s" % ", ".join(CACHE_TYPES), value)
    if settings.flash_attn not in FLASH_ATTENTION:
        raise Refused("flash_attn", "write one of %s" % ", ".join(FLASH_ATTENTION), settings.flash_attn)
    if settings.split_mode not in SPLIT_MODES:
        raise Refused("split_mode", "write one of %s" % ", ".join(SPLIT_MODES), settings.split_mode)
    if isinstance(settings.gpu_layers, str) and settings.gpu_layers not in ("all", "auto"):
        raise Refused("gpu_layers", "write a number of layers, all or auto", settings.gpu_layers)
    if settings.n_cpu_moe < 0:
        raise Refused("n_cpu_moe", "write a number of layers", settings.n_cpu_moe)


def _flash_attention(h: Hparams, settings: Settings) -> bool | None:
    """llama_init_from_model's part of the decision: None is left to a trial with the devices."""
    wanted = {"on": True, "off": False, "auto": None}[settings.flash_attn]
    if h.architecture == "grok" and wanted is not False:
        wanted = False
    if settings.split_mode == "tensor":
        if h.architecture in NO_TENSOR_SPLIT:
            raise Refused("split_mode", "llama.cpp cannot split %s so; write layer" % h.architecture, "tensor")
        if wanted is False:
            raise Refused(
                "flash_attn", "split_mode tensor needs flash attention; write on or auto", settings.flash_attn
            )
        wanted = True
    if by_name(settings.cache_type_v).block_elements > 1:
        if wanted is False:
            raise Refused(
                "cache_type_v",
                "quantised values need flash attention, which is off%s; write f16"
                % (" with grok" if h.architecture == "grok" else ""),
                settings.cache_type_v,
            )
        wanted = True
    return wanted


def _check_caches(h: Hparams, settings: Settings, flash: bool | None) -> None:
    """What llama_init_from_model refuses of cache types, and the rows that ggml cannot make."""
    type_k, type_v = by_name(settings.cache_type_k), by_name(settings.cache_type_v)
    if (h.mla or h.architecture == "deepseek4") and type_k != type_v:
        raise Refused(
            "cache_type_v",
            "%s keeps keys and values in one; write %s, as for keys" % (h.architecture, settings.cache_type_k),
            settings.cache_type_v,
        )
    if flash is False or h.architecture in NO_MEMORY:
        return
    for layer in range(h.n_layer):
        slides = h.swa[layer]
        widths = (
            ("cache_type_k", type_k, h.head_k_swa if slides else h.head_k),
            ("cache_type_v", type_v, h.head_v_swa if slides else h.head_v),
        )
        for name, kind, width in widths:
            if kind.block_elements > 1 and width % kind.block_elements:
                raise Refused(
                    name,
                    "heads are %d wide and its blocks %d; write f16" % (width, kind.block_elements),
                    kind.name.lower(),
                )


def caches(model: ModelFacts, context: Context) -> tuple[Cache, ...]:
    """Return every memory module that llama_model::create_memory makes for this model."""
    return _caches(hparams(model), context)


@lru_cache(maxsize=4096)
def _caches(h: Hparams, context: Context) -> tuple[Cache, ...]:
    arch = h.architecture
    every = range(h.n_layer_all)
    trunk = range(h.n_layer)
    if arch in NO_MEMORY or arch == "gemma4-assistant":
        # The assistant looks into the cache of the model that it drafts for (layer_share_cb).
        return ()
    if arch == "deepseek4":
        return _deepseek4(h, context)
    if arch in RECURRENT:
        return (_recurrent_state(h, context, trunk),)
    if arch == "minimax-m3":
        return _kv(h, context, every), _indexer(h, context, every[h.dense_lead :])
    if arch in ("glm-dsa", "deepseek32"):
        owners = [layer for layer in trunk if arch != "glm-dsa" or h.indexer_full[layer]]
        return _kv(h, context, trunk), _indexer(h, context, owners)
    if arch == "hy_v4" and h.indexer_top_k:
        return _kv(h, context, every), _indexer(h, context, [layer for layer in every if h.indexer_full[layer]])
    if arch == "dots3note":
        kv, swa = _sliding_pair(h, context, trunk)
        return kv, _indexer(h, context, [layer for layer in trunk if h.indexer_full[layer]]), swa
    if arch in HYBRID:
        return _hybrid(h, context)
    # The layers that predict ahead keep nothing, unless they are all there is, or in truth a router.
    layers = every if h.router_layer >= 0 or h.n_layer <= 0 else trunk
    return _sliding_pair(h, context, layers) if h.has_swa else (_kv(h, context, layers),)


def _hybrid(h: Hparams, context: Context) -> tuple[Cache, ...]:
    """llama_memory_hybrid and its relatives: which layers attend and which recur differs by architecture."""
    arch = h.architecture
    every = range(h.n_layer_all)
    attend = [layer for layer in every if not h.recurrent[layer]]
    recur = [layer for layer in range(h.n_layer) if h.recurrent[layer]]
    if arch == "falcon-h1":
        attend = list(every)
    elif arch in ("nemotron_h", "nemotron_h_moe"):
        attend = [layer for layer in attend if h.n_ff[layer] == 0]
        recur = [layer for layer in recur if h.n_ff[layer] == 0]
    elif arch in ("qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01", "glm5-next"):
        attend = [layer for layer in attend if layer < h.n_layer]
    state = _recurrent_state(h, context, recur)
    if h.has_swa:
        return (*_sliding_pair(h, context, attend), state)
    kv = _kv(h, context, attend)
    if arch == "glm5-next":
        return kv, _indexer_keys(h, context, [layer for layer in attend if h.indexer_full[layer]]), state
    if arch == "qwen4exp" and h.indexer_head_size:
        return kv, _indexer_keys(h, context, attend), state
    return kv, state


def _kv(
    h: Hparams,
    context: Context,
    layers: Sequence[int],
    kind: str = "kv",
    cells: int | None = None,
    streams: int | None = None,
    k_only: bool = False,
    widths: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Cache:
    """llama_kv_cache: one tensor of keys and one of values a layer, values not where both are one (MLA).

    ``cells`` and ``streams``: the whole context of every slot when not given. ``widths``: numbers
    in a key and a value of each layer, where they are not the model's own.
    """
    cells = context.n_ctx_seq if cells is None else cells
    streams = context.n_stream if streams is None else streams
    every = range(h.n_layer_all)
    wide_k, wide_v = widths or ([h.k_gqa(layer) for layer in every], [h.v_gqa(layer) for layer in every])
    tallest = max(wide_v, default=0)
    tensors = []
    for layer in layers:
        if 0 <= h.kv_from_start <= layer:
            continue
        tensors.append(_tensor(layer, "k", wide_k[layer], cells, streams, context.type_k, "cache_type_k"))
        if not (h.mla or k_only):
            # Transposed values are padded to the widest layer [TAG_V_CACHE_VARIABLE].
            width = tallest if context.v_trans else wide_v[layer]
            tensors.append(_tensor(layer, "v", width, cells, streams, context.type_v, "cache_type_v"))
    return Cache(kind, cells, streams, tuple(tensors))


def _tensor(layer: int, role: str, width: int, rows: int, streams: int, kind: str, setting: str) -> CacheTensor:
    try:
        row = by_name(kind).row_bytes(width)
    except ValueError as error:
        raise Refused(setting, "%s; write f16" % error, kind) from error
    return CacheTensor(layer, role, (width, rows, streams), kind, row * rows * streams)


def _sliding_pair(h: Hparams, context: Context, layers: Sequence[int]) -> tuple[Cache, Cache]:
    """llama_kv_cache_iswa: whole context for the dense layers, a window for the others."""
    dense = _kv(h, context, [layer for layer in layers if not h.swa[layer]])
    slides = [layer for layer in layers if h.swa[layer]]
    return dense, _kv(h, context, slides, "swa", swa_cells(h, context))


def swa_cells(h: Hparams, context: Context, unified: bool | None = None) -> int:
    """Cells of a sliding cache: the window of every sequence in it and one micro batch."""
    unified = context.kv_unified if unified is None else unified
    if context.swa_full:
        return context.n_ctx_seq
    wanted = h.n_swa * (context.n_seq_max if unified else 1) + context.n_ubatch
    return padded(min(context.n_ctx_seq, wanted), 256)


def _indexer(h: Hparams, context: Context, layers: Sequence[int]) -> Cache:
    """The keys of a lightning indexer (llama_kv_cache_dsa, _msa): one head, beside whatever values remain."""
    every = range(h.n_layer_all)
    wide_k = [h.head_k_swa if h.swa[layer] else h.indexer_head_size for layer in every]
    wide_v = [h.head_v_swa if h.swa[layer] else h.head_v for layer in every]
    return _kv(h, context, layers, "indexer", widths=(wide_k, wide_v))


def _indexer_keys(h: Hparams, context: Context, layers: Sequence[int]) -> Cache:
    """The keys of an indexer that pools (llama_memory_hybrid_idx): rows of a token side by side, no values."""
    width = h.indexer_head_size * (h.indexer_kpool_row if h.indexer_kpool > 0 else 1)
    wide = [width] * h.n_layer_all
    return _kv(h, context, layers, "indexer", k_only=True, widths=(wide, wide))


def _recurrent_state(h: Hparams, context: Context, layers: Sequence[int]) -> Cache:
    """llama_memory_recurrent: always single precision, a row a sequence and snapshot."""
    rows = context.n_seq_max * (1 + context.n_rs_seq)
    tensors = []
    for layer in layers:
        tensors.append(_tensor(layer, "r", h.n_embd_r, rows, 1, "f32", "model"))
        tensors.append(_tensor(layer, "s", h.n_embd_s, rows, 1, "f32", "model"))
        if h.ple_conv_state and h.ple[layer]:
            tensors.append(_tensor(layer, "p", h.ple_conv_state, rows, 1, "f32", "model"))
    return Cache("recurrent", context.n_seq_max, 1, tuple(tensors))


def _deepseek4(h: Hparams, context: Context) -> tuple[Cache, ...]:
    """llama_kv_cache_dsv4: a window of raw keys, compressed keys of two ratios, and what the compressors carry.

    Each slot has its own, also where the cache is unified; then each has the whole context.
    """
    streams = context.n_seq_max
    every = range(h.n_layer_all)
    own = [h.k_gqa(layer) for layer in every]
    index = [h.indexer_head_size] * h.n_layer_all
    head = h.head_k_swa if h.swa[0] else h.head_k

    def compressed(kind: str, ratio: int, width: list[int]) -> Cache:
        cells = padded(max(1, -(-context.n_ctx_seq // ratio)), 256)
        layers = [layer for layer in every if h.compress_ratios[layer] == ratio]
        return _kv(h, context, layers, kind, cells, streams, True, (width, width))

    def state(ratio: int, rows: int, width: int) -> Cache:
        planes = streams * (1 + context.n_rs_seq)
        tensors = [
            _tensor(layer, role, width, rows, planes, "f32", "model")
            for layer in range(h.n_layer)
            if h.compress_ratios[layer] == ratio
            for role in ("kv", "score")
        ]
        return Cache("state", rows, streams, tuple(tensors))

    return (
        _kv(h, context, every, "swa", swa_cells(h, context, unified=False), streams, True),
        compressed("csa", _CSA, own),
        compressed("hca", _HCA, own),
        compressed("indexer", _CSA, index),
        state(_CSA, 2 * _CSA, 2 * head),
        state(_HCA, _HCA, head),
        state(_CSA, 2 * _CSA, 2 * h.indexer_head_size),
    )


def padded_tensor(kind: str, type_name: str, width: int, nbytes: int) -> int:
    """What a buffer takes for a tensor whose rows have ``width`` numbers, in bytes.

    ``kind``: of the memory it lies in. CUDA reads quantised rows in steps of 512 numbers and adds
    what is missing to the last one (ggml_backend_cuda_buffer_type_get_alloc_size; ROCm is built
    from the same source); buffers are aligned to 128 bytes on devices and 32 in memory.
    """
    if kind in ("cuda", "rocm") and width % 512:
        block = by_name(type_name)
        if block.block_elements > 1:
            nbytes += block.row_bytes(512 - width % 512)
    return padded(nbytes, 32 if kind in ("cpu", "host") else 128)


def layer_context(model: ModelFacts, context: Context, kind: str) -> tuple[int, ...]:
    """Return what each layer keeps in memory of a ``kind``, in bytes; one entry a layer of ``n_layer_all``."""
    return _layer_context(hparams(model), context, kind)


@lru_cache(maxsize=4096)
def _layer_context(h: Hparams, context: Context, kind: str) -> tuple[int, ...]:
    found = [0] * h.n_layer_all
    for cache in _caches(h, context):
        for tensor in cache.tensors:
            found[tensor.layer] += padded_tensor(kind, tensor.type, tensor.shape[0], tensor.nbytes)
    return tuple(found)
