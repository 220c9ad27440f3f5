# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a hub said, for when it cannot be reached."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._hub_memory import HubMemory

HUB = "https://hub.example.org"
ASKED = {"repo": "owner/model", "quants": ["Q8_0"], "headers": True}
FOUND = {"files": ["m.gguf"], "sizes": [1], "urls": [HUB + "/m.gguf"], "gguf": {"tensor_count": 2}}
ANSWER = {"commit": "c0ffee", "files": [], "quantisations": {"Q8_0": FOUND}, "beside": []}


def kept(directory, endpoint=HUB, **changes):
    return HubMemory(str(directory), endpoint, {**ASKED, **changes})


def test_the_same_question_has_the_same_answer(tmp_path):
    assert kept(tmp_path).recall() is None
    kept(tmp_path / "hub", token="one").keep({**ANSWER, "changed": False, "invocation": {"module_args": ASKED}})
    answer, since = kept(tmp_path / "hub", token="two", timeout=9).recall()
    assert answer == ANSWER
    assert since.startswith("20") and since.endswith(" UTC")
    kept(tmp_path / "hub").keep({**ANSWER, "commit": "beef"})
    assert kept(tmp_path / "hub").recall()[0]["commit"] == "beef"
    assert len(list((tmp_path / "hub").iterdir())) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"repo": "owner/other"},
        {"revision": "v2"},
        {"quants": ["Q4_K_M"]},
        {"headers": False},
        {"folder": "UD"},
        {"file": "*.gguf"},
        {"beside": ["mmproj"]},
        {"endpoint": "https://mirror.example.org"},
    ],
)
def test_another_question_has_none(tmp_path, changes):
    kept(tmp_path).keep(ANSWER)
    assert kept(tmp_path, **changes).recall() is None


def test_no_secrets_are_kept(tmp_path):
    endpoint = "https://somebody:hidden@hub.example.org"
    found = {**FOUND, "urls": [endpoint + "/m.gguf?signature=secret"]}
    kept(tmp_path, endpoint, token="hf_secret").keep({**ANSWER, "quantisations": {"Q8_0": found}})
    (path,) = tmp_path.iterdir()
    assert "hidden" not in path.read_text() and "secret" not in path.read_text()
    assert kept(tmp_path, endpoint).recall()[0]["quantisations"]["Q8_0"]["urls"] == [HUB + "/m.gguf"]


@pytest.mark.parametrize("content", ["", "[]", "null", '{"answer": {}}', '{"answer": null, "since": ""}', "\\xff"])
def test_what_cannot_be_read_is_not_remembered(tmp_path, content):
    kept(tmp_path).keep(ANSWER)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert kept(tmp_path).recall() is None
