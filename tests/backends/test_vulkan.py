"""A Vulkan release, built on Debian 13, that computes on mesa's software device (llvmpipe).

A software device proves that the release loads, sees devices and computes right. Of speed, and of any real GPU's
driver, it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from parts import Part

pytestmark = [pytest.mark.lab, pytest.mark.slow_build]

# llama.cpp passes over software devices unless they are named.
SOFTWARE = {"GGML_VK_VISIBLE_DEVICES": "0"}


@pytest.fixture(scope="module")
def cluster(part: Callable[..., Part]) -> Part:
    found = part(
        "node2",
        llamacpp_backend="vulkan",
        llamacpp_devices=[{"kind": "vulkan", "name": "llvmpipe", "memory": "4 GiB"}],
        llamacpp_environment=SOFTWARE,
    )
    found.variables["llamacpp_instances"][0]["environment"] = SOFTWARE
    # As with any GPU, its driver is there before llama.cpp comes.
    install = "apt-get install --yes --no-install-recommends mesa-vulkan-drivers"
    found.lab.root("node2", ["sh", "-c", f"apt-get update && DEBIAN_FRONTEND=noninteractive {install}"], timeout=600)
    return found


def test_a_vulkan_release_serves_on_the_software_device(cluster: Part) -> None:
    """site.yml itself proves that the planned device holds its part of the model."""
    cluster.site().succeeded()
    assert [device["device"] for device in cluster.planned("demo")["devices"]] == ["Vulkan0"]
    assert cluster.chat("demo")


def test_the_device_is_called_by_its_name(cluster: Part) -> None:
    assert "Vulkan0: llvmpipe" in cluster.seen_devices("node2", **SOFTWARE)


def test_without_being_told_llama_cpp_passes_over_software_devices(cluster: Part) -> None:
    assert "Vulkan" not in cluster.seen_devices("node2")


def test_the_loader_is_the_distributions(cluster: Part) -> None:
    manifest = cluster.manifest("node2")
    assert (manifest["inputs"]["backend"], manifest["plugins"]) == ("vulkan", True)
    assert "libvulkan.so.1" in cluster.needed("node2", "bin/libggml-vulkan.so")
    assert not [name for name in manifest["files"] if "libvulkan" in name]


def test_a_second_run_changes_nothing(cluster: Part) -> None:
    assert set(cluster.site().succeeded().changed.values()) == {0}
