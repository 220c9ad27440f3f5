"""A repository of a hub that goes away, through the module `hub_info`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_toys import REPO
from simulated_hub import SimulatedHub

from ansible_collections.llamacpp.cluster.plugins.module_utils import _http
from ansible_collections.llamacpp.cluster.plugins.modules import hub_info

Look = Callable[..., dict[str, Any]]


@pytest.fixture
def look(
    hub: SimulatedHub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Look:
    """Ask for the toy repository in this process, with headers and a memory; ``warned`` is what it warned of."""
    from ansible.module_utils.testing import patch_module_args

    warned: list[str] = []
    monkeypatch.setattr(hub_info.AnsibleModule, "warn", lambda _module, text: warned.append(text))
    monkeypatch.setattr(_http, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("HF_ENDPOINT", "")

    def run(**arguments: Any) -> dict[str, Any]:
        warned.clear()
        given = {"repo": REPO, "endpoint": hub.url, "headers": True, "memory": str(tmp_path / "hub"), **arguments}
        with patch_module_args(given), pytest.raises(SystemExit):
            hub_info.main()
        return {**json.loads(capsys.readouterr().out), "warned": list(warned)}

    return run


def test_a_hub_that_is_gone_or_goes_while_it_answers(look: Look, hub: SimulatedHub) -> None:
    told = look(quants=["Q8_0", "UD-Q2_K_XL"])
    assert (sorted(told["quantisations"]), told["warned"]) == (["Q8_0", "UD-Q2_K_XL"], [])

    def still_told() -> bool:
        answer = look(quants=["Q8_0", "UD-Q2_K_XL"])
        assert len(answer["warned"]) == 1 and "What the hub said at" in answer["warned"][0], answer
        return {**answer, "warned": []} == told

    for path in ("/revision/", "/tree/", "/resolve/|/cdn/|/resolve-cache/"):
        for fault in ({"kind": "drop"}, {"kind": "status", "status": 502}):
            hub.heal()
            hub.fault(path=path, times=0, **fault)
            assert still_told()
    hub.heal()
    hub.stop()
    assert still_told()
    hub.start()
    assert look(quants=["Q8_0", "UD-Q2_K_XL"]) == told


def test_what_was_never_asked_is_not_known(look: Look, hub: SimulatedHub) -> None:
    look(quants=["Q8_0"])
    hub.stop()
    answer = look(quants=["Q4_K_M"])
    assert answer["failed"] and "see that the server can be reached" in answer["msg"]
    hub.start()


def test_a_repository_that_was_closed_is_not_remembered(look: Look, hub: SimulatedHub) -> None:
    look(quants=["Q8_0"])
    hub.repos[REPO].gated = "hf_other"
    answer = look(quants=["Q8_0"])
    assert answer["failed"] and "licence" in answer["msg"]
