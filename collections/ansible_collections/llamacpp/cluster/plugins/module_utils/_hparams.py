# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A model's hyper-parameters as llama.cpp understands them, for every architecture it knows.

Source: llama_model_base::load_hparams and src/llama-hparams.{h,cpp} (b11434), and
``load_arch_hparams`` of each file in src/models/. What decides sizes only: which layers slide,
recur, share or predict ahead, and how wide keys, values and states are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar

from ansible_collections.llamacpp.cluster.plugins.module_utils._architectures import (
    ATTENTION_INTERVALS,
    DELTA_ATTENTION,
    DIFFUSION,
    INDEXED,
    KNOWN,
    LATENT,
    RECURRENT,
    RECURRENT_WITHOUT_HEADS,
    STATE_SPACE,
    WINDOWS,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import MAX_LAYERS, ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused

_Result = TypeVar("_Result")


def per_model(function: Callable[[ModelFacts], _Result]) -> Callable[[ModelFacts], _Result]:
    """Remember what ``function`` said of a model for as long as the model lives.

    Facts hold dictionaries, so they have no hash; they are told apart by identity.
    """
    known: dict[int, tuple[weakref.ref[ModelFacts], _Result]] = {}

    @wraps(function)
    def remembered(model: ModelFacts) -> _Result:
        key = id(model)
        entry = known.get(key)
        if entry is None or entry[0]() is not model:
            entry = (weakref.ref(model, lambda _gone: known.pop(key, None) and None), function(model))
            known[key] = entry
        return entry[1]

    return remembered


# LLAMA_MAX_EXPERTS in src/llama-hparams.h.
MAX_EXPERTS = 1024
# GLM 5.2 says which layers have an indexer of their own only by this default (src/models/glm-dsa.cpp).
_GLM_5_2_CONTEXT = 1 << 20


@dataclass(frozen=True)
class Hparams:
    """What llama.cpp derives from a model's keys. Tuples have one entry a layer, ``n_layer_all`` in all.

    ``n_layer_all`` counts the blocks that predict further tokens (``n_layer_nextn``) and those that
    llama.cpp adds itself; ``n_layer`` does not. ``head_k``, ``head_v``: numbers in a key and a value
    of one head, ``*_swa`` in the sliding layers. ``kv_from_start``: only so many layers have a cache
    of their own; -1: all. ``known``: whether this is an architecture of b11434.
    """

    architecture: str
    known: bool
    n_layer_all: int
    n_layer_nextn: int
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_embd_out: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    n_ff: tuple[int, ...]
    n_expert: int
    n_expert_used: tuple[int, ...]
    head_k: int
    head_v: int
    head_k_swa: int
    head_v_swa: int
    n_swa: int = 0
    swa: tuple[bool, ...] = ()
    recurrent: tuple[bool, ...] = ()
    has_swa: bool = False
    causal: bool = True
    mla: bool = False
    kv_from_start: int = -1
    router_layer: int = -1
    dense_lead: int = 0
    # recurrent state
    n_embd_r: int = 0
    n_embd_s: int = 0
    ple_conv_state: int = 0
    ple: tuple[bool, ...] = ()
    # sparse attention
    indexer_head_size: int = 0
    indexer_top_k: int = 0
    indexer_kpool: int = 0
    indexer_kpool_row: int = 3
    indexer_full: tuple[bool, ...] = ()
    compress_ratios: tuple[int, ...] = ()

    @property
    def n_layer(self) -> int:
        """Layers that every token passes."""
        return self.n_layer_all - self.n_layer_nextn

    def k_gqa(self, layer: int) -> int:
        """Numbers in the key of one token (n_embd_k_gqa)."""
        return (self.head_k_swa if self.swa[layer] else self.head_k) * self.n_head_kv[layer]

    def v_gqa(self, layer: int) -> int:
        """Numbers in the value of one token (n_embd_v_gqa)."""
        return (self.head_v_swa if self.swa[layer] else self.head_v) * self.n_head_kv[layer]


class _Keys:
    """Reads hyper-parameters as llama_model_loader does: ``get_key``, ``get_arr``, ``get_key_or_arr``."""

    def __init__(self, model: ModelFacts) -> None:
        self._model = model
        self._values = model.hyperparameters

    def number(self, key: str, default: int = 0) -> int:
        """Return a number that llama.cpp reads as 32 bits without sign; raises :class:`Refused` for any other."""
        value = self._values.get(key)
        return default if value is None else self._whole(key, value)

    def _whole(self, key: str, value: Any) -> int:
        if isinstance(value, (list, tuple, dict, str)) or not 0 <= value < 1 << 32:
            where = "%s.%s" % (self._model.architecture, key)
            raise Refused("model", "%s is %r, which is no number that llama.cpp takes" % (where, value))
        return int(value)

    def array(self, key: str) -> list[int] | None:
        value = self._values.get(key)
        return [self._whole(key, item) for item in value] if isinstance(value, (list, tuple)) else None

    def layers(self, key: str, count: int, default: Sequence[int] | int = 0) -> tuple[int, ...]:
        """One number a layer; a file gives one for all or a list."""
        value = self._values.get(key)
        if isinstance(value, (list, tuple)):
            found = [self._whole(key, item) for item in value[:count]]
            return tuple(found + [0] * (count - len(found)))
        if value is not None:
            return (self._whole(key, value),) * count
        return (default,) * count if isinstance(default, int) else tuple(default)

    def has_tensor(self, name: str, layer: int) -> bool:
        wanted = "blk.*." + name
        return any(group.name == wanted and layer in group.layers for group in self._model.tensor_groups)


@per_model
def hparams(model: ModelFacts) -> Hparams:
    """Return a model's hyper-parameters as llama.cpp derives them.

    Raises :class:`Refused` for a file that llama-server cannot serve by itself. An unknown
    architecture is read as a plain transformer, with what its keys say.
    """
    arch = model.architecture
    if arch == "clip":
        raise Refused("model", "it is a projector; give it as mmproj, and the language model as the model", arch)
    reason = model.servable()
    if reason is not None:
        raise Refused("model", reason)
    keys = _Keys(model)
    n_all = model.n_layers
    base = _base(keys, arch, n_all)
    _check(base, keys)
    if arch == "graniteswitch":
        # Its adapters' router is one more layer with one head, after the others.
        base = replace(
            base,
            n_layer_all=n_all + 1,
            n_layer_nextn=1,
            router_layer=n_all,
            n_head=(*base.n_head, 1),
            n_head_kv=(*base.n_head_kv, 1),
            n_ff=(*base.n_ff, 0),
            n_expert_used=(*base.n_expert_used, 0),
        )
    elif arch == "nanbeige":
        loops = max(keys.number("num_loops", 1), 1)
        base = replace(
            base,
            n_layer_all=n_all * loops,
            n_head=base.n_head * loops,
            n_head_kv=base.n_head_kv * loops,
            n_ff=base.n_ff * loops,
            n_expert_used=base.n_expert_used * loops,
        )
    elif arch == "deepseek4" and base.n_layer_nextn and not keys.has_tensor("nextn.eh_proj.weight", base.n_layer):
        base = replace(base, n_layer_nextn=0)
    recurrent = _recurrent(arch, base, keys)
    base = replace(base, recurrent=recurrent, **_sliding(arch, base, keys, recurrent))
    return replace(base, **_state(arch, base, keys), **_indexer(arch, base, keys))


def _base(keys: _Keys, arch: str, n_all: int) -> Hparams:
    heads = keys.layers("attention.head_count", n_all)
    n_embd = keys.number("embedding_length")
    head_k = head_v = 0
    # Only the first layer is asked, as llama.cpp does; plamo2's may be one without heads.
    if heads and (heads[0] or arch == "plamo2"):
        width = n_embd // heads[0] if heads[0] else 0
        head_k = keys.number("attention.key_length", width)
        head_v = keys.number("attention.value_length", width)
    if arch in ("kimi-k3", "glm5-next"):
        head_v = keys.number("attention.kv_lora_rank")
    n_nextn = keys.number("nextn_predict_layers")
    experts, experts_used = keys.number("expert_count"), keys.layers("expert_used_count", n_all)
    if experts <= 1 and arch in ("hunyuan_vl", "hunyuan-dense"):
        experts, experts_used = 0, (0,) * n_all
    return Hparams(
        architecture=arch,
        known=arch in KNOWN,
        n_layer_all=n_all,
        n_layer_nextn=n_nextn if n_nextn <= n_all else 0,
        n_ctx_train=keys.number("context_length"),
        n_vocab=keys.number("vocab_size"),
        n_embd=n_embd,
        n_embd_out=keys.number("embedding_length_out") or n_embd,
        n_head=heads,
        n_head_kv=keys.layers("attention.head_count_kv", n_all, heads),
        n_ff=keys.layers("feed_forward_length", n_all),
        n_expert=experts,
        n_expert_used=experts_used,
        head_k=head_k,
        head_v=head_v,
        head_k_swa=keys.number("attention.key_length_swa", head_k),
        head_v_swa=keys.number("attention.value_length_swa", head_v),
        causal=bool(keys.number("attention.causal", 1)) and arch not in DIFFUSION and arch != "gemma-embedding",
        mla=arch in LATENT
        and bool(keys.number("attention.key_length_mla") and keys.number("attention.value_length_mla")),
        kv_from_start=_own_caches(arch, keys, n_all),
        dense_lead=keys.number("leading_dense_block_count"),
    )


def _check(base: Hparams, keys: _Keys) -> None:
    """Raise :class:`Refused` for what llama_model_base::load_hparams, or an architecture, does not take."""
    arch, used = base.architecture, max(base.n_expert_used, default=0)
    problem = ""
    if not base.n_embd:
        problem = "it has no embedding_length"
    elif base.n_expert > MAX_EXPERTS or used > base.n_expert or bool(base.n_expert) != bool(used):
        problem = "%d of %d experts cannot be used" % (used, base.n_expert)
    elif arch == "nanbeige" and not 1 <= base.n_layer_all * keys.number("num_loops", 1) <= MAX_LAYERS:
        problem = "%d layers cannot be repeated %d times" % (base.n_layer_all, keys.number("num_loops", 1))
    elif arch == "hrm_text":
        cycles = keys.number("hrm.h_cycles") * (keys.number("hrm.l_cycles") + 1)
        if keys.number("hrm.layers_per_stack") * cycles != base.n_layer:
            problem = "its cycles do not come to %d layers" % base.n_layer
    if problem:
        raise Refused("model", "%s: llama.cpp does not load it" % problem)


def _own_caches(arch: str, keys: _Keys, n_all: int) -> int:
    if arch == "gemma3n":
        return 20
    if arch == "gemma4":
        return n_all - keys.number("attention.shared_kv_layers")
    return -1


def _recurrent(arch: str, base: Hparams, keys: _Keys) -> tuple[bool, ...]:
    count = base.n_layer_all
    if arch in RECURRENT or arch == "falcon-h1":
        return (True,) * count
    if arch in RECURRENT_WITHOUT_HEADS:
        last = count if arch == "glm5-next" else base.n_layer
        return tuple(layer < last and base.n_head_kv[layer] == 0 for layer in range(count))
    if arch in ("nemotron_h", "nemotron_h_moe"):
        return tuple(
            layer < base.n_layer and base.n_head_kv[layer] == 0 and base.n_ff[layer] == 0 for layer in range(count)
        )
    if arch in ATTENTION_INTERVALS:
        listed = keys.layers("attention.recurrent_layers", count, (-1,) * count)
        if -1 not in listed:
            return tuple(bool(item) for item in listed)
        every = max(keys.number("full_attention_interval", ATTENTION_INTERVALS[arch]), 1)
        return tuple(layer < base.n_layer and (layer + 1) % every != 0 for layer in range(count))
    return (False,) * count


def _sliding(arch: str, base: Hparams, keys: _Keys, recurrent: Sequence[bool]) -> dict[str, Any]:
    """Say which layers slide and how far: the ``swa_type`` part of each ``load_arch_hparams``."""
    count, last = base.n_layer_all, base.n_layer
    window = keys.number("attention.sliding_window", -1)
    none = {"swa": (False,) * count, "n_swa": 0, "has_swa": False}
    period: int | None
    dense_first = False
    if arch == "llama4":
        if window == 0:
            return none
        window, period = 8192, 4
    elif arch == "smallthinker":
        if window <= 0:
            return none
        window, period, dense_first = 4096, 4, True
    elif arch == "exaone4":
        if last != 64:
            return none
        window, period = (4096 if window < 0 else window), 4
    elif arch == "lfm2":
        if window <= 0:
            return none
        slides = tuple(layer < last and not recurrent[layer] for layer in range(count))
        return {"swa": slides, "n_swa": window, "has_swa": True}
    elif arch in WINDOWS:
        rule = WINDOWS[arch]
        period, dense_first = rule.period, rule.dense_first
        window = rule.tokens if window < 0 else window
        if arch == "dflash" and keys.number("hyper_connection.count"):
            period = 0
        elif window == 0 and rule.optional:
            return none
    else:
        return none
    listed = keys.array("attention.sliding_window_pattern")
    if arch != "deepseek4" and listed is not None:
        slides = tuple(layer < len(listed) and bool(listed[layer]) for layer in range(count))
    else:
        if period:
            period = keys.number("attention.sliding_window_pattern", period)
        slides = tuple(_slides(layer, period, dense_first, last, arch) for layer in range(count))
    return {"swa": slides, "n_swa": window, "has_swa": True}


def _slides(layer: int, period: int | None, dense_first: bool, last: int, arch: str) -> bool:
    """llama_hparams::set_swa_pattern; the layers that predict ahead are dense but for deepseek4."""
    if layer >= last:
        return arch in ("deepseek4", "dflash")
    if period is None:
        return False
    if period == 0:
        return True
    return layer % period != 0 if dense_first else layer % period < period - 1


def _state(arch: str, base: Hparams, keys: _Keys) -> dict[str, Any]:
    """Numbers of recurrent state in a layer for one sequence (llama_hparams::n_embd_r and n_embd_s)."""
    found: dict[str, Any] = {}
    first_heads = base.n_head[0] if base.n_head else 0
    kernel = keys.number("ssm.conv_kernel")
    if arch in RECURRENT and keys.number("wkv.head_size"):
        found["n_embd_r"] = keys.number("token_shift_count", 2) * base.n_embd
        found["n_embd_s"] = base.n_embd * keys.number("wkv.head_size")
    elif arch in ("lfm2", "lfm2moe"):
        found["n_embd_r"] = base.n_embd * max(keys.number("shortconv.l_cache") - 1, 0)
    elif arch in DELTA_ATTENTION:
        size = keys.number("kda.head_dim")
        found["n_embd_r"] = 3 * (kernel - 1 if kernel > 0 else 3) * first_heads * size
        found["n_embd_s"] = size * size * first_heads
    elif arch == "minimax-01":
        found["n_embd_s"] = base.head_k * base.head_k * first_heads
    elif arch in STATE_SPACE:
        groups = 0 if arch in ("mamba", "jamba") else keys.number("ssm.group_count")
        inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
        found["n_embd_r"] = max(kernel - 1, 0) * (inner + 2 * groups * state)
        found["n_embd_s"] = state * inner
    if arch == "qwen4exp":
        listed = keys.array("ple.layers") or []
        streams = keys.number("hyper_connection.count")
        found["ple"] = tuple(layer in listed for layer in range(base.n_layer_all))
        rows = max(keys.number("ple.conv_kernel") - 1, 0) * keys.number("ple.ngram_size")
        found["ple_conv_state"] = rows * streams * base.n_embd if listed else 0
    if arch in ("deepseek4", "qwen4exp"):
        found["n_embd_out"] = keys.number("hyper_connection.count") * base.n_embd
    return found


def _indexer(arch: str, base: Hparams, keys: _Keys) -> dict[str, Any]:
    """What sparse attention caches beside keys and values."""
    if arch not in INDEXED:
        return {}
    count = base.n_layer_all
    ratios = keys.layers("attention.compress_ratios", count)
    default: Sequence[int] | int = 0
    if arch in ("glm-dsa", "glm5-next"):
        default = 1
        if arch == "glm-dsa" and base.n_ctx_train >= _GLM_5_2_CONTEXT:
            default = tuple(int(layer < 2 or (layer < 78 and layer % 4 == 2)) for layer in range(count))
    found: dict[str, Any] = {
        "indexer_head_size": keys.number("attention.indexer.key_length"),
        "indexer_top_k": keys.number("attention.indexer.top_k"),
        "indexer_kpool": keys.number("attention.indexer.kpool"),
        "indexer_full": tuple(bool(item) for item in keys.layers("attention.indexer.types", count, default)),
        "compress_ratios": ratios,
    }
    if arch == "qwen4exp":
        found["indexer_kpool"] = max(ratios, default=0)
        found["indexer_kpool_row"] = 2
    return found
