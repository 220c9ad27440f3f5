# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which releases a cluster needs, who compiles them, and why it cannot be."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._builds import decide_releases
from ansible_collections.llamacpp.cluster.plugins.module_utils._cmake import definition
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.tests.unit.builders import GIB, accept, device, instance, node

V100S = [dict(device("cuda", 32), compute_capability="7.0")]
H100 = [dict(device("cuda", 80), compute_capability="9.0")]


def found(**by_name):
    """Return facts by node: each a mapping of changes."""
    return {
        name: NodeFacts.from_dict(node("10.0.1.%d" % number, **changes))
        for number, (name, changes) in enumerate(by_name.items(), 11)
    }


def decide(nodes, builders=("node1",), variables=None, instances=(), **changes):
    """Decide the releases of a cluster of exactly these nodes."""
    declared = accept(*instances, inventory=list(nodes), builders=list(builders), nodes=variables or {}, **changes)
    releases, problems = decide_releases(declared, nodes, nodes)
    return releases, [str(problem) for problem in problems]


def only(releases):
    """Return the one release that there is."""
    assert len(releases.by_id) == 1
    return next(iter(releases.by_id.values()))


def test_nodes_of_one_kind_share_a_release():
    releases, problems = decide(found(node1={}, node2={}, node3={}))
    assert not problems
    release = only(releases)
    name = release.id
    assert release.nodes == ("node1", "node2", "node3")
    assert release.builder == "node1"
    assert name.startswith("b11434-cpu-")
    assert set(releases.of_node.values()) == {name}


def test_three_kinds_of_nodes_get_three_releases_in_one_run():
    nodes = found(
        node1={"devices": V100S, "driver": "535.183.01"},
        node2={"devices": H100, "driver": "550.54.15"},
        node3={},
        node4={"devices": V100S, "driver": "535.183.01"},
    )
    releases, problems = decide(nodes)
    assert not problems
    kinds = {(item.inputs["backend"], *item.inputs["architectures"]): item.nodes for item in releases.by_id.values()}
    assert kinds == {("cuda", "70"): ("node1", "node4"), ("cuda", "90"): ("node2",), ("cpu",): ("node3",)}
    volta = releases.by_id[releases.of_node["node1"]]
    assert definition(volta.inputs["cmake_args"], "GGML_CUDA_FORCE_MMQ") == "ON"
    assert volta.inputs["toolchain"]["cuda"].startswith(("11.", "12."))


def test_a_drawer_of_mixed_cards_is_one_release():
    mixed = [dict(device("cuda", 24), compute_capability=item) for item in ("8.9", "8.6")]
    releases, problems = decide(found(node1={"devices": mixed}))
    assert not problems
    release = only(releases)
    assert release.inputs["architectures"] == ["86", "89"]


def test_declared_architectures_win_over_facts():
    nodes = found(node1={"devices": V100S})
    releases, problems = decide(nodes, variables={"node1": {"cuda_architectures": ["90", "70"]}})
    assert not problems
    release = only(releases)
    assert release.inputs["architectures"] == ["70", "90"]


def test_cuda_without_a_gpu_has_to_say_for_what():
    _releases, problems = decide(found(node1={}), variables={"node1": {"backend": "cuda"}})
    assert len(problems) == 1
    assert "llamacpp_cuda_architectures of node1" in problems[0]
    assert '["70"] for V100' in problems[0]


def test_the_first_builder_whose_library_is_old_enough_builds():
    nodes = found(node1={"libc": "2.41"}, node2={"libc": "2.31"}, node3={"libc": "2.36"})
    releases, problems = decide(nodes, builders=("node1", "node3", "node2"))
    assert not problems
    release = only(releases)
    assert release.builder == "node2"


def test_nobody_old_enough_is_said_with_versions():
    nodes = found(node1={"libc": "2.41"}, node2={"libc": "2.31"})
    _releases, problems = decide(nodes, builders=("node1",))
    assert len(problems) == 1
    assert "node1 has the C library 2.41" in problems[0] and "2.31" in problems[0]


def test_each_kind_of_processor_has_its_builder():
    nodes = found(node1={}, node2={"machine": "aarch64", "cpu_flags": ["asimd"]})
    releases, problems = decide(nodes, builders=("node1", "node2"))
    assert not problems
    assert {item.nodes: item.builder for item in releases.by_id.values()} == {("node1",): "node1", ("node2",): "node2"}


def test_a_declared_builder_is_taken_and_has_to_be_one():
    nodes = found(node1={}, node2={})
    variables = {name: {"builder": "node2"} for name in nodes}
    releases, problems = decide(nodes, builders=("node1", "node2"), variables=variables)
    assert not problems
    assert [item.builder for item in releases.by_id.values()] == ["node2"]
    _releases, problems = decide(nodes, builders=("node1",), variables=variables)
    assert "node2 is not in the group of builders" in problems[0]


def test_without_builders_the_message_says_so():
    _releases, problems = decide(found(node1={}), builders=())
    assert "nobody can compile for node1: it is empty" in problems[0]


def test_a_builder_outside_the_cluster():
    declared = accept(inventory=["node1"], builders=["forge"], nodes={})
    inside, outside = found(node1={}), found(forge={"libc": "2.31"})
    releases, problems = decide_releases(declared, inside, {**inside, **outside})
    assert not problems
    release = only(releases)
    assert release.builder == "forge" and release.nodes == ("node1",)


def test_a_processor_that_lacks_an_instruction_is_refused_before_the_build():
    nodes = found(node1={}, node2={"cpu_flags": ["sse4_2", "avx", "f16c"]})
    _releases, problems = decide(nodes)
    assert len(problems) == 1
    assert "processor of node2 = without avx2, bmi2, fma" in problems[0]
    assert "llamacpp_cpu_variants: true" in problems[0]
    assert "[-DGGML_AVX2=OFF, -DGGML_BMI2=OFF, -DGGML_FMA=OFF]" in problems[0]
    _releases, problems = decide(nodes, variables={name: {"cpu_variants": True} for name in nodes})
    assert not problems


def test_vulkan_is_not_built_where_its_headers_are_too_old():
    nodes = found(node1={"os": {"id": "debian", "version": "12", "family": "debian", "name": "Debian 12"}})
    _releases, problems = decide(nodes, variables={"node1": {"backend": "vulkan"}})
    assert "Vulkan headers are too old" in problems[0] and "debian 13" in problems[0]


def test_a_wrong_toolchain_is_refused_with_its_row():
    nodes = found(node1={"devices": V100S})
    _releases, problems = decide(nodes, variables={"node1": {"cuda_version": "13.0", "cuda_provider": "pip"}})
    assert len(problems) == 1
    assert "toolchain of node1 = cuda for 70 on debian-12" in problems[0]


@pytest.mark.parametrize(
    ("types", "wanted"),
    [
        ({}, False),
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, False),
        ({"cache_type_k": "q8_0"}, False),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, True),
        ({"cache_type_k": "q5_1", "cache_type_v": "q5_1"}, True),
    ],
)
def test_all_quants_when_an_instance_needs_them(types, wanted):
    nodes = found(node1={"devices": H100})
    releases, problems = decide(nodes, instances=[instance(nodes=["node1"], **types)])
    assert not problems
    release = only(releases)
    assert (definition(release.inputs["cmake_args"], "GGML_CUDA_FA_ALL_QUANTS") == "ON") is wanted


def test_rdma_follows_from_devices_and_can_be_overruled():
    nodes = found(node1={"rdma": ["mlx5_0"]}, node2={})
    releases, _problems = decide(nodes)
    release = only(releases)
    assert definition(release.inputs["cmake_args"], "GGML_RPC_RDMA") == "ON"
    releases, _problems = decide(nodes, variables={name: {"rdma": False} for name in nodes})
    release = only(releases)
    assert definition(release.inputs["cmake_args"], "GGML_RPC_RDMA") == "OFF"


def test_a_prebuilt_release_needs_no_builder():
    source = {"kind": "release_archive", "path": "/srv/llama.tar.gz", "sha256": "a" * 64}
    releases, problems = decide(found(node1={}), builders=(), variables={"node1": {"source": source}})
    assert not problems
    release = only(releases)
    assert release.builder == "" and not release.toolchain
    assert "path" not in release.inputs["source"]


def test_a_pinned_node_runs_what_it_has():
    manifests = {"b11401-cpu-1": {"inputs": {"release": "b11401", "backend": "cpu", "architectures": []}}}
    nodes = found(node1={"releases": ["b11401-cpu-1"], "manifests": manifests})
    releases, problems = decide(nodes, pinned={"node1": "b11401-cpu-1"})
    assert not problems
    assert releases.of_node == {"node1": "b11401-cpu-1"}
    assert releases.by_id["b11401-cpu-1"].builder == ""


def test_a_node_without_a_release_before_cannot_go_back():
    _releases, problems = decide(found(node1={}), pinned={"node1": ""})
    assert "no release before the current one is installed there" in problems[0]


def test_nodes_cannot_go_back_to_different_versions():
    def installed(label):
        name = label + "-cpu-1"
        manifest = {"inputs": {"release": label, "backend": "cpu", "architectures": []}}
        return {"releases": [name], "manifests": {name: manifest}}

    nodes = found(node1=installed("b1"), node2=installed("b2"))
    _releases, problems = decide(nodes, pinned={"node1": "b1-cpu-1", "node2": "b2-cpu-1"})
    assert "b1, b2" in problems[0]


def test_a_builder_without_room_is_refused_unless_there_is_nothing_to_build():
    disks = {"/var/cache/llamacpp/build": {"free_bytes": GIB, "total_bytes": 900 * GIB}}
    nodes = found(node1={"disks": disks})
    releases, problems = decide(nodes)
    assert problems == [
        "free disk of node1 for /var/cache/llamacpp/build = 1024 MiB: building llama.cpp takes 3072 MiB; "
        "free some space, or set llamacpp_build_dir to another disk"
    ]
    nodes = found(node1={"disks": disks, "releases": list(releases.by_id)})
    assert decide(nodes)[1] == []


def test_patches_name_the_release():
    nodes = found(node1={})
    plain, _problems = decide(nodes)
    patched, problems = decide(nodes, variables={"node1": {"patches": [{"path": "/srv/a.patch", "sha256": "a" * 64}]}})
    assert not problems
    assert set(plain.by_id) != set(patched.by_id)
    release = only(patched)
    assert release.patches == ({"path": "/srv/a.patch", "sha256": "a" * 64},)
    assert release.inputs["patches"] == [{"name": "a.patch", "sha256": "a" * 64}]
