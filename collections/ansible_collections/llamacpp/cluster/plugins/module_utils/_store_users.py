# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who uses a directory's files on a node: units of the collection that name them, processes that run with them."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

UNIT_DIRECTORY = "/etc/systemd/system"
PROC = "/proc"
_UNITS = "llamacpp-*.service"
_CGROUP_UNIT = re.compile(r"/(llamacpp-[^/\n]+\.service)(?:/|$)", re.MULTILINE)
# Programs that map models; of any other process its command line is enough.
_MAPPERS = ("llama", "ggml")
# Where the start time is among the fields of /proc/PID/stat behind the name's bracket (proc(5): field 22).
_START_FIELD = 22 - 3


class Use(NamedTuple):
    """Somebody who uses a file. ``path``: below the directory. ``who``: a unit, or ``llama-server (process 12)``.

    ``since``: when the process started, seconds since the epoch; None for a unit that does not run.
    """

    path: str
    who: str
    since: float | None


def find_uses(directories: Sequence[str], units: str = UNIT_DIRECTORY, proc: str = PROC) -> list[Use]:
    """Find who uses files below any of ``directories``; ``path`` is what follows behind that one and a slash.

    A process that belongs to a unit counts as the unit. Raises :class:`OSError`.
    """
    found = _running(directories, proc)
    runs = {(use.path, use.who) for use in found}
    for path in sorted(glob.glob(os.path.join(glob.escape(units), _UNITS))):
        try:
            with open(path, encoding="utf-8", errors="replace") as stream:
                words = unit_words(stream.read())
        except FileNotFoundError:
            continue  # Removed this moment, or a link to nothing.
        who = os.path.basename(path)
        found += [Use(tail, who, None) for tail in sorted(_tails(words, directories)) if (tail, who) not in runs]
    return sorted(set(found), key=lambda use: (use.path, use.who, use.since or 0.0))


def unit_words(text: str) -> list[str]:
    """Return the words of all command lines of a unit file, unquoted (systemd.service(5))."""
    words: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        key, _separator, value = line.partition("=")
        if not key.strip().startswith("Exec"):
            continue
        try:
            split = shlex.split(value)
        except ValueError:
            split = value.split()
        words += [word.replace("%%", "%").replace("$$", "$") for word in split]
    return words


def _running(directories: Sequence[str], proc: str) -> list[Use]:
    found = []
    for number in sorted(filter(str.isdigit, os.listdir(proc)), key=int):
        within = os.path.join(proc, number)
        words = _read(os.path.join(within, "cmdline")).split("\0")
        program = os.path.basename(words[0])
        if program.startswith(_MAPPERS):
            words += [
                line.split(None, 5)[5] for line in _read(os.path.join(within, "maps")).splitlines() if "/" in line
            ]
        tails = _tails(words, directories)
        if tails:
            unit = _CGROUP_UNIT.search(_read(os.path.join(within, "cgroup")))
            who = unit.group(1) if unit else "%s (process %s)" % (program, number)
            found += [Use(tail, who, _started(proc, number)) for tail in tails]
    return found


def _tails(words: Iterable[str], directories: Sequence[str]) -> set[str]:
    """Return what follows behind a directory in words like ``/var/lib/models/a`` or ``--model=/var/lib/models/a``."""
    tails = set()
    for word in words:
        for directory in directories:
            _before, inside, tail = word.partition(directory + os.sep)
            if inside and tail:
                tails.add(tail)
    return tails


def _started(proc: str, number: str) -> float | None:
    """Return when a process started, seconds since the epoch; None when it has ended."""
    booted = re.search(r"^btime (\d+)$", _read(os.path.join(proc, "stat")), re.MULTILINE)
    fields = _read(os.path.join(proc, number, "stat")).rpartition(")")[2].split()
    if not booted or len(fields) <= _START_FIELD:
        return None
    return int(booted.group(1)) + int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    """Return a text of /proc; empty where the process has ended or is another user's."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
