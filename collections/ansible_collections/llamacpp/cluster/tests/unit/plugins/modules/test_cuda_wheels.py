# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Wheels of a toolkit are fetched by a real pip, from a directory, and become a toolkit whose nvcc is a script."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import cuda_from_wheels, cuda_wheels

pytest.importorskip("pip")

NVCC = "#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n"
HEADER = "CUresult CUDAAPI cuInit(unsigned int Flags);\n"
PARTS = {
    "nvidia-cuda-nvcc": {"bin/nvcc": NVCC},
    "nvidia-cuda-runtime": {"include/cuda.h": HEADER, "lib/libcudart.so.13": ""},
}


def write_wheel(directory, name, files):
    """Write a wheel that pip takes, and return how the role would pin it."""
    stem = name.replace("-", "_")
    path = directory / ("%s-13.0.88-py3-none-manylinux_2_17_x86_64.whl" % stem)
    with zipfile.ZipFile(path, "w") as wheel:
        for relative, content in files.items():
            wheel.writestr("nvidia/cu13/" + relative, content)
        info = "%s-13.0.88.dist-info/" % stem
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: %s\nVersion: 13.0.88\n" % name)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-manylinux_2_17_x86_64\n")
        wheel.writestr(info + "RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": name, "version": "13.0.88", "sha256": {"x86_64": digest}}


@pytest.fixture
def pins(tmp_path, monkeypatch):
    """The pins of two wheels in a directory that is all that pip knows."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return [write_wheel(directory, name, files) for name, files in PARTS.items()]


def test_wheels_are_fetched_once(run_module, pins, tmp_path):
    wanted = {"wheels": pins, "machine": "x86_64", "cache": str(tmp_path / "cache")}
    rehearsed = run_module(cuda_wheels, check=True, **wanted)
    assert (rehearsed["changed"], rehearsed["files"]) == (True, [])
    assert not (tmp_path / "cache").exists()
    done = run_module(cuda_wheels, **wanted)
    assert [os.path.basename(path).split("-")[0] for path in done["files"]] == [
        "nvidia_cuda_nvcc",
        "nvidia_cuda_runtime",
    ]
    shutil.rmtree(tmp_path / "index")
    again = run_module(cuda_wheels, **wanted)
    assert (again["changed"], again["files"]) == (False, done["files"])


def test_a_wheel_with_another_sha256_is_refused(run_module, pins, tmp_path):
    pins[1]["sha256"]["x86_64"] = "0" * 64
    failed = run_module(cuda_wheels, wheels=pins, machine="x86_64", cache=str(tmp_path / "cache"))
    assert failed["failed"]
    assert "nvidia-cuda-runtime" in failed["msg"]
    assert os.listdir(tmp_path / "cache") == []


def test_a_machine_without_wheels(run_module, pins, tmp_path):
    failed = run_module(cuda_wheels, wheels=pins, machine="aarch64", cache=str(tmp_path / "cache"))
    assert "has no wheel for aarch64" in failed["msg"]


@pytest.fixture
def made(pins, tmp_path):
    """Arguments that make a toolkit."""
    return {
        "version": "13.0",
        "pins": ["%s==%s" % (pin["name"], pin["version"]) for pin in pins],
        "wheels": sorted(str(path) for path in (tmp_path / "index").iterdir()),
        "dest": str(tmp_path / "opt" / "13.0"),
    }


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_toolkit_is_made_once_and_again_for_other_wheels(run_module, made, tmp_path):
    assert run_module(cuda_from_wheels, check=True, **made)["changed"]
    assert not (tmp_path / "opt").exists()
    assert run_module(cuda_from_wheels, **made)["changed"]
    assert os.path.isfile(made["dest"] + "/lib64/stubs/libcuda.so.1")
    assert not run_module(cuda_from_wheels, **made)["changed"]
    made["pins"][0] = "nvidia-cuda-nvcc==13.0.99"
    assert run_module(cuda_from_wheels, **made)["changed"]
    assert os.listdir(tmp_path / "opt") == ["13.0"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"version": "13.1"}, "nvcc of the wheels is not CUDA 13.1"),
        ({"cc": "false"}, "false does not compile the stub"),
        ({"wheels": ["/nowhere.whl"]}, "/nowhere.whl"),
    ],
)
def test_what_fails_leaves_nothing(run_module, made, tmp_path, arguments, says):
    failed = run_module(cuda_from_wheels, **dict(made, **arguments))
    assert failed["failed"]
    assert says in failed["msg"]
    assert os.listdir(tmp_path / "opt") == []


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_failure_leaves_the_toolkit_that_was_there(run_module, made):
    run_module(cuda_from_wheels, **made)
    assert run_module(cuda_from_wheels, **dict(made, pins=["a==1"], cc="false"))["failed"]
    assert not run_module(cuda_from_wheels, **made)["changed"]
