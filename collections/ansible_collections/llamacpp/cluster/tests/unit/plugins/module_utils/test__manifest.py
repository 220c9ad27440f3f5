# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names that stay inside the store, and manifests that mean what they say."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import (
    File,
    Manifest,
    StoreError,
    check_file,
    check_name,
    is_name,
)

SHA = "ab" * 32


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-14b-q4_k_m",
        "mradermacher/OR1-Behemoth-GGUF/Q4_K_M",
        "a/b/c/d",
        "_x",
        "a+b",
        "A.B",
        "x" * 250,
        "/".join(["y" * 63] * 4)[1:],
    ],
)
def test_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "/", "/etc/passwd", "../../etc/passwd", "..", ".", "a/..", "a/../b", "a/./b", "a//b", "a/", "/a"),
        *(".hidden", "a/.hidden", "-rf", "a b", "a\0b", "a\n", "a\nb", "a\tb", "modèle", "a\u202eb", "a:b", "a,b"),
        *("a\\b", "~/a", "a/b/c/d/e", "x" * 251, "/".join(["y" * 64] * 4), "a.json", "a.json/b", "٣"),
    ],
)
def test_what_is_no_name(name):
    assert not is_name(name)
    with pytest.raises(StoreError, match=r"^name = .*(write|leave)"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["model.gguf", "a b.gguf", "config.json", "x" * 255, "1", "Q4_K_M-00001-of-00003.gguf"]
)
def test_file_names(name):
    assert check_file(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "../a", ".a", " a", "a ", "a\0", "a\n", "-a", "ä", "x" * 256, "a\tb"]
)
def test_what_is_no_file_name(name):
    with pytest.raises(StoreError, match="rename"):
        check_file(name)


@given(st.text(max_size=30))
def test_no_name_leads_out(name):
    if is_name(name):
        path = os.path.normpath(os.path.join("/store/names", name))
        assert path == "/store/names/" + name


def test_a_manifest_comes_back_from_json():
    manifest = Manifest(
        "o/r/Q",
        (File("a.gguf", SHA, 5), File("m.gguf", "cd" * 32, 0, "mmproj")),
        {"repo": "o/r", "commit": "1" * 40},
        "2026-11-21T19:40:00Z",
        {"a.gguf": "/nfs/a.gguf"},
    )
    again = Manifest.from_dict(json.loads(json.dumps(manifest.as_dict())))
    assert again == manifest
    assert again.first.name == "a.gguf"
    assert [file.name for file in again.held] == ["m.gguf"]


def test_a_manifest_knows_its_time():
    assert Manifest.from_dict(Manifest("a", (File("f", SHA, 1),)).as_dict()).created.startswith("20")


def test_the_first_file_is_the_first_model():
    projector, model = File("m", SHA, 1, "mmproj"), File("f", SHA, 1)
    assert Manifest("a", (projector, model)).first == model
    with pytest.raises(StoreError, match="none of its files is a model"):
        Manifest("a", (projector,)).first.as_dict()


GOOD = Manifest("a", (File("f", SHA, 1),), {}, "2026-11-21T19:40:00Z").as_dict()


def with_file(**changes):
    """A manifest whose file is changed."""
    return dict(GOOD, files=[dict(GOOD["files"][0], **changes)])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "dictionary"),
        ([], "dictionary"),
        (dict(GOOD, schema=2), "schema 2"),
        (dict(GOOD, name="../a"), "name = "),
        (dict(GOOD, name=None), "name = None"),
        (dict(GOOD, files=[]), "no file"),
        (dict(GOOD, files={"f": 1}), "list"),
        (dict(GOOD, files=["f"]), "dictionary"),
        (dict(GOOD, files=GOOD["files"] * 2), "f is there twice"),
        (dict(GOOD, created="yesterday"), "created"),
        (dict(GOOD, source=[]), "source"),
        (dict(GOOD, external={"g": "/x"}), "none of its files"),
        (dict(GOOD, external={"f": "x"}), "absolute"),
        (dict(GOOD, external={"f": "/x\ny"}), "absolute"),
        ({key: value for key, value in GOOD.items() if key != "files"}, "files"),
        (with_file(name="a/b"), "file name"),
        (with_file(sha256="../x"), "64"),
        (with_file(sha256=SHA.upper()), "64"),
        (with_file(sha256=None), "sha256"),
        (with_file(bytes=-1), "bytes"),
        (with_file(bytes="1"), "bytes"),
        (with_file(bytes=True), "bytes"),
        (with_file(role="hero"), "hero"),
    ],
)
def test_what_is_no_manifest(data, words):
    with pytest.raises(StoreError, match=words):
        Manifest.from_dict(data)
