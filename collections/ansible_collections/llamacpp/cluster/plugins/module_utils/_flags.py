# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The flags of llama-server and ggml-rpc-server: one table, checked against b11434's ``--help``.

llama.cpp renames flags and moves defaults often; this is the only place that knows them.
Nothing that decides placement is left to a default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Flag(NamedTuple):
    """A flag that the plan sets: how it is written, its other spellings, the variable to use instead."""

    name: str
    aliases: tuple[str, ...]
    env: str
    variable: str


_ON = "it is always on"
_PLANNED = "the plan sets it"

# In the order in which they stand on the command line. llama-server resolves --device while
# it reads its arguments, so --rpc has to stand before it.
FLAGS: tuple[Flag, ...] = (
    Flag("--model", ("-m",), "LLAMA_ARG_MODEL", "model"),
    Flag("--alias", ("-a",), "LLAMA_ARG_ALIAS", "alias"),
    Flag("--rpc", (), "LLAMA_ARG_RPC", "nodes"),
    Flag("--device", ("-dev",), "LLAMA_ARG_DEVICE", "nodes"),
    Flag("--split-mode", ("-sm",), "LLAMA_ARG_SPLIT_MODE", "split_mode"),
    Flag("--tensor-split", ("-ts",), "LLAMA_ARG_TENSOR_SPLIT", "tensor_split"),
    Flag("--n-gpu-layers", ("-ngl", "--gpu-layers"), "LLAMA_ARG_N_GPU_LAYERS", "gpu_layers"),
    Flag("--cpu-moe", ("-cmoe",), "LLAMA_ARG_CPU_MOE", "cpu_moe"),
    Flag("--n-cpu-moe", ("-ncmoe",), "LLAMA_ARG_N_CPU_MOE", "n_cpu_moe"),
    Flag("--fit", ("-fit",), "LLAMA_ARG_FIT", _PLANNED),
    Flag("--ctx-size", ("-c",), "LLAMA_ARG_CTX_SIZE", "context"),
    Flag("--parallel", ("-np",), "LLAMA_ARG_N_PARALLEL", "parallel"),
    Flag("--kv-unified", ("-kvu",), "LLAMA_ARG_KV_UNIFIED", "kv_unified"),
    Flag("--no-kv-unified", ("-no-kvu",), "LLAMA_ARG_KV_UNIFIED", "kv_unified"),
    Flag("--batch-size", ("-b",), "LLAMA_ARG_BATCH", "batch"),
    Flag("--ubatch-size", ("-ub",), "LLAMA_ARG_UBATCH", "ubatch"),
    Flag("--cache-type-k", ("-ctk",), "LLAMA_ARG_CACHE_TYPE_K", "cache_type_k"),
    Flag("--cache-type-v", ("-ctv",), "LLAMA_ARG_CACHE_TYPE_V", "cache_type_v"),
    Flag("--flash-attn", ("-fa",), "LLAMA_ARG_FLASH_ATTN", "flash_attention"),
    Flag("--swa-full", (), "LLAMA_ARG_SWA_FULL", "swa_full"),
    Flag("--no-kv-offload", ("-nkvo", "--kv-offload", "-kvo"), "LLAMA_ARG_KV_OFFLOAD", "no_kv_offload"),
    # auto = mapped unless a device cannot; named because older builds had --mmap and --no-mmap.
    Flag("--load-mode", ("-lm",), "LLAMA_ARG_LOAD_MODE", _PLANNED),
    Flag("--threads", ("-t",), "LLAMA_ARG_THREADS", "threads"),
    Flag("--threads-batch", ("-tb",), "", "threads_batch"),
    Flag("--host", (), "LLAMA_ARG_HOST", "host"),
    Flag("--port", (), "LLAMA_ARG_PORT", "port"),
    Flag("--api-key-file", (), "LLAMA_ARG_API_KEY_FILE", "api_keys"),
    Flag("--metrics", (), "LLAMA_ARG_ENDPOINT_METRICS", _ON),
    # The proof after the start reads which device holds what from the lines of this level.
    Flag("--verbosity", ("-lv", "--log-verbosity"), "LLAMA_ARG_LOG_VERBOSITY", _PLANNED),
)

# Set for a projector that lies beside the model, where the instance's own words say nothing of one. After --rpc, too.
_PROJECTOR: tuple[Flag, ...] = (
    Flag("--mmproj", ("-mm",), "LLAMA_ARG_MMPROJ", "model.beside"),
    Flag("--mmproj-device", ("-mmdev",), "MTMD_BACKEND_DEVICE", "model.beside"),
)
# Words that name another projector, or none; words and variables that keep it in the head's memory.
_OWN_PROJECTOR = ("--mmproj", "-mm", "--mmproj-url", "-mmu", "--no-mmproj", "--no-mmproj-auto")
_OWN_PROJECTOR_ENV = ("LLAMA_ARG_MMPROJ", "LLAMA_ARG_MMPROJ_URL", "LLAMA_ARG_NO_MMPROJ_AUTO")
_FALSE = ("0", "false", "off", "disabled")

# Not on the plan's command line, but they would take over what the plan decides.
_TAKEN: tuple[Flag, ...] = (
    Flag("--api-key", (), "LLAMA_API_KEY", "api_keys"),
    Flag("--model-url", ("-mu",), "LLAMA_ARG_MODEL_URL", "model"),
    Flag("--hf-repo", ("-hf", "-hfr"), "LLAMA_ARG_HF_REPO", "model"),
    Flag("--hf-file", ("-hff",), "LLAMA_ARG_HF_FILE", "model"),
    Flag("--docker-repo", ("-dr",), "LLAMA_ARG_DOCKER_REPO", "model"),
    Flag("--fit-target", ("-fitt",), "LLAMA_ARG_FIT_TARGET", _PLANNED),
    Flag("--fit-ctx", ("-fitc",), "LLAMA_ARG_FIT_CTX", _PLANNED),
    Flag("--kv-unified-per-slot", (), "LLAMA_ARG_KV_UNIFIED_PER_SLOT", "context"),
)

_SPELLINGS = {spelling: flag for flag in FLAGS + _TAKEN for spelling in (flag.name, *flag.aliases)}
_ENVIRONMENT = {flag.env: flag for flag in FLAGS + _TAKEN if flag.env}


def conflict(word: str) -> str | None:
    """Say what to do instead of passing ``word`` as an extra argument; None when it is free to use.

    llama-server takes ``_`` for ``-`` in long flags, so this does too.
    """
    spelling = _spelling(word)
    flag = _SPELLINGS.get(spelling)
    return _advice(flag, spelling) if flag else None


def _spelling(word: str) -> str:
    spelling = word.split("=", 1)[0]
    return spelling.replace("_", "-") if spelling.startswith("--") else spelling


def environment_conflict(name: str) -> str | None:
    """Say what to do instead of setting the environment variable ``name``; None when it is free to use."""
    flag = _ENVIRONMENT.get(name)
    return _advice(flag, name) if flag else None


def own_projector(extra: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether an instance's own words name a projector, or say that there is none."""
    return (
        any(_spelling(word) in _OWN_PROJECTOR for word in extra)
        or any(name in environment for name in _OWN_PROJECTOR_ENV)
        or environment.get("LLAMA_ARG_MMPROJ_AUTO", "1") in _FALSE
    )


def projector_device(extra: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return the device that an instance's own words name for a projector, ``none`` for none; None without words."""
    found = None
    for number, word in enumerate(extra):
        spelling = _spelling(word)
        if spelling == "--no-mmproj-offload":
            found = "none"
        elif spelling in ("--mmproj-device", "-mmdev") and number + 1 < len(extra):
            found = extra[number + 1]
    if found is not None:
        return found
    if "LLAMA_ARG_NO_MMPROJ_OFFLOAD" in environment or environment.get("LLAMA_ARG_MMPROJ_OFFLOAD", "1") in _FALSE:
        return "none"
    return environment.get("MTMD_BACKEND_DEVICE")


def _advice(flag: Flag, spelling: str) -> str:
    if flag.variable in (_ON, _PLANNED):
        return "leave %s out: %s" % (spelling, flag.variable)
    return "leave %s out and set %s of the instance instead" % (spelling, flag.variable)


def server_arguments(values: Mapping[str, str], extra: Sequence[str]) -> list[str]:
    """Return llama-server's arguments: ``values`` by flag name, in the table's order, then ``extra``.

    An empty value is a switch. Raises :class:`KeyError` for a flag that is not in the table.
    """
    unknown = set(values) - {flag.name for flag in FLAGS + _PROJECTOR}
    if unknown:
        raise KeyError(sorted(unknown)[0])
    words: list[str] = []
    for flag in FLAGS + _PROJECTOR:
        if flag.name in values:
            words.append(flag.name)
            if values[flag.name]:
                words.append(values[flag.name])
    return words + list(extra)


# The first build whose workers keep weights alone in their cache (RPC protocol 7). Older ones also keep whatever large
# a model computes, and fill the disk with it.
RPC_CACHE_FROM = 10985


def worker_arguments(
    host: str, port: int, devices: Sequence[str], threads: int | None, cache: bool = False
) -> list[str]:
    """Return ggml-rpc-server's arguments. ``devices``: llama.cpp's names on that node, e.g. ``CPU``, ``CUDA0``.

    ``cache``: keep the weights that it was sent, below ``$LLAMA_CACHE/rpc``.
    """
    words = ["--host", host, "--port", str(port), "--device", ",".join(devices)]
    return [*words, *(["--threads", str(threads)] if threads else []), *(["--cache"] if cache else [])]
