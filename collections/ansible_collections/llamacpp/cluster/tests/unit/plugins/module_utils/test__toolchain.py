# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tests of the choice of compilers: what fits is chosen, what does not is refused with its row."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._cuda_versions import TOOLKITS, numbers
from ansible_collections.llamacpp.cluster.plugins.module_utils._gcc_versions import DISTRIBUTIONS, MINIMUM, available
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain import choose, choose_gcc
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain_error import ToolchainError


def system(name: str, toolkits: list[dict[str, str]] | None = None, **more: Any) -> dict[str, Any]:
    """A builder as facts describe it: ``rocky 8.10`` and so on."""
    identity, version = name.split()
    family = "debian" if identity in ("debian", "ubuntu") else "redhat"
    return {
        "os_id": identity,
        "os_version": version,
        "os_family": family,
        "machine": "x86_64",
        "toolkits": toolkits or [],
        "compilers": {},
        **more,
    }


def cuda(builder: dict[str, Any], architectures: str, *drivers: str, **wanted: Any) -> dict[str, Any]:
    """The toolchain for architectures that are separated by spaces."""
    return choose(builder, "cuda", architectures.split(), wanted, drivers).as_dict()


def refusal(builder: dict[str, Any], architectures: str, *drivers: str, **wanted: Any) -> str:
    with pytest.raises(ToolchainError) as error:
        cuda(builder, architectures, *drivers, **wanted)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "architectures", "drivers", "provider", "version", "gcc"),
    [
        # The log of the V100S cluster: EL8, whose gcc 8.5 failed, and a driver that brings CUDA 12.2.
        ("rocky 8.10", "70", ["535.183.01"], "package", "12.2", 12),
        # H100s on RHEL 9.4: EL9's own gcc 11 does.
        ("rhel 9.4", "90", ["550.54.15"], "package", "12.4", 0),
        # A newer driver runs older toolkits, and the newest that still compiles for Volta is 12.9.
        ("almalinux 9.6", "70 90", ["580.95.05", "590.48.01"], "package", "12.9", 0),
        # The oldest driver decides.
        ("almalinux 9.6", "90", ["590.48.01", "545.29.06"], "package", "12.3", 0),
        # No driver is known: 12.x runs on more of them than 13.x.
        ("debian 12", "86", [], "package", "12.9", 0),
        ("debian 12", "110", [], "package", "13.5", 0),
        # EL10's gcc 14 needs 12.8, and NVIDIA's repository for EL10 begins with 12.9.
        ("rocky 10.1", "70", ["575.64.03"], "package", "12.9", 0),
        # No toolkit is as old as the driver for such a GPU: the oldest that compiles, by minor version compatibility.
        ("rocky 9.5", "120", ["535.183.01"], "package", "12.8", 0),
        # NVIDIA has nothing for Volta on Debian 13, Debian has.
        ("debian 13", "70", ["550.163.01"], "distro", "12.4", 13),
        # NVIDIA's repository goes before the distribution, though its oldest is newer than the driver here.
        ("ubuntu 24.04", "90", ["550.163.01"], "package", "12.5", 0),
    ],
)
def test_what_fits_is_chosen(
    name: str, architectures: str, drivers: list[str], provider: str, version: str, gcc: int
) -> None:
    chosen = cuda(system(name), architectures, *drivers)
    assert (chosen["cuda"]["provider"], chosen["cuda"]["version"], chosen["gcc"]["version"]) == (provider, version, gcc)


def test_a_toolset_of_el() -> None:
    chosen = cuda(system("rocky 8.10"), "70", "535.183.01")
    assert chosen["gcc"]["packages"] == ["gcc-toolset-12-gcc", "gcc-toolset-12-gcc-c++"]
    assert chosen["enable"] == [chosen["gcc"]["enable"]] == ["/opt/rh/gcc-toolset-12/enable"]
    assert chosen["cuda"]["packages"] == ["cuda-toolkit-12-2"]
    assert chosen["environment"] == {
        "CC": "/opt/rh/gcc-toolset-12/root/usr/bin/gcc",
        "CXX": "/opt/rh/gcc-toolset-12/root/usr/bin/g++",
        "CUDACXX": "/usr/local/cuda-12.2/bin/nvcc",
        "CUDAHOSTCXX": "/opt/rh/gcc-toolset-12/root/usr/bin/g++",
        "CUDA_HOME": "/usr/local/cuda-12.2",
    }


def test_debians_own_toolkit_gets_the_gcc_that_it_takes() -> None:
    chosen = cuda(system("debian 12"), "70", cuda_provider="distro")
    assert (chosen["cuda"]["version"], chosen["cuda"]["nvcc"]) == ("11.8", "/usr/bin/nvcc")
    assert (chosen["gcc"]["cxx"], chosen["gcc"]["packages"]) == ("g++-11", ["gcc-11", "g++-11"])
    assert chosen["enable"] == []


def test_wheels_lie_where_they_are_told_to() -> None:
    chosen = cuda(system("debian 12"), "90", "580.95.05", cuda_provider="pip", cuda_pip_dir="/home/me/cuda")
    assert (chosen["cuda"]["version"], chosen["cuda"]["nvcc"]) == ("13.0", "/home/me/cuda/13.0/bin/nvcc")
    assert chosen["cuda"]["packages"] == []


def test_a_toolkit_that_is_there_is_used_if_it_fits() -> None:
    there = [
        {"version": "13.0", "home": "/usr/local/cuda-13.0"},
        {"version": "12.2", "home": "/usr/local/cuda-12.2"},
        {"version": "11.4", "home": "/usr/local/cuda-11.4"},
    ]
    volta = cuda(system("rocky 8.10", there), "70", "535.183.01")["cuda"]
    assert (volta["provider"], volta["home"]) == ("existing", "/usr/local/cuda-12.2")
    hopper = cuda(system("rocky 9.6", there), "90", "580.95.05")["cuda"]
    assert (hopper["provider"], hopper["home"]) == ("existing", "/usr/local/cuda-13.0")
    blackwell = cuda(system("rocky 9.6", there), "120", "570.124.06")["cuda"]
    assert (blackwell["provider"], blackwell["version"]) == ("package", "12.8")
    another = cuda(system("rocky 9.6", there), "90", cuda_version="12.6")["cuda"]
    assert (another["provider"], another["version"]) == ("package", "12.6")


def test_a_directory_is_taken_by_the_version_that_was_found_there() -> None:
    there = [{"version": "12.9", "home": "/srv/cuda"}]
    chosen = cuda(system("debian 12", there), "120", cuda_home="/srv/cuda")
    assert (chosen["cuda"]["provider"], chosen["cuda"]["version"]) == ("existing", "12.9")
    assert "CUDA 12.9 does not compile for sm_110" in refusal(system("debian 12", there), "110", cuda_home="/srv/cuda")
    # A plan from declared devices alone: nobody has looked.
    unseen = choose({}, "cuda", ["90"], {"cuda_provider": "existing"}).as_dict()["cuda"]
    assert (unseen["version"], unseen["home"]) == ("", "/usr/local/cuda")


def test_a_version_newer_than_the_table_is_taken_for_its_newest() -> None:
    there = [{"version": "13.9", "home": "/usr/local/cuda-13.9"}]
    assert cuda(system("rocky 9.6", there), "90")["cuda"]["version"] == "13.9"
    assert "CUDA 13.5 does not compile for sm_70" in refusal(system("rocky 9.6", there), "70", cuda_version="13.9")


@pytest.mark.parametrize(
    ("name", "architectures", "drivers", "wanted", "says"),
    [
        (
            "rocky 8.10",
            "70",
            ["535.183.01"],
            {"cuda_version": "13.0"},
            ["CUDA 13.0 does not compile for sm_70", "nvcc --list-gpu-arch", 'write llamacpp_cuda_version: "12.2"'],
        ),
        (
            "debian 12",
            "120",
            [],
            {"cuda_provider": "distro"},
            [
                "CUDA 11.8 does not compile for sm_120, only for sm_35 to sm_90",
                '"12.9" and llamacpp_cuda_provider: package',
            ],
        ),
        (
            "debian 12",
            "70",
            [],
            {"cuda_provider": "distro", "gcc_version": 12},
            ["CUDA 11.8 takes gcc 11 or older (crt/host_config.h of CUDA 11.8)", "leave llamacpp_gcc_version out"],
        ),
        (
            "rocky 9.4",
            "90",
            ["535.183.01"],
            {"cuda_version": "13.0"},
            ["needs driver 580.65.06 or newer", "oldest driver of the nodes is 535.183.01", '"12.2"'],
        ),
        (
            "debian 12",
            "90",
            [],
            {"cuda_provider": "pip", "cuda_version": "12.8"},
            ["NVIDIA's wheels of CUDA 12.8 hold no nvcc", '"13.0"'],
        ),
        ("debian 12", "90", [], {"cuda_provider": "pip", "cuda_version": "13.9"}, ["knows no wheels of CUDA 13.9"]),
        (
            "debian 12",
            "70",
            [],
            {"cuda_provider": "pip"},
            ["CUDA 13.5 does not compile for sm_70", "llamacpp_cuda_provider: package"],
        ),
        ("debian 12", "70 110", [], {}, ["no CUDA toolkit compiles for sm_70, sm_110 together"]),
        ("debian 12", "90", [], {"cuda_provider": "nvidia"}, ["llamacpp_cuda_provider = nvidia: write one of auto"]),
        ("debian 12", "90", [], {"cuda_provider": "existing"}, ["no CUDA toolkit was found", "llamacpp_cuda_home"]),
        (
            "debian 12",
            "90",
            [],
            {"cuda_provider": "pip", "cuda_home": "/x"},
            ["llamacpp_cuda_home = /x", "provider: existing"],
        ),
        (
            "debian 12",
            "90",
            [],
            {"cuda_version": "12.1"},
            ["llamacpp_cuda_version = 12.1", "package 12.3 to 13.5, distro 11.8"],
        ),
        ("debian 11", "70", [], {"cuda_provider": "distro"}, ["CUDA 11.2 of the distribution is older than 11.8"]),
        ("debian 12", "native", [], {}, ["llamacpp_cuda_architectures holds native", "70 for V100"]),
        ("debian 12", "8.6", [], {}, ["llamacpp_cuda_architectures holds 8.6"]),
        ("debian 12", "90", [], {"gcc_version": 8}, ["llamacpp_gcc_version = 8", "std::filesystem", "11, 12"]),
        ("rocky 8.6", "70", [], {"gcc_version": 14}, ["EL8 8.6 has no such gcc", "one of 11"]),
        ("debian 12", "90", [], {"gcc_version": "twelve"}, ["llamacpp_gcc_version = twelve"]),
        ("arch 2026", "90", [], {}, ["arch 2026 is in no table", "no gcc was found"]),
        ("ubuntu 26.04", "70", [], {}, ["CUDA 13.3 does not compile for sm_70", "build on another node"]),
        (
            "debian 13",
            "90",
            [],
            {"cuda_home": "/usr/local/cuda-12.8", "cuda_version": "12.8"},
            ["does not compile with glibc newer than 2.40 (crt/math_functions.h)", "Debian 13 has 2.41"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_row(
    name: str, architectures: str, drivers: list[str], wanted: dict[str, Any], says: list[str]
) -> None:
    text = refusal(system(name), architectures, *drivers, **wanted)
    for words in says:
        assert words in text


def test_advice_fits() -> None:
    """What a refusal says to write is accepted."""
    builder = system("rocky 8.10")
    for toolkit in TOOLKITS:
        for architecture in ("70", "90", "120"):
            try:
                cuda(builder, architecture, "550.54.15", cuda_version=toolkit.version)
            except ToolchainError as error:
                advised = str(error).partition('write llamacpp_cuda_version: "')[2].partition('"')[0]
                assert cuda(builder, architecture, "550.54.15", cuda_version=advised)["cuda"]["version"] == advised


@pytest.mark.parametrize("name", ["rocky 8.10", "rocky 9.6", "rocky 10.1", "debian 11", "debian 12", "debian 13"])
@pytest.mark.parametrize("architectures", ["70", "75", "80 90", "120"])
@pytest.mark.parametrize("driver", ["", "535.183.01", "550.54.15", "580.95.05"])
def test_nothing_is_chosen_against_a_row(name: str, architectures: str, driver: str) -> None:
    drivers = [driver] if driver else []
    try:
        chosen = cuda(system(name), architectures, *drivers)
    except ToolchainError:
        return
    row = next(row for row in TOOLKITS if row.version == chosen["cuda"]["version"])
    key = ("redhat" if name.startswith("rocky") else "debian", name.split()[1].split(".")[0])
    gcc = chosen["gcc"]["version"] or DISTRIBUTIONS[key].own
    assert MINIMUM <= gcc <= row.gcc
    assert gcc in available(DISTRIBUTIONS[key], name.split()[1])
    assert all(int(number) in row.architectures for number in architectures.split())
    assert not driver or row.major < 13 or numbers(driver) >= numbers("580.65.06")


@pytest.mark.parametrize(
    ("name", "version", "packages"),
    [
        ("rocky 8.10", 12, ["gcc-toolset-12-gcc", "gcc-toolset-12-gcc-c++"]),
        ("rhel 8.6", 11, ["gcc-toolset-11-gcc", "gcc-toolset-11-gcc-c++"]),
        ("rocky 9.6", 0, ["gcc", "gcc-c++"]),
        ("centos 10", 0, ["gcc", "gcc-c++"]),
        ("debian 11", 0, ["gcc", "g++"]),
        ("ubuntu 26.04", 0, ["gcc", "g++"]),
    ],
)
def test_without_cuda_the_own_gcc_does_where_it_is_new_enough(name: str, version: int, packages: list[str]) -> None:
    for backend in ("cpu", "vulkan", "blas", "hip"):
        chosen = choose(system(name), backend, [], {}).as_dict()
        assert (chosen["gcc"]["version"], chosen["gcc"]["packages"], chosen["cuda"]) == (version, packages, {})


def test_a_distribution_without_a_table_uses_the_gcc_that_it_has() -> None:
    chosen = choose(system("arch 2026", compilers={"gcc": "16.1.1"}), "cpu", [], {}).as_dict()
    assert (chosen["gcc"]["version"], chosen["gcc"]["cxx"], chosen["gcc"]["packages"]) == (0, "g++", [])


def test_a_gcc_for_a_toolkit() -> None:
    assert choose_gcc(system("rocky 9.6"), 0, "12.2").as_dict()["gcc"]["version"] == 0
    assert choose_gcc(system("debian 13"), 0, "12.4").as_dict()["gcc"]["version"] == 13
    assert choose_gcc(system("rocky 8.10"), 0, "").as_dict()["gcc"]["version"] == 12
    assert choose_gcc(system("rocky 8.10"), 13, "12.6").as_dict()["gcc"]["version"] == 13
    with pytest.raises(ToolchainError, match=r"CUDA 12\.2 takes gcc 12 or older"):
        choose_gcc(system("rocky 8.10"), 13, "12.2")
