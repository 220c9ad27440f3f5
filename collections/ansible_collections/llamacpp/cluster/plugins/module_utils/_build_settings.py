# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an operator says of the release of a node, typed and checked. What is left open, facts decide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _checks as checks
from ansible_collections.llamacpp.cluster.plugins.module_utils._checks import Fields
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, Rejected

BACKENDS = ("cpu", "cuda", "hip", "vulkan", "blas")
BUILD_TYPES = ("Release", "RelWithDebInfo", "Debug", "MinSizeRel")
CUDA_PROVIDERS = ("auto", "package", "distro", "pip", "existing")
# A source is compiled, but release_archive: somebody else compiled it.
SOURCE_KINDS = ("git", "archive", "pypi", "release_archive")
SOURCE_KEYS = ("kind", "url", "path", "sha256", "commit", "package")
DEFAULT_SOURCE = {"kind": "git", "url": "https://github.com/ggml-org/llama.cpp"}
# Host variables of builds, without llamacpp_.
BUILD_KEYS = (
    "backend",
    "cuda_architectures",
    "hip_architectures",
    "cmake_args",
    "cflags",
    "cxxflags",
    "patches",
    "build_type",
    "web_ui",
    "rdma",
    "nccl",
    "fa_all_quants",
    "cpu_variants",
    "source",
    "builder",
    "build_platform",
    "cuda_provider",
    "cuda_version",
    "cuda_home",
    "gcc_version",
)
_CUDA_ARCHITECTURE = re.compile(r"^[1-9][0-9]{1,2}[af]?(-real|-virtual)?$")
_HIP_ARCHITECTURE = re.compile(r"^gfx[0-9a-f]{3,5}$")
_VERSION = re.compile(r"^[0-9]+(\.[0-9]+){1,2}$")
_PLATFORM = re.compile(r"^[a-z]+-[0-9.]+$")


@dataclass(frozen=True)
class Patch:
    """A change of the source. ``name``: last part of path or url; ``sha256``: empty where nobody said."""

    name: str
    path: str
    url: str
    sha256: str


@dataclass(frozen=True)
class BuildSettings:
    """How the release of a node is made. None and empty leave it to facts; the last five are of the builder.

    ``platform``: (``debian-12``, ``x86_64``) of a builder that cannot be asked.
    """

    backend: str = "auto"
    cuda_architectures: tuple[str, ...] = ()
    hip_architectures: tuple[str, ...] = ()
    cmake_args: tuple[str, ...] = ()
    cflags: str = ""
    cxxflags: str = ""
    patches: tuple[Patch, ...] = ()
    build_type: str = "Release"
    web_ui: bool = False
    rdma: bool | None = None
    nccl: bool | None = None
    fa_all_quants: bool | None = None
    cpu_variants: bool = False
    source: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_SOURCE))
    builder: str | None = None
    platform: tuple[str, str] | None = None
    cuda_provider: str = "auto"
    cuda_version: str = ""
    cuda_home: str = ""
    gcc_version: int = 0

    @property
    def compiled(self) -> bool:
        """Whether somebody here has to compile it."""
        return self.source["kind"] != "release_archive"


def parse_build(problems: list[Problem], node: str, data: Mapping[str, Any]) -> BuildSettings:
    """Check the build's variables of one node; wrong ones become problems and their defaults."""
    pattern = "llamacpp_%s of " + node.replace("%", "%%")
    take = Fields(problems, pattern, data, BUILD_KEYS).take
    default = BuildSettings()
    auto = checks.auto_or(checks.yes_or_no)
    return BuildSettings(
        backend=take("backend", checks.one_of("auto", *BACKENDS), default.backend),
        cuda_architectures=take("cuda_architectures", _architectures(_CUDA_ARCHITECTURE, '["70"] for V100'), ()),
        hip_architectures=take("hip_architectures", _architectures(_HIP_ARCHITECTURE, '["gfx90a"] for MI200'), ()),
        cmake_args=take("cmake_args", _cmake_arguments, ()),
        cflags=take("cflags", _flags, ""),
        cxxflags=take("cxxflags", _flags, ""),
        patches=_patches(problems, node, data.get("patches")),
        build_type=take("build_type", checks.one_of(*BUILD_TYPES), default.build_type),
        web_ui=take("web_ui", checks.yes_or_no, default.web_ui),
        rdma=None if data.get("rdma") == "auto" else take("rdma", auto, None),
        nccl=None if data.get("nccl") == "auto" else take("nccl", auto, None),
        fa_all_quants=None if data.get("fa_all_quants") == "auto" else take("fa_all_quants", auto, None),
        cpu_variants=take("cpu_variants", checks.yes_or_no, default.cpu_variants),
        source=_source(problems, node, data.get("source")),
        builder=take("builder", checks.text, None),
        platform=take("build_platform", _platform, None),
        cuda_provider=take("cuda_provider", checks.one_of(*CUDA_PROVIDERS), default.cuda_provider),
        cuda_version=take("cuda_version", _version, ""),
        cuda_home=take("cuda_home", checks.absolute_path, "").rstrip("/"),
        gcc_version=take("gcc_version", checks.whole(9, 99, "", 12), 0),
    )


def _architectures(pattern: re.Pattern[str], example: str) -> checks.Check[tuple[str, ...]]:
    def check(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise Rejected("must be a list of texts, e.g. %s" % example)
        for item in value:
            if item == "native":
                raise Rejected("native does not survive a copy to another node; write e.g. %s" % example)
            if not isinstance(item, str) or not pattern.match(item):
                raise Rejected("%s is no architecture; write texts, e.g. %s" % (item, example))
        return tuple(sorted(set(value), key=lambda item: (len(item), item)))

    return check


def _cmake_arguments(value: object) -> tuple[str, ...]:
    words = checks.arguments(value)
    for word in words:
        if not word.startswith("-"):
            raise Rejected("%s is no argument of CMake; write e.g. -DGGML_CUDA_FORCE_MMQ=ON" % word)
        if re.match(r"-D(GGML_CUBLAS|LLAMA_CUBLAS)\b", word):
            raise Rejected("%s is gone from llama.cpp; write llamacpp_backend: cuda" % word)
        if re.match(r"-DGGML_NATIVE=(ON|1|TRUE)$", word, re.IGNORECASE):
            raise Rejected(
                "%s: native does not survive a copy to another node; write llamacpp_cpu_variants: true" % word
            )
    return words


def _flags(value: object) -> str:
    words = "" if value == "" else checks.text(value)
    if re.search(r"-m(arch|cpu|tune)=native\b", words):
        raise Rejected("native does not survive a copy to another node; name the CPU, e.g. -march=x86-64-v4")
    return words


def _version(value: object) -> str:
    if not isinstance(value, str) or not _VERSION.match(value):
        raise Rejected('must be a version in quotes, e.g. "12.2"')
    return value


def _platform(value: object) -> tuple[str, str]:
    good = isinstance(value, dict) and set(value) == {"os", "machine"}
    if not isinstance(value, dict) or not good or not _PLATFORM.match(str(value["os"])):
        raise Rejected("must say os and machine, e.g. {os: rocky-8, machine: x86_64}")
    return str(value["os"]), str(value["machine"])


def _patches(problems: list[Problem], node: str, data: object) -> tuple[Patch, ...]:
    variable = "llamacpp_patches of %s" % node
    if data is None:
        return ()
    if not isinstance(data, list):
        problems.append(Problem(variable, data, "must be a list, e.g. [{path: /srv/patches/fix.patch}]"))
        return ()
    found = []
    for index, item in enumerate(data):
        own = "llamacpp_patches[%d]" % index
        if not isinstance(item, dict):
            problems.append(Problem("%s of %s" % (own, node), item, "must be a mapping with path, or url and sha256"))
            continue
        fields = Fields(problems, own + ".%s of " + node.replace("%", "%%"), item, ("path", "url", "sha256"))
        path, url = fields.take("path", checks.absolute_path, ""), fields.take("url", checks.url, "")
        sha256 = fields.take("sha256", checks.sha256, "")
        if bool(item.get("path")) == bool(item.get("url")):
            fields.problem("path", "write either path (on the control node) or url", item.get("path"))
        elif item.get("url") and not item.get("sha256"):
            fields.problem("sha256", "a patch from a url needs its sha256; sha256sum FILE prints it")
        found.append(Patch((path or url).rsplit("/", 1)[-1], path, url, sha256))
    return tuple(found)


def _source(problems: list[Problem], node: str, data: object) -> dict[str, str]:
    if data is None:
        return dict(DEFAULT_SOURCE)
    variable = "llamacpp_source of %s" % node
    if not isinstance(data, dict):
        problems.append(Problem(variable, data, "must be a mapping, e.g. {kind: git, url: %s}" % DEFAULT_SOURCE["url"]))
        return dict(DEFAULT_SOURCE)
    fields = Fields(problems, "llamacpp_source.%s of " + node.replace("%", "%%"), data, SOURCE_KEYS)
    before = len(problems)
    kind = fields.take("kind", checks.one_of(*SOURCE_KINDS), "")
    found = {
        "kind": kind,
        "url": fields.take("url", checks.text, ""),
        "path": fields.take("path", checks.absolute_path, ""),
        "sha256": fields.take("sha256", checks.sha256, ""),
        "commit": fields.take("commit", checks.text, ""),
        "package": fields.take("package", checks.text, ""),
    }
    if len(problems) == before:
        if not kind:
            fields.problem("kind", "write one of %s" % ", ".join(SOURCE_KINDS))
        elif kind == "git" and not found["url"]:
            fields.problem("url", "kind git needs the address of a repository, e.g. %s" % DEFAULT_SOURCE["url"])
        elif kind in ("archive", "release_archive") and not found["sha256"]:
            fields.problem("sha256", "kind %s needs the sha256 of the archive; sha256sum FILE prints it" % kind)
        elif kind in ("archive", "release_archive") and bool(found["path"]) == bool(found["url"]):
            fields.problem("path", "kind %s needs either path (on the control node) or url" % kind, found["path"])
    return {key: value for key, value in found.items() if value} if kind else dict(DEFAULT_SOURCE)
