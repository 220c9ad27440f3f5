"""Fixtures of the tests without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import ROOT
from fixtures import LiveLab
from nonetwork import Control, Site, make_namespace, remove_namespace


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The lab ``bundle`` with one node that can reach packages."""
    live = LiveLab("bundle")
    work = tmp_path_factory.mktemp("bundle")
    # Short: OpenSSH's sockets lie below it, and their paths may have 108 characters.
    home = Path(tempfile.mkdtemp(prefix="lcb-"))
    live.down()
    live.up(1, f"--owner-pid={os.getpid()}")
    made = Site(work, live, Control(home, live))
    made.model.parent.mkdir()
    command = [sys.executable, str(ROOT / "demo" / "make_model.py"), str(made.model), "--megabytes=20", "--layers=12"]
    subprocess.run(command, check=True)
    yield made
    remove_namespace()
    live.down()
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def cut_off(site: Site) -> Site:
    """The same with a fresh node, a control node that reaches nothing else, and no model on it."""
    site.fresh_node()
    make_namespace(site.lab)
    site.model.unlink()
    return site
