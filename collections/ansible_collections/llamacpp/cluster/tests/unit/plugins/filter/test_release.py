# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which releases are missing where, what they need, and who hands them on."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.filter import release as filters


def release(name="b1-cpu-1", nodes=("node1", "node2"), builder="node1", **changes):
    """Return a release as a plan says it."""
    inputs = {
        "release": "b1",
        "backend": "cpu",
        "source": {"kind": "pypi"},
        "patches": [],
        "web_ui": False,
        "cmake_args": ["-DGGML_RPC_RDMA=OFF"],
    }
    return {
        "id": name,
        "nodes": list(nodes),
        "builder": builder,
        "patches": [],
        "addresses": {node: "10.0.1.%s" % node[-1] for node in nodes},
        "inputs": {**inputs, **changes},
    }


def missing(tmp_path, found, *releases):
    """Return the releases that are missing, of a plan with these."""
    plan = {"releases": {item["id"]: item for item in releases}}
    return filters.missing_releases(plan, {node: {"releases": there} for node, there in found.items()}, str(tmp_path))


def test_a_release_is_missing_where_a_node_lacks_it(tmp_path):
    (item,) = missing(tmp_path, {"node1": ["b1-cpu-1"], "node2": []}, release())
    assert item["lacking"] == ["node2"]
    assert item["archive"] == str(tmp_path / "releases" / "b1-cpu-1.tar.gz")
    assert missing(tmp_path, {"node1": ["b1-cpu-1"], "node2": ["b1-cpu-1"]}, release()) == []


def test_nodes_that_did_not_answer_lack_nothing(tmp_path):
    assert missing(tmp_path, {"node1": ["b1-cpu-1"]}, release()) == []


def test_an_archive_counts_with_its_checksum_alone(tmp_path):
    (tmp_path / "releases").mkdir()
    (tmp_path / "releases" / "b1-cpu-1.tar.gz").write_text("")
    assert not missing(tmp_path, {"node1": []}, release())[0]["cached"]
    (tmp_path / "releases" / "b1-cpu-1.tar.gz.sha256").write_text("")
    assert missing(tmp_path, {"node1": []}, release())[0]["cached"]


def test_one_source_for_all_that_is_compiled_from_it(tmp_path):
    nodes = {"node1": {"source": {"kind": "pypi", "package": "mirror"}}, "node3": {}}
    todo = missing(
        tmp_path,
        {"node1": [], "node3": []},
        release(),
        release("b1-cuda-1", ["node3"], backend="cuda"),
        release("b1-cpu-2", ["node3"], patches=[{"name": "fix.patch", "sha256": "a" * 64}]),
        release("b1-cpu-3", ["node3"], builder=""),
    )
    found = list(filters.release_source(todo, nodes).values())
    assert [item["source"] for item in found] == [{"kind": "pypi", "package": "mirror"}, {"kind": "pypi"}]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["cmake"]),
        ({"backend": "blas"}, ["cmake", "openblas"]),
        ({"cmake_args": ["-DGGML_RPC_RDMA=ON"]}, ["cmake", "verbs"]),
        ({"cmake_args": ["-DGGML_CUDA_NCCL=ON", "-DGGML_CUDA_NCCL=OFF"]}, ["cmake"]),
    ],
)
def test_packages_follow_from_what_is_built(changes, names):
    packages = {"build": ["cmake"], "build_blas": ["openblas"], "build_rdma": ["verbs"], "build_nccl": ["nccl"]}
    assert filters.build_packages([release(**changes)] * 2, packages, "build") == names


def test_a_builder_gets_sources_patches_and_pages_once():
    todo = [release(web_ui=True), release("b1-cpu-2", web_ui=True, backend="blas")]
    name = filters.source_name(todo[0])
    fetched = {"results": [{"item": {"name": name}, "archive": "/c/s.tar.gz", "patches": [{"path": "/c/p.patch"}]}]}
    pages = {"results": [{"item": {"name": name}, "archive": "/c/ui.tar.gz"}]}
    assert filters.build_files(todo, fetched, pages) == ["/c/s.tar.gz", "/c/p.patch", "/c/ui.tar.gz"]


def test_what_was_built_in_this_run():
    plan = {"releases": {"a": release("a"), "b": release("b", builder="")}}
    built = {"results": [{"item": {"id": "a"}, "archive": "/b/a.tar.gz"}, {"item": {"id": "c"}, "skipped": True}]}
    assert filters.built_releases(plan, {"node1": {"llama_cpp_built": built}}) == ["a"]
    assert filters.built_releases(plan, {"node1": {}}) == []


def test_the_builder_hands_on_what_it_built(tmp_path):
    todo = missing(tmp_path, {"node1": [], "node2": [], "node3": []}, release(nodes=["node1", "node2", "node3"]))
    hand = filters.handing_on(todo, ["b1-cpu-1"])["b1-cpu-1"]
    assert hand == {
        "node": "node1",
        "address": "10.0.1.1",
        "peers": ["node2", "node3"],
        "peer_addresses": ["10.0.1.2", "10.0.1.3"],
        "built": True,
    }


def test_without_a_build_the_first_that_lacks_it_gets_it_first(tmp_path):
    todo = missing(
        tmp_path, {"node1": ["b1-cpu-1"], "node2": [], "node3": []}, release(nodes=["node1", "node2", "node3"])
    )
    hand = filters.handing_on(todo, [])["b1-cpu-1"]
    assert (hand["node"], hand["peers"], hand["built"]) == ("node2", ["node3"], False)


def test_alone_or_without_a_common_network_everybody_gets_it_from_the_control_node(tmp_path):
    todo = missing(tmp_path, {"node1": []}, release(nodes=["node1"]))
    assert filters.handing_on(todo, [])["b1-cpu-1"]["node"] == ""
    apart = dict(missing(tmp_path, {"node1": [], "node2": []}, release())[0], addresses={})
    hand = filters.handing_on([apart], ["b1-cpu-1"])["b1-cpu-1"]
    assert (hand["node"], hand["peers"], hand["built"]) == ("", [], False)


def test_results_of_a_loop_by_their_item():
    loop = {"results": [{"item": {"name": "a"}, "x": 1}, {"item": {"name": "b"}, "skipped": True}]}
    assert filters.by_item(loop) == {"a": {"item": {"name": "a"}, "x": 1}}
