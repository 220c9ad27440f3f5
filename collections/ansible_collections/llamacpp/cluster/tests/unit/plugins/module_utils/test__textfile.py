# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A text file is brought to its content, whole or not at all."""

from __future__ import annotations

import os

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring


def test_a_new_file_in_a_new_directory(tmp_path):
    path = tmp_path / "deep" / "file"
    result = bring(str(path), "new\n")
    assert result == {
        "changed": True,
        "diff": {"before_header": str(path), "after_header": str(path), "before": "", "after": "new\n"},
    }
    assert path.read_text() == "new\n"
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_equal_file_is_not_touched(tmp_path):
    path = tmp_path / "file"
    path.write_text("same")
    inode = path.stat().st_ino
    assert bring(str(path), "same") == {"changed": False}
    assert path.stat().st_ino == inode


def test_an_empty_file_is_there_too(tmp_path):
    path = tmp_path / "file"
    assert bring(str(path), "")["changed"] is True
    assert path.read_text() == ""
    assert bring(str(path), "")["changed"] is False


def test_check_mode_writes_nothing(tmp_path):
    path = tmp_path / "deep" / "file"
    assert bring(str(path), "new", check_mode=True)["changed"] is True
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_text_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\xff\xfe")
    assert bring(str(path), "text")["diff"]["before"] == "\ufffd\ufffd"
    assert path.read_text() == "text"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def refuse(_source, _target):
        raise OSError("no")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        bring(str(path), "new")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"
