# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How far the unpacking of an archive is, as it says itself."""

from __future__ import annotations

import os
import tarfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _archive

MIB = 1 << 20


@pytest.mark.parametrize(("mode", "last"), [("gz", "4 of 4 MiB, 99 %"), ("xz", "4 MiB, ")])
def test_progress_says_what_is_known(tmp_path, mode, last):
    """Only gzip says beforehand how much will come; of others no share is said, rather than a wrong one."""
    (tmp_path / "file").write_bytes(bytes(4 * MIB))
    path, into = tmp_path / ("archive.tar." + mode), tmp_path / "into"
    with tarfile.open(path, "w:" + mode) as tar:
        tar.add(tmp_path / "file", arcname="file")
    into.mkdir()
    said = []
    _archive.unpack(str(path), str(into), "an archive", said.append)
    assert os.stat(into / "file").st_size == 4 * MIB
    assert said[-1].startswith("unpacking: " + last), said
