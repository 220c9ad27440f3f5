#!/usr/bin/env python3
"""Install what this repository needs on the control machine: apt packages, and .venv with the pins of pyproject.toml.

Needs Python 3.11 and nothing else. Does nothing, quickly, when everything is there. Run it through `make setup`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MINIMUM_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "bootstrap.stamp"
LOGS = ROOT / ".cache" / "log"
SAY_EVERY = 3.0  # seconds between two lines of progress
LOCK_PATIENCE = 300.0  # seconds; a machine that has just booted may be busy with its own updates
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_MARK = "# written by llamacpp.cluster's scripts/bootstrap.py while apt-get runs; safe to delete"


class SetupError(Exception):
    """Something a person has to put right. The text says what."""


def say(text: str) -> None:
    """One line of progress."""
    print(f"[setup] {text}", flush=True)


def requirements(project: dict[str, Any], group: str) -> list[str]:
    """The pip requirements of a dependency group, groups that it includes resolved (PEP 735).

    Raises SetupError when a group does not exist.
    """
    groups = project.get("dependency-groups", {})
    if group not in groups:
        raise SetupError(f"pyproject.toml has no dependency group {group!r}; it has {', '.join(sorted(groups))}")
    found: list[str] = []
    for entry in groups[group]:
        if isinstance(entry, str):
            found.append(entry)
        else:
            found.extend(requirements(project, entry["include-group"]))
    return found


def os_release(text: str) -> tuple[str, set[str]]:
    """Name for people and the set of ids (own and family's) of an os-release file's text."""
    values = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key] = value.strip().strip('"')
    ids = {values.get("ID", "")} | set(values.get("ID_LIKE", "").split())
    return values.get("PRETTY_NAME", "this system"), ids


def missing_packages(wanted: list[str]) -> list[str]:
    """Those of `wanted` that dpkg does not have installed."""
    query = subprocess.run(
        ["dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\n", *wanted],
        capture_output=True,
        text=True,
        check=False,  # it fails when a single package is unknown, and still lists the others
    )
    installed = {line.split()[0] for line in query.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in wanted if package not in installed]


def wanted_packages(settings: dict[str, Any], ids: set[str], has_ensurepip: bool) -> list[str]:
    """The apt packages for this machine, sorted."""
    packages = list(settings["apt"])
    packages += settings["apt-ubuntu" if "ubuntu" in ids else "apt-debian"]
    if not has_ensurepip:
        packages.append("python3-venv")
    return sorted(packages)


def as_root(command: list[str]) -> list[str]:
    """`command`, through sudo where that is needed."""
    return command if os.geteuid() == 0 else ["sudo", *command]


def require_root(packages: list[str]) -> None:
    """Raise SetupError with what to type as root when we are not, and have no sudo to become it."""
    if os.geteuid() != 0 and shutil.which("sudo") is None:
        raise SetupError(
            "packages are missing, you are not root, and there is no sudo. As root, run:\n"
            f"    apt-get update && apt-get install --no-install-recommends {shlex.join(packages)}\n"
            "then run this again; it needs no root when the packages are there."
        )


class Progress:
    """Turns a tool's output into lines of progress: `what` how many of `total` lines that match `step` went by."""

    def __init__(self, what: str, step: str, total: int | None = None) -> None:
        self.what = what
        self.step = re.compile(step)
        self.total = total
        self.seen = 0

    def text(self, line: str) -> str | None:
        """What to say after this line of output, if it is a step."""
        match = self.step.search(line)
        if not match:
            return None
        self.seen += 1
        of = f" of {self.total}" if self.total else ""
        return f"{self.what} {self.seen}{of}: {match.group(1)}"


def run_logged(command: list[str], log: Path, progress: Progress) -> int:
    """Run a command with its output in `log`, saying every few seconds how far it is. Returns its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    last = time.monotonic()
    with log.open("a", encoding="utf-8") as handle:
        handle.write(f"$ {shlex.join(command)}\n")
        handle.flush()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                handle.write(line)
                text = progress.text(line)
                if text and time.monotonic() - last >= SAY_EVERY:
                    last = time.monotonic()
                    say(text)
    return process.returncode


def tail(log: Path, lines: int = 25) -> str:
    """The end of a log, for an error message."""
    return "\n".join(f"    {line}" for line in log.read_text("utf-8", errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def services_stay_down(packages: list[str]) -> Iterator[None]:
    """Keep a freshly installed apt-cacher-ng from being started, or started at boot: the lab runs its own."""
    if "apt-cacher-ng" not in packages:
        yield
        return
    # A policy that the system brought itself (container images do) already says no, or is not ours to judge.
    ours = not POLICY.exists() or POLICY_MARK in POLICY.read_text("utf-8", errors="replace")
    if ours:
        script = f"#!/bin/sh\n{POLICY_MARK}\nexit 101\n"
        subprocess.run(as_root(["tee", str(POLICY)]), input=script, text=True, stdout=subprocess.DEVNULL, check=True)
        subprocess.run(as_root(["chmod", "0755", str(POLICY)]), check=True)
    try:
        yield
    finally:
        if ours:
            subprocess.run(as_root(["rm", "-f", str(POLICY)]), check=True)
    if Path("/run/systemd/system").is_dir():
        disable = ["systemctl", "--quiet", "disable", "--now", "apt-cacher-ng.service"]
    else:
        disable = ["update-rc.d", "apt-cacher-ng", "disable"]
    subprocess.run(as_root(disable), check=True)


def apt_get(arguments: list[str], log: Path, total: int | None = None) -> int:
    """apt-get without questions; waits while another apt-get holds the lock. Returns its exit status."""
    command = as_root(["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "-y", *arguments])
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        before = log.stat().st_size if log.exists() else 0
        status = run_logged(command, log, Progress("apt-get: step", r"^((?:Unpacking|Setting up) \S+)", total))
        if status == 0 or time.monotonic() > deadline:
            return status
        with log.open(encoding="utf-8", errors="replace") as handle:
            handle.seek(before)
            if "Could not get lock" not in handle.read():
                return status
        say("another program is using apt; waiting for it")
        time.sleep(10)


def install_packages(missing: list[str], system: str) -> None:
    """Install apt packages. Raises SetupError with apt's last words when that fails."""
    if shutil.which("apt-get") is None:
        raise SetupError(
            f"{system} has no apt-get, and the lab needs {', '.join(missing)}. Use Debian 12 or Ubuntu 24.04 or newer, "
            "or, to drive nodes of your own from here, run: python3 scripts/bootstrap.py --no-apt"
        )
    require_root(missing)
    log = LOGS / "setup-apt.log"
    say(f"installing {len(missing)} packages: {' '.join(missing)}")
    say("reading the package lists (apt-get update)")
    if apt_get(["update"], log) != 0:
        # One source of many may be out of reach; whether it matters shows in the next step.
        say(f"warning: apt-get update did not succeed entirely (see {log.relative_to(ROOT)})")
    simulated = subprocess.run(
        ["apt-get", "install", "--simulate", "--no-install-recommends", *missing],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    # Each package is unpacked and set up.
    steps = 2 * sum(line.startswith("Inst ") for line in simulated.stdout.splitlines())
    with services_stay_down(missing):
        status = apt_get(["install", "--no-install-recommends", *missing], log, steps or None)
    if status != 0:
        raise SetupError(f"apt-get install failed with status {status}; the end of {log}:\n{tail(log)}")
    still = missing_packages(missing)
    if still:
        raise SetupError(f"apt-get says it succeeded, but these are not installed: {' '.join(still)}; see {log}")


def fingerprint(wanted: list[str]) -> str:
    """What .venv depends on, as one hash."""
    content = {"requirements": wanted, "python": sys.version, "prefix": sys.base_prefix}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def venv_works() -> bool:
    """Whether .venv has a Python of our version that runs, with pip in it."""
    python = VENV / "bin" / "python"
    if not python.exists():
        return False
    probe = subprocess.run(
        [str(python), "-c", "import pip, sys; print(sys.version)"], capture_output=True, text=True, check=False
    )
    return probe.returncode == 0 and probe.stdout.strip() == sys.version.strip()


def install_venv(wanted: list[str]) -> None:
    """Create .venv where needed and install `wanted` into it. Raises SetupError with pip's last words."""
    log = LOGS / "setup-pip.log"
    STAMP.unlink(missing_ok=True)
    if not venv_works():
        say(f"creating .venv with Python {sys.version.split()[0]}")
        created = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True, check=False
        )
        if created.returncode != 0:
            raise SetupError(f"{sys.executable} -m venv failed:\n{created.stdout}{created.stderr}")
    say(f"installing {len(wanted)} pinned Python packages and what they need")
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", *wanted]
    # pip prints the last of these lines before its longest silence.
    step = r"^\s*((?:Collecting|Downloading|Using cached) \S+|Installing collected packages)"
    status = run_logged(command, log, Progress("pip: step", step))
    if status != 0:
        raise SetupError(
            f"pip failed with status {status}; the end of {log}:\n{tail(log)}\n"
            "If the package registry cannot be reached from here, point pip at one that can (pip config set "
            "global.index-url URL)."
        )
    STAMP.write_text(fingerprint(wanted) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-apt", action="store_true", help="only .venv: enough to drive nodes of your own")
    arguments = parser.parse_args(argv)
    if sys.version_info < MINIMUM_PYTHON:
        found, least = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, MINIMUM_PYTHON))
        raise SetupError(
            f"{sys.executable} is Python {found}; {least} or newer is needed. Install one (Debian 12 and Ubuntu 24.04 "
            "have it), or name it: make PYTHON=python3.12 ..."
        )
    import tomllib  # not there before Python 3.11, and the message above must come first

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    settings = project["tool"]["bootstrap"]
    wanted = requirements(project, settings["group"])
    try:
        LOGS.mkdir(parents=True, exist_ok=True)
        lock = (LOGS / "setup.lock").open("w")
    except PermissionError as error:
        raise SetupError(
            f"{error.filename} is not yours to write to. Run as the user who owns {ROOT}, or take it over: "
            f"sudo chown -R {os.geteuid()} {ROOT}"
        ) from error
    with lock:
        # Two makes at once must not fill one .venv.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not arguments.no_apt:
            release = Path("/etc/os-release")
            system, ids = os_release(release.read_text("utf-8") if release.exists() else "")
            packages = wanted_packages(settings, ids, importlib.util.find_spec("ensurepip") is not None)
            missing = missing_packages(packages) if shutil.which("dpkg-query") else packages
            if missing:
                install_packages(missing, system)
        stamp = STAMP.read_text("utf-8").strip() if STAMP.exists() else ""
        if stamp != fingerprint(wanted) or not (VENV / "bin" / "python").exists():
            started = time.monotonic()
            install_venv(wanted)
            say(f".venv is ready ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        sys.exit(1)
