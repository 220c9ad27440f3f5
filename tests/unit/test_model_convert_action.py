"""model_convert as a playbook runs it: the converter comes out of the control node's source and goes to the node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.llamacpp.cluster.tests.unit import simulated_converter as simulated

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, **options: Any) -> dict[str, Any]:
    """Run the task on this machine; return its result."""
    save = {"content": "{{ result | to_json }}", "dest": str(tmp_path / "result.json"), "mode": "0644"}
    task = {"llamacpp.cluster.model_convert": options, "register": "result", "ignore_errors": True}
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "ansible_remote_tmp": str(tmp_path / "remote"),
        "ansible_async_dir": str(tmp_path / "async"),
    }
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": variables,
        "tasks": [task, {"ansible.builtin.copy": save}],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")  # JSON is YAML
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), "--inventory=localhost,", str(tmp_path / "play.yml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded: dict[str, Any] = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """What the task is told."""
    return {
        "name": "owner/model/F16",
        "source": str(simulated.make_source(tmp_path / "model")),
        "store": str(tmp_path / "store"),
        "llama_source": str(simulated.make_archive(tmp_path / "source.tar.gz")),
        "release": "b11434",
        "python": str(simulated.make_python(tmp_path / "venv")),
    }


def test_the_converter_comes_from_the_control_nodes_source(tmp_path: Path, options: dict[str, Any]) -> None:
    result = run(tmp_path, **options)
    assert result["changed"] is True, result
    assert os.path.isfile(result["model"])
    # Ansible's wrapper removes its directory a moment after it has told the result.
    end = time.monotonic() + 30
    while brought(tmp_path):
        assert time.monotonic() < end, "the node keeps what was brought for the task"
        time.sleep(0.1)


def brought(tmp_path: Path) -> list[str]:
    """What lies in Ansible's directory on the node."""
    return [name for _directory, _names, files in os.walk(tmp_path / "remote") for name in files]


def test_a_source_that_is_not_there(tmp_path: Path, options: dict[str, Any]) -> None:
    result = run(tmp_path, **{**options, "llama_source": str(tmp_path / "absent.tar.gz")})
    assert result["failed"] and "llama_source = " in result["msg"] and "absent.tar.gz" in result["msg"]
