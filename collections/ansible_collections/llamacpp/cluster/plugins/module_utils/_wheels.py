# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What pip is asked to download, for machines that cannot ask it themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Wheels that a machine with glibc 2.28 (EL 8, Debian 10) or newer can use; pip takes the best that there is.
PLATFORMS = ("manylinux_2_28_%s", "manylinux_2_17_%s", "manylinux2014_%s")


class WheelError(Exception):
    """Wheels cannot be named or downloaded; the text says why."""


def group_requirements(project: Mapping[str, Any], group: str) -> list[str]:
    """Return the requirements of a dependency group of pyproject.toml, included groups resolved (PEP 735).

    Raises :class:`WheelError` for a group that does not exist, or one that includes itself.
    """
    return _group(project.get("dependency-groups", {}), group, ())


def _group(groups: Mapping[str, Any], group: str, above: tuple[str, ...]) -> list[str]:
    if group not in groups or group in above:
        raise WheelError("no dependency group %s; there are %s" % (group, ", ".join(sorted(groups)) or "none"))
    found: list[str] = []
    for entry in groups[group]:
        found += [entry] if isinstance(entry, str) else _group(groups, entry["include-group"], (*above, group))
    return found


def download_arguments(
    requirements: Sequence[str], directory: str, known: str, python_version: str = "", machine: str = ""
) -> list[str]:
    """Return pip's arguments that download wheels and all that they need into ``directory``.

    ``known``: a directory with wheels of an earlier time, which are not downloaded again. ``python_version`` and
    ``machine`` (``3.13``, ``x86_64``): for another interpreter than the one that runs pip.
    """
    arguments = ["download", "--only-binary=:all:", "--dest", directory, "--find-links", known]
    if python_version:
        arguments += ["--implementation", "cp", "--python-version", python_version]
        arguments += ["--platform=%s" % (platform % machine) for platform in PLATFORMS]
    return [*arguments, *requirements]
