# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which CUDA toolkits a builder could have, by provider; whether one fits is not asked here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _cuda_versions as table
from ansible_collections.llamacpp.cluster.plugins.module_utils._cuda_versions import Cuda, minor, numbers
from ansible_collections.llamacpp.cluster.plugins.module_utils._gcc_versions import key
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import listing
from ansible_collections.llamacpp.cluster.plugins.module_utils._toolchain_error import ToolchainError

PROVIDERS = ("auto", "package", "distro", "pip", "existing")
#: What V(auto) tries, best first. Wheels are for who asks for them: they bring no tools to look for errors with.
AUTO = ("existing", "package", "distro")
#: Where the provider V(pip) puts toolkits unless told otherwise.
PIP_DIRECTORY = "/opt/llamacpp-cuda"
#: Where Debian and Ubuntu put theirs: nvcc among the system's programs, headers and libraries among the system's.
DISTRO_HOME = "/usr"
#: Where a toolkit is expected when nobody has looked.
DEFAULT_HOME = "/usr/local/cuda"

_ORIGINS = {
    "existing": "%s",
    "package": "NVIDIA's repository",
    "distro": "the distribution",
    "pip": "NVIDIA's wheels",
}


@dataclass(frozen=True)
class Offer:
    """A toolkit that a builder has or could get. ``row`` is None for a version that no table knows.

    ``rank``: smaller is preferred, whatever the versions.
    """

    provider: str
    version: str
    row: Cuda | None
    home: str
    nvcc: str
    packages: tuple[str, ...]
    rank: int

    def as_dict(self) -> dict[str, Any]:
        """Return what a role needs to install it."""
        return {
            "provider": self.provider,
            "version": self.version,
            "home": self.home,
            "nvcc": self.nvcc,
            "packages": list(self.packages),
        }

    def origin(self) -> str:
        """Say where it comes from."""
        text = _ORIGINS[self.provider]
        return text % self.home if "%s" in text else text

    def unknown(self) -> str:
        """Say what is wrong with a version that is not in the table; empty when there is no version."""
        if not self.version:
            return ""
        return "CUDA %s of %s is older than %s, the oldest that this collection knows" % (
            self.version,
            self.origin(),
            table.TOOLKITS[0].version,
        )


def offers(builder: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Offer]:
    """Return the toolkits among which to choose, never none.

    Raises :class:`ToolchainError` when what is wanted cannot be had at all.
    """
    provider = str(wanted.get("cuda_provider") or "auto")
    if provider not in PROVIDERS:
        raise ToolchainError("llamacpp_cuda_provider = %s: write one of %s" % (provider, listing(PROVIDERS)))
    version = minor(str(wanted.get("cuda_version") or ""))
    home = str(wanted.get("cuda_home") or "")
    if home and provider not in ("auto", "existing"):
        raise ToolchainError(
            "llamacpp_cuda_home = %s: only for llamacpp_cuda_provider: existing, not %s" % (home, provider)
        )
    names = ("existing",) if home else AUTO if provider == "auto" else (provider,)
    found: list[Offer] = []
    for rank, name in enumerate(names):
        found += [replace(offer, rank=rank) for offer in offers_of(name, builder, wanted)]
    if provider == "existing" and not found and "toolkits" not in builder:
        found = [_at(DEFAULT_HOME, version, "")]
    matching = [offer for offer in found if not version or not offer.version or minor(offer.version) == version]
    if matching:
        return matching
    raise ToolchainError(_nothing(builder, provider, version, found))


def row_of(version: str) -> Cuda | None:
    """Return the row of a version; of one between two rows, or newer than all, the row before it."""
    known = [row for row in table.TOOLKITS if numbers(row.version) <= numbers(minor(version))]
    return known[-1] if version and known else None


def offers_of(provider: str, builder: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Offer]:
    """Return one provider's toolkits (not V(auto)'s), whatever version is wanted; their rank is 0."""
    return _BY_PROVIDER[provider](builder, wanted)


def _existing(builder: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Offer]:
    found = [
        _at(str(one["home"]), str(one["version"]), str(one.get("nvcc") or "")) for one in builder.get("toolkits", ())
    ]
    home = str(wanted.get("cuda_home") or "")
    if not home:
        return found
    return [offer for offer in found if offer.home == home] or [_at(home, str(wanted.get("cuda_version") or ""), "")]


def _at(home: str, version: str, nvcc: str) -> Offer:
    return Offer("existing", minor(version), row_of(version), home, nvcc or home + "/bin/nvcc", (), 0)


def _key(builder: Mapping[str, Any]) -> tuple[str, str]:
    return key(str(builder.get("os_family", "")), str(builder.get("os_id", "")), str(builder.get("os_version", "")))


def _package(builder: Mapping[str, Any], _wanted: Mapping[str, Any]) -> list[Offer]:
    repository = table.REPOSITORIES.get(_key(builder))
    if repository is None and builder.get("os_id"):
        return []
    _name, first, last = repository or ("", table.TOOLKITS[0].version, table.TOOLKITS[-1].version)
    return [
        Offer(
            "package",
            row.version,
            row,
            "/usr/local/cuda-" + row.version,
            "/usr/local/cuda-%s/bin/nvcc" % row.version,
            ("cuda-toolkit-" + row.version.replace(".", "-"),),
            0,
        )
        for row in table.TOOLKITS
        if numbers(first) <= numbers(row.version) <= numbers(last)
    ]


def _distro(builder: Mapping[str, Any], _wanted: Mapping[str, Any]) -> list[Offer]:
    version = table.DISTRIBUTION.get(_key(builder))
    if version is None:
        return []
    return [Offer("distro", version, row_of(version), DISTRO_HOME, "/usr/bin/nvcc", ("nvidia-cuda-toolkit",), 0)]


def _pip(_builder: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Offer]:
    directory = str(wanted.get("cuda_pip_dir") or PIP_DIRECTORY)
    return [
        Offer(
            "pip",
            version,
            row_of(version),
            "%s/%s" % (directory, version),
            "%s/%s/bin/nvcc" % (directory, version),
            (),
            0,
        )
        for version in table.WHEELS
    ]


_BY_PROVIDER = {"existing": _existing, "package": _package, "distro": _distro, "pip": _pip}


def _nothing(builder: Mapping[str, Any], provider: str, version: str, found: Sequence[Offer]) -> str:
    """Say why no offer is left."""
    system = ("%s %s" % (builder.get("os_id", ""), builder.get("os_version", ""))).strip()
    if provider == "pip" and version:
        why = "NVIDIA's wheels of CUDA %s hold no nvcc (nvidia-cuda-nvcc-cu12 brings ptxas alone)" % version
        if numbers(version) >= numbers(table.WHEELS[0]):
            why = "this collection knows no wheels of CUDA %s" % version
        return (
            "llamacpp_cuda_version = %s with llamacpp_cuda_provider = pip: %s; write one of %s, or "
            "llamacpp_cuda_provider: package" % (version, why, listing('"%s"' % wheel for wheel in table.WHEELS))
        )
    if provider == "existing":
        return (
            "llamacpp_cuda_provider = existing: no CUDA toolkit%s was found on the builder; write its directory as "
            "llamacpp_cuda_home, or let llamacpp_cuda_provider: auto install one" % (" " + version if version else "")
        )
    has = []
    for name in dict.fromkeys(offer.provider for offer in found):
        versions = sorted({offer.version for offer in found if offer.provider == name}, key=numbers)
        has.append("%s %s" % (name, " to ".join(dict.fromkeys([versions[0], versions[-1]]))))
    if not found:
        return (
            "llamacpp_cuda_provider = %s: neither NVIDIA nor the distribution has CUDA packages for %s; write "
            "llamacpp_cuda_provider: existing and llamacpp_cuda_home, or llamacpp_cuda_provider: pip"
            % (provider, system)
        )
    return "llamacpp_cuda_version = %s with llamacpp_cuda_provider = %s: %s offers %s; write one of these" % (
        version,
        provider,
        system or "the builder",
        listing(has),
    )
