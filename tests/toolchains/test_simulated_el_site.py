"""A cluster on a simulated EL 8 host (tests/lab/README.md): llama.cpp compiled by gcc-toolset-12, and serving.

What compiles is Debian's gcc 12 behind the toolset's scripts; EL's own gcc of that host compiles nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from driver import ROOT, Cluster
from fixtures import LiveLab

pytestmark = [pytest.mark.lab, pytest.mark.slow_build]


@pytest.fixture(scope="module")
def cluster(el: LiveLab, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """One instance on the one node, which also compiles; EPEL is there, as on most EL hosts that compile."""
    model = tmp_path_factory.mktemp("model") / "small.gguf"
    command = [sys.executable, str(ROOT / "demo" / "make_model.py"), str(model), "--megabytes=20", "--layers=12"]
    subprocess.run(command, check=True)
    work = tmp_path_factory.mktemp("cluster")
    cluster = Cluster(el, work, model)
    (work / "groups.yml").write_text(yaml.safe_dump({"oldest": {"hosts": {"node1": None}}}), encoding="utf-8")
    cluster.variables["llamacpp_instances"] = [cluster.instance("demo", ["node1"])]
    # A cache of its own, or the release might be there already; but the source is fetched once for all tests.
    sources = Path.home() / ".cache" / "llamacpp-cluster" / "sources"
    sources.mkdir(parents=True, exist_ok=True)
    (work / "cache").mkdir()
    (work / "cache" / "sources").symlink_to(sources)
    cluster.variables["llamacpp_cache"] = str(work / "cache")
    cluster.variables["llamacpp_web_ui"] = False
    cluster.shell("node1", "dnf config-manager --set-enabled powertools epel && dnf --quiet --assumeyes install ccache")
    return cluster


def test_check_mode_on_a_fresh_host_changes_nothing(cluster: Cluster) -> None:
    before = cluster.shell("node1", "rpm -qa | sort; ls -A /opt /etc /var/lib /usr/local")
    assert cluster.site("--check").succeeded().changed["node1"] > 0
    assert cluster.shell("node1", "rpm -qa | sort; ls -A /opt /etc /var/lib /usr/local") == before


def test_a_release_is_compiled_with_the_toolset_and_serves(cluster: Cluster) -> None:
    cluster.site().succeeded()
    assert cluster.chat("demo")
    manifest = json.loads(cluster.shell("node1", "cat /opt/llamacpp/current/manifest.json"))
    assert manifest["inputs"]["platform"]["os"] == "rocky-8"
    assert manifest["inputs"]["toolchain"]["gcc"] == 12
    assert " 12." in manifest["compiler"]
    assert cluster.shell("node1", "rpm --query gcc-toolset-12-gcc-c++").startswith("gcc-toolset-12-gcc-c++-12.")


def test_nobodys_default_compiler_is_another(cluster: Cluster) -> None:
    """A login shell has what it had: nothing, or EL's own gcc 8.5; a service that runs needs no toolset."""
    assert "gcc-toolset" not in cluster.shell("node1", "bash --login -c 'echo $PATH $LD_LIBRARY_PATH'")
    assert "gcc-toolset" not in cluster.shell("node1", "grep -rl gcc-toolset /etc /usr/local || true")
    version = cluster.shell("node1", "bash --login -c 'gcc --version 2>&1 | head -n 1'")
    assert "8.5.0" in version or "not found" in version
    units = cluster.shell("node1", "cat /etc/systemd/system/llamacpp-*.service")
    assert "/opt/rh" not in units
    assert "/opt/rh" not in cluster.shell("node1", "ldd /opt/llamacpp/current/bin/llama-server")


def test_second_run_changes_nothing(cluster: Cluster) -> None:
    assert cluster.site().succeeded().changed["node1"] == 0
