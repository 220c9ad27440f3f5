# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run without a network lacks is said at once."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _bundle_needs as needs

SHA = "cd" * 32
PACKAGES = {
    "kind": "packages",
    "name": "debian-12-x86_64",
    "details": {"versions": {"cmake": "3.25.1-1", "nftables": "1.0.6-2"}},
}


def release(name="b1-cpu-0", **changes):
    inputs = {
        "release": "b1",
        "source": {"kind": "pypi"},
        "patches": [{"name": "fix.patch", "sha256": SHA}],
        "web_ui": False,
    }
    made = {"id": name, "lacking": ["node1", "node2"], "cached": False, "builder": "node1", "toolchain": {}}
    return {**made, "inputs": inputs, **changes}


def test_nodes_with_the_same_gap_share_a_line():
    nodes = {
        "node1": {"system": "debian-12-x86_64", "packages": ["cmake", "gcc-11"]},
        "node2": {"system": "debian-12-x86_64", "packages": ["gcc-11"]},
        "node3": {"system": "debian-12-x86_64", "packages": ["nftables"]},
        "node4": {"system": "rocky-8-x86_64", "packages": ["cmake"]},
        "node5": {"system": "rocky-8-x86_64", "packages": []},
    }
    assert needs.missing_packages(nodes, [PACKAGES]) == [
        "packages of debian-12-x86_64 (gcc-11) for node1, node2",
        "packages of rocky-8-x86_64 (cmake) for node4",
    ]


def test_a_version_is_there_as_source_or_as_release():
    members = [
        {"kind": "source", "details": {"release": "b1"}},
        {"kind": "release", "details": {"release": "b2"}},
        {"kind": "wheel", "details": {}},
    ]
    wanted = {"b1": ["node1"], "b2": ["node1"], "b3": ["node1", "node2"]}
    assert needs.missing_sources(wanted, members) == ["source of llama.cpp b3 for node1, node2"]


def test_a_release_needs_its_source_and_its_patches():
    assert needs.missing_builds([release()], []) == [
        "source of llama.cpp b1 for release b1-cpu-0 of node1, node2",
        "patch fix.patch for release b1-cpu-0 of node1, node2",
    ]
    files = ["sources/llama.cpp-pypi-b1.tar.gz", "patches/%s.patch" % SHA]
    assert needs.missing_builds([release()], files) == []


def test_another_version_is_not_taken_for_the_source():
    files = ["sources/llama.cpp-pypi-b11.tar.gz", "patches/%s.patch" % SHA]
    assert needs.missing_builds([release()], files) == ["source of llama.cpp b1 for release b1-cpu-0 of node1, node2"]


def test_a_tarball_counts_however_it_is_compressed():
    inputs = {"release": "b1", "source": {"kind": "archive", "sha256": SHA}, "patches": [], "web_ui": False}
    files = ["sources/llama.cpp-archive-b1-%s.tar.xz" % SHA[:12]]
    assert needs.missing_builds([release(inputs=inputs)], files) == []


@pytest.mark.parametrize(
    ("file", "missing"),
    [("ui/0123456789abcdef-b1.tar.gz", False), ("npm", False), ("ui/0123456789abcdef-b11.tar.gz", True)],
)
def test_pages_are_there_or_can_be_built(file, missing):
    inputs = {"release": "b1", "source": {"kind": "pypi"}, "patches": [], "web_ui": True}
    found = needs.missing_builds([release(inputs=inputs)], ["sources/llama.cpp-pypi-b1.tar.gz", file])
    assert found == ["pages of the web UI of b1 for release b1-cpu-0 of node1, node2"] * missing


@pytest.mark.parametrize(("version", "missing"), [("13.0", False), ("13.1", True)])
def test_a_toolkit_of_wheels_has_its_compiler(version, missing):
    inputs = {"release": "b1", "source": {"kind": "pypi"}, "patches": [], "web_ui": False}
    toolchain = {"cuda": {"provider": "pip", "version": version}}
    files = ["sources/llama.cpp-pypi-b1.tar.gz", "cuda/nvidia_cuda_nvcc-13.0.88-py3-none-manylinux_2_17_x86_64.whl"]
    found = needs.missing_builds([release(inputs=inputs, toolchain=toolchain)], files)
    assert found == ["wheels of CUDA 13.1 for release b1-cpu-0 of node1, node2"] * missing


def test_a_built_release_needs_nothing():
    assert needs.missing_builds([release(cached=True)], []) == []


def test_what_nobody_compiles_has_to_be_there_as_an_archive():
    assert needs.missing_builds([release(builder="")], []) == ["built archive for release b1-cpu-0 of node1, node2"]


def test_models_count_that_are_on_the_control_node():
    opened = {"manifest": {"members": []}, "directory": "/opened"}
    instances = [
        {"name": "one", "model": {"path": "/srv/one.gguf"}},
        {"name": "two", "model": {"repo": "o/r"}},
        {"name": "three", "model": {"path": "/srv/three.gguf"}},
    ]
    assert needs.missing_models(instances, opened, ["/srv/one.gguf"]) == [
        "model o/r for instance two",
        "model /srv/three.gguf for instance three",
    ]


def test_one_message_says_everything_and_what_to_do():
    text = needs.message("/srv/b.tar", ["model m for instance i", "packages p for node1"], {"for": "b1 on node1"})
    assert text.splitlines()[:3] == [
        "llamacpp_bundle = /srv/b.tar lacks 2 things that this run needs:",
        "- model m for instance i",
        "- packages p for node1",
    ]
    assert "b1 on node1" in text
    assert "run playbooks/bundle.yml" in text
    assert needs.message("/srv/b.tar", [], {}) == ""
