# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How often the bytes of a file are asked for, and what ends it."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _fetch_parts
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import Remote, Wanted
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_parts import Counter, FetchError, bring
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_url import PathSource
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress


def test_attempts_have_an_end_and_pauses_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(_fetch_parts, "FIRST_PAUSE", 1.0)
    pauses = []

    class Silent:
        def fetch(self, part, window, have):
            raise _fetch_parts.BrokenError("nobody answers")

        def origin(self, part):
            return part.name

    wanted = Wanted("m", "model", 10, None, (Remote("far/m", 10),))
    with pytest.raises(FetchError, match="far/m: nobody answers; 0 of its 10 bytes are here"):
        bring(wanted, str(tmp_path / "part"), Silent(), Counter(Progress(None), 10), pauses.append)
    assert pauses == [1, 2, 4, 8]


def test_more_bytes_than_announced(tmp_path):
    (tmp_path / "from").write_bytes(b"x" * 20)
    wanted = Wanted("m", "model", 10, None, (Remote(str(tmp_path / "from"), 10),))
    with pytest.raises(FetchError, match="more than its 10 bytes were sent"):
        bring(wanted, str(tmp_path / "part"), PathSource(), Counter(Progress(None), 10))
    assert (tmp_path / "part").read_bytes() == b""


def test_writing_to_a_full_disk(tmp_path):
    (tmp_path / "from").write_bytes(b"x" * 5000)
    (tmp_path / "part").symlink_to("/dev/full")
    wanted = Wanted("m.bin", "model", 5000, None, (Remote(str(tmp_path / "from"), 5000),))
    with pytest.raises(FetchError, match=r"m\.bin: the disk of .* is full: free some space and run again"):
        bring(wanted, str(tmp_path / "part"), PathSource(), Counter(Progress(None), 5000))
