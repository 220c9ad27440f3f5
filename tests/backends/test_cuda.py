"""A whole CUDA release for Volta with Debian 12's own toolkit, built by the roles, on nodes that have no GPU.

That it computes on a GPU is not shown here; that it is complete, loads without a driver, and serves on a processor is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from parts import Part

pytestmark = [pytest.mark.lab, pytest.mark.slow_build]

BUILDER, OTHER = "node1", "node3"
PLUGIN = "bin/libggml-cuda.so"


@pytest.fixture(scope="module")
def cluster(part: Callable[..., Part]) -> Part:
    return part(
        BUILDER,
        OTHER,
        llamacpp_backend="cuda",
        llamacpp_cuda_architectures=["70"],
        llamacpp_cuda_provider="distro",
    )


def test_it_is_built_and_serves_on_processors(cluster: Part) -> None:
    """The head is a node that never had a toolkit, its worker is the builder."""
    cluster.site().succeeded()
    planned = cluster.planned("demo")
    assert (planned["head"], {device["kind"] for device in planned["devices"]}) == (OTHER, {"cpu"})
    assert cluster.chat("demo")


def test_it_was_built_with_debians_toolkit_and_a_gcc_that_fits_it(cluster: Part) -> None:
    manifest = cluster.manifest(BUILDER)
    assert "release 11.8" in manifest["cuda_compiler"]
    assert re.search(r"\) 11\.\d+\.\d+$", manifest["compiler"]), manifest["compiler"]
    assert "-DGGML_CUDA_FORCE_MMQ=ON" in manifest["inputs"]["cmake_args"]
    assert cluster.shell(BUILDER, "command -v gcc g++ || echo none").strip() == "none", "nobody's default is changed"


def test_all_its_device_code_is_for_volta(cluster: Part) -> None:
    listed = cluster.shell(BUILDER, f"cuobjdump --list-elf {cluster.release}/{PLUGIN}")
    assert set(re.findall(r"\.sm_(\d+)\.cubin", listed)) == {"70"}


def test_a_node_needs_nothing_of_cuda_but_the_driver(cluster: Part) -> None:
    assert cluster.shell(OTHER, "command -v nvcc gcc cmake || echo none").strip() == "none"
    for node in (BUILDER, OTHER):
        assert cluster.unresolved(node, PLUGIN) == {"libcuda.so.1"}, "the toolkit brought no driver, either"
    files = cluster.manifest(OTHER)["files"]
    assert {"lib/libcudart.so.11.0", "lib/libcublas.so.11", "lib/libcublasLt.so.11"} <= files.keys()
    assert not [name for name in files if "libcuda.so" in name]


def test_a_plugin_without_its_driver_is_passed_over(cluster: Part) -> None:
    for node in (BUILDER, OTHER):
        assert "CUDA" not in cluster.seen_devices(node)


def test_a_second_run_changes_nothing(cluster: Part) -> None:
    assert set(cluster.site().succeeded().changed.values()) == {0}
