# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Instructions that a build uses; the compiler of this machine is asked where there is one."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _cpu_flags

on_x86_with_gcc = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("gcc") is None, reason="needs gcc on x86-64"
)


def commands(*lines):
    """Return a compile_commands.json with commands for files named in them last."""
    return json.dumps([{"directory": "/b", "command": line, "file": line.split()[-1]} for line in lines])


def needed(*lines):
    """Return the flags that these commands need, from the compiler itself."""
    probes = _cpu_flags.probe_commands(commands(*lines))
    run = [subprocess.run(probe, stdout=subprocess.PIPE, check=True, text=True).stdout for probe in probes]
    return _cpu_flags.needed_flags(run)


@on_x86_with_gcc
def test_flags_of_the_cpu_backend():
    flags = needed(
        "/usr/bin/ccache gcc -O3 -o CMakeFiles/ggml-base.dir/ggml.c.o -c /s/ggml.c",
        "/usr/bin/ccache gcc -O3 -mavx2 -mfma -mf16c -o CMakeFiles/ggml-cpu.dir/ggml-cpu.c.o -c /s/ggml-cpu/ggml-cpu.c",
    )
    assert {"avx", "avx2", "fma", "f16c", "sse4_2"} <= set(flags)
    assert not [flag for flag in flags if flag.startswith(("avx512", "amx"))]
    assert flags.index("avx") < flags.index("avx2")


@on_x86_with_gcc
def test_flags_of_the_operator_count_for_every_file():
    assert "avx512f" in needed("gcc -march=skylake-avx512 -o src/x.o -c /s/src/llama.c")


@on_x86_with_gcc
def test_plain_code_needs_no_more_than_the_compilers_own_default():
    printed = subprocess.run(
        ["gcc", "-dM", "-E", "-x", "c", "/dev/null"], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    assert needed("gcc -O3 -o a.o -c /s/a.c") == _cpu_flags.needed_flags([printed])


def test_variants_and_code_for_gpus_are_left_out():
    probes = _cpu_flags.probe_commands(
        commands(
            "cc -mavx512f -o ggml/src/CMakeFiles/ggml-cpu-skylakex.dir/ggml-cpu/ggml-cpu.c.o -c /s/ggml-cpu.c",
            "nvcc -O3 -o cuda.o -c /s/ggml-cuda.cu",
            "cc -o base.o -c /s/ggml.c",
        )
    )
    assert probes == [["cc", "-x", "c", "-dM", "-E", "/dev/null"]]


def test_one_probe_for_each_set_of_flags():
    text = json.dumps(
        [
            {"directory": "/b", "arguments": ["ccache", "c++", "-mavx", "-c", "/s/%d.cpp" % number], "file": "/s/1.cpp"}
            for number in range(3)
        ]
    )
    assert _cpu_flags.probe_commands(text) == [["c++", "-mavx", "-x", "c++", "-dM", "-E", "/dev/null"]]


def test_arm():
    printed = "#define __ARM_FEATURE_DOTPROD 1\n#define __ARM_FEATURE_MATMUL_INT8 1\n#define __ARM_NEON 1\n"
    assert _cpu_flags.needed_flags([printed]) == ["asimddp", "i8mm"]


CPUINFO = "processor\t: 0\nflags\t\t: fpu avx avx2\n\nprocessor\t: 1\nflags\t\t: fpu avx\n"


def test_only_what_all_cores_have():
    assert _cpu_flags.cpuinfo_flags(CPUINFO) == {"fpu", "avx"}
    assert _cpu_flags.cpuinfo_flags("Features\t: fp asimd i8mm\n") == {"fp", "asimd", "i8mm"}
    assert _cpu_flags.cpuinfo_flags("") == frozenset()


def test_what_a_cpu_lacks_in_the_order_of_the_manifest():
    assert _cpu_flags.missing_flags(["avx", "avx2", "avx512f"], ["fpu", "avx"]) == ["avx2", "avx512f"]
    assert _cpu_flags.missing_flags(["avx"], ["avx"]) == []


def test_a_kernel_that_lists_no_flags_refuses_nothing():
    assert _cpu_flags.missing_flags(["avx"], []) == []


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        (["avx512f", "avx512bw"], ["-DGGML_AVX512=OFF"]),
        (["avx2", "fma"], ["-DGGML_AVX2=OFF", "-DGGML_FMA=OFF"]),
        (["gfni"], []),
    ],
)
def test_what_to_write_instead(missing, arguments):
    assert _cpu_flags.cmake_arguments_without(missing) == arguments
