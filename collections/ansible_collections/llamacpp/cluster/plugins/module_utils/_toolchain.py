# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which compilers build a release: a gcc, and for CUDA a toolkit, that fit each other, the GPUs and their drivers.

The tables are in :mod:`_gcc_versions` and :mod:`_cuda_versions`; what to prefer among toolkits that fit is decided
here. Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _cuda_versions as cuda_table
from ansible_collections.llamacpp.cluster.plugins.module_utils import _gcc_versions as gcc_table
from ansible_collections.llamacpp.cluster.plugins.module_utils._cuda_offers import (
    AUTO,
    DISTRO_HOME,
    Offer,
    offers,
    offers_of,
    row_of,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._cuda_versions import Cuda, minor, numbers
from ansible_collections.llamacpp.cluster.plugins.module_utils._gcc_versions import Compiler, Distribution
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import listing
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain_error import ToolchainError

# Without a driver to go by: 12.x runs on drivers since 525 and knows all GPUs from Maxwell to Blackwell.
_MAJORS_WITHOUT_DRIVERS = (12, 13, 11)


@dataclass(frozen=True)
class Toolchain:
    """What :func:`choose` chose. ``offer`` is None where no CUDA is needed."""

    compiler: Compiler
    compiler_why: str
    offer: Offer | None = None
    offer_why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return ``gcc``, ``cuda``, ``environment`` (of the build) and ``enable`` (scripts to source for it)."""
        gcc = self.compiler
        environment = {"CC": gcc.cc, "CXX": gcc.cxx}
        cuda: dict[str, Any] = {}
        if self.offer is not None:
            cuda = dict(self.offer.as_dict(), why=self.offer_why)
            environment.update(CUDACXX=self.offer.nvcc, CUDAHOSTCXX=gcc.cxx, CUDA_HOME=self.offer.home)
        return {
            "gcc": {
                "version": gcc.version,
                "cc": gcc.cc,
                "cxx": gcc.cxx,
                "packages": list(gcc.packages),
                "enable": gcc.enable,
                "why": self.compiler_why,
            },
            "cuda": cuda,
            "environment": environment,
            "enable": [gcc.enable] if gcc.enable else [],
        }


def choose(
    builder: Mapping[str, Any],
    backend: str,
    architectures: Sequence[str],
    wanted: Mapping[str, Any],
    drivers: Sequence[str] = (),
) -> Toolchain:
    """Choose the compilers of a release.

    ``builder``: ``os_id`` and ``os_version`` (of /etc/os-release), ``os_family`` (``debian`` or ``redhat``),
    ``machine``, ``toolkits`` (``[{"version": "12.2", "home": "/usr/local/cuda-12.2"}]``; absent when nobody looked) and
    ``compilers`` (``{"gcc": "8.5.0"}``). ``architectures``: compute capabilities without the dot, as CMake takes them
    (``70``, ``120a``, ``90-virtual``). ``wanted``: ``cuda_provider``, ``cuda_version``, ``cuda_home``, ``gcc_version``;
    what is empty or 0 is decided here. ``drivers``: versions of NVIDIA's driver on the nodes that will run it.

    Raises :class:`ToolchainError` with the row of the table that speaks against it and what to write instead.
    """
    family, version = str(builder.get("os_family", "")), str(builder.get("os_version", ""))
    distribution = _distribution(builder)
    wanted_gcc = _wanted_gcc(wanted.get("gcc_version"))
    if wanted_gcc:
        _check_declared_gcc(distribution, version, wanted_gcc)
    if backend != "cuda":
        major, why = _plain_gcc(distribution, version, wanted_gcc)
        return Toolchain(_compiler(family, distribution, major, wanted_gcc), why)
    rules = Rules(distribution, version, wanted_gcc, capabilities(architectures), tuple(drivers))
    found = offers(builder, wanted)
    fitting = [offer for offer in found if not rules.refusal(offer)]
    if not fitting:
        raise ToolchainError(
            rules.explain(found, _alternatives(builder, wanted), str(wanted.get("cuda_provider") or "auto"))
        )
    best = min(fitting, key=rules.preference)
    major = rules.gcc(best) or distribution.own
    return Toolchain(
        _compiler(family, distribution, major, wanted_gcc), rules.gcc_why(best, major), best, rules.offer_why(best)
    )


def capabilities(architectures: Iterable[str]) -> tuple[int, ...]:
    """Return the numbers of CMake's architectures: 120 for ``120a``, 90 for ``90-virtual``.

    Raises :class:`ToolchainError` for what is not one, such as ``native`` or ``8.6``.
    """
    found = set()
    for architecture in architectures:
        digits = str(architecture).partition("-")[0].rstrip("af")
        if not digits.isdigit():
            raise ToolchainError(
                "llamacpp_cuda_architectures holds %s: name compute capabilities without the dot, such as 70 for V100 "
                "or 90 for H100" % architecture
            )
        found.add(int(digits))
    return tuple(sorted(found))


def choose_gcc(builder: Mapping[str, Any], gcc_version: int, cuda_version: str) -> Toolchain:
    """Choose a gcc alone; with ``cuda_version`` one that nvcc of that version takes.

    ``builder`` as for :func:`choose`. Raises :class:`ToolchainError`.
    """
    if not cuda_version:
        return choose(builder, "cpu", [], {"gcc_version": gcc_version})
    # As the distribution's own toolkit: nothing but gcc is asked of it.
    offer = Offer("distro", minor(cuda_version), row_of(cuda_version), DISTRO_HOME, "", (), 0)
    distribution, wanted = _distribution(builder), _wanted_gcc(gcc_version)
    version = str(builder.get("os_version", ""))
    if wanted:
        _check_declared_gcc(distribution, version, wanted)
    rules = Rules(distribution, version, wanted, (), ())
    if rules.refusal(offer):
        raise ToolchainError(rules.explain([offer], _alternatives(builder, {}), "auto"))
    major = rules.gcc(offer) or distribution.own
    return Toolchain(
        _compiler(str(builder.get("os_family", "")), distribution, major, wanted), rules.gcc_why(offer, major)
    )


class Rules:
    """What speaks against a toolkit, and which of those that fit is the best."""

    def __init__(
        self,
        distribution: Distribution,
        os_version: str,
        wanted_gcc: int,
        architectures: tuple[int, ...],
        drivers: tuple[str, ...],
    ) -> None:
        self.distribution = distribution
        self.os_version = os_version
        self.drivers = drivers
        self.gccs = [major for major in gcc_table.available(distribution, os_version) if major >= gcc_table.MINIMUM]
        self.wanted_gcc = wanted_gcc
        self.architectures = architectures
        self.driver = min(drivers, key=numbers) if drivers else ""

    def gcc(self, offer: Offer) -> int | None:
        """Return the major version of the host compiler; None when there is none that nvcc takes."""
        limit = offer.row.gcc if offer.row else 0
        fitting = [self.wanted_gcc] if self.wanted_gcc else self.gccs
        if limit:
            fitting = [major for major in fitting if major <= limit]
        if self.distribution.own in fitting:
            return self.distribution.own
        return max(fitting, default=None)

    def refusal(self, offer: Offer) -> str:
        """Return the row that speaks against a toolkit; empty when it fits."""
        row = offer.row
        if row is None:
            return offer.unknown()
        return (
            self._wrong_architecture(row) or self._wrong_gcc(offer, row) or self._wrong_driver(row)
        ) or self._wrong_libc(offer, row)

    def _wrong_architecture(self, row: Cuda) -> str:
        lacking = [number for number in self.architectures if number not in row.architectures]
        if not lacking:
            return ""
        return "CUDA %s does not compile for %s, only for sm_%d to sm_%d (%s)" % (
            row.version,
            _sm(lacking),
            min(row.architectures),
            max(row.architectures),
            cuda_table.ARCHITECTURE_SOURCE % row.version,
        )

    def _wrong_gcc(self, offer: Offer, row: Cuda) -> str:
        if self.gcc(offer) is not None:
            return ""
        limit = "CUDA %s takes gcc %d or older (%s)" % (row.version, row.gcc, cuda_table.GCC_SOURCE % row.version)
        if self.wanted_gcc:
            return "%s, and llamacpp_gcc_version is %d" % (limit, self.wanted_gcc)
        return "%s, and %s has %s (%s)" % (
            limit,
            self.distribution.name,
            listing("gcc %d" % major for major in self.gccs),
            self.distribution.source,
        )

    def _wrong_driver(self, row: Cuda) -> str:
        minimum = cuda_table.MINIMUM_DRIVER[row.major]
        if not self.driver or numbers(self.driver) >= numbers(minimum):
            return ""
        return "CUDA %s needs driver %s or newer (%s), and the oldest driver of the nodes is %s" % (
            row.version,
            minimum,
            cuda_table.DRIVER_SOURCE % row.major,
            self.driver,
        )

    def _wrong_libc(self, offer: Offer, row: Cuda) -> str:
        libc = self.distribution.glibc
        # A distribution patches its own toolkit.
        if offer.home == DISTRO_HOME or not row.glibc or not libc or numbers(libc) <= numbers(row.glibc):
            return ""
        return "CUDA %s does not compile with glibc newer than %s (crt/math_functions.h), and %s has %s" % (
            row.version,
            row.glibc,
            self.distribution.name,
            libc,
        )

    def native(self, row: Cuda) -> bool:
        """Whether the oldest driver is at least the one that came with the toolkit."""
        return bool(self.driver and row.driver) and numbers(row.driver) <= numbers(self.driver)

    def preference(self, offer: Offer) -> tuple[Any, ...]:
        """Return the key of the best: what is there, the provider's rank, then by driver; smaller is better."""
        row = offer.row
        if row is None:
            return (offer.rank,)
        newest_first = tuple(-number for number in numbers(row.version))
        if not self.driver:
            return (offer.rank, _MAJORS_WITHOUT_DRIVERS.index(row.major), newest_first)
        if self.native(row):
            return (offer.rank, 0, newest_first)
        return (offer.rank, 1, numbers(row.version))

    def explain(self, found: Sequence[Offer], others: Sequence[Offer], provider: str) -> str:
        """Say why none of ``found`` fits, and what to write instead.

        ``others`` are all toolkits that the builder has or could get, ``provider`` is the one that was asked for.
        """
        reasons = [self.refusal(offer) for offer in found]
        # The oldest and the newest say it; ten toolkits in between tell the same story.
        return "%s; %s" % ("; ".join(dict.fromkeys([reasons[0], reasons[-1]])), self.advice(others, provider))

    def advice(self, others: Sequence[Offer], provider: str) -> str:
        """Say what to write instead."""
        if self.wanted_gcc:
            free = Rules(self.distribution, self.os_version, 0, self.architectures, self.drivers)
            if any(not free.refusal(offer) for offer in others):
                return "leave llamacpp_gcc_version out, and a gcc is chosen that fits"
        fitting = [offer for offer in others if not self.refusal(offer)]
        if fitting:
            same = [offer for offer in fitting if offer.provider == provider]
            best = min(same or fitting, key=self.preference)
            reached = best.provider == provider or (provider == "auto" and best.provider in AUTO)
            where = "" if reached else " and llamacpp_cuda_provider: %s" % best.provider
            versions = sorted({offer.version for offer in fitting if offer.provider == best.provider}, key=numbers)
            also = " (%s would do, too)" % listing(version for version in versions if version != best.version)
            return 'write llamacpp_cuda_version: "%s"%s%s' % (best.version, where, also if len(versions) > 1 else "")
        if all(self._wrong_architecture(row) for row in cuda_table.TOOLKITS):
            return (
                "no CUDA toolkit compiles for %s together: give the nodes llamacpp_cuda_architectures of their own, so "
                "that each kind gets its release" % _sm(self.architectures)
            )
        return "build on another node (group llamacpp_builders)%s" % (
            ", or update the driver of the nodes" if self.driver else ""
        )

    def gcc_why(self, offer: Offer, major: int) -> str:
        """Say why this gcc."""
        limit = " (CUDA %s takes gcc up to %d)" % (offer.version, offer.row.gcc) if offer.row else ""
        if self.wanted_gcc:
            return "gcc %d, as llamacpp_gcc_version says%s" % (major, limit)
        if major == self.distribution.own:
            return "gcc %d is %s's own and fits%s" % (major, self.distribution.name, limit)
        return "gcc %d is the newest of %s that fits%s; its own is %d" % (
            major,
            self.distribution.name,
            limit,
            self.distribution.own,
        )

    def offer_why(self, offer: Offer) -> str:
        """Say why this toolkit."""
        if offer.row is None:
            return "CUDA at %s, whose version nobody has looked at" % offer.home
        what = "CUDA %s of %s compiles for %s" % (offer.version, offer.origin(), _sm(self.architectures))
        if not self.driver:
            return "%s; no driver is known, CUDA %d.x runs on %s or newer" % (
                what,
                offer.row.major,
                cuda_table.MINIMUM_DRIVER[offer.row.major],
            )
        if self.native(offer.row):
            return "%s, and driver %s is at least the one that came with it (%s)" % (
                what,
                self.driver,
                offer.row.driver,
            )
        return "%s, and driver %s runs it by minor version compatibility (CUDA %d.x: %s or newer)" % (
            what,
            self.driver,
            offer.row.major,
            cuda_table.MINIMUM_DRIVER[offer.row.major],
        )


def _alternatives(builder: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Offer]:
    """Return every toolkit that the builder has or could get, whatever version and provider were asked for."""
    found: list[Offer] = []
    for rank, provider in enumerate([*AUTO, "pip"]):
        found += [
            replace(offer, rank=rank)
            for offer in offers_of(provider, builder, {"cuda_pip_dir": wanted.get("cuda_pip_dir")})
        ]
    return found


def _distribution(builder: Mapping[str, Any]) -> Distribution:
    """Return the row of the builder's distribution, or one made from what was found there."""
    identity = str(builder.get("os_id", ""))
    key = gcc_table.key(str(builder.get("os_family", "")), identity, str(builder.get("os_version", "")))
    known = gcc_table.DISTRIBUTIONS.get(key)
    if known:
        return known
    own = numbers(str(builder.get("compilers", {}).get("gcc", "")))
    if own:
        name = "%s %s" % (identity, builder.get("os_version", ""))
        return Distribution(name.strip(), own[0], {}, "", "gcc --version")
    if identity:
        raise ToolchainError(
            "%s %s is in no table of compilers (%s are), and no gcc was found on the builder: install gcc %d or newer"
            % (
                identity,
                builder.get("os_version", ""),
                listing(row.name for row in gcc_table.DISTRIBUTIONS.values()),
                gcc_table.MINIMUM,
            )
        )
    return gcc_table.UNKNOWN


def _wanted_gcc(value: object) -> int:
    text = str(value or 0)
    if not text.isdigit():
        raise ToolchainError("llamacpp_gcc_version = %s: write a major version, such as 12" % text)
    return int(text)


def _check_declared_gcc(distribution: Distribution, version: str, wanted: int) -> None:
    there = [major for major in gcc_table.available(distribution, version) if major >= gcc_table.MINIMUM]
    if wanted < gcc_table.MINIMUM:
        raise ToolchainError(
            "llamacpp_gcc_version = %d: %s; write one of %s"
            % (wanted, gcc_table.MINIMUM_WHY, listing(str(major) for major in there))
        )
    if wanted not in there:
        raise ToolchainError(
            "llamacpp_gcc_version = %d: %s %s has no such gcc (%s); write one of %s"
            % (wanted, distribution.name, version, distribution.source, listing(str(major) for major in there))
        )


def _plain_gcc(distribution: Distribution, version: str, wanted: int) -> tuple[int, str]:
    """Return the gcc of a release without CUDA, and why."""
    if wanted:
        return wanted, "gcc %d, as llamacpp_gcc_version says" % wanted
    if distribution.own >= gcc_table.MINIMUM:
        return distribution.own, "gcc %d is %s's own" % (distribution.own, distribution.name)
    there = [major for major in gcc_table.available(distribution, version) if major >= gcc_table.MINIMUM]
    too_old = "%s's own gcc is %d: %s" % (distribution.name, distribution.own, gcc_table.MINIMUM_WHY)
    if not there:
        raise ToolchainError("%s; update the builder" % too_old)
    return (gcc_table.EL_TOOLSET if gcc_table.EL_TOOLSET in there else max(there)), too_old


def _compiler(family: str, distribution: Distribution, major: int, wanted: int) -> Compiler:
    compiler = gcc_table.compiler(family, distribution, major)
    # A distribution without a table: its compiler is there already, and nobody knows its packages' names.
    if distribution.name not in {row.name for row in gcc_table.DISTRIBUTIONS.values()} and not wanted:
        return Compiler(compiler.version, major, compiler.cc, compiler.cxx, ())
    return compiler


def _sm(architectures: Iterable[int]) -> str:
    return listing("sm_%d" % number for number in architectures)
