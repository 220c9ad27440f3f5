"""Files that are made to fill memory or to take for ever get an answer all the same. How fast: `make bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from gguf_hostile import MIB, files, measure


@pytest.mark.parametrize("name", files())
def test_a_hostile_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    files()[name](path)
    outcome, seconds, mib = measure(path)
    path.unlink()
    # An answer is a description, or a field, a byte and a reason.
    assert outcome == "read" or " at " in outcome.partition(":")[0]
    assert mib < MIB
    assert seconds < 60  # it ends
