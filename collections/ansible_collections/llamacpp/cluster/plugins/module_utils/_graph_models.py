# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which function builds the graph of which architecture (llama_model_mapping of llama.cpp b11434)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_delta import bailingmoe3, kimi_linear, qwen3next
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_dense import (
    arctic,
    bitnet,
    chameleon,
    cogvlm,
    deci,
    gptneox,
    grok,
    grovemoe,
    llama4,
    mistral3,
    parallel,
    smallthinker,
    stablelm,
    talkie,
    transformer,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_encoder import (
    bert,
    encoder,
    t5_decoder,
    t5_encoder,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_gemma import gemma3n, gemma4
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_hybrid import (
    falcon_h1,
    granite_hybrid,
    jamba,
    lfm2,
    nemotron_h,
    plamo2,
    state_space,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_latent import deepseek2, minicpm3, plm
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import Traits
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_loops import hrm_text, minimax_01, minimax_m3
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_rwkv import rwkv, rwkv_attention
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_sparse import sparse_latent

Builder = Callable[[Blocks], None]


def _like_llama(**traits: Any) -> Builder:
    return partial(transformer, t=Traits(**traits))


def _side_by_side(**traits: Any) -> Builder:
    return partial(parallel, t=Traits(**traits))


_SOFTMAX: dict[str, Any] = {"gating": "softmax", "norm_weights": True}
_POST_NORMS: dict[str, Any] = {"post_attention": "post_attention_norm", "post_ffn": "post_ffw_norm"}
_LAYER_NORM: dict[str, Any] = {"rms": False}

BUILDERS: dict[str, Builder] = {
    **dict.fromkeys(
        [
            "llama",
            "qwen2",
            "qwen",
            "qwen3",
            "internlm2",
            "xverse",
            "refact",
            "orion_",
            "seed_oss_",
            "exaone",
            "smollm3_",
            "arcee_",
            "ernie4_5",
            "paddleocr",
            "pangu-embedded",
            "qwen2vl",
            "hunyuan_vl_",
            "hunyuan-dense_",
            "maincoder_",
            "plamo_",
            "minicpm",
            "granite_",
            "chatglm",
            "nanbeige",
            "apertus",
            "phi3_",
            "openelm",
            "llama-embed",
            "qwen3tts",
            "pockettts",
        ],
        _like_llama(**_SOFTMAX),
    ),
    "arcee": _like_llama(relu_squared=True),
    "seed_oss": _like_llama(before_ffn="post_attention_norm"),
    "smollm3": _like_llama(rope="step"),
    "maincoder": _like_llama(norm_late=True),
    "hunyuan-dense": _like_llama(norm_late=True),
    "hunyuan_vl": _like_llama(norm_late=True),
    "hunyuan-moe": _like_llama(norm_late=True, shared_first=True, **_SOFTMAX),
    "phi3": _like_llama(scale_queries=True, residual_first=True, **_SOFTMAX),
    "phimoe": _like_llama(scale_queries=True, residual_first=True, **_SOFTMAX),
    "orion": _like_llama(**_LAYER_NORM),
    "starcoder2": _like_llama(**_LAYER_NORM),
    "olmo": _like_llama(before_attention="", before_ffn="", **_LAYER_NORM),
    "gpt2": _like_llama(rope="none", **_LAYER_NORM),
    "starcoder": _like_llama(rope="none", **_LAYER_NORM),
    "codeshell": _like_llama(**_LAYER_NORM),
    "jais": _like_llama(rope="none", **_LAYER_NORM),
    "jais2": _like_llama(relu_squared=True, **_LAYER_NORM),
    "nemotron": _like_llama(relu_squared=True, **_LAYER_NORM),
    "mpt": _like_llama(rope="none", norm_flat=True, **_LAYER_NORM),
    "bloom": _like_llama(rope="none", norm_embedding="token_embd_norm", **_LAYER_NORM),
    "baichuan": _like_llama(rope="7b"),
    "refact": _like_llama(rope="none", dense=True),
    "gemma": _like_llama(scale_embedding=True, scale_queries=True),
    "gemma2": _like_llama(scale_embedding=True, scale_queries=True, softcap=True, **_POST_NORMS),
    "gemma3": _like_llama(scale_tokens=True, scale_queries=True, **_POST_NORMS),
    "glm4": _like_llama(**_POST_NORMS),
    "plamo3": _like_llama(**_POST_NORMS),
    "olmo2": _like_llama(before_attention=None, before_ffn=None, norm_flat=True, **_POST_NORMS),
    "exaone4": _like_llama(before_attention=None, before_ffn=None, rope="swa", **_POST_NORMS),
    "granite": _like_llama(residual_scale=True, logit_scale=True, **_SOFTMAX),
    "granitemoe": _like_llama(residual_scale=True, logit_scale=True, **_SOFTMAX),
    "granite_swa": _like_llama(residual_scale=True, logit_scale=True, sinks=True, **_SOFTMAX),
    "minicpm": _like_llama(residual_scale=True, logit_scale=True, **_SOFTMAX),
    "spark2_5": _like_llama(gate="after"),
    "muse-glimmer": _like_llama(norm_embedding="", rope="swa", gate="before", logit_scale=True, **_POST_NORMS),
    # experts
    "qwen3moe": _like_llama(**_SOFTMAX),
    "qwen2moe": _like_llama(gating="softmax", norm_weights=False),
    "qwen3vl": _like_llama(),
    "qwen3vlmoe": _like_llama(**_SOFTMAX),
    "olmoe": _like_llama(norm_flat=True, gating="softmax", norm_weights=False),
    "dbrx": _like_llama(before_ffn="attn_output_norm", **_LAYER_NORM, **_SOFTMAX),
    "deepseek": _like_llama(gating="softmax", norm_weights=False),
    "bailingmoe": _like_llama(gating="softmax"),
    "bailingmoe2": _like_llama(),
    "dots1": _like_llama(),
    "ernie4_5-moe": _like_llama(**_SOFTMAX),
    "minimax-m2": _like_llama(norm_flat=True, norm_weights=True),
    "maple": _like_llama(rope="swa", gating="softmax", norm_weights=True, weight_scale=False),
    "mellum": _like_llama(**_SOFTMAX),
    "glm4moe": _like_llama(before_ffn="post_attention_norm", hidden="before"),
    "exaone-moe": _like_llama(rope="swa"),
    "hy_v3": _like_llama(pick="after", hidden="after"),
    "afmoe": _like_llama(scale_embedding=True, rope="step", gate="before", **_POST_NORMS),
    "laguna": _like_llama(gate="before"),
    "step35": _like_llama(gate="after", pick="before", hidden="before"),
    "mimo2": _like_llama(sinks=True, gating="sigmoid", norm_weights=True, pick="layer"),
    "gpt-oss": _like_llama(
        sinks=True,
        before_ffn="post_attention_norm",
        gating="softmax_weight",
        norm_weights=False,
        pick="before",
        hidden="before",
    ),
    "llama4": llama4,
    "mistral3": mistral3,
    "mistral4": deepseek2,
    "arctic": arctic,
    "grok": grok,
    "grovemoe": grovemoe,
    "smallthinker": smallthinker,
    # side by side
    "command-r": _side_by_side(rms=False, logit_scale=True),
    "cohere2": _side_by_side(rms=False, rope="swa", logit_scale=True),
    "cohere2moe": _side_by_side(rms=False, rope="swa", logit_scale=True, pick="after", hidden="after"),
    "phi2": _side_by_side(rms=False, scale_queries=True),
    "plamo": _side_by_side(),
    "falcon": _side_by_side(rms=False),
    "gptneox": gptneox,
    "stablelm": stablelm,
    # diffusion: no cache
    "dream": _like_llama(cached=False),
    "llada": _like_llama(cached=False),
    "llada-moe": _like_llama(cached=False, gating="softmax", norm_weights=False),
    "rnd1": _like_llama(cached=False, **_SOFTMAX),
    # embeddings
    **dict.fromkeys(["bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3"], bert),
    "modern-bert": partial(encoder, t=Traits(rms=False, cached=False, norm_embedding="token_embd_norm")),
    "eurobert": partial(encoder, t=Traits(cached=False)),
    "llama-embed": partial(encoder, t=Traits(cached=False)),
    "neo-bert": partial(encoder, t=Traits(cached=False), norm="enc.output_norm"),
    "gemma-embedding": partial(encoder, t=Traits(cached=False, scale_tokens=True, scale_queries=True, **_POST_NORMS)),
    "t5": t5_decoder,
    "t5encoder": t5_encoder,
    # of their own
    "bitnet": bitnet,
    "talkie": talkie,
    "deci": deci,
    "chameleon": chameleon,
    "cogvlm": cogvlm,
    "deepseek2": deepseek2,
    "falcon-h1": falcon_h1,
    "mamba": state_space,
    "mamba2": state_space,
    "nemotron_h": nemotron_h,
    "nemotron_h_moe": nemotron_h,
    "deepseek2-ocr": deepseek2,
    "gemma3n": gemma3n,
    "gemma4": gemma4,
    "deepseek32": sparse_latent,
    "glm-dsa": sparse_latent,
    "bailingmoe3": bailingmoe3,
    "hrm_text": hrm_text,
    "minimax-01": minimax_01,
    "minimax-m3": minimax_m3,
    "minicpm3": minicpm3,
    "rwkv6": rwkv,
    "rwkv7": rwkv,
    "rwkv6qwen2": rwkv_attention,
    "arwkv7": rwkv_attention,
    "plm": plm,
    "qwen3next": qwen3next,
    "qwen35": qwen3next,
    "qwen35moe": qwen3next,
    "kimi-linear": kimi_linear,
    "jamba": jamba,
    "granitehybrid": granite_hybrid,
    "plamo2": plamo2,
    "lfm2": lfm2,
    "lfm2moe": lfm2,
}


def builder_for(architecture: str) -> Builder | None:
    """Return what builds the graph of an architecture, if it is known."""
    return BUILDERS.get(architecture)
