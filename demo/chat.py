"""A streamed chat completion: the pieces as they come, then the server's own timings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
from httpx_sse import SSEError, connect_sse

CONNECT = 10.0  # seconds
SILENCE = 120.0  # seconds between two pieces; a long prompt on a slow node takes its time


class ChatError(Exception):
    """An answer that did not come. The text says what the server said."""


@dataclass(frozen=True)
class Timings:
    """What the server measured."""

    prompt_tokens: int
    prompt_per_second: float
    answer_tokens: int
    answer_per_second: float


def timings_of(chunk: dict[str, object]) -> Timings | None:
    """The timings that a chunk carries; llama-server puts them into the last one."""
    found = chunk.get("timings")
    if not isinstance(found, dict):
        return None
    return Timings(
        int(found["prompt_n"]),
        float(found["prompt_per_second"]),
        int(found["predicted_n"]),
        float(found["predicted_per_second"]),
    )


def pieces_of(chunk: dict[str, object]) -> Iterator[str]:
    """The text that a chunk adds to the answer (thoughts of a reasoning model included)."""
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        delta = choice.get("delta", {})
        for key in ("reasoning_content", "content"):
            if delta.get(key):
                yield delta[key]


def stream(base: str, key: str | None, prompt: str, max_tokens: int) -> Iterator[str | Timings]:
    """Ask `base` (http://host:port) and yield the answer's pieces, then Timings.

    Raises ChatError when the server refuses, breaks off or cannot be reached.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "stream": True}
    timeout = httpx.Timeout(SILENCE, connect=CONNECT)
    try:
        # The nodes are on this machine or on a network of ours: a proxy from the environment knows neither.
        with (
            httpx.Client(timeout=timeout, trust_env=False) as client,
            connect_sse(client, "POST", f"{base}/v1/chat/completions", json=body, headers=headers) as events,
        ):
            if events.response.status_code != httpx.codes.OK:
                said = events.response.read().decode("utf-8", errors="replace")
                raise ChatError(f"{base} answered {events.response.status_code}: {said}")
            for event in events.iter_sse():
                if event.data == "[DONE]":
                    return
                chunk = json.loads(event.data)
                if "error" in chunk:
                    raise ChatError(f"{base} broke off: {chunk['error']}")
                yield from pieces_of(chunk)
                timings = timings_of(chunk)
                if timings:
                    yield timings
    except (httpx.HTTPError, SSEError, json.JSONDecodeError) as error:
        raise ChatError(f"{base} did not answer as it should: {error or type(error).__name__}") from error
    raise ChatError(f"{base} stopped in the middle of the answer")
