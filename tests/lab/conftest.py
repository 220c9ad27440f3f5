"""Fixtures of the lab's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fixtures import LiveLab
from leftovers import remains


@pytest.fixture
def down(clean: None) -> Iterator[LiveLab]:
    """The lab, down before and after."""
    live = LiveLab("faults")
    live.down()
    assert remains() == []
    yield live
    live.down()


@pytest.fixture
def pair(clean: None) -> LiveLab:
    """The lab with two nodes that answer, new or from the test before."""
    live = LiveLab("faults")
    live.up(2, f"--owner-pid={os.getpid()}")
    return live


@pytest.fixture(scope="module")
def clean() -> Iterator[None]:
    """Leave no lab behind."""
    yield
    LiveLab("faults").down()
