# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who holds a lock holds the file that others find."""

from __future__ import annotations

import os

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _lock


def refused(path):
    """Try to be the second; return what that is answered."""
    with pytest.raises(_lock.BusyError) as caught, _lock.locked(str(path), "the second", 0, print):
        pass
    return str(caught.value)


def test_one_at_a_time(tmp_path):
    path = str(tmp_path / "x.lock")
    with _lock.locked(path, "the first", 0, print):
        assert "waited 0 s for the first (pid %d)" % os.getpid() in refused(path)
    with _lock.locked(path, "the second", 0, print):
        assert (tmp_path / "x.lock").read_text().startswith("the second")


def test_a_file_that_was_tidied_away_between_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "x.lock"
    taken = _lock._taken
    tidied = []

    def tidy(descriptor):
        if not tidied:
            tidied.append(os.unlink(path))
        return taken(descriptor)

    monkeypatch.setattr(_lock, "_taken", tidy)
    with _lock.locked(str(path), "the first", 0, print):
        assert "the first" in refused(path)
