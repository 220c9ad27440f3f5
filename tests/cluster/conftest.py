"""Fixtures of the tests that deploy a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from driver import ROOT, Cluster
from fixtures import LiveLab


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    command = [sys.executable, str(ROOT / "demo" / "make_model.py"), str(path), "--megabytes=20", "--layers=12"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="session")
def cluster(lab: LiveLab, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The lab with a declared cluster; nothing is deployed yet."""
    return Cluster(lab, tmp_path_factory.mktemp("cluster"), model)
