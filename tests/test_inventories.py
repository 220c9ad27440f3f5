"""Inventories of clusters that cannot be reached from here: they parse, pass preflight, render the golden files.

``UPDATE_GOLDEN=1 pytest tests/test_inventories.py`` writes the golden files anew; read the diff before you commit it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
INVENTORIES = ("v100s_rpc", "multi_gpu")
BIN = ROOT / ".venv" / "bin"


def ansible(command: str, *arguments: str) -> str:
    """Run one of Ansible's commands and return its output; fail with all of it."""
    done = subprocess.run(
        [str(BIN / command), *arguments],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_below(directory: Path) -> dict[str, str]:
    """Relative path -> content of every file."""
    return {
        str(path.relative_to(directory)): path.read_text(encoding="utf-8")
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", params=INVENTORIES)
def rendered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    """Name of the inventory, directory with its rendered files, and its plan."""
    name = str(request.param)
    work = tmp_path_factory.mktemp(name)
    ansible(
        "ansible-playbook",
        f"--inventory=inventories/{name}",
        "playbooks/render.yml",
        "--extra-vars=llamacpp_static=true",
        f"--extra-vars=llamacpp_render_dir={work}/files llamacpp_plan_path={work}/plan.json",
    )
    if os.environ.get("UPDATE_GOLDEN") == "1":
        shutil.rmtree(GOLDEN / name, ignore_errors=True)
        shutil.copytree(work / "files", GOLDEN / name)
    return name, work / "files", json.loads((work / "plan.json").read_text(encoding="utf-8"))


def test_rendered_files_are_the_golden_ones(rendered: tuple[str, Path, dict[str, Any]]) -> None:
    name, files, _plan = rendered
    assert files_below(files) == files_below(GOLDEN / name)


def test_every_planned_unit_is_rendered(rendered: tuple[str, Path, dict[str, Any]]) -> None:
    _name, files, plan = rendered
    planned = {f"{node}/{unit}" for node, wanted in plan["nodes"].items() for unit in wanted["units"]}
    assert {path for path in files_below(files) if path.endswith(".service")} == planned


@pytest.mark.parametrize("name", [*INVENTORIES, "lab"])
def test_inventory_parses(name: str) -> None:
    listed = json.loads(ansible("ansible-inventory", f"--inventory=inventories/{name}", "--list"))
    assert set(listed["llamacpp_builders"]["hosts"]) <= set(listed["llamacpp_nodes"]["hosts"])


def test_three_v100s_nodes_as_in_the_log() -> None:
    """What the operator of that cluster typed by hand, and what its log lists as lessons."""
    files = files_below(GOLDEN / "v100s_rpc")
    head = files["vllm-node1/llamacpp-behemoth.service"]
    for words in (
        "--rpc 10.100.0.32:50052,10.100.0.33:50052",  # InfiniBand, not the management network
        "--device RPC0,RPC1,CUDA0",
        "--parallel 3",
        "--ctx-size 12288",  # 4096 tokens a slot
        "--port 8000",
        "--threads 40",
        "OR1-Behemoth.Q4_K_M.gguf",
    ):
        assert words in head, words
    for node, address in (("vllm-node2", "10.100.0.32"), ("vllm-node3", "10.100.0.33")):
        worker = files[f"{node}/llamacpp-rpc-behemoth.service"]
        assert "/bin/rpc-server" in worker  # the name that the binary had in b7760
        assert f"--host {address}" in worker
        assert "tcp dport 50052 ip saddr != { 10.100.0.31 } drop" in files[f"{node}/firewall.nft"]
    assert not [path for path in files if path.startswith("vllm-node1/llamacpp-rpc")]


def test_four_h100_nodes_serve_on_their_own() -> None:
    files = files_below(GOLDEN / "multi_gpu")
    heads = [path for path in files if path.endswith(".service")]
    assert heads == [f"carcara{number}/llamacpp-deepseek-v3-carcara{number}.service" for number in (1, 2, 3, 4)]
    for path in heads:
        assert "--rpc" not in files[path]
        assert "--device CUDA0,CUDA1,CUDA2,CUDA3,CUDA4,CUDA5,CUDA6,CUDA7" in files[path]
        assert "--api-key-file" in files[path]
        assert "--api-key " not in files[path]
        assert "PrivateDevices" not in files[path]
        assert "ProtectClock" not in files[path]
