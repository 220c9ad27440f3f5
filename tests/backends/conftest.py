"""The lab `backends` (node1 and node3 run Debian 12, node2 Debian 13), and clusters on parts of it.

None of its nodes has a GPU or a GPU's driver. Compiling goes through the compiler's cache that all labs share, so what
takes minutes the first time takes a minute from then on.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import ROOT
from fixtures import LiveLab
from parts import Part


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    command = [sys.executable, str(ROOT / "demo" / "make_model.py"), str(path), "--megabytes=20", "--layers=12"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="session")
def backends_lab(request: pytest.FixtureRequest) -> Iterator[LiveLab]:
    """The lab `backends`; with LAB_KEEP=1 it stays, and one that is there is used as it is."""
    live = LiveLab("backends")
    keep = os.environ.get("LAB_KEEP") == "1"
    words = ["--suite=node2=trixie", *([] if keep else [f"--owner-pid={os.getpid()}"])]
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        if not keep:
            live.down()
        live.up(3, *words, show=True)
    yield live
    if not keep:
        live.down()


@pytest.fixture(scope="session")
def part(backends_lab: LiveLab, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Part]:
    """Declare a cluster on some nodes: ``part("node1", "node3", llamacpp_backend="cuda")``."""
    # Not the operator's: a release that an earlier run left there would hide whether it can be built.
    cache = tmp_path_factory.mktemp("cache")

    def declare(*nodes: str, **variables: Any) -> Part:
        work = tmp_path_factory.mktemp("part")
        return Part(backends_lab, work, model, list(nodes), llamacpp_cache=str(cache), **variables)

    return declare
