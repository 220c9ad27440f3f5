"""A release with OpenBLAS, built on Debian 12 and served there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from parts import Part

pytestmark = [pytest.mark.lab, pytest.mark.slow_build]


@pytest.fixture(scope="module")
def cluster(part: Callable[..., Part]) -> Part:
    return part("node3", llamacpp_backend="blas")


def test_a_release_with_openblas_serves(cluster: Part) -> None:
    cluster.site().succeeded()
    assert cluster.chat("demo")


def test_its_plugin_uses_the_distributions_openblas(cluster: Part) -> None:
    manifest = cluster.manifest("node3")
    assert (manifest["inputs"]["backend"], manifest["plugins"]) == ("blas", True)
    assert "libopenblas.so.0" in cluster.needed("node3", "bin/libggml-blas.so")
    assert cluster.unresolved("node3", "bin/libggml-blas.so") == set()
    assert not [name for name in manifest["files"] if "openblas" in name], "a library of the system, not of the release"


def test_the_server_that_runs_has_loaded_it(cluster: Part) -> None:
    maps = cluster.shell("node3", "cat /proc/$(systemctl show --value -p MainPID llamacpp-demo.service)/maps")
    assert "libopenblas" in maps
    assert f"{cluster.release}/bin/libggml-blas.so" in maps


def test_a_second_run_changes_nothing(cluster: Part) -> None:
    assert set(cluster.site().succeeded().changed.values()) == {0}
