# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The progress file."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils import _progress


def test_last_line_can_be_read_and_is_removed_at_the_end(tmp_path):
    path = tmp_path / "progress"
    progress = _progress.Progress(str(path))
    progress.say("first\nsecond", now=True)
    assert path.read_text() == "first second\n"
    progress.say("dropped: too soon")
    assert path.read_text() == "first second\n"
    progress.close()
    assert not path.exists()


def test_without_a_path_nothing_happens():
    progress = _progress.Progress(None)
    progress.say("nobody listens", now=True)
    progress.close()


def test_amount():
    mib = 1 << 20
    assert _progress.amount(120 * mib, 480 * mib, 0.0, 2.0) == "120 of 480 MiB, 25 %, 60 MiB/s, 6 s left"
    assert _progress.amount(120 * mib, None, 0.0, 2.0) == "120 MiB, 60 MiB/s"
    assert _progress.amount(0, 480 * mib, 1.0, 1.0).startswith("0 of 480 MiB, 0 %")
