"""Bad input on real nodes: site.yml refuses, names variable, value and fix, and has changed nothing.

The same checks have unit tests of their own; here they meet the whole way from the inventory to the message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import Cluster

pytestmark = [pytest.mark.lab]

SNAPSHOT = (
    "find /etc /opt /usr/local /var/lib/llamacpp /var/cache/llamacpp -xdev -printf '%p %T@ %s\\n' 2>/dev/null"
    " | sort | sha256sum"
)
NODES = ("node1", "node2", "node3")


def refused(cluster: Cluster, *words: str, **changes: Any) -> str:
    """Run site.yml with changed variables; assert that it is refused with these words and changes no node."""
    before = {node: cluster.shell(node, SNAPSHOT) for node in NODES}
    run = cluster.site(**changes).failed()
    for word in words:
        assert word in run.output, f"{word!r} is not in:\n{run.output[-3000:]}"
    assert set(run.changed.values()) == {0}, run.output[-3000:]
    assert {node: cluster.shell(node, SNAPSHOT) for node in NODES} == before
    return run.output


def with_demo(cluster: Cluster, **settings: Any) -> list[dict[str, Any]]:
    """The declared instances, the first one changed."""
    return [cluster.instance("demo", ["node1", "node2", "node3"], **settings)]


def test_unknown_node(cluster: Cluster) -> None:
    instances = [cluster.instance("demo", ["node1", "nod2"])]
    refused(cluster, "llamacpp_instances[0].nodes", "nod2", "node2", llamacpp_instances=instances)


def test_head_that_is_its_own_worker(cluster: Cluster) -> None:
    instances = with_demo(cluster, head="node1", workers=["node1", "node2"])
    refused(cluster, "llamacpp_instances[0].workers", "node1", llamacpp_instances=instances)


def test_two_instances_on_one_port(cluster: Cluster) -> None:
    instances = [cluster.instance(name, ["node1"], port=8080) for name in ("one", "two")]
    refused(cluster, "llamacpp_instances[1].port", "8080", "node1", llamacpp_instances=instances)


def test_missing_model(cluster: Cluster) -> None:
    instances = with_demo(cluster, model={"path": "/nowhere/model.gguf"})
    refused(cluster, "llamacpp_instances[0].model", "/nowhere/model.gguf", llamacpp_instances=instances)


def test_wrong_checksum(cluster: Cluster) -> None:
    instances = with_demo(cluster, model={"path": str(cluster.model), "sha256": "0" * 64})
    found = hashlib.sha256(cluster.model.read_bytes()).hexdigest()
    refused(cluster, "llamacpp_instances[0].model", "sha256", found, llamacpp_instances=instances)


def test_file_that_is_not_gguf(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("not a model", encoding="utf-8")
    instances = with_demo(cluster, model={"path": str(tmp_path / "notes.gguf")})
    refused(cluster, "llamacpp_instances[0].model", "notes.gguf", "GGUF", llamacpp_instances=instances)


@pytest.mark.parametrize("context", [0, -1])
def test_context_of_nothing(cluster: Cluster, context: int) -> None:
    instances = with_demo(cluster, context=context)
    refused(cluster, f"llamacpp_instances[0].context = {context}", "at least 1", llamacpp_instances=instances)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llamacpp_backend": "metal"}, ("llamacpp_backend of node1 = metal", "must be one of auto, cpu, cuda")),
        ({"llamacpp_backend": "cuda"}, ("llamacpp_cuda_architectures of node1", '["70"] for V100')),
        (
            {"llamacpp_backend": "cuda", "llamacpp_cuda_architectures": ["7.0"]},
            ("llamacpp_cuda_architectures of node1", "7.0 is no architecture"),
        ),
        (
            {"llamacpp_backend": "cuda", "llamacpp_cuda_architectures": ["70"], "llamacpp_cuda_version": "13.0"},
            ("toolchain of node2", "13.0"),
        ),
        ({"llamacpp_backend": "vulkan"}, ("Vulkan headers are too old", "debian 13")),
        ({"llamacpp_patches": [{"path": "/nowhere/fix.patch"}]}, ("llamacpp_patches[0].path = /nowhere/fix.patch",)),
        (
            {"llamacpp_patches": [{"url": "https://example.org/fix.patch"}]},
            ("llamacpp_patches[0].sha256 of node1", "needs its sha256"),
        ),
        ({"llamacpp_cmake_args": ["-DGGML_NATIVE=ON"]}, ("llamacpp_cpu_variants: true",)),
    ],
)
def test_release_that_cannot_be_built(cluster: Cluster, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(cluster, *words, **changes)


def test_patch_with_another_checksum(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "fix.patch").write_text("--- a/x\n+++ b/x\n", encoding="utf-8")
    found = hashlib.sha256((tmp_path / "fix.patch").read_bytes()).hexdigest()
    patches = [{"path": str(tmp_path / "fix.patch"), "sha256": "0" * 64}]
    refused(cluster, "llamacpp_patches[0].sha256", found, llamacpp_patches=patches)


def test_release_that_does_not_exist(cluster: Cluster) -> None:
    refused(cluster, "llamacpp_release = b99999999", "the nearest are b", llamacpp_release="b99999999")


@pytest.mark.parametrize("keys", [[""], ["   "], []])
def test_empty_api_key(cluster: Cluster, keys: list[str]) -> None:
    refused(cluster, "llamacpp_instances[0].api_keys", llamacpp_instances=with_demo(cluster, api_keys=keys))


def test_fabric_address_on_no_interface(cluster: Cluster) -> None:
    """Declared for all nodes at once, so it is on none of them."""
    refused(cluster, "llamacpp_fabric_address", "10.99.99.99", "10.214.1.1", llamacpp_fabric_address="10.99.99.99")


def test_disk_too_small_for_the_build(cluster: Cluster) -> None:
    refused(
        cluster,
        "llamacpp_build",
        "node2",
        "GiB",
        llamacpp_build_bytes_needed=1 << 50,
        llamacpp_cmake_args=["-DGGML_LTO=OFF"],
    )


@pytest.fixture
def small_disk(cluster: Cluster) -> Iterator[str]:
    """A directory on the head with room for 8 MiB."""
    cluster.shell("node1", "mkdir -p /mnt/small && mount -t tmpfs -o size=8m tmpfs /mnt/small")
    yield "/mnt/small/models"
    cluster.shell("node1", "umount /mnt/small && rmdir /mnt/small")


def test_disk_too_small_for_the_model(cluster: Cluster, small_disk: str) -> None:
    refused(cluster, "llamacpp_models_dir", small_disk, "node1", llamacpp_models_dir=small_disk)


@pytest.fixture
def strange_system(cluster: Cluster) -> Iterator[None]:
    """A node whose operating system nobody has heard of."""
    cluster.shell(
        "node3",
        "cp -P /etc/os-release /var/tmp/os-release.kept && rm /etc/os-release && "
        "printf 'ID=plan9\\nVERSION_ID=4\\nPRETTY_NAME=\"Plan 9\"\\n' > /etc/os-release",
    )
    yield
    cluster.shell("node3", "rm /etc/os-release && mv /var/tmp/os-release.kept /etc/os-release")


@pytest.mark.usefixtures("strange_system")
def test_unsupported_operating_system(cluster: Cluster) -> None:
    refused(cluster, "node3", "Plan 9")


@pytest.fixture
def old_interpreter(cluster: Cluster) -> Iterator[None]:
    """An inventory that names an interpreter which is not on the node, as on a system that is too old."""
    inventory = cluster.work / "zz_old.yml"
    inventory.write_text(
        "llamacpp_nodes: {hosts: {node3: {ansible_python_interpreter: /usr/bin/python3.7}}}\n", encoding="utf-8"
    )
    yield
    inventory.unlink()


@pytest.mark.usefixtures("old_interpreter")
def test_node_without_a_python_that_modules_can_use(cluster: Cluster) -> None:
    refused(
        cluster,
        "ansible_python_interpreter = /usr/bin/python3.7 on node3",
        "Python 3.9 or newer",
        "/usr/bin/python3.13",
    )


@pytest.fixture
def dead_worker(cluster: Cluster) -> Iterator[None]:
    """A worker without power."""
    cluster.lab.kill("node4")
    yield
    cluster.lab.start("node4")


@pytest.mark.usefixtures("dead_worker")
def test_fewer_workers_reachable_than_declared(cluster: Cluster) -> None:
    instances = [cluster.instance("demo", ["node1", "node2", "node4"])]
    before = {node: cluster.shell(node, SNAPSHOT) for node in NODES}
    run = cluster.site(llamacpp_instances=instances).failed()
    assert "llamacpp_instances[0].nodes" in run.output
    assert "node4" in run.output
    assert {node: cluster.shell(node, SNAPSHOT) for node in NODES} == before
