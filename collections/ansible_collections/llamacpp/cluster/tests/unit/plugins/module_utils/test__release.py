# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names, arguments and manifests of releases."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _release

PLATFORM = {"os": "debian-12", "machine": "x86_64"}


def inputs(**changes):
    """Return the inputs of a CPU build, changed."""
    return {
        "release": "b11434",
        "source": {"kind": "pypi"},
        "backend": "cpu",
        "architectures": [],
        "cmake_args": [],
        "platform": PLATFORM,
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"release": "b11401"},
        {"source": {"kind": "git", "url": "https://example.org/llama.cpp"}},
        {"source": {"kind": "pypi", "sha256": "0" * 64}},
        {"backend": "cuda", "architectures": ["70"]},
        {"cmake_args": ["-DGGML_LTO=ON"]},
        {"platform": {"os": "debian-11", "machine": "x86_64"}},
        {"platform": {"os": "debian-12", "machine": "aarch64"}},
        {"patches": [{"name": "fix.patch", "sha256": "1" * 64}]},
    ],
)
def test_every_input_changes_the_id(changes):
    assert _release.release_id(inputs(**changes)) != _release.release_id(inputs())


def test_id_is_stable_and_readable():
    assert _release.release_id(inputs()) == _release.release_id(inputs())
    assert _release.release_id(inputs()).startswith("b11434-cpu-")
    name = _release.release_id(inputs(release="feature/../x y", backend="cuda", architectures=["70", "90"]))
    assert "/" not in name and " " not in name
    assert "-cuda-sm70_90-" in name
    assert "-hip-gfx90a-" in _release.release_id(inputs(backend="hip", architectures=["gfx90a"]))


def test_old_name_of_the_worker():
    assert _release.choose_targets(["llama-server", "rpc-server", "all"]) == ["llama-server", "rpc-server"]
    assert _release.rpc_server_name(["llama-server", "rpc-server"]) == "rpc-server"


def test_new_name_of_the_worker_wins():
    chosen = _release.choose_targets(["llama-bench", "rpc-server", "ggml-rpc-server", "llama-server"])
    assert chosen == ["llama-server", "ggml-rpc-server", "llama-bench"]


@pytest.mark.parametrize("available", [["llama-server"], ["ggml-rpc-server"], []])
def test_source_without_server_or_worker_is_refused(available):
    with pytest.raises(_release.ReleaseError):
        _release.choose_targets(available)


def test_tree_against_manifest(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-server").write_bytes(b"server")
    (tmp_path / "bin" / "gone").write_bytes(b"gone")
    (tmp_path / "lib").symlink_to("bin")
    (tmp_path / "link.so").symlink_to("bin/llama-server")
    (tmp_path / "manifest.json").write_text("{}")
    wanted = _release.describe_tree(str(tmp_path))
    assert "manifest.json" not in wanted
    assert wanted["link.so"] == {"link": "bin/llama-server"}
    assert _release.differences(wanted, wanted) == []
    (tmp_path / "bin" / "gone").unlink()
    (tmp_path / "bin" / "llama-server").write_bytes(b"forged")
    (tmp_path / "new").write_bytes(b"new")
    assert _release.differences(wanted, _release.describe_tree(str(tmp_path))) == [
        "bin/gone is missing",
        "new does not belong there",
        "bin/llama-server differs",
    ]


@pytest.mark.parametrize(("release", "number"), [("b11434", 11434), ("b0", 0), ("v1.2", None), ("b12x", None)])
def test_build_number(release, number):
    assert _release.build_number(release) == number
