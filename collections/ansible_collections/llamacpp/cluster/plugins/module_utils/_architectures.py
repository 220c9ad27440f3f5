# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The architectures of llama.cpp b11434, and what sets them apart where memory is concerned.

Source: src/llama-arch.cpp, llama_model_mapping and create_memory in src/llama-model.cpp, and
``load_arch_hparams`` and ``load_arch_tensors`` of each file in src/models/. A new build is read
again for these tables: an architecture that is missing here is estimated as a plain transformer.
"""

from __future__ import annotations

from typing import NamedTuple


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# llm_arch_is_recurrent and llm_arch_is_hybrid.
RECURRENT = _names("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7")
HYBRID = _names(
    "bailingmoe3 deepseek4 falcon-h1 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe minimax-01"
    " nemotron_h nemotron_h_moe plamo2 qwen3next qwen35 qwen35moe qwen4exp"
)
# llm_arch_is_diffusion; and all that create_memory gives no memory.
DIFFUSION = _names("dream llada llada-moe rnd1")
NO_MEMORY = DIFFUSION | _names(
    "bert clef eurobert gemma-embedding jina-bert-v2 jina-bert-v3 modern-bert neo-bert nomic-bert nomic-bert-moe"
    " wavtokenizer-dec"
)
# They need the context of another model (llama_context's constructor): --model-draft, never --model.
DRAFT_ONLY = _names("gemma4-assistant eagle3 dflash")

# All that llama_model_mapping builds.
KNOWN = (
    RECURRENT
    | HYBRID
    | NO_MEMORY
    | DRAFT_ONLY
    | _names(
        "afmoe apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm"
        " cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 dots1 dots3note ernie4_5"
        " ernie4_5-moe exaone exaone-moe exaone4 falcon gemma gemma2 gemma3 gemma3n gemma4 glm-dsa glm4 glm4moe gpt-oss"
        " gpt2 gptneox granite granite_swa granitemoe graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe"
        " hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 laguna llama llama-embed llama4 maincoder maple mellum mimo2"
        " minicpm minicpm3 minimax-m2 minimax-m3 mistral3 mistral4 mpt muse-glimmer nanbeige nemotron olmo olmo2"
        " olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo3 plm pockettts qwen qwen2 qwen2moe"
        " qwen2vl qwen3 qwen3moe qwen3tts qwen3vl qwen3vlmoe refact seed_oss smallthinker smollm3 spark2_5"
        " stablelm starcoder starcoder2 step35 t5 t5encoder talkie xverse"
    )
)


class Window(NamedTuple):
    """Sliding attention of an architecture.

    ``tokens``: the window where the file does not say. ``period``: every so many layers one is
    dense, the last of them, or the first with ``dense_first``; 0: all slide; None: the file says
    which. ``optional``: a window of 0 tokens means that none slides.
    """

    tokens: int
    period: int | None
    dense_first: bool = False
    optional: bool = False


# llama4, smallthinker, exaone4 and lfm2 have rules of their own.
WINDOWS: dict[str, Window] = {
    "afmoe": Window(0, 4, optional=True),
    "cohere2": Window(0, 4),
    "cohere2moe": Window(0, 4, dense_first=True),
    "deepseek4": Window(0, 0),
    "dflash": Window(0, None, optional=True),
    "dots3note": Window(0, None),
    "exaone-moe": Window(128, 4),
    "gemma-embedding": Window(0, 6),
    "gemma2": Window(4096, 2),
    "gemma3": Window(0, 6, optional=True),
    "gemma3n": Window(0, 5),
    "gemma4": Window(0, None),
    "gemma4-assistant": Window(0, None),
    "gpt-oss": Window(0, 2),
    "granite_swa": Window(0, None),
    "laguna": Window(0, 4, dense_first=True, optional=True),
    "maple": Window(0, None),
    "mellum": Window(0, 4, optional=True),
    "mimo2": Window(0, None),
    "modern-bert": Window(0, 3, dense_first=True, optional=True),
    "muse-glimmer": Window(0, 4),
    "olmo2": Window(0, 4, optional=True),
    "plamo3": Window(0, 8, optional=True),
    "spark2_5": Window(0, None),
    "step35": Window(0, None),
}

# A layer without key and value heads is recurrent.
RECURRENT_WITHOUT_HEADS = _names("bailingmoe3 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe plamo2")
# Every n-th layer is attention unless the file lists the recurrent ones.
ATTENTION_INTERVALS = {"clef": 4, "minimax-01": 8, "qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4}
# They keep keys and values as one latent vector where the file has both *_length_mla keys.
LATENT = _names("bailingmoe3 deepseek2 deepseek32 dots3note glm-dsa glm5-next hy_v4 kimi-k3 kimi-linear mistral4")
DELTA_ATTENTION = _names("bailingmoe3 glm5-next kimi-k3 kimi-linear")
INDEXED = _names("deepseek32 deepseek4 dots3note glm-dsa glm5-next hy_v4 minimax-m3 qwen4exp")
STATE_SPACE = _names(
    "clef falcon-h1 granitehybrid jamba mamba mamba2 nemotron_h nemotron_h_moe plamo2 qwen3next qwen35 qwen35moe"
    " qwen4exp"
)
# llm_arch_supports_rs_rollback: only these keep snapshots of recurrent state.
ROLLBACK = _names(
    "bailingmoe3 deepseek4 glm5-next kimi-k3 lfm2 lfm2moe nemotron_h nemotron_h_moe qwen35 qwen35moe qwen4exp"
)
# llm_arch_supports_sm_tensor: these cannot be split tensor by tensor.
NO_TENSOR_SPLIT = _names(
    "bailingmoe3 bitnet deepseek2 deepseek32 dots3note falcon-h1 gemma3n glm-dsa glm5-next granitehybrid grok hy_v4"
    " jamba kimi-k3 kimi-linear mamba mamba2 minicpm3 minimax-01 minimax-m2 minimax-m3 mistral4 mpt nemotron_h"
    " nemotron_h_moe olmo2 olmoe plamo2 qwen3tts t5"
)

# No output matrix: they return embeddings, or multiply with the embedding where it lies (bitnet).
# All others without one get a second copy of the embedding with the output.
NOT_TIED = _names(
    "bert bitnet clef clip eagle3 eurobert jina-bert-v2 jina-bert-v3 modern-bert neo-bert nomic-bert nomic-bert-moe"
)
# They create the output before the embedding that it is a copy of, and so have two of them even in the same memory.
OUTPUT_FIRST = _names("gemma3n gemma4")
# graph_reserve with one sequence (llama_context::sched_reserve): the streams of a cache have to divide the batch.
ONE_SEQUENCE = _names("kimi-linear minimax-01")
# TENSOR_SKIP for the blocks that predict ahead, unless they are asked for (--spec-type draft-mtp).
SKIPS_NEXTN = _names(
    "bailingmoe2 bailingmoe3 cohere2moe deepseek2 deepseek32 deepseek4 dots3note exaone-moe exaone4 glm-dsa glm4"
    " glm4moe glm5-next hy_v3 mimo2 mistral4 nemotron_h nemotron_h_moe qwen3next qwen35 qwen35moe qwen4exp step35"
)
