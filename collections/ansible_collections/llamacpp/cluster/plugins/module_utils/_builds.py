# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decide which releases a cluster needs: one for each kind of node, each with who compiles it and with what.

Nodes share a release when everything that decides what it contains is the same for them: backend,
architectures of their GPUs, kind of processor, and what the inventory says of builds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_settings import BuildSettings
from ansible_collections.llamacpp.cluster.plugins.module_utils._cmake import cmake_arguments, expected_cpu_flags
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Device, Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, listing, size_text
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import CONTENTS, release_id
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain import choose
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain_error import ToolchainError

# Which backend drives a device of which kind.
_BACKEND_OF = {"cuda": "cuda", "rocm": "hip", "vulkan": "vulkan", "cpu": "cpu"}
# What hipconfig says where ROCm is where AMD's packages put it (docs/build.md, b11434). Not tried.
_ROCM = {"HIPCXX": "/opt/rocm/llvm/bin/clang", "HIP_PATH": "/opt/rocm", "ROCM_PATH": "/opt/rocm"}
# K and V types whose flash attention CUDA compiles anyway, when both are the same
# (ggml/src/ggml-cuda/CMakeLists.txt, GGML_CUDA_FA_ALL_QUANTS, b11434).
_FA_TYPES = ("f16", "bf16", "q8_0", "q4_0")
# The first release of a distribution whose Vulkan headers llama.cpp compiles with (vk::LayerSettingEXT).
_VULKAN_SINCE = {"debian": 13.0, "ubuntu": 24.10, "rhel": 10.0, "rocky": 10.0, "almalinux": 10.0, "centos": 10.0}


@dataclass(frozen=True)
class Release:
    """One release of the plan. ``builder``: empty when nobody has to compile it."""

    id: str
    inputs: Mapping[str, Any]
    nodes: tuple[str, ...]
    builder: str = ""
    toolchain: Mapping[str, Any] = field(default_factory=dict)
    patches: tuple[Mapping[str, str], ...] = ()

    @property
    def as_dict(self) -> dict[str, Any]:
        """Return it as the plan says it."""
        return {
            "id": self.id,
            "inputs": dict(self.inputs),
            "nodes": list(self.nodes),
            "builder": self.builder,
            "toolchain": dict(self.toolchain),
            "patches": [dict(patch) for patch in self.patches],
        }


@dataclass
class Releases:
    """All releases of a plan by id, and which one each node runs."""

    by_id: dict[str, Release] = field(default_factory=dict)
    of_node: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kind:
    """What nodes have in common that share a release."""

    settings: BuildSettings
    backend: str
    architectures: tuple[str, ...]
    machine: str


@dataclass(frozen=True)
class _Builder:
    """A node that compiles, as far as it is known: ``libc`` () when nobody asked it."""

    name: str
    platform: tuple[str, str]
    libc: tuple[int, ...]
    facts: NodeFacts | None

    def as_mapping(self) -> dict[str, Any]:
        """Return what the choice of a toolchain asks for."""
        system, _dash, version = self.platform[0].rpartition("-")
        return {
            "os_id": system,
            "os_version": self.facts.os_version if self.facts else version,
            "os_family": self.facts.os_family if self.facts else _family(system),
            "machine": self.platform[1],
            "toolkits": [dict(item) for item in self.facts.toolkits] if self.facts else [],
            "compilers": dict(self.facts.compilers) if self.facts else {},
        }


def decide_releases(
    declared: Declared, nodes: Mapping[str, NodeFacts], builders: Mapping[str, NodeFacts]
) -> tuple[Releases, list[Problem]]:
    """Decide the release of every node that answered (all of them in a static plan).

    ``builders``: facts of the nodes that compile, which need not be nodes of the cluster. A node
    whose release is pinned (``declared.pinned``) gets that one, and nothing is built for it. A static
    plan that does not say what its builders are knows no releases, but their version.
    """
    found = Releases()
    problems: list[Problem] = []
    if declared.static and not any(declared.node(name).build.platform for name in declared.builders):
        found.of_node = dict.fromkeys(declared.inventory, declared.release)
        return found, problems
    kinds: dict[str, tuple[_Kind, list[str]]] = {}
    for name in declared.inventory:
        facts = nodes.get(name)
        if facts is None and not declared.static:
            continue
        if name in declared.pinned:
            _pin(declared, name, facts, found, problems)
            continue
        settings = declared.node(name).build
        devices = _devices(declared, name, nodes)
        backend = settings.backend if settings.backend != "auto" else _backend(devices)
        architectures = _architectures(name, settings, backend, devices, problems)
        machine = facts.machine if facts else settings.platform[1] if settings.platform else "x86_64"
        kind = _Kind(settings, backend, architectures, machine)
        kinds.setdefault(repr(kind), (kind, []))[1].append(name)
    labels = sorted({str(item.inputs.get("release")) for item in found.by_id.values()})
    if len(labels) > 1:
        fix = "the nodes of a cluster speak one version; run site.yml with the one that you want as llamacpp_release"
        problems.append(Problem("releases that were current before", listing(labels), fix))
    for kind, names in kinds.values():
        release = _release(declared, kind, names, nodes, builders, problems)
        if release is None:
            continue
        if release.id in found.by_id:
            release = replace(release, nodes=(*found.by_id[release.id].nodes, *release.nodes))
        found.by_id[release.id] = release
        found.of_node.update(dict.fromkeys(names, release.id))
    return found, problems + _check_disks(declared, found, nodes, builders)


def _pin(declared: Declared, name: str, facts: NodeFacts | None, found: Releases, problems: list[Problem]) -> None:
    """Give a node the release that it is pinned to, which has to be installed there."""
    pinned = declared.pinned[name]
    if not pinned or facts is None or pinned not in facts.releases:
        fix = "no release before the current one is installed there; installed are %s: run site.yml with the release"
        fix += " that you want as llamacpp_release"
        problems.append(
            Problem("release of %s" % name, pinned or None, fix % (listing(facts.releases if facts else ()) or "none"))
        )
        return
    manifest = facts.manifests.get(pinned, {})
    before = found.by_id.get(pinned)
    names = (*before.nodes, name) if before else (name,)
    found.by_id[pinned] = Release(pinned, manifest.get("inputs") or {}, names)
    found.of_node[name] = pinned


def _devices(declared: Declared, name: str, nodes: Mapping[str, NodeFacts]) -> Sequence[Device]:
    return declared.node(name).devices or (nodes[name].devices if name in nodes else ())


def _backend(devices: Sequence[Device]) -> str:
    kinds = [device.kind for device in devices]
    return next((_BACKEND_OF[kind] for kind in ("cuda", "rocm", "vulkan") if kind in kinds), "cpu")


def _architectures(
    name: str, settings: BuildSettings, backend: str, devices: Sequence[Device], problems: list[Problem]
) -> tuple[str, ...]:
    """Return what a node's GPUs need compiled: declared, else what they are."""
    if backend not in ("cuda", "hip"):
        return ()
    declared = settings.cuda_architectures if backend == "cuda" else settings.hip_architectures
    own = [device for device in devices if _BACKEND_OF.get(device.kind) == backend]
    if declared or not settings.compiled:
        return declared
    known = [device.compute_capability for device in own]
    if known and all(known):
        return tuple(sorted({str(item).replace(".", "") for item in known}, key=lambda item: (len(item), item)))
    example = '["70"] for V100, ["90"] for H100' if backend == "cuda" else '["gfx90a"] for MI200'
    problems.append(
        Problem(
            "llamacpp_%s_architectures of %s" % (backend, name),
            None,
            "the node shows no %s GPU whose architecture is known; write what is compiled for, e.g. %s"
            % (backend.upper(), example)
            + ("" if own else ", or another llamacpp_backend"),
        )
    )
    return ()


def _release(
    declared: Declared,
    kind: _Kind,
    names: Sequence[str],
    nodes: Mapping[str, NodeFacts],
    builders: Mapping[str, NodeFacts],
    problems: list[Problem],
) -> Release | None:
    """Return the release of some nodes of one kind; None, and why, when there cannot be one."""
    settings = kind.settings
    if kind.backend in ("cuda", "hip") and not kind.architectures and settings.compiled:
        return None
    inputs: dict[str, Any] = {
        "release": declared.release,
        "source": {key: value for key, value in sorted(settings.source.items()) if key != "path"},
        "backend": kind.backend,
        "architectures": list(kind.architectures),
    }
    if not settings.compiled:
        inputs["platform"] = {"os": "", "machine": kind.machine}
        return Release(release_id(inputs), inputs, tuple(names))
    before = len(problems)
    problems += _check_processors(kind, names, nodes)
    builder = _builder(declared, kind, names, nodes, builders, problems)
    if builder is None or len(problems) > before:
        return None
    toolchain: Mapping[str, Any]
    try:
        toolchain = choose(
            builder.as_mapping(),
            kind.backend,
            kind.architectures,
            {
                "cuda_provider": settings.cuda_provider,
                "cuda_version": settings.cuda_version,
                "cuda_home": settings.cuda_home,
                "gcc_version": settings.gcc_version,
            },
            sorted({nodes[name].driver for name in names if name in nodes and nodes[name].driver}),
        ).as_dict()
    except ToolchainError as error:
        value = "%s for %s on %s" % (kind.backend, listing(kind.architectures) or kind.machine, builder.platform[0])
        problems.append(Problem("toolchain of %s" % builder.name, value, str(error)))
        return None
    if kind.backend == "hip":
        toolchain = {**toolchain, "environment": {**toolchain["environment"], **_ROCM}}
    rdma = settings.rdma
    if rdma is None:
        rdma = any(nodes[name].rdma for name in names if name in nodes)
    nccl = settings.nccl
    if nccl is None:
        # A tensor split is planned only where NVLink joins GPUs, and NCCL adds its parts up.
        nccl = any(device.nvlink for name in names for device in _devices(declared, name, nodes))
    all_quants = settings.fa_all_quants
    if all_quants is None:
        all_quants = any(needs_all_quants(instance) for instance in declared.instances)
    inputs.update(
        contents=CONTENTS,
        cmake_args=cmake_arguments(settings, kind.backend, kind.architectures, rdma, nccl, all_quants),
        cflags=settings.cflags,
        cxxflags=settings.cxxflags,
        build_type=settings.build_type,
        patches=[{"name": patch.name, "sha256": patch.sha256} for patch in settings.patches],
        web_ui=settings.web_ui,
        toolchain={"gcc": toolchain["gcc"]["version"], "cuda": toolchain["cuda"].get("version", "")},
        platform={"os": builder.platform[0], "machine": builder.platform[1]},
    )
    patches = tuple(
        {key: value for key, value in (("path", item.path), ("url", item.url), ("sha256", item.sha256)) if value}
        for item in settings.patches
    )
    return Release(release_id(inputs), inputs, tuple(names), builder.name, toolchain, patches)


def needs_all_quants(instance: Instance) -> bool:
    """Whether an instance declares types of the context's cache that flash attention is not compiled for by default."""
    key = instance.cache_type_k or "f16"
    value = instance.cache_type_v or key
    return instance.flash_attention != "off" and (key != value or key not in _FA_TYPES)


def _check_processors(kind: _Kind, names: Sequence[str], nodes: Mapping[str, NodeFacts]) -> list[Problem]:
    """Refuse nodes whose processor lacks an instruction that the build will use."""
    problems = []
    expected = expected_cpu_flags(kind.settings, kind.machine)
    for name in names:
        facts = nodes.get(name)
        lacking = [flag for flag in expected if facts and facts.cpu_flags and flag not in facts.cpu_flags]
        if lacking:
            off = ", ".join("-D%s=OFF" % option for option in sorted({expected[flag] for flag in lacking}))
            problems.append(
                Problem(
                    "processor of %s" % name,
                    "without %s" % listing(lacking),
                    "the build uses it; write llamacpp_cpu_variants: true, which takes the best code that each node"
                    " can run, or leave it out with llamacpp_cmake_args: [%s]" % off,
                )
            )
    return problems


def _builder(
    declared: Declared,
    kind: _Kind,
    names: Sequence[str],
    nodes: Mapping[str, NodeFacts],
    builders: Mapping[str, NodeFacts],
    problems: list[Problem],
) -> _Builder | None:
    """Return the first node that can compile what ``names`` can run."""
    wanted = kind.settings.builder
    variable = "llamacpp_builder of %s" % listing(names) if wanted else "group of builders"
    candidates = [wanted] if wanted else list(declared.builders)
    newest = [_numbers(nodes[name].libc) for name in names if name in nodes and nodes[name].libc]
    against = []
    for name in candidates:
        if name not in declared.builders:
            against.append("%s is not in the group of builders (%s)" % (name, listing(declared.builders)))
            continue
        facts = builders.get(name)
        platform = declared.node(name).build.platform or (facts.platform if facts else None)
        if platform is None:
            against.append("%s does not answer" % name)
            continue
        builder = _Builder(name, platform, _numbers(facts.libc) if facts else (), facts)
        reason = _unfit(kind, builder, min(newest) if newest else ())
        if reason is None:
            return builder
        against.append("%s %s" % (name, reason))
    fix = "nobody can compile for %s: %s; add a node to it that can"
    fix = fix % (listing(names), "; ".join(against) or "it is empty")
    problems.append(Problem(variable, wanted or listing(declared.builders) or None, fix))
    return None


def _unfit(kind: _Kind, builder: _Builder, oldest: tuple[int, ...]) -> str | None:
    """Return why a node cannot compile for a kind of nodes whose oldest C library is ``oldest``; None if it can."""
    system, machine = builder.platform
    if machine != kind.machine:
        return "is %s, not %s" % (machine, kind.machine)
    if builder.libc and oldest and builder.libc > oldest:
        return "has the C library %s, and what it compiles does not run with their %s" % (
            _version(builder.libc),
            _version(oldest),
        )
    if kind.backend == "vulkan":
        name, _dash, version = system.rpartition("-")
        if float(version or 0) < _VULKAN_SINCE.get(name, 0):
            return "runs %s, whose Vulkan headers are too old for llama.cpp (%s %g has them)" % (
                system,
                name,
                _VULKAN_SINCE[name],
            )
    return None


def _check_disks(
    declared: Declared, found: Releases, nodes: Mapping[str, NodeFacts], builders: Mapping[str, NodeFacts]
) -> list[Problem]:
    """Check the disk of the builders that still have to build."""
    problems = []
    needed = declared.settings.build_bytes_needed
    busy = {
        release.builder
        for release in found.by_id.values()
        if release.builder and any(name in nodes and release.id not in nodes[name].releases for name in release.nodes)
    }
    for name in sorted(busy & set(builders)):
        free = builders[name].free_disk.get(declared.settings.build_dir)
        if free is not None and free < needed:
            problems.append(
                Problem(
                    "free disk of %s for %s" % (name, declared.settings.build_dir),
                    size_text(free),
                    "building llama.cpp takes %s; free some space, or set llamacpp_build_dir to another disk"
                    % size_text(needed),
                )
            )
    return problems


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _version(numbers: Iterable[int]) -> str:
    return ".".join(str(number) for number in numbers)


def _family(system: str) -> str:
    return "debian" if system in ("debian", "ubuntu") else "redhat"
