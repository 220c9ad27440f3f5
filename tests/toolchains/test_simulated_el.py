"""Roles gcc_toolset and cuda_toolkit with a real dnf, on a simulated EL 8 host.

That is a Debian root with dnf, rpm and the name of Rocky Linux 8.10, whose repositories hold small stand-ins
(tests/lab/README.md). What the stand-ins cannot show is how Red Hat's compilers and NVIDIA's toolkits behave; what they
do show is what the roles ask of dnf, and what they leave.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from driver import ROOT
from fixtures import LiveLab
from role_run import run_role, run_tasks

pytestmark = pytest.mark.lab

CUDA_REPOSITORY = "file:///srv/simulated-el8/cuda"
TOOLSET = "/opt/rh/gcc-toolset-12"
FILESYSTEM = """\
#include <filesystem>
#include <iostream>
int main() { std::cout << std::filesystem::exists("/") << ' ' << __GNUC__ << std::endl; }
"""


def shell(live: LiveLab, script: str) -> str:
    """Run a script of bash as root on the node; return its output, fail when it fails."""
    return live.ssh("node1", ["sudo", "bash", "-c", shlex.quote(script)]).stdout


def traces(live: LiveLab) -> str:
    """What an installation changes: packages, and files where roles and packages put some."""
    return shell(live, "rpm -qa | sort; find /etc /opt /usr/local /usr/bin -printf '%p %s %T@\\n' | sort")


def installed(live: LiveLab) -> set[str]:
    """Names of the packages in rpm's database."""
    return set(shell(live, "rpm -qa --queryformat '%{NAME}\\n'").split())


def cuda(key: Path, **variables: Any) -> dict[str, Any]:
    """The role's variables for the stand-in for NVIDIA's repository."""
    return {
        "cuda_toolkit_repository": CUDA_REPOSITORY,
        "cuda_toolkit_repository_key": str(key),
        "cuda_toolkit_provider": "package",
        "cuda_toolkit_architectures": ["70"],
        **variables,
    }


def test_ansible_and_the_collection_see_an_el_host(el: LiveLab) -> None:
    ansible = [str(ROOT / ".venv" / "bin" / "ansible"), f"--inventory={el.inventory}", "node1", "--one-line"]

    def module(name: str) -> dict[str, Any]:
        done = subprocess.run([*ansible, f"--module-name={name}"], cwd=ROOT, capture_output=True, text=True, check=True)
        answer: dict[str, Any] = json.loads(done.stdout.partition("=>")[2])
        return answer

    facts = module("ansible.builtin.setup")["ansible_facts"]
    assert (facts["ansible_os_family"], facts["ansible_pkg_mgr"]) == ("RedHat", "dnf")
    assert (facts["ansible_distribution"], facts["ansible_distribution_version"]) == ("Rocky", "8.10")
    system = module("llamacpp.cluster.node_info")["node"]["os"]
    assert (system["id"], system["version"], system["family"]) == ("rocky", "8.10", "redhat")
    assert shell(el, "command -v apt apt-get dpkg gcc g++ cmake || true") == ""


def test_gcc_toolset(fresh_el: LiveLab, tmp_path: Path) -> None:
    shell(fresh_el, "dnf --quiet --assumeyes install gcc gcc-c++")
    default = "gcc --version; g++ --version; readlink --canonicalize $(command -v gcc cc g++ c++)"
    before, compilers = traces(fresh_el), shell(fresh_el, default)
    assert "8.5.0" in compilers

    rehearsed = run_role(fresh_el, tmp_path, "gcc_toolset", "--check").succeeded()
    assert rehearsed.changed["node1"] > 0
    assert traces(fresh_el) == before

    run_role(fresh_el, tmp_path, "gcc_toolset").succeeded()
    assert {"gcc-toolset-12-gcc", "gcc-toolset-12-gcc-c++"} <= installed(fresh_el)
    assert run_role(fresh_el, tmp_path, "gcc_toolset").succeeded().changed["node1"] == 0

    assert shell(fresh_el, default) == compilers, "the default compiler is another one now"
    shell(fresh_el, f"printf %s {shlex.quote(FILESYSTEM)} > /tmp/filesystem.cpp")
    compile_and_run = "g++ -std=c++17 /tmp/filesystem.cpp -o /tmp/filesystem && /tmp/filesystem"
    assert shell(fresh_el, f". {TOOLSET}/enable && {compile_and_run}") == "1 12\n"
    assert shell(fresh_el, f"{compile_and_run} 2>/dev/null || echo refused") == "refused\n"


def test_check_mode_on_a_node_without_any_compiler(fresh_el: LiveLab, tmp_path: Path, nvidia_key: Path) -> None:
    before = traces(fresh_el)
    assert run_role(fresh_el, tmp_path, "gcc_toolset", "--check").succeeded().changed["node1"] > 0
    wanted = cuda(nvidia_key, cuda_toolkit_version="12.2")
    assert run_role(fresh_el, tmp_path, "cuda_toolkit", "--check", **wanted).succeeded().changed["node1"] > 0
    unknown = {"llamacpp.cluster.packages": {"name": ["cmake", "gcc-toolset-99"]}}
    assert "gcc-toolset-99" in run_tasks(fresh_el, tmp_path, [unknown], "--check").failed().output
    assert traces(fresh_el) == before


def test_cuda_toolkits_side_by_side(fresh_el: LiveLab, tmp_path: Path, nvidia_key: Path) -> None:
    wanted = cuda(nvidia_key, cuda_toolkit_version="12.2")
    assert run_role(fresh_el, tmp_path, "cuda_toolkit", **wanted).succeeded().changed["node1"] > 0
    assert "release 12.2," in shell(fresh_el, "/usr/local/cuda-12.2/bin/nvcc --version")
    again = run_role(fresh_el, tmp_path, "cuda_toolkit", **wanted).succeeded()
    assert again.changed["node1"] == 0

    older = cuda(nvidia_key, cuda_toolkit_version="11.8")
    run_role(fresh_el, tmp_path, "cuda_toolkit", **older).succeeded()
    assert "release 11.8," in shell(fresh_el, "/usr/local/cuda-11.8/bin/nvcc --version")
    assert "release 12.2," in shell(fresh_el, "/usr/local/cuda-12.2/bin/nvcc --version")

    # An upgrade of the system brings neither another toolkit nor a driver, nor does anyone get one by accident.
    shell(fresh_el, "dnf --quiet --assumeyes upgrade")
    for name in ("cuda", "cuda-toolkit", "cuda-drivers"):
        refused = shell(fresh_el, f"dnf --quiet --assumeyes install {name} 2>&1 && echo installed || true")
        assert "installed" not in refused.split(), refused
    assert shell(fresh_el, "ls -d /usr/local/cuda*").split() == ["/usr/local/cuda-11.8", "/usr/local/cuda-12.2"]
    assert not {"cuda", "cuda-toolkit", "cuda-drivers"} & installed(fresh_el)
    assert shell(fresh_el, "grep -rl cuda /etc/profile.d /etc/environment /etc/ld.so.conf.d || true") == ""

    run_role(fresh_el, tmp_path, "cuda_toolkit", tasks_from="reset").succeeded()
    assert "llamacpp" not in shell(fresh_el, "ls /etc/yum.repos.d /etc/pki/rpm-gpg")


def test_packages_with_a_strange_signature_are_refused(fresh_el: LiveLab, tmp_path: Path) -> None:
    strange = tmp_path / "strange.pub"
    keyring = "/usr/share/keyrings/debian-archive-bookworm-stable.gpg"
    armor = ["gpg", "--no-default-keyring", f"--keyring={keyring}", "--armor", "--export"]
    strange.write_text(shell(fresh_el, shlex.join(armor)), encoding="utf-8")
    run = run_role(fresh_el, tmp_path, "cuda_toolkit", **cuda(strange, cuda_toolkit_version="12.2")).failed()
    assert "dnf install cuda-toolkit-12-2 failed" in run.output
    assert "cuda-toolkit-12-2" not in installed(fresh_el)


def test_a_host_without_repositories_installs_from_a_bundle(fresh_el: LiveLab, tmp_path: Path) -> None:
    names = ["cmake", "gcc-toolset-12-gcc", "gcc-toolset-12-gcc-c++"]
    archive, directory = "/var/tmp/packages.tar", "/var/tmp/packages"
    collect = [
        {"llamacpp.cluster.packages": {"name": ["createrepo_c", "dnf-plugins-core"]}},
        {"llamacpp.cluster.package_bundle": {"name": names, "archive": archive}},
    ]
    run_tasks(fresh_el, tmp_path, collect).succeeded()
    shell(fresh_el, f"mkdir {directory} && tar -xf {archive} -C {directory} && rm -r /srv/simulated-el8")
    install = {"llamacpp.cluster.packages": {"name": names, "repository": directory}}
    assert run_tasks(fresh_el, tmp_path, [install], "--check").succeeded().changed["node1"] == 1
    assert not set(names) & installed(fresh_el)
    assert run_tasks(fresh_el, tmp_path, [install]).succeeded().changed["node1"] == 1
    assert run_tasks(fresh_el, tmp_path, [install]).succeeded().changed["node1"] == 0
    assert "12." in shell(fresh_el, f". {TOOLSET}/enable && g++ -dumpfullversion")

    more = {"llamacpp.cluster.packages": {"name": ["nftables"], "repository": directory}}
    assert "nftables" in run_tasks(fresh_el, tmp_path, [more]).failed().output
    assert "nftables" not in installed(fresh_el)


@pytest.mark.parametrize(
    ("role", "variables", "says"),
    [
        ("gcc_toolset", {"gcc_toolset_version": 8}, ["llamacpp_gcc_version = 8", "std::filesystem"]),
        (
            "gcc_toolset",
            {"gcc_toolset_version": 13, "gcc_toolset_cuda_version": "12.2"},
            ["CUDA 12.2 takes gcc 12 or older"],
        ),
        (
            "cuda_toolkit",
            {"cuda_toolkit_version": "13.0"},
            ["CUDA 13.0 does not compile for sm_70", 'llamacpp_cuda_version: "12.9"'],
        ),
        (
            "cuda_toolkit",
            {"cuda_toolkit_version": "12.2", "cuda_toolkit_drivers": ["470.57.02"]},
            ["525.60.13 or newer", "470.57.02", 'llamacpp_cuda_version: "11.8"'],
        ),
        (
            "cuda_toolkit",
            {"cuda_toolkit_provider": "distro"},
            ["neither NVIDIA nor the distribution has CUDA packages for rocky 8.10"],
        ),
    ],
    ids=[
        "gcc 8",
        "gcc 13 with CUDA 12.2",
        "CUDA 13 for Volta",
        "driver",
        "distro",
    ],
)
def test_wrong_combinations_are_refused_with_the_reason(
    el: LiveLab, tmp_path: Path, nvidia_key: Path, role: str, variables: dict[str, Any], says: list[str]
) -> None:
    before = traces(el)
    if role == "cuda_toolkit":
        variables = cuda(nvidia_key, **variables)
    run = run_role(el, tmp_path, role, **variables).failed()
    assert "fatal: [node1]" in run.output
    output = " ".join(run.output.split())
    for words in says:
        assert words in output
    assert traces(el) == before
