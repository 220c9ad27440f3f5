"""The simulated hub, asked by the client that it is for."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from simulated_hub import SimulatedHub

LARGE = bytes(range(256)) * 64
HERE = Path(__file__).parent


@pytest.fixture
def hub() -> Iterator[SimulatedHub]:
    hub = SimulatedHub(page=2)
    hub.add("owner/model", {"config.json": b"{}", "UD-Q2_K_XL/a.gguf": LARGE, "b/c/d.txt": b"d", "e.txt": b"e"})
    yield hub
    hub.stop()


def asking(hub: SimulatedHub, token: str | bool = False) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def test_tree_with_pages_and_info(hub: SimulatedHub) -> None:
    files = {
        entry.path: entry
        for entry in asking(hub).list_repo_tree("owner/model", recursive=True)
        if isinstance(entry, huggingface_hub.hf_api.RepoFile)
    }
    assert sorted(files) == ["UD-Q2_K_XL/a.gguf", "b/c/d.txt", "config.json", "e.txt"]
    lfs = files["UD-Q2_K_XL/a.gguf"].lfs
    assert lfs is not None and lfs.size == len(LARGE)
    # What `git hash-object` says of these bytes.
    assert files["config.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    info = asking(hub).model_info("owner/model", files_metadata=True)
    assert info.sha == hub.repos["owner/model"].refs["main"]
    assert sorted(item.rfilename for item in info.siblings or []) == sorted(files)
    top = [entry.path for entry in asking(hub).list_repo_tree("owner/model")]
    assert sorted(top) == ["UD-Q2_K_XL", "b", "config.json", "e.txt"]
    assert [item.path for item in asking(hub).get_paths_info("owner/model", ["e.txt", "nothing"])] == ["e.txt"]
    assert [model.id for model in asking(hub).list_models(search="MOD")] == ["owner/model"]


def test_client_downloads_large_and_small(hub: SimulatedHub, tmp_path: Path) -> None:
    api = asking(hub, token="hf_secret")
    large = api.hf_hub_download("owner/model", "UD-Q2_K_XL/a.gguf", local_dir=tmp_path)
    small = api.hf_hub_download("owner/model", "b/c/d.txt", local_dir=tmp_path)
    assert Path(large).read_bytes() == LARGE
    assert Path(small).read_bytes() == b"d"
    assert [asked.token for asked in hub.gets("cdn")] == [False]


def test_refusals(hub: SimulatedHub) -> None:
    with pytest.raises(RepositoryNotFoundError):
        asking(hub).model_info("owner/nothing")
    with pytest.raises(RevisionNotFoundError):
        asking(hub).model_info("owner/model", revision="v9")
    with pytest.raises(RemoteEntryNotFoundError):
        get_hf_file_metadata(hf_hub_url("owner/model", "no.gguf", endpoint=hub.url), token=False)
    hub.repos["owner/model"].gated = "hf_right"
    assert asking(hub).model_info("owner/model").gated == "manual"
    url = hf_hub_url("owner/model", "UD-Q2_K_XL/a.gguf", endpoint=hub.url)
    for token in (False, "hf_wrong"):
        with pytest.raises(GatedRepoError):
            get_hf_file_metadata(url, token=token)
    assert get_hf_file_metadata(url, token="hf_right").size == len(LARGE)
    hub.repos["owner/model"].private = "hf_right"
    with pytest.raises(RepositoryNotFoundError):
        asking(hub).model_info("owner/model")


def test_cut_wrong_and_slow_bytes(hub: SimulatedHub) -> None:
    url = get_hf_file_metadata(hf_hub_url("owner/model", "UD-Q2_K_XL/a.gguf", endpoint=hub.url)).location
    hub.fault("flip", at=5)
    got = io.BytesIO()
    http_get(url, got, expected_size=len(LARGE))
    assert [index for index, byte in enumerate(got.getvalue()) if byte != LARGE[index]] == [5]
    hub.fault("cut", at=1000)
    got = io.BytesIO()
    http_get(url, got, expected_size=len(LARGE))  # The client tries again by itself.
    assert got.getvalue() == LARGE
    assert len(hub.gets()) == 3


def test_gone_and_back(hub: SimulatedHub) -> None:
    hub.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(hub.url, timeout=5)
    address = hub.url
    hub.start()
    assert hub.url == address
    assert asking(hub).model_info("owner/model").sha


def test_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "owner/model").mkdir(parents=True)
    (tmp_path / "owner/model/a.gguf").write_bytes(LARGE)
    with subprocess.Popen(
        [sys.executable, HERE / "simulated_hub.py", "--port", "0", tmp_path], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        try:
            faults = json.dumps([{"kind": "status", "path": "/api/", "status": 503, "times": 0}])
            urllib.request.urlopen(url + "/_control/faults", faults.encode(), timeout=5).close()
            with pytest.raises(OSError, match="503"):
                urllib.request.urlopen(url + "/api/models/owner/model", timeout=5)
            urllib.request.urlopen(url + "/_control/heal", b"", timeout=5).close()
            with urllib.request.urlopen(url + "/api/models/owner/model", timeout=5) as answer:
                assert json.load(answer)["siblings"] == [{"rfilename": "a.gguf"}]
        finally:
            program.terminate()
