# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a bundle takes, and what is said of one."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.filter import bundle

OPENED = {
    "manifest": {"created_at": "2026-11-21T16:00:00Z", "about": {"for": "b1 on node1"}, "members": []},
    "directory": "/opened",
}


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ({"id": "debian", "version": "12"}, "debian-12-x86_64"),
        ({"id": "debian", "version": "12.5"}, "debian-12-x86_64"),
        ({"id": "ubuntu", "version": "24.04"}, "ubuntu-24.04-x86_64"),
        ({"id": "rocky", "version": "8.10"}, "rocky-8-x86_64"),
    ],
)
def test_systems_that_share_packages_share_a_name(system, name):
    assert bundle.bundle_system({"os": system, "machine": "x86_64"}) == name


@pytest.mark.parametrize("opened", [{}, {"skipped": True, "changed": False}])
def test_without_a_bundle_instances_stay_as_they_are(opened):
    instances = [{"name": "demo", "model": {"path": "/srv/small.gguf"}}]
    assert bundle.from_bundle(instances, opened) is instances


def test_a_toolkit_of_wheels_is_no_package_of_the_distribution():
    gcc = {"packages": ["gcc-12", "g++-12"]}
    toolchains = [
        {"gcc": gcc, "cuda": {}},
        {"gcc": gcc, "cuda": {"provider": "package", "packages": ["cuda-toolkit-12-2"]}},
        {"gcc": {}, "cuda": {"provider": "pip", "packages": ["nvidia-cuda-nvcc==13.0.88"]}},
        {},
    ]
    assert bundle.bundle_toolchain(toolchains) == ["gcc-12", "g++-12", "cuda-toolkit-12-2"]


def test_everything_that_was_collected_is_packed(tmp_path):
    (tmp_path / "releases").mkdir()
    for name in ("b1-cpu-0.tar.gz", "b1-cpu-0.tar.gz.sha256", "b1-cuda-0.tar.gz"):
        (tmp_path / "releases" / name).write_text("")
    patch = {"name": "fix.patch", "path": "/c/patches/aa.patch", "sha256": "aa"}
    sources = {"results": [{"item": {"release": "b1"}, "archive": "/c/sources/s.tar.gz", "patches": [patch]}]}
    pages = {"results": [{"item": {"release": "b1"}, "skipped": True}]}
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "key.pub").write_text("")
    toolkits = {"results": [{"files": ["/c/cuda/nvcc.whl"]}, {"files": ["/c/cuda/nvcc.whl", "/c/cuda/crt.whl"]}]}
    item = {"folder": "01", "details": {"needed_by": ["demo"]}}
    file = {"name": "small.gguf", "sha256": "bb", "role": "model"}
    models = [{"item": item, "manifest": {"name": "o/r/Q8_0", "files": [file]}}]
    collected = [{"system": "debian-12-x86_64", "nodes": ["node1"], "packages": ["make"], "versions": {"make": "4.3"}}]
    release = {"nodes": ["node1"], "inputs": {"release": "b1"}}
    files = bundle.bundle_files(
        sources, pages, toolkits, models, collected, {"b1-cpu-0": release, "b1-cuda-0": release}, str(tmp_path)
    )
    assert [(entry["kind"], entry["file"]) for entry in files] == [
        ("source", "/c/sources/s.tar.gz"),
        ("patch", "/c/patches/aa.patch"),
        ("cuda", "/c/cuda/nvcc.whl"),
        ("cuda", "/c/cuda/crt.whl"),
        ("cuda", "%s/cuda/key.pub" % tmp_path),
        ("model", "%s/models/names/o/r/Q8_0/small.gguf" % tmp_path),
        ("packages", "%s/bundle/debian-12-x86_64.tar" % tmp_path),
        ("release", "%s/releases/b1-cpu-0.tar.gz" % tmp_path),
    ]
    assert files[6]["details"] == {"needed_by": ["node1"], "requested": ["make"], "versions": {"make": "4.3"}}


def test_a_model_that_the_control_node_knows_is_not_taken_again():
    items = [{"name": "a"}, {"name": "b"}]
    fetched = {"results": [{"item": items[1], "manifest": {"name": "b"}}, {"item": items[0], "skipped": True}]}
    assert bundle.bundle_manifests(items, {"a": {"name": "a"}}, fetched) == [
        {"item": items[0], "manifest": {"name": "a"}},
        {"item": items[1], "manifest": {"name": "b"}},
    ]


def test_what_is_missing_is_looked_for_in_the_cache_too(tmp_path):
    inputs = {"release": "b1", "source": {"kind": "pypi"}, "patches": [], "web_ui": False}
    release = {"id": "b1-cpu-0", "lacking": ["node1"], "cached": False, "builder": "node1", "toolchain": {}}
    todo = [{**release, "inputs": inputs}]
    assert "source of llama.cpp b1" in bundle.bundle_missing(OPENED, "/b.tar", todo=todo, cache=str(tmp_path))
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "llama.cpp-pypi-b1.tar.gz").write_text("")
    assert bundle.bundle_missing(OPENED, "/b.tar", todo=todo, cache=str(tmp_path)) == ""


def test_a_model_on_the_control_node_is_not_missing(tmp_path):
    model = tmp_path / "small.gguf"
    instances = [{"name": "demo", "model": {"path": str(model)}}]
    assert "model %s for instance demo" % model in bundle.bundle_missing(OPENED, "/b.tar", instances=instances)
    model.write_text("")
    assert bundle.bundle_missing(OPENED, "/b.tar", instances=instances) == ""


def test_a_table_has_a_row_for_each_kind():
    members = [{"kind": "wheel", "bytes": 1 << 20, "name": "%d.whl" % number} for number in range(9)]
    members.append({"kind": "model", "bytes": 3 << 20, "name": "small.gguf"})
    lines = bundle.bundle_table({"members": members}, "/b.tar").splitlines()
    assert lines[0] == "/b.tar"
    assert lines[1].split() == ["model", "1", "files", "3.0", "MiB", "small.gguf"]
    assert lines[2].split() == ["wheel", "9", "files", "9.0", "MiB"]
