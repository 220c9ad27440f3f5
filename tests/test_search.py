"""`make search` from the operator's side: the playbook, an inventory that cannot be reached, and a simulated hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "hub"))

from simulated_hub import SimulatedHub

from ansible_collections.llamacpp.cluster.plugins.module_utils._tiny_model import tiny_model

ROOT = Path(__file__).resolve().parents[1]


def search(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook for the inventory of three nodes with a V100S each."""
    command = [str(ROOT / ".venv" / "bin" / "ansible-playbook"), "--inventory=inventories/v100s_rpc"]
    return subprocess.run(
        [*command, "playbooks/search.yml", "--extra-vars=llamacpp_static=true", *arguments],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_operator_sees_what_fits() -> None:
    hub = SimulatedHub()
    try:
        commit = hub.add("owner/toy-GGUF", {"toy-Q8_0.gguf": tiny_model(), "toy-Q4_0.gguf": b"<html>" * 4000})
        done = search(f"--extra-vars=llamacpp_hub_endpoint={hub.url}", "--extra-vars=search_query=toy")
    finally:
        hub.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "owner/toy-GGUF  (1 downloads, 0 likes)" in lines
    assert "Q8_0  0 MiB  yes  one-device on CUDA0 of vllm-node1, context 256 of 256" in lines
    assert any(line.startswith("Q4_0  0 MiB  ?    it is not a GGUF file") for line in lines), done.stdout
    assert f"model: {{repo: owner/toy-GGUF, revision: {commit}, quant: Q8_0}}" in lines


def test_a_token_that_ansibles_vault_has_encrypted(tmp_path: Path) -> None:
    password, token = tmp_path / "password", tmp_path / "token"
    password.write_text("open sesame\n", encoding="utf-8")
    token.write_text("hf_simulated\n", encoding="utf-8")
    vault = f"--vault-password-file={password}"
    program = str(ROOT / ".venv" / "bin" / "ansible-vault")
    subprocess.run([program, "encrypt", vault, str(token)], check=True, capture_output=True)
    hub = SimulatedHub()
    try:
        hub.add("owner/toy-GGUF", {"toy-Q8_0.gguf": tiny_model()})
        hub.repos["owner/toy-GGUF"].gated = "hf_simulated"
        variables = {"llamacpp_hub_endpoint": hub.url, "search_query": "toy", "llamacpp_hub_token_file": str(token)}
        done = search("-vvv", vault, *(f"--extra-vars={name}={value}" for name, value in variables.items()))
    finally:
        hub.stop()
    assert "Q8_0  0 MiB  yes" in done.stdout, done.stdout + done.stderr
    assert "hf_simulated" not in done.stdout + done.stderr


def test_a_search_for_nothing() -> None:
    done = search("--extra-vars=search_query=")
    assert done.returncode != 0
    assert "search_query is not set: write what the names of repositories contain" in done.stdout
