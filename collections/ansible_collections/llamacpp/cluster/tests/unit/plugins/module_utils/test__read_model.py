# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models wherever they are, whole or in parts, with or without Ansible around."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _read_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import RemoteError
from ansible_collections.llamacpp.cluster.plugins.module_utils._read_model import read_headers, read_model
from ansible_collections.llamacpp.cluster.tests.unit.builders import llama
from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import split

NAMES = ["m-%05d-of-00003.gguf" % number for number in (1, 2, 3)]


@pytest.fixture
def parts(tmp_path):
    for name, raw in zip(NAMES, split(3)):
        (tmp_path / name).write_bytes(raw)
    return tmp_path


def test_a_path(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(llama())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read_model(str(tmp_path / "m.gguf")) == read_model("m.gguf") == read_model("~/m.gguf")


@pytest.mark.parametrize("name", NAMES)
def test_any_part_leads_to_the_same_model(parts, name):
    assert read_model(str(parts / name)) == read_model(str(parts / NAMES[0]))


@pytest.mark.parametrize(("gone", "words"), [([1], "of its 3 files, %s are missing"), ([1, 2], "%s, %s are missing")])
def test_missing_parts_are_named(parts, gone, words):
    for number in gone:
        (parts / NAMES[number]).unlink()
    with pytest.raises(GgufError, match=words % tuple(NAMES[number] for number in gone)):
        read_model(str(parts / NAMES[0]))


def test_a_broken_part_is_named(parts):
    raw = (parts / NAMES[1]).read_bytes()
    (parts / NAMES[1]).write_bytes(raw[:-1])
    with pytest.raises(GgufError, match="%s: it is truncated" % NAMES[1]) as caught:
        read_model(str(parts / NAMES[0]))
    assert caught.value.offset == len(raw) - 1


def test_parts_that_are_mixed_up(parts):
    (parts / NAMES[1]).rename(parts / "x")
    (parts / NAMES[2]).rename(parts / NAMES[1])
    (parts / "x").rename(parts / NAMES[2])
    with pytest.raises(GgufError, match="%s: it is part 3 of the model, not part 2" % NAMES[1]):
        read_model(str(parts / NAMES[0]))


def test_all_parts_together_have_bounds(parts, monkeypatch):
    monkeypatch.setattr(_read_model, "MAX_TENSORS", 2)
    with pytest.raises(GgufError, match="3 tensors in 3 files are not believable"):
        read_model(str(parts / NAMES[0]))


@pytest.mark.parametrize("folder", ["", "q4/deep/"])
@pytest.mark.parametrize("name", NAMES)
def test_parts_on_the_hub(hub, folder, name):
    hub.files = {folder + item: raw for item, raw in zip(NAMES, split(3))}
    model = read_headers("hf://owner/model/%s%s" % (folder, name))
    assert list(model.names) == NAMES
    assert model.fetched == sum(len(raw) for raw in hub.files.values())


def test_parts_behind_an_address_with_a_query(hub):
    hub.files = {"q4/" + item: raw for item, raw in zip(NAMES, split(3))}
    assert read_model("%s/q4/%s?download=true" % (hub.url, NAMES[2])).tensor_count == 3
    assert {path.partition("?")[2] for path, _headers in hub.requests} == {"download=true"}


def test_a_part_that_the_hub_lacks(hub):
    hub.files = dict(zip(NAMES[:2], split(3)))
    with pytest.raises(RemoteError, match=r"%s: the repository has no such file" % NAMES[2]):
        read_model("hf://owner/model/" + NAMES[0])


def test_the_token_of_the_environment_is_for_the_hub(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.files["m.gguf"] = llama()
    hub.token = "secret"
    assert read_model("hf://owner/model/m.gguf").name == "toy"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    read_model(hub.url + "/m.gguf")
    assert [headers.get("Authorization") for _path, headers in hub.requests] == ["Bearer secret", None]


def test_a_token_that_is_given_is_for_the_server_that_is_named(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    hub.files["m.gguf"] = llama()
    read_model(hub.url + "/m.gguf", token="mine")
    assert [headers.get("Authorization") for _path, headers in hub.requests] == ["Bearer mine"]


@pytest.mark.parametrize("cut", [10, 100, 5000])
def test_pieces_of_a_file_are_read_as_one(tmp_path, cut):
    whole = llama()
    (tmp_path / "m.gguf").write_bytes(whole)
    (tmp_path / "m.gguf.part1of2").write_bytes(whole[:cut])
    (tmp_path / "m.gguf.part2of2").write_bytes(whole[cut:])
    assert read_model(str(tmp_path / "m.gguf.part1of2")) == read_model(str(tmp_path / "m.gguf"))


def test_a_piece_that_is_missing_is_named(tmp_path):
    (tmp_path / "m.gguf.part1of2").write_bytes(llama())
    with pytest.raises(GgufError, match=r"of its 2 pieces, m\.gguf\.part2of2 is missing"):
        read_model(str(tmp_path / "m.gguf.part1of2"))
