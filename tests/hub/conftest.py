"""A simulated hub with small models, and the module `model`, as Ansible runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf_repos
import pytest
from hub_toys import COLLECTIONS, PROGRAM, REPO, Answer, Run, files_of
from simulated_hub import SimulatedHub

from ansible_collections.llamacpp.cluster.plugins.module_utils import _fetch_hub, _fetch_parts
from ansible_collections.llamacpp.cluster.plugins.modules import model


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token and no hub of whoever runs this; chunks and pauses of a size for small files."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_fetch_hub, "CHUNK", 4096)
    monkeypatch.setattr(_fetch_parts, "FIRST_PAUSE", 0.01)
    # The client's own pause when a connection breaks is a second.
    brisk = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.file_download.time", brisk)


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository's files: two quantisations, one in shards in a folder, one in pieces, and what belongs beside."""
    root = tmp_path_factory.mktemp("toys")
    gguf_repos.write_model(root / "toy-Q4_K_M.gguf", kib=256, seed=1)
    gguf_repos.write_model(root / "toy-Q8_0.gguf", kib=128, seed=2)
    gguf_repos.write_model(root / "UD-Q2_K_XL/toy-UD-Q2_K_XL.gguf", kib=96, seed=3, shards=3)
    gguf_repos.cut_in_pieces(gguf_repos.write_model(root / "toy-F16.gguf", kib=300, seed=4)[0], 3)
    gguf_repos.write_model(root / "mmproj-toy-f16.gguf", kib=8, seed=5, architecture="clip")
    (root / "config.json").write_text('{"model_type": "toy"}')
    (root / "tokenizer.json").write_text('{"version": "1.0"}' + " " * 3000)
    (root / "README.md").write_text("# A toy\n")
    return root


@pytest.fixture
def hub(toys: Path) -> Iterator[SimulatedHub]:
    hub = SimulatedHub()
    hub.add(REPO, files_of(toys))
    yield hub
    hub.stop()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def fetch(hub: SimulatedHub, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the module in this process; `repo`, `store` and `endpoint` are given."""
    from ansible.module_utils import _internal
    from ansible.module_utils.testing import patch_module_args

    # A test that loads a part of the controller lets all warnings of this process go to the terminal.
    monkeypatch.setattr(_internal, "is_controller", False)

    def run(check: bool = False, **arguments: Any) -> Answer:
        given = {"store": str(store), "endpoint": hub.url, "_ansible_check_mode": check, **arguments}
        if not {"urls", "paths", "state"} & set(arguments):
            given.setdefault("repo", REPO)
        with patch_module_args(given), pytest.raises(SystemExit):
            model.main()
        said = capsys.readouterr()
        answer: Answer = json.loads(said.out)
        answer["said"] = said.out + said.err
        return answer

    return run


@pytest.fixture
def start(hub: SimulatedHub, store: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run the module as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(**arguments: Any) -> subprocess.Popen[str]:
        given = {"store": str(store), "endpoint": hub.url, "repo": REPO, **arguments}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(COLLECTIONS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(given))
        process.stdin.close()
        process.stdin = None
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
