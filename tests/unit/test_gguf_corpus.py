"""Files that are good and bad in every way that we know of: we take those that llama.cpp b11434 takes, no others."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, Header, parse_header, read_header
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, describe

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "gguf"
VERDICTS: dict[str, str] = json.loads((CORPUS / "verdicts.json").read_text(encoding="utf-8"))
# Where we are stricter on purpose: sizes that llama.cpp lets wrap round.
STRICTER = {"tensors-nbytes-wrap-in-a-row.bin"}


def judge(read: Callable[[], Header]) -> GgufError | None:
    """Return why we refuse a file, or None."""
    try:
        header = read()
    except GgufError as error:
        return error
    try:
        facts = describe([header], ["m.gguf"])
    except GgufError as error:
        # One file of a set is no whole model; by itself it is a good file.
        return None if error.field.startswith("split.") else error
    assert ModelFacts.from_dict(json.loads(json.dumps(facts.as_dict(), allow_nan=False))) == facts
    return None


def judge_file(name: str) -> GgufError | None:
    """Return why we refuse a file of the corpus, or None."""
    return judge(lambda: read_header(str(CORPUS / name)))


def test_every_file_has_a_verdict() -> None:
    assert sorted(path.name for path in CORPUS.glob("*.bin")) == sorted(VERDICTS)
    assert set(VERDICTS.values()) == {"ok", "refused", "crashed"}


@pytest.mark.parametrize("name", sorted(set(VERDICTS) - STRICTER))
def test_we_judge_as_llama_cpp_does(name: str) -> None:
    error = judge_file(name)
    assert (error is None) == (VERDICTS[name] == "ok"), error


@pytest.mark.parametrize("name", sorted(STRICTER))
def test_sizes_that_wrap_round_are_refused(name: str) -> None:
    assert VERDICTS[name] == "ok"
    assert judge_file(name) is not None


@pytest.mark.parametrize("name", sorted(name for name, verdict in VERDICTS.items() if verdict != "ok"))
def test_every_refusal_says_where_and_why(name: str) -> None:
    error = judge_file(name)
    assert error is not None
    assert error.field and error.message
    assert 0 <= error.offset <= (CORPUS / name).stat().st_size


@pytest.mark.parametrize("name", sorted(name for name, verdict in VERDICTS.items() if verdict == "ok"))
def test_every_beginning_of_a_good_file_is_judged_without_a_traceback(name: str) -> None:
    raw = (CORPUS / name).read_bytes()
    for size in range(min(len(raw), 400)):
        part = raw[:size]
        judge(lambda part=part: parse_header(io.BytesIO(part).read, len(part)))
