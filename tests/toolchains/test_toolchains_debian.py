"""Roles gcc_toolset and cuda_toolkit with a real apt, on Debian 12 (node1) and 13 (node2).

Marker ``slow_build``: Debian's own toolkit (1.6 GB of packages) and NVIDIA's wheels (0.5 GB) compile for real. The
others take a minute or two; in them a repository of small packages stands for NVIDIA's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import LiveLab, lab_of
from role_run import run_role

pytestmark = pytest.mark.lab

SUITES = {"node2": "trixie"}
PROJECT = Path(__file__).resolve().parent / "cuda_project"
REPOSITORY = "file:///srv/cuda"

#: Packages with the names that NVIDIA's have; ``publish`` makes a repository of what there is in /srv/cuda.
STAND_INS = r"""
set -eu
package() { # name, version, file that it brings, what that says, what it depends on
    tree=$(mktemp -d); chmod 755 "$tree"; mkdir -p "$tree/DEBIAN" "$tree/$(dirname "$3")"
    printf '#!/bin/sh\necho "Cuda compilation tools, release %s, V%s"\n' "$4" "$4.99" > "$tree/$3"; chmod 755 "$tree/$3"
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDepends: %s\n' \
        "$1" "$2" "$5" > "$tree/DEBIAN/control"
    printf 'Description: stand-in for NVIDIA of the same name\n' >> "$tree/DEBIAN/control"
    dpkg-deb --build "$tree" "/srv/cuda/$1_$2.deb" > /dev/null; rm -r "$tree"
}
publish() {
    cd /srv/cuda
    for file in *.deb; do
        dpkg-deb --field "$file"
        printf 'Filename: ./%s\nSize: %s\n' "$file" "$(stat -c %s "$file")"
        printf 'SHA256: %s\n\n' "$(sha256sum "$file" | cut -c1-64)"
    done > Packages
}
mkdir -p /srv/cuda
"""
FIRST = r"""
package cuda-toolkit-12-4 12.4.0 usr/local/cuda-12.4/bin/nvcc 12.4 libc6
package cuda-toolkit-12-6 12.6.0 usr/local/cuda-12.6/bin/nvcc 12.6 libc6
package cuda-toolkit 12.6.0 usr/share/cuda-toolkit/newest 12.6 cuda-toolkit-12-6
package cuda-drivers 560.28.03 usr/share/cuda-drivers/driver 560 libc6
package libc-bin 99 usr/share/libc-bin/strange 99 libc6
publish
"""
LATER = r"""
package cuda-toolkit-12-4 12.4.1 usr/local/cuda-12.4/bin/nvcc 12.4 libc6
package cuda-toolkit-12-8 12.8.0 usr/local/cuda-12.8/bin/nvcc 12.8 libc6
package cuda-toolkit 12.8.0 usr/share/cuda-toolkit/newest 12.8 cuda-toolkit-12-8
publish
"""


@pytest.fixture(scope="module")
def nodes(request: pytest.FixtureRequest) -> Iterator[LiveLab]:
    """The lab ``toolchains``."""
    with lab_of(request, "toolchains", 2, SUITES) as live:
        yield live


@pytest.fixture
def fresh(nodes: LiveLab) -> LiveLab:
    """The same lab with nodes that nobody has touched."""
    nodes.down()
    nodes.up(2, *(f"--suite={node}={suite}" for node, suite in SUITES.items()), f"--owner-pid={os.getpid()}")
    return nodes


def shell(live: LiveLab, node: str, script: str, timeout: float = 300) -> str:
    """Run a script as root on a node; return its output, fail when it fails."""
    return live.ssh(node, ["sudo", "bash", "-c", shlex.quote(script)], timeout=timeout).stdout


def traces(live: LiveLab, node: str) -> str:
    """What an installation changes: packages, and files where roles and packages put some."""
    script = "dpkg-query --show; find /etc /opt /usr/local /usr/bin -not -name '*.dpkg-*' -printf '%p %s %T@\\n' | sort"
    return shell(live, node, script)


def installed(live: LiveLab, node: str) -> set[str]:
    """Names of the packages that are installed."""
    listed = shell(live, node, "dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\\n'")
    return {line[3:].strip() for line in listed.splitlines() if line.startswith("ii ")}


def from_repository(version: str, **variables: Any) -> dict[str, Any]:
    """The role's variables for the stand-in for NVIDIA's repository."""
    return {
        "cuda_toolkit_repository": REPOSITORY,
        "cuda_toolkit_repository_key": "none",
        "cuda_toolkit_provider": "package",
        "cuda_toolkit_version": version,
        "cuda_toolkit_architectures": ["70"],
        **variables,
    }


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"cuda_toolkit_provider": "distro", "cuda_toolkit_architectures": ["120"]},
            ["11.8 does not compile for sm_120"],
        ),
        (
            {"cuda_toolkit_provider": "pip", "cuda_toolkit_version": "12.8", "cuda_toolkit_architectures": ["90"]},
            ["NVIDIA's wheels of CUDA 12.8 hold no nvcc"],
        ),
        (
            {"cuda_toolkit_provider": "pip", "cuda_toolkit_architectures": ["70"]},
            ["does not compile for sm_70", "llamacpp_cuda_provider: package"],
        ),
        (
            {"cuda_toolkit_drivers": ["450.51.06"], "cuda_toolkit_version": "11.8"},
            ["CUDA 11.8 needs driver 450.80.02 or newer", "oldest driver of the nodes is 450.51.06"],
        ),
        (
            {"cuda_toolkit_provider": "distro", "cuda_toolkit_gcc_version": 12},
            ["CUDA 11.8 takes gcc 11 or older (crt/host_config.h of CUDA 11.8)", "leave llamacpp_gcc_version out"],
        ),
        ({"cuda_toolkit_provider": "existing"}, ["no CUDA toolkit was found", "llamacpp_cuda_home"]),
        ({"cuda_toolkit_provider": "existing", "cuda_toolkit_home": "/nowhere"}, ["/nowhere/bin/nvcc is not there"]),
        ({"cuda_toolkit_provider": "pip", "cuda_toolkit_driver": True}, ["the provider pip has no driver"]),
        ({"cuda_toolkit_provider": "nvidia"}, ["value of cuda_toolkit_provider must be one of"]),
    ],
    ids=[
        "sm_120",
        "wheels of 12",
        "wheels for Volta",
        "driver",
        "gcc",
        "none there",
        "nowhere",
        "driver of wheels",
        "word",
    ],
)
def test_what_does_not_fit_is_refused(
    nodes: LiveLab, tmp_path: Path, variables: dict[str, Any], says: list[str]
) -> None:
    before = traces(nodes, "node1")
    run = run_role(nodes, tmp_path, "cuda_toolkit", "--limit=node1", **variables).failed()
    output = " ".join(run.output.split())
    for words in says:
        assert words in output, run.output
    assert traces(nodes, "node1") == before


def test_gcc_for_a_toolkit(fresh: LiveLab, tmp_path: Path) -> None:
    before = {node: traces(fresh, node) for node in ("node1", "node2")}
    wanted = {"gcc_toolset_cuda_version": "11.8"}
    on_debian_12 = "--limit=node1"
    assert run_role(fresh, tmp_path, "gcc_toolset", "--check", on_debian_12, **wanted).succeeded().changed["node1"] == 1
    assert traces(fresh, "node1") == before["node1"]
    run_role(fresh, tmp_path, "gcc_toolset", on_debian_12, **wanted).succeeded()
    assert shell(fresh, "node1", "g++-11 -dumpversion; command -v gcc g++ cc c++ || true") == "11\n", (
        "a default came along"
    )
    assert run_role(fresh, tmp_path, "gcc_toolset", on_debian_12, **wanted).succeeded().changed["node1"] == 0
    # Debian 13 has no gcc that CUDA 11.8 takes.
    refused = run_role(fresh, tmp_path, "gcc_toolset", "--limit=node2", **wanted).failed()
    assert "CUDA 11.8 takes gcc 11 or older" in " ".join(refused.output.split())
    assert traces(fresh, "node2") == before["node2"]


def test_toolkits_side_by_side_and_pinned(fresh: LiveLab, tmp_path: Path) -> None:
    shell(fresh, "node1", STAND_INS + FIRST)
    only = "--limit=node1"
    before = traces(fresh, "node1")
    rehearsed = run_role(fresh, tmp_path, "cuda_toolkit", "--check", only, **from_repository("12.4")).succeeded()
    assert rehearsed.changed["node1"] > 0
    assert traces(fresh, "node1") == before

    run_role(fresh, tmp_path, "cuda_toolkit", only, **from_repository("12.4")).succeeded()
    again = run_role(fresh, tmp_path, "cuda_toolkit", only, **from_repository("12.4")).succeeded()
    assert again.changed["node1"] == 0
    run_role(fresh, tmp_path, "cuda_toolkit", only, **from_repository("12.6")).succeeded()
    assert "release 12.4," in shell(fresh, "node1", "/usr/local/cuda-12.4/bin/nvcc")
    assert "release 12.6," in shell(fresh, "node1", "/usr/local/cuda-12.6/bin/nvcc")

    # An upgrade of the system brings patches of what is there, and nothing else from there.
    shell(fresh, "node1", STAND_INS + LATER + "apt-get -qq update; apt-get -qq --yes dist-upgrade")
    versions = shell(fresh, "node1", "dpkg-query --show 'cuda-*' libc-bin | tr '\\t' ' '").splitlines()
    assert {"cuda-toolkit-12-4 12.4.1", "cuda-toolkit-12-6 12.6.0"} <= set(versions)
    assert "libc-bin 99" not in versions
    assert "cuda-toolkit-12-8" not in installed(fresh, "node1")
    for name in ("cuda-toolkit", "cuda-drivers"):
        answer = shell(fresh, "node1", f"apt-get -qq --yes install {name} 2>&1 && echo installed || true")
        assert "installed" not in answer.splitlines(), answer
    assert shell(fresh, "node1", "grep -rl cuda /etc/profile.d /etc/environment || true") == ""

    run_role(fresh, tmp_path, "cuda_toolkit", only, **from_repository("12.6", cuda_toolkit_profile=True)).succeeded()
    login = "env -i bash --login -c 'echo $CUDA_HOME; command -v nvcc'"
    assert shell(fresh, "node1", login).split() == ["/usr/local/cuda-12.6", "/usr/local/cuda-12.6/bin/nvcc"]
    run_role(fresh, tmp_path, "cuda_toolkit", only, tasks_from="reset").succeeded()
    assert shell(fresh, "node1", "grep -rl llamacpp /etc/apt /etc/profile.d || true") == ""


def compiled(live: LiveLab, node: str, nvcc: str, cxx: str, architecture: str) -> str:
    """Build the CMake project on a node; return which libraries it needs and what it is for."""
    packed = subprocess.run(["tar", "-C", str(PROJECT), "-cf", "-", "."], check=True, capture_output=True).stdout
    target = "/root/project"
    shell(live, node, f"rm -rf {target}; mkdir {target}")
    subprocess.run(
        [*live.command("exec", node, "--"), "tar", "-C", target, "-xf", "-"], input=packed, check=True, timeout=60
    )
    environment = f"CUDACXX={nvcc} CUDAHOSTCXX={cxx} CXX={cxx}"
    build = f"{environment} cmake -S {target} -B {target}/build -DCMAKE_CUDA_ARCHITECTURES={architecture}-real"
    shell(live, node, "DEBIAN_FRONTEND=noninteractive apt-get -qq --yes --no-install-recommends install cmake make")
    shell(live, node, f"{build} && cmake --build {target}/build", timeout=600)
    library = f"{target}/build/libkernels.so"
    # The wheels hold no cuobjdump; code of 11.8 is packed, so that nothing but cuobjdump finds its name.
    kinds = f"if command -v cuobjdump; then cuobjdump --list-elf {library}; else strings {library} | grep sm_; fi"
    return shell(live, node, f"objdump -p {library}; {kinds}")


@pytest.mark.slow_build
def test_debians_own_toolkit_compiles_for_volta(fresh: LiveLab, tmp_path: Path) -> None:
    wanted = {"cuda_toolkit_provider": "distro", "cuda_toolkit_architectures": ["70"]}
    only = "--limit=node1"
    before = traces(fresh, "node1")
    assert run_role(fresh, tmp_path, "cuda_toolkit", "--check", only, **wanted).succeeded().changed["node1"] > 0
    assert traces(fresh, "node1") == before
    run_role(fresh, tmp_path, "cuda_toolkit", only, **wanted).succeeded()
    run_role(fresh, tmp_path, "gcc_toolset", only, gcc_toolset_cuda_version="11.8").succeeded()
    assert run_role(fresh, tmp_path, "cuda_toolkit", only, **wanted).succeeded().changed["node1"] == 0
    assert "release 11.8, V11.8" in shell(fresh, "node1", "nvcc --version")
    drivers = {
        name for name in installed(fresh, "node1") if name.startswith(("libcuda1", "libnvidia-ml1", "nvidia-driver"))
    }
    assert drivers == set(), "a driver came along"
    library = compiled(fresh, "node1", "/usr/bin/nvcc", "g++-11", "70")
    assert {"libcublas.so.11", "libcuda.so.1"} <= set(library.split())
    assert "sm_70" in library


@pytest.mark.slow_build
def test_wheels_compile_for_turing(fresh: LiveLab, tmp_path: Path) -> None:
    wanted = {
        "cuda_toolkit_provider": "pip",
        "cuda_toolkit_version": "13.0",
        "cuda_toolkit_architectures": ["75"],
        "cuda_toolkit_pip_dir": "/srv/toolkits",
    }
    only = "--limit=node2"
    before = traces(fresh, "node2")
    assert run_role(fresh, tmp_path, "cuda_toolkit", "--check", only, **wanted).succeeded().changed["node2"] > 0
    assert traces(fresh, "node2") == before
    run_role(fresh, tmp_path, "cuda_toolkit", only, **wanted).succeeded()
    assert run_role(fresh, tmp_path, "cuda_toolkit", only, **wanted).succeeded().changed["node2"] == 0
    assert shell(fresh, "node2", "ls /srv/toolkits").split() == ["13.0"]
    library = compiled(fresh, "node2", "/srv/toolkits/13.0/bin/nvcc", "g++", "75")
    assert {"libcublas.so.13", "libcudart.so.13", "libcuda.so.1"} <= set(library.split())
    assert "sm_75" in library
