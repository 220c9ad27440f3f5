# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which releases are there, who uses them, which may go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _installed, _release
from ansible_collections.llamacpp.cluster.plugins.module_utils._installed import Releases, sizes, to_prune

UNIT = """\
[Unit]
X-Llamacpp-Role=%s
X-Llamacpp-Port=8080
X-Llamacpp-Release=%s
"""


@pytest.fixture
def releases(tmp_path):
    """Releases a, b and c below a prefix; units below another directory."""
    (tmp_path / "units").mkdir()
    found = Releases(str(tmp_path / "opt"), units=str(tmp_path / "units"))
    for name in "abc":
        root = tmp_path / "opt" / "releases" / name
        (root / "bin").mkdir(parents=True)
        (root / "bin" / "llama-server").write_text(name * 100)
        manifest = {"inputs": {"release": "b7"}, "files": _release.describe_tree(str(root))}
        (root / "manifest.json").write_text(json.dumps(manifest))
    return found


def test_what_is_there(releases, tmp_path):
    (tmp_path / "opt" / "releases" / ".half").mkdir()
    (tmp_path / "opt" / "releases" / "file").write_text("")
    assert releases.ids() == ["a", "b", "c"]
    assert Releases(str(tmp_path / "nothing")).ids() == []


def test_links_go_forth_and_back(releases):
    assert releases.linked("current") is None
    releases.flip("a")
    assert (releases.linked("current"), releases.linked("previous")) == ("a", None)
    releases.flip("b")
    assert (releases.linked("current"), releases.linked("previous")) == ("b", "a")
    releases.flip("b")
    assert (releases.linked("current"), releases.linked("previous")) == ("b", "a")
    releases.flip("a")
    assert (releases.linked("current"), releases.linked("previous")) == ("a", "b")


def test_what_is_no_longer_there_does_not_become_previous(releases):
    releases.flip("a")
    shutil.rmtree(releases.path("a"))
    releases.flip("b")
    assert (releases.linked("current"), releases.linked("previous")) == ("b", None)


def test_units_and_processes_use_releases(releases, tmp_path):
    (tmp_path / "units" / "llamacpp-demo.service").write_text(UNIT % ("head", "a"))
    (tmp_path / "units" / "llamacpp-rpc-demo.service").write_text(UNIT % ("worker", "a"))
    (tmp_path / "units" / "other.service").write_text(UNIT % ("head", "c"))
    binaries = {name: os.path.join(releases.path(name), "bin", "tool") for name in "ab"}
    for path in binaries.values():
        shutil.copy("/bin/sleep", path)
    with subprocess.Popen([binaries["a"], "60"]) as first, subprocess.Popen([binaries["b"], "60"]) as second:
        users = releases.users()
        first.kill()
        second.kill()
    assert users == {
        "a": ["llamacpp-demo.service", "llamacpp-rpc-demo.service"],
        "b": ["tool (process %d)" % second.pid],
    }


def test_own_bytes_are_what_removal_frees(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own").write_text("x" * 10)
    (tmp_path / "one" / "shared").write_text("y" * 1000)
    os.link(tmp_path / "one" / "shared", tmp_path / "two" / "shared")
    os.link(tmp_path / "one" / "own", tmp_path / "one" / "again")
    assert sizes(str(tmp_path / "one")) == (1010, 10)
    assert _installed.total_own_bytes([str(tmp_path / "one"), str(tmp_path / "two")]) == 1020


def test_tried_holds_for_these_devices_this_manifest_and_this_driver(releases, tmp_path, monkeypatch):
    driver = tmp_path / "driver"
    monkeypatch.setattr(_installed, "DRIVER", str(driver))
    assert releases.tried("a", []) is None
    releases.note_tried("a", ["CUDA0", "CUDA1"], "version: 7")
    assert releases.tried("a", ["CUDA1"]) == "version: 7"
    assert releases.tried("a", ["CUDA2"]) is None
    driver.write_text("NVRM version: 535.183.01")
    assert releases.tried("a", ["CUDA1"]) is None
    driver.unlink()
    with open(os.path.join(releases.path("a"), "manifest.json"), "a", encoding="utf-8") as stream:
        stream.write("\n")
    assert releases.tried("a", ["CUDA1"]) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_stamp_that_is_broken_does_not_count(releases, tmp_path, text):
    releases.note_tried("a", [], "version: 7")
    (tmp_path / "opt" / "validated" / "a.json").write_text(text)
    assert releases.tried("a", []) is None


def test_description(releases):
    releases.flip("b")
    os.utime(releases.path("b"), (0, 86400))
    said = releases.describe("b", ["llamacpp-demo.service"])
    assert said.pop("bytes") == said.pop("own_bytes") > 100
    assert said == {
        "id": "b",
        "release": "b7",
        "build_number": 0,
        "commit": "",
        "backend": "",
        "architectures": [],
        "kind": "build",
        "installed_at": "1970-01-02T00:00:00Z",
        "complete": True,
        "current": True,
        "previous": False,
        "used_by": ["llamacpp-demo.service"],
    }


def described(name, day, **facts):
    """Return what to_prune looks at."""
    plain = {"current": False, "previous": False, "complete": True, "used_by": []}
    return dict(plain, id=name, installed_at="2026-01-%02dT00:00:00Z" % day, **facts)


FIVE = [described(name, day) for day, name in enumerate("abcde", 1)]


@pytest.mark.parametrize(
    ("releases", "keep", "protect", "gone"),
    [
        (FIVE, 2, [], ["a", "b", "c"]),
        (FIVE, 0, [], ["a", "b", "c", "d", "e"]),
        (FIVE, 9, [], []),
        (FIVE, 1, ["a", "nowhere"], ["b", "c", "d"]),
        ([described("a", 1, current=True), *FIVE[1:]], 1, [], ["b", "c", "d"]),
        ([described("a", 1, previous=True), *FIVE[1:]], 1, [], ["b", "c", "d"]),
        ([described("a", 1, used_by=["x.service"]), *FIVE[1:]], 1, [], ["b", "c", "d"]),
        ([*FIVE[:4], described("e", 5, complete=False)], 1, [], ["e", "a", "b", "c"]),
        ([described("e", 5, complete=False)], 1, [], ["e"]),
        ([], 1, [], []),
    ],
)
def test_prune(releases, keep, protect, gone):
    removed, kept = to_prune(releases, keep, protect)
    assert removed == gone
    assert set(removed) | set(kept) == {release["id"] for release in releases}
    assert not set(removed) & set(kept)


def test_prune_says_why_others_stay():
    releases = [
        described("a", 1, used_by=["x.service"]),
        described("b", 2, previous=True),
        described("c", 3, current=True),
        described("d", 4),
    ]
    assert to_prune(releases, 1, [])[1] == {
        "a": "used by x.service",
        "b": "previous, for rollback",
        "c": "current",
        "d": "one of the 1 newest",
    }
