# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tests of toolkits made of wheels; the wheels are small, with the paths of NVIDIA's."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from ansible_collections.llamacpp.cluster.plugins.module_utils import _cuda_wheels
from ansible_collections.llamacpp.cluster.plugins.module_utils._cuda_versions import WHEELS
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain_found import WHEELS_FILE

COLLECTION = Path(__file__).resolve().parents[4]
PINS = yaml.safe_load((COLLECTION / "roles" / "cuda_toolkit" / "vars" / "wheels.yml").read_text("utf-8"))

HEADER = """\
#define cuDeviceTotalMem                    cuDeviceTotalMem_v2
#define cuMemcpy                            __CUDA_API_PTDS(cuMemcpy)
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuDeviceTotalMem(size_t *bytes, CUdevice dev);
CUresult CUDAAPI
    cuSplit(void);
CUresult CUDAAPI cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t ByteCount);
typedef CUresult (CUDAAPI *PFN_cuNot)(void);
"""


def wheel(path: Path, files: dict[str, str]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


@pytest.fixture
def wheels(tmp_path: Path) -> list[str]:
    tree = "nvidia/cu13/"
    compiler = {
        tree + "bin/nvcc": "#!/bin/sh\n",
        tree + "bin/nvcc.profile": "TOP = $(_HERE_)/..\n",
        tree + "nvvm/bin/cicc": "",
        "nvidia_cuda_nvcc-13.0.88.dist-info/RECORD": "",
        "nvidia_cuda_nvcc-13.0.88.dist-info/licenses/License.txt": "EULA",
    }
    runtime = {tree + "include/cuda.h": HEADER, tree + "lib/libcudart.so.13": "", tree + "../../../escaped": ""}
    return [wheel(tmp_path / "a.whl", compiler), wheel(tmp_path / "b.whl", runtime)]


def test_wheels_become_a_toolkit(tmp_path: Path, wheels: list[str]) -> None:
    target, said = str(tmp_path / "cuda"), []
    _cuda_wheels.unpack(wheels, target, said.append)
    assert len(said) == 2
    _cuda_wheels.complete(target, lambda source, path: Path(path).write_text(source, "utf-8"))
    assert os.access(target + "/bin/nvcc", os.X_OK)
    assert os.access(target + "/nvvm/bin/cicc", os.X_OK)
    assert not os.access(target + "/bin/nvcc.profile", os.X_OK)
    assert os.readlink(target + "/lib64") == "lib"
    assert os.readlink(target + "/lib/libcudart.so") == "libcudart.so.13"
    assert os.readlink(target + "/lib/stubs/libcuda.so.1") == "libcuda.so"
    assert Path(target, "licenses/nvidia_cuda_nvcc-13.0.88/License.txt").read_text("utf-8") == "EULA"
    assert not (tmp_path / "escaped").exists()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_stub_has_every_name_of_the_drivers_library(tmp_path: Path) -> None:
    source, library = tmp_path / "stub.c", tmp_path / "libcuda.so"
    source.write_text(_cuda_wheels.stub_source(HEADER), "utf-8")
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    stub = ctypes.CDLL(str(library))
    for name in ("cuInit", "cuDeviceTotalMem", "cuDeviceTotalMem_v2", "cuSplit", "cuMemcpy"):
        assert getattr(stub, name)() == 999
    assert not hasattr(stub, "PFN_cuNot")


def test_wheels_that_make_no_toolkit(tmp_path: Path, wheels: list[str]) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"PK")
    with pytest.raises(_cuda_wheels.WheelError, match=r"broken\.whl is no wheel"):
        _cuda_wheels.unpack([str(broken)], str(tmp_path / "one"), lambda line: None)
    _cuda_wheels.unpack(wheels[:1], str(tmp_path / "two"), lambda line: None)
    with pytest.raises(_cuda_wheels.WheelError, match="nvidia-cuda-runtime is not among them"):
        _cuda_wheels.complete(str(tmp_path / "two"), lambda source, path: None)
    with pytest.raises(_cuda_wheels.WheelError, match="declares no function"):
        _cuda_wheels.stub_source("int main(void);")


def test_a_toolkit_is_left_alone_while_its_wheels_are_the_same(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch(mode=0o755)
    assert not _cuda_wheels.installed(str(tmp_path), ["a==1", "b==2"])
    (tmp_path / WHEELS_FILE).write_text("a==1\nb==2\n", "utf-8")
    assert _cuda_wheels.installed(str(tmp_path), ["a==1", "b==2"])
    assert not _cuda_wheels.installed(str(tmp_path), ["a==1", "b==3"])
    nvcc.chmod(0o644)
    assert not _cuda_wheels.installed(str(tmp_path), ["a==1", "b==2"])


def test_the_role_pins_every_wheel_of_every_toolkit_in_the_table() -> None:
    toolkits = PINS["__cuda_toolkit_wheels"]
    assert tuple(toolkits) == WHEELS
    for version, pins in toolkits.items():
        names = [pin["name"] for pin in pins]
        assert {"nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cublas"} < set(names), version
        assert len(set(names)) == len(names)
        compiler = next(pin for pin in pins if pin["name"] == "nvidia-cuda-nvcc")
        assert compiler["version"].startswith(version + ".")
        for machine in ("x86_64", "aarch64"):
            assert _cuda_wheels.requirements(pins, machine).count("--hash=sha256:") == len(pins)
        assert all(len(digest) == 64 for pin in pins for digest in pin["sha256"].values())
    with pytest.raises(_cuda_wheels.WheelError, match="no wheel for riscv64"):
        _cuda_wheels.requirements(toolkits["13.0"], "riscv64")


def test_names_of_wheels_files() -> None:
    pin = {"name": "nvidia-cuda-nvcc", "version": "13.0.88"}
    name = "nvidia_cuda_nvcc-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"
    assert fnmatch(name, _cuda_wheels.file_pattern(pin, "x86_64"))
    assert not fnmatch(name, _cuda_wheels.file_pattern(pin, "aarch64"))
    assert "manylinux_2_17_x86_64" in _cuda_wheels.platforms("x86_64")
