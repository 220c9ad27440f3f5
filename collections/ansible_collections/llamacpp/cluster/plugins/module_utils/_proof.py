# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compare what a server really allocated with what the plan gave each device.

The evidence is llama.cpp's own log of a load (``--verbosity 4``), whose lines are

    load_tensors:   CPU_Mapped model buffer size =   100.68 MiB
    load_tensors: RPC0[10.0.0.2:50052] model buffer size =   109.14 MiB
    load_tensors:        CUDA0 model buffer size =  4403.49 MiB

(llama.cpp b11434, src/llama-model.cpp; the number before the bracket counts the
devices of one worker, not those of the instance). Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

_BUFFER = re.compile(r"load_tensors:\s+(\S+) model buffer size =\s+([0-9.]+) MiB")
_REMOTE = re.compile(r"^RPC(\d+)\[(.+)\]$")
# Host memory has several buffer types; all of them are the head's own memory.
_HOST = re.compile(r"^(CPU.*|.*_Host)$")

# is_truthy (llama.cpp b11434, common/arg.cpp).
_TRUE = ("on", "enabled", "true", "1")
# What restricts a server to one use: the flags, and their variable.
_USES = (
    ("reranking", ("--rerank", "--reranking"), "LLAMA_ARG_RERANKING"),
    ("embedding", ("--embedding", "--embeddings"), "LLAMA_ARG_EMBEDDINGS"),
)


class Question(NamedTuple):
    """What a server that serves ``use`` is asked: ``body`` at ``path``."""

    use: str
    path: str
    body: Mapping[str, Any]


def served(args: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return what a head with these arguments serves: ``completion``, ``embedding`` or ``reranking``."""
    for use, flags, variable in _USES:
        if set(flags).intersection(args) or str(environment.get(variable, "")) in _TRUE:
            return use
    return "completion"


def question(use: str, tokens: int) -> Question:
    """Return a question that every model can answer; ``tokens``: of a completion."""
    if use == "reranking":
        return Question(use, "/v1/rerank", {"query": "Hello", "documents": ["Hello"]})
    if use == "embedding":
        # /v1/embeddings refuses --pooling none.
        return Question(use, "/embedding", {"content": "Hello"})
    body = {"prompt": "Hello", "n_predict": tokens, "temperature": 0, "cache_prompt": False}
    return Question(use, "/completion", body)


def answered(use: str, answer: Any) -> bool:
    """Whether what a server said to :func:`question` is an answer."""
    if use == "embedding":
        return isinstance(answer, list) and bool(answer) and bool(answer[0].get("embedding"))
    return isinstance(answer, dict) and bool(answer.get("results" if use == "reranking" else "tokens_predicted"))


def model_buffers(log: str) -> dict[str, float]:
    """Return the model buffers of a log in MiB, by the key of :func:`buffer_key`.

    Sizes of several buffers on one device (experts elsewhere, several files) are added up.
    """
    found: dict[str, float] = {}
    for name, size in _BUFFER.findall(log):
        remote = _REMOTE.match(name)
        if remote:
            key = "%s#%s" % (remote.group(2), remote.group(1))
        elif _HOST.match(name):
            key = "CPU"
        else:
            key = name
        found[key] = round(found.get(key, 0.0) + float(size), 2)
    return found


def expected_keys(devices: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the buffer key of every planned device that has layers -> how to call it to a person.

    ``devices``: the plan's list; a worker's devices come in the worker's own order.
    """
    expected: dict[str, str] = {}
    counters: dict[str, int] = {}
    for device in devices:
        endpoint = device.get("endpoint")
        if endpoint:
            index = counters.get(endpoint, 0)
            counters[endpoint] = index + 1
            key = "%s#%d" % (endpoint, index)
        else:
            key = str(device["device"])
        # Layer counts are unknown when the header could not be read: then every device has to hold some.
        if device.get("n_layers") == 0:
            continue
        expected[key] = "%s of %s" % (device["device"], device["node"])
    return expected


def missing_buffers(devices: Sequence[Mapping[str, Any]], buffers: Mapping[str, float]) -> list[str]:
    """List the planned devices that hold no model buffer, in words."""
    return [words for key, words in expected_keys(devices).items() if buffers.get(key, 0.0) <= 0.0]


def missing_connections(devices: Sequence[Mapping[str, Any]], connected: Collection[str]) -> list[str]:
    """List the planned workers (``address:port``) without an established connection."""
    wanted = dict.fromkeys(str(device["endpoint"]) for device in devices if device.get("endpoint"))
    return [endpoint for endpoint in wanted if endpoint not in connected]


def interface_of(address: str, listed: str) -> str:
    """Return the interface that has an IPv4 address, from the output of ``ip -o -4 addr show``; empty when none."""
    for line in listed.splitlines():
        words = line.split()
        if len(words) > 3 and words[3].split("/")[0] == address:
            return words[1].split("@")[0]
    return ""


def interface_bytes(interface: str, table: str) -> int:
    """Return bytes received and sent by an interface, from ``/proc/net/dev``; 0 when it is not there."""
    for line in table.splitlines():
        name, colon, figures = line.partition(":")
        if colon and name.strip() == interface:
            fields = figures.split()
            return int(fields[0]) + int(fields[8])
    return 0
