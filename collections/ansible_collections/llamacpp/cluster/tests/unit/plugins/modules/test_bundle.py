# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module that packs and opens bundles."""

from __future__ import annotations

import hashlib

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import bundle

SHA = hashlib.sha256(b"model").hexdigest()


@pytest.fixture
def arguments(tmp_path):
    """What packs a model and two wheels."""
    (tmp_path / "wheels").mkdir()
    for name in ("a.whl", "b.whl"):
        (tmp_path / "wheels" / name).write_text(name)
    (tmp_path / "small.gguf").write_bytes(b"model")
    return {
        "path": str(tmp_path / "bundle.tar"),
        "state": "packed",
        "cache": str(tmp_path / "cache"),
        "files": [
            {"kind": "wheel", "file": str(tmp_path / "wheels")},
            {"kind": "model", "file": str(tmp_path / "small.gguf"), "folder": "01", "sha256": SHA},
        ],
        "about": {"for": "a test"},
    }


def test_it_packs_once_and_opens_once(run_module, arguments, tmp_path):
    packed = run_module(bundle, **arguments)
    assert packed["changed"]
    assert [(member["kind"], member["path"]) for member in packed["manifest"]["members"]] == [
        ("model", "models/01/small.gguf"),
        ("wheel", "wheels/a.whl"),
        ("wheel", "wheels/b.whl"),
    ]
    assert not run_module(bundle, **arguments)["changed"]
    elsewhere = {"path": arguments["path"], "state": "opened", "cache": str(tmp_path / "elsewhere")}
    opened = run_module(bundle, **elsewhere)
    assert opened["changed"]
    assert opened["manifest"] == packed["manifest"]
    assert (tmp_path / "elsewhere" / "bundles").is_dir()
    assert opened["directory"].startswith(str(tmp_path / "elsewhere" / "bundles"))
    again = run_module(bundle, **elsewhere)
    assert (again["changed"], again["directory"]) == (False, opened["directory"])


def test_check_mode_writes_nothing(run_module, arguments, tmp_path):
    assert run_module(bundle, check=True, **arguments)["changed"]
    assert not (tmp_path / "bundle.tar").exists()
    run_module(bundle, **arguments)
    elsewhere = {"path": arguments["path"], "state": "opened", "cache": str(tmp_path / "elsewhere")}
    opened = run_module(bundle, check=True, **elsewhere)
    assert (opened["changed"], opened["directory"]) == (True, "")
    assert not (tmp_path / "elsewhere").exists()


def test_a_model_with_another_checksum_is_not_packed(run_module, arguments):
    arguments["files"][1]["sha256"] = "00" * 32
    said = run_module(bundle, **arguments)
    assert said["failed"]
    assert "small.gguf: its sha256 is %s, not 00" % SHA in said["msg"]


def test_what_is_not_there_is_named(run_module, arguments, tmp_path):
    arguments["files"][1]["file"] = str(tmp_path / "gone.gguf")
    said = run_module(bundle, **arguments)
    assert said["msg"] == "model %s: no such file or directory" % (tmp_path / "gone.gguf")


def test_npms_cache_is_one_member(run_module, arguments, tmp_path):
    (tmp_path / "cache" / "npm" / "_cacache").mkdir(parents=True)
    (tmp_path / "cache" / "npm" / "_cacache" / "x").write_text("package")
    arguments["files"] = [{"kind": "npm", "file": str(tmp_path / "cache" / "npm")}]
    packed = run_module(bundle, **arguments)
    assert [member["path"] for member in packed["manifest"]["members"]] == ["npm/npm.tar"]
    assert not run_module(bundle, **arguments)["changed"]
