"""A repository of a hub that goes away, through the task `hub_info`, as a playbook runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_toys import REPO
from simulated_hub import SimulatedHub

ROOT = Path(__file__).resolve().parents[2]
Look = Callable[..., dict[str, Any]]


@pytest.fixture
def look(hub: SimulatedHub, tmp_path: Path) -> Look:
    """Ask for quantisations of the toy repository, with headers and a memory; ``said`` is what a person reads."""

    def run(*quants: str, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {"repo": REPO, "endpoint": hub.url, "headers": True, "memory": str(tmp_path / "hub"), **options}
        task = {"llamacpp.cluster.hub_info": {**given, "quants": "{{ quants }}", "revision": "{{ omit }}"}}
        save = {"content": "{{ result | to_json }}", "dest": str(tmp_path / "result.json"), "mode": "0644"}
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "vars": {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "ansible_remote_tmp": str(tmp_path / "remote"),
                "quants": list(quants),
            },
            "tasks": [
                {**task, "register": "result", "ignore_errors": True, "check_mode": check},
                {"ansible.builtin.copy": save},
            ],
        }
        (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")  # JSON is YAML
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "--inventory=localhost,", str(tmp_path / "play.yml")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        loaded: dict[str, Any] = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
        return {**loaded, "said": " ".join((done.stdout + done.stderr).split())}

    return run


def answer_of(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("commit", "files", "quantisations", "beside", "changed", "failed")}


def test_a_hub_that_goes_away_said_what_it_said(look: Look, hub: SimulatedHub, tmp_path: Path) -> None:
    look("Q8_0", "UD-Q2_K_XL", check=True)
    assert not (tmp_path / "hub").exists()
    told = look("Q8_0", "UD-Q2_K_XL", token="hf_secret")
    assert sorted(told["quantisations"]) == ["Q8_0", "UD-Q2_K_XL"]
    assert not told["failed"] and "What the hub said" not in told["said"]

    # It goes while headers are read.
    hub.fault("status", path="/resolve/|/cdn/", times=0, status=503, headers={"Retry-After": "600"})
    for _number in range(2):
        result = look("Q8_0", "UD-Q2_K_XL")
        assert answer_of(result) == answer_of(told)
        assert "msg" not in result and "What the hub said at 20" in result["said"]
        hub.stop()

    other = look("Q4_K_M")
    assert other["failed"] and "see that the server can be reached" in other["msg"]
    assert "hf_secret" not in "".join(path.read_text() for path in (tmp_path / "hub").iterdir())
    hub.start()


def test_a_repository_that_was_closed_is_not_remembered(look: Look, hub: SimulatedHub) -> None:
    assert not look("Q8_0")["failed"]
    hub.repos[REPO].gated = "hf_other"
    result = look("Q8_0")
    assert result["failed"] and "licence" in result["msg"]


def test_a_memory_that_cannot_be_written_is_said(look: Look, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("")
    result = look("Q8_0")
    assert not result["failed"] and f"memory = {tmp_path / 'hub'}: " in result["said"]
