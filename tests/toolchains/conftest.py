"""Fixtures of the tests of toolchains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import LiveLab, lab_of

SIMULATED = "simulated-el8"


@pytest.fixture(scope="module")
def el(request: pytest.FixtureRequest) -> Iterator[LiveLab]:
    """The lab ``el``: one node, a simulated EL 8 host (see tests/lab/README.md)."""
    with lab_of(request, "el", 1, {"node1": SIMULATED}) as live:
        yield live


@pytest.fixture
def fresh_el(el: LiveLab) -> LiveLab:
    """The same lab with a node that nobody has touched."""
    el.down()
    el.up(1, f"--suite=node1={SIMULATED}", f"--owner-pid={os.getpid()}")
    return el


@pytest.fixture(scope="module")
def nvidia_key(el: LiveLab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key of the stand-in for NVIDIA's repository, on the control node."""
    key = tmp_path_factory.mktemp("key") / "nvidia.pub"
    key.write_text(el.ssh("node1", ["cat", "/srv/simulated-el8/cuda/D42D0685.pub"]).stdout, encoding="utf-8")
    return key
