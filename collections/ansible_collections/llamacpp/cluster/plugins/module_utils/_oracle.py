# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask llama.cpp itself what a model takes: its own programs, on devices that need not exist.

Before llama-server loads anything it builds model and context without memory and logs what they would take
(``common_fit_params`` in common/fit.cpp, llama.cpp b11434); llama-fit-params prints the same for logits of a
whole ubatch. Both take simulated RPC workers for devices, so no GPU is needed. The figures are whole MiB,
cut off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._memory import Estimate, Usage, estimate
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle_files import sparse_copy
from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle_run import (
    FIT_PARAMS,
    SERVER,
    Answer,
    Buffers,
    OracleError,
    measuring,
    run,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import Model, read_headers
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_simulated import (
    SimulatedDevice,
    SimulatedRpcServer,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import (
    MemoryDevice,
    Settings,
    offload_devices,
)

# Seconds. A 405B model on 16 devices takes two; a recurrent one clears the state of its slots for real.
TIMEOUT = 120.0
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS in src/llama-hparams.h


def ask(
    path: str,
    devices: Sequence[MemoryDevice],
    settings: Settings,
    bin_dir: str,
    timeout: float = TIMEOUT,
) -> Answer:
    """Ask what llama-server would take for the model at ``path`` on ``devices``, which are all simulated.

    ``path``: the first file of a model, or of a sparse copy (:func:`copied`). ``bin_dir``: where llama.cpp's
    programs are. With ``settings.logits`` ``fit_params``, llama-fit-params is asked instead. A device of kind
    cpu is the host. Raises :class:`Refused` for settings that llama.cpp does not take, :class:`OracleError`
    for everything else that leaves no answer.
    """
    used = [devices[index] for index in offload_devices(devices, settings)]
    played = [SimulatedDevice(device.total or device.free, device.free, device.hardware) for device in used]
    names = ["RPC%d" % number for number in range(len(used))]
    program = SERVER if settings.logits == "server" else FIT_PARAMS
    with SimulatedRpcServer(played) as worker:
        words = ["--model", path, *(["--rpc", worker.endpoint] if used else [])]
        words += ["--device", ",".join(names) or "none", *_words(settings, program, len(used))]
        # All devices are played: no real GPU need be woken up, which takes a second and 600 MiB of it.
        answer = run(bin_dir, program, words, timeout, {"CUDA_VISIBLE_DEVICES": ""})
    by_name = {item.name: item for item in answer.devices}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise OracleError(program, "it left out %s of the devices" % ", ".join(missing))
    return replace(answer, devices=tuple(replace(by_name[name], name=device.name) for name, device in zip(names, used)))


def ask_real(
    arguments: Sequence[str],
    workers: Mapping[str, Sequence[SimulatedDevice]],
    bin_dir: str,
    timeout: float = TIMEOUT,
) -> Answer:
    """Ask what llama-server would take with ``arguments``, on this machine's real devices.

    ``arguments``: of the unit, without the program. ``workers``: what each endpoint in ``--rpc`` has; they are
    played, because a real one serves a single client and that is the head. The process needs room for
    its own sake on every GPU, about 600 MiB, as long as it runs. Raises as :func:`ask` does.
    """
    with ExitStack() as stack:
        words = measuring(arguments)
        for at, word in enumerate(words):
            if word == "--rpc":
                asked = words[at + 1].split(",")
                unknown = [endpoint for endpoint in asked if endpoint not in workers]
                if unknown:
                    raise OracleError(SERVER, "nobody said which devices %s has" % ", ".join(unknown))
                played = [stack.enter_context(SimulatedRpcServer(workers[endpoint])) for endpoint in asked]
                words[at + 1] = ",".join(worker.endpoint for worker in played)
        return run(bin_dir, SERVER, words, timeout, {})


def estimator(
    places: Callable[[ModelFacts], str], bin_dir: str, timeout: float = TIMEOUT
) -> Callable[[ModelFacts, Sequence[MemoryDevice], Settings], Estimate]:
    """Return a function like :func:`estimate` whose buffers are llama.cpp's own answer.

    ``places``: the path of a model by its facts. What a process takes beside its buffers, and where layers
    go, llama.cpp does not say: that is still the estimate's.
    """

    def ask_about(model: ModelFacts, devices: Sequence[MemoryDevice], settings: Settings) -> Estimate:
        answer = ask(places(model), devices, settings, bin_dir, timeout)
        found = estimate(model, devices, settings)
        told = dict(zip(offload_devices(devices, settings), answer.devices))
        told.update({index: answer.host for index, device in enumerate(devices) if device.kind == "cpu"})
        notes = ["%s's own figures, in whole MiB" % answer.program]
        if settings.draft_max:
            notes.append("without the rows of logits that drafting adds")
        return replace(
            found,
            devices=tuple(
                _usage(told[index], usage) if index in told else usage for index, usage in enumerate(found.devices)
            ),
            host=_usage(answer.host, found.host),
            exact=True,
            notes=tuple(notes),
        )

    return ask_about


@contextmanager
def copied(place: str, token: str | None = None, timeout: float = 30) -> Iterator[str]:
    """Read the headers of the model at an address, and give the path of a sparse copy of it for a while.

    ``place``, ``token``, ``timeout``: as of ``_read_model.read_headers``, whose errors these are, too.
    """
    model: Model = read_headers(place, token=token, timeout=timeout, whole=True)
    with tempfile.TemporaryDirectory(prefix="llamacpp-oracle-") as directory:
        yield sparse_copy(directory, model.headers, model.names)


def _usage(said: Buffers, estimated: Usage) -> Usage:
    return replace(estimated, model=said.model, context=said.context, compute=said.compute)


def _words(settings: Settings, program: str, devices: int) -> list[str]:
    """Return settings as arguments of ``program``."""
    words = ["--n-gpu-layers", str(settings.layers_on_devices(MAX_LAYERS))]
    if devices:
        words += ["--split-mode", settings.split_mode]
    if settings.tensor_split and devices > 1:
        words += ["--tensor-split", ",".join("%g" % share for share in settings.tensor_split)]
    parallel = settings.parallel if program == SERVER else max(settings.parallel, 1)
    words += ["--ctx-size", str(settings.ctx_size), "--parallel", str(parallel)]
    words += ["--batch-size", str(settings.batch_size), "--ubatch-size", str(settings.ubatch_size)]
    words += ["--cache-type-k", settings.cache_type_k, "--cache-type-v", settings.cache_type_v]
    words += ["--flash-attn", settings.flash_attn]
    if settings.cpu_moe:
        words.append("--cpu-moe")
    if settings.n_cpu_moe:
        words += ["--n-cpu-moe", str(settings.n_cpu_moe)]
    words += ["--swa-full"] if settings.swa_full else []
    words += ["--no-kv-offload"] if settings.no_kv_offload else []
    # Repacked weights stand in a row of their own, or in none; not repacked they take the same.
    words.append("--no-repack")
    if program == FIT_PARAMS:
        if settings.kv_unified and settings.parallel > 1:
            raise OracleError(program, "it knows no unified cache for %d slots" % settings.parallel)
        return [*words, "--fit-print", "on"]
    if settings.kv_unified is not None:
        words.append("--kv-unified" if settings.kv_unified else "--no-kv-unified")
    words += ["--embedding"] if settings.embedding else []
    return measuring(words)
