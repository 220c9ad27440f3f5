# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which packages are missing, read from the package manager's own records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

DPKG_STATUS = "/var/lib/dpkg/status"


def installed_in_status(lines: Iterable[str]) -> set[str]:
    """Return the installed packages of dpkg's status file.

    A stanza without an installed status is skipped: removed packages stay in the file.
    """
    installed: set[str] = set()
    name = ""
    for line in lines:
        if line.startswith("Package:"):
            name = line[8:].strip()
        elif line.startswith("Status:") and line.rstrip().endswith(" installed"):
            installed.add(name)
    return installed


def installed_in_rpm(lines: Iterable[str]) -> set[str]:
    """Return the installed packages of ``rpm --query --queryformat '%{NAME}\\n'``.

    Of a package that is not there rpm says on the same stream, in the words of its language, that it is not installed.
    """
    return {line.strip() for line in lines if len(line.split()) == 1}


def missing(wanted: Sequence[str], installed: Iterable[str]) -> list[str]:
    """Return the packages of ``wanted`` that are not installed, in the order given."""
    there = set(installed)
    return [name for name in dict.fromkeys(wanted) if name not in there]


def apt_progress(line: str) -> str:
    """Turn a line of apt's status pipe into words; empty for lines that say nothing of progress.

    Format (apt, README.progress-reporting): ``dlstatus:item:percent:text`` while it downloads,
    ``pmstatus:package:percent:text`` while dpkg works.
    """
    fields = line.rstrip("\n").split(":", 3)
    if len(fields) != 4 or fields[0] not in ("dlstatus", "pmstatus"):
        return ""
    try:
        percent = float(fields[2])
    except ValueError:
        return ""
    return "%s: %d %% (%s)" % ("downloading" if fields[0] == "dlstatus" else "installing", percent, fields[3].strip())
