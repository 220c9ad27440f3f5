# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which instructions a build uses, in the words of /proc/cpuinfo, and which of them a node's CPU lacks.

A binary that meets an instruction that its CPU does not have dies with SIGILL in the middle of its work, so the
manifest of a release says what it needs, and a node that lacks it is refused before anything is installed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence

# Macro that the compiler defines when it may use an instruction set -> flag of /proc/cpuinfo.
# Macros: gcc 12, gcc/config/i386/i386-c.cc, ix86_target_macros_internal. Flags: Linux 6.1,
# arch/x86/include/asm/cpufeatures.h. Left out is what compilers do not use unless a program asks for it by name and
# llama.cpp does not (aes, sha, rdrand, clwb, xsave, ...): a virtual machine that hides it runs the build all the same.
# What every x86-64 CPU has (sse2) is no flag to ask for.
_X86 = {
    "__SSE3__": "pni",
    "__SSSE3__": "ssse3",
    "__SSE4_1__": "sse4_1",
    "__SSE4_2__": "sse4_2",
    "__SSE4A__": "sse4a",
    "__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16": "cx16",
    "__LAHF_SAHF__": "lahf_lm",
    "__POPCNT__": "popcnt",
    "__LZCNT__": "abm",
    "__BMI__": "bmi1",
    "__BMI2__": "bmi2",
    "__TBM__": "tbm",
    "__MOVBE__": "movbe",
    "__F16C__": "f16c",
    "__FMA__": "fma",
    "__FMA4__": "fma4",
    "__XOP__": "xop",
    "__AVX__": "avx",
    "__AVX2__": "avx2",
    "__AVXVNNI__": "avx_vnni",
    "__AVXIFMA__": "avx_ifma",
    "__AVX512F__": "avx512f",
    "__AVX512CD__": "avx512cd",
    "__AVX512VL__": "avx512vl",
    "__AVX512DQ__": "avx512dq",
    "__AVX512BW__": "avx512bw",
    "__AVX512IFMA__": "avx512ifma",
    "__AVX512VBMI__": "avx512vbmi",
    "__AVX512VBMI2__": "avx512_vbmi2",
    "__AVX512VNNI__": "avx512_vnni",
    "__AVX512BITALG__": "avx512_bitalg",
    "__AVX512VPOPCNTDQ__": "avx512_vpopcntdq",
    "__AVX512BF16__": "avx512_bf16",
    "__AVX512FP16__": "avx512_fp16",
    "__GFNI__": "gfni",
    "__AMX_TILE__": "amx_tile",
    "__AMX_INT8__": "amx_int8",
    "__AMX_BF16__": "amx_bf16",
}

# Macros: Arm C Language Extensions 2023Q2, "Feature test macros". Flags: Linux 6.1, arch/arm64/kernel/cpuinfo.c,
# hwcap_str. What every ARMv8 CPU of 64 bits with an operating system has (fp, asimd) is no flag to ask for.
_ARM = {
    "__ARM_FEATURE_ATOMICS": "atomics",
    "__ARM_FEATURE_CRC32": "crc32",
    "__ARM_FEATURE_QRDMX": "asimdrdm",
    "__ARM_FEATURE_DOTPROD": "asimddp",
    "__ARM_FEATURE_FP16_SCALAR_ARITHMETIC": "fphp",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
    "__ARM_FEATURE_FP16_FML": "asimdfhm",
    "__ARM_FEATURE_COMPLEX": "fcma",
    "__ARM_FEATURE_JCVT": "jscvt",
    "__ARM_FEATURE_FRINT": "frint",
    "__ARM_FEATURE_RCPC": "lrcpc",
    "__ARM_FEATURE_MATMUL_INT8": "i8mm",
    "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC": "bf16",
    "__ARM_FEATURE_SVE": "sve",
    "__ARM_FEATURE_SVE_MATMUL_INT8": "svei8mm",
    "__ARM_FEATURE_SVE_BF16": "svebf16",
    "__ARM_FEATURE_SVE2": "sve2",
    "__ARM_FEATURE_SME": "sme",
}

_FLAG_OF_MACRO = {**_X86, **_ARM}
_DEFINED = re.compile(r"^#define\s+(\w+)", re.MULTILINE)
_LAUNCHERS = ("ccache", "sccache", "distcc")
# Objects of CPU variants (GGML_CPU_ALL_VARIANTS: ggml-cpu-haswell, ...); llama.cpp loads those that the CPU can run.
_VARIANT_OBJECT = re.compile(r"CMakeFiles/ggml-cpu-[^/]+\.dir/")
_LANGUAGES = {".c": "c", ".cpp": "c++", ".cc": "c++", ".cxx": "c++"}

# CMake option that leaves flags out (ggml/src/ggml-cpu/CMakeLists.txt, b11434) -> the flags that go with it.
_OPTIONS = (
    ("GGML_AMX_BF16", ("amx_bf16",)),
    ("GGML_AMX_INT8", ("amx_int8",)),
    ("GGML_AMX_TILE", ("amx_tile",)),
    ("GGML_AVX512_BF16", ("avx512_bf16",)),
    ("GGML_AVX512_VNNI", ("avx512_vnni",)),
    ("GGML_AVX512_VBMI", ("avx512vbmi",)),
    ("GGML_AVX512", ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw")),
    ("GGML_AVX_VNNI", ("avx_vnni",)),
    ("GGML_AVX2", ("avx2",)),
    ("GGML_BMI2", ("bmi2",)),
    ("GGML_FMA", ("fma",)),
    ("GGML_F16C", ("f16c",)),
    ("GGML_AVX", ("avx",)),
    ("GGML_SSE42", ("pni", "ssse3", "sse4_1", "sse4_2", "popcnt")),
)


def probe_commands(compile_commands: str) -> list[list[str]]:
    """Return the commands that make the compiler print its macros, one for each set of ``-m`` flags of the build.

    ``compile_commands``: text of CMake's ``compile_commands.json``. What they print goes to :func:`needed_flags`.
    Code for GPUs is left out, and so are the CPU's variants.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for entry in json.loads(compile_commands):
        words = entry["arguments"] if "arguments" in entry else shlex.split(entry["command"])
        language = _LANGUAGES.get("." + str(entry["file"]).rpartition(".")[2])
        if language is None or any(_VARIANT_OBJECT.search(word) for word in words):
            continue
        compiler = next(word for word in words if word.rpartition("/")[2] not in _LAUNCHERS)
        machine = [word for word in words if word.startswith("-m") and word != "-mllvm"]
        command = [compiler, *machine, "-x", language, "-dM", "-E", "/dev/null"]
        found.setdefault(tuple(command), command)
    return list(found.values())


def needed_flags(printed: Iterable[str]) -> list[str]:
    """Return the flags of /proc/cpuinfo that a build needs, old instructions first.

    ``printed``: what each of :func:`probe_commands` printed (``#define __AVX2__ 1``). Only x86 and Arm are known;
    elsewhere the list is empty and the trial of a release has to show it.
    """
    macros = {macro for text in printed for macro in _DEFINED.findall(text)}
    return [flag for macro, flag in _FLAG_OF_MACRO.items() if macro in macros]


def cpuinfo_flags(cpuinfo: str) -> frozenset[str]:
    """Return the flags in a text of /proc/cpuinfo that all of its CPUs have (big and little cores may differ)."""
    sets = []
    for line in cpuinfo.splitlines():
        name, _colon, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            sets.append(frozenset(value.split()))
    return frozenset.intersection(*sets) if sets else frozenset()


def missing_flags(wanted: Sequence[str], cpuinfo_flags: Iterable[str]) -> list[str]:
    """Return those of a manifest's ``cpu_flags`` that a CPU lacks, in the manifest's order; empty when it runs there.

    ``cpuinfo_flags``: the node's, from :func:`cpuinfo_flags`. A kernel that says nothing of its CPU (no flag at
    all, as on architectures that have no such line) refuses nothing.
    """
    there = set(cpuinfo_flags)
    return [flag for flag in wanted if flag not in there] if there else []


def cmake_arguments_without(missing: Iterable[str]) -> list[str]:
    """Return the CMake arguments that leave these flags out of a build, as ``["-DGGML_AVX512=OFF"]``.

    Empty when llama.cpp has no option for them, as for flags that come from ``llamacpp_cflags``.
    """
    lacking = set(missing)
    return ["-D%s=OFF" % option for option, flags in _OPTIONS if lacking.intersection(flags)]
