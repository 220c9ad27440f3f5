# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Virtual environments of nodes that reach no package index, made of wheels that lie on them.

<dest>                  a link to the environment, replaced in one step
<dest>.<12 digits>/     the environment; scripts in it have its path, so it is made where it stays
  .llamacpp.json        what it was made of; written last, so that one without it is nobody's
<dest>.lock             held while one is made

pip comes as a wheel as well: Debian's Python has neither pip nor ensurepip, and ``python -m venv`` works without.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

STAMP = ".llamacpp.json"
_PIN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[A-Za-z0-9,._-]+\])?==[A-Za-z0-9.!+_-]+$")
_PIP = re.compile(r"^pip-(?P<version>[0-9.]+)-py3-none-any\.whl$")
_MADE = re.compile(r"\.[0-9a-f]{12}$")
# Before Python 3.10 pip asks distutils where files belong, which Debian 11 does not have; sysconfig knows as well
# (https://github.com/pypa/pip/issues/10647 is how distributors tell pip so).
_START = (
    "import runpy, sys, sysconfig; sysconfig._PIP_USE_SYSCONFIG = True; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module('pip', run_name='__main__')"
)
# What would lead pip or Python elsewhere than to the wheels.
_LEADING = re.compile(r"^(?:PIP_|PYTHON|VIRTUAL_ENV$)")
_TAIL = 1500


class EnvironmentFailedError(Exception):
    """The environment cannot be made; the text says why and what to do."""


def check_pins(requirements: Sequence[str]) -> None:
    """See that each requirement says one version, so that equal ones make equal environments.

    Raises :class:`EnvironmentFailedError`.
    """
    if not requirements:
        raise EnvironmentFailedError("requirements: say what the environment is to have, for example name==1.2.3")
    for requirement in requirements:
        if not _PIN.match(requirement):
            raise EnvironmentFailedError("requirements: %r: write name==version" % requirement)


def wheels_in(directory: str) -> dict[str, int]:
    """Return the wheels of a directory with their sizes in bytes. Raises :class:`EnvironmentFailedError`."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".whl"))
    except OSError as error:
        raise EnvironmentFailedError("wheels = %s: %s" % (directory, (error.strerror or "").lower())) from error
    return {name: os.stat(os.path.join(directory, name)).st_size for name in names}


def pip_wheel(wheels: Mapping[str, int]) -> str:
    """Return the name of pip's own wheel, the newest. Raises :class:`EnvironmentFailedError` when there is none."""
    found = {name: match.group("version") for name in wheels for match in [_PIP.match(name)] if match}
    if not found:
        raise EnvironmentFailedError("wheels: pip itself is not among them: download it with the others")
    return max(found, key=lambda name: [int(number) for number in found[name].split(".") if number])


def fingerprint(requirements: Sequence[str], wheels: Mapping[str, int], version: str) -> str:
    """Return what tells environments apart: what is asked for, of which wheels, for which Python (``3.11``)."""
    told = json.dumps([sorted(requirements), sorted(wheels.items()), version])
    return hashlib.sha256(told.encode()).hexdigest()


class Environment:
    """The environment at ``dest``, of ``requirements``, of the ``wheels`` in a directory, for this interpreter."""

    def __init__(self, dest: str, requirements: Sequence[str], wheels: str) -> None:
        check_pins(requirements)
        self.dest = dest.rstrip("/")
        self.requirements = list(requirements)
        self.wheels = wheels
        self._found = wheels_in(wheels)
        self._version = "%d.%d" % sys.version_info[:2]
        self._id = fingerprint(requirements, self._found, self._version)
        self.place = "%s.%s" % (self.dest, self._id[:12])
        self.python = os.path.join(self.dest, "bin", "python")

    def is_made(self) -> bool:
        """Whether it is there, whole, and its interpreter is still there."""
        return (
            os.path.islink(self.dest)
            and os.path.realpath(self.dest) == os.path.realpath(self.place)
            and self._stamped()
            and os.access(self.python, os.X_OK)
        )

    def _stamped(self) -> bool:
        try:
            with open(os.path.join(self.place, STAMP), encoding="utf-8") as stream:
                stamp: Any = json.load(stream)
        except (OSError, ValueError):
            return False
        return isinstance(stamp, dict) and stamp.get("fingerprint") == self._id

    def make(self, say: Callable[[str], None]) -> None:
        """Make it beside what is there, then put it in its place; others that were made here go.

        Raises :class:`EnvironmentFailedError` and :class:`OSError`.
        """
        if os.path.isdir(self.dest) and not os.path.islink(self.dest):
            raise EnvironmentFailedError("dest = %s: it is a directory that was not made here; remove it" % self.dest)
        # Services run in it as users of their own.
        os.umask(0o022)
        if not (self._stamped() and os.access(os.path.join(self.place, "bin", "python"), os.X_OK)):
            shutil.rmtree(self.place, ignore_errors=True)
            self._build(say)
        link = self.place + ".link"
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink(os.path.basename(self.place), link)
        os.rename(link, self.dest)
        self._remove_others()

    def _build(self, say: Callable[[str], None]) -> None:
        pip = pip_wheel(self._found)
        say("making an environment for Python %s" % self._version)
        self._run([sys.executable, "-m", "venv", "--without-pip", self.place], lambda line: None)
        python = os.path.join(self.place, "bin", "python")
        # A wheel is an archive that Python can run a package of.
        argv = [python, "-c", _START, os.path.join(self.wheels, pip)]
        argv += ["--disable-pip-version-check", "--no-input", "install"]
        argv += ["--no-index", "--no-cache-dir", "--find-links", self.wheels, *self.requirements]
        self._run(argv, lambda line: say(line.strip()))
        stamp = {"fingerprint": self._id, "python": self._version, "requirements": self.requirements}
        bring(os.path.join(self.place, STAMP), json.dumps(stamp, indent=1, sort_keys=True) + "\n")

    def _run(self, argv: Sequence[str], say: Callable[[str], None]) -> None:
        said: list[str] = []

        def hear(line: str) -> None:
            said.append(line)
            say(line)

        environment = {key: value for key, value in os.environ.items() if not _LEADING.match(key)}
        # Not /etc/pip.conf either, which may name an index that cannot be reached from here.
        environment["PIP_CONFIG_FILE"] = os.devnull
        if run_streaming(argv, environment, hear) != 0:
            # pip tells the causes among much else.
            words = ("".join(line for line in said if line.startswith("ERROR")) or "".join(said))[-_TAIL:].strip()
            if "No module named venv" in words:
                words = "Python has no module venv: install the distribution's python3 whole, with its standard library"
            raise EnvironmentFailedError("%s failed: %s" % (" ".join(argv), words))

    def _remove_others(self) -> None:
        directory, name = os.path.split(self.dest)
        for other in os.listdir(directory):
            path = os.path.join(directory, other)
            if other.startswith(name) and _MADE.fullmatch(other[len(name) :]) and path != self.place:
                shutil.rmtree(path)

    def installed(self) -> dict[str, str]:
        """Return the packages that it has, with their versions."""
        program = (
            "import importlib.metadata as m, json;"
            "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
        )
        answer = subprocess.run([self.python, "-I", "-c", program], capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise EnvironmentFailedError("%s does not run: %s" % (self.python, answer.stderr.strip()[-_TAIL:]))
        found: dict[str, str] = json.loads(answer.stdout)
        return found
