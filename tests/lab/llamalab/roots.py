"""Roots: made once per suite with mmdebstrap, then shared read-only by all nodes.

A root is complete or not there: it is made in a directory beside its place and renamed. Its name
carries a hash of what it was made from, so that a change of this file makes new roots and leaves
those alone that running nodes stand on.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from . import host, record
from .names import DEFAULT_SUITE, NODE_UID, NODE_USER, PROXY_ADDRESS, PROXY_PORT, SIMULATED_EL8, LabError

#: What a freshly installed Debian server has and the lab's nodes therefore have too. Ansible's
#: apt module needs python3-apt even to say what it would do.
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
)

#: Run with the new root as $1. Timers of apt are masked because their runs hold dpkg's lock at
#: times that no test chooses; getty because there is no terminal.
CUSTOMIZE = f"""
set -eu
chroot "$1" useradd --uid {NODE_UID} --user-group --create-home --shell /bin/bash {NODE_USER}
echo '{NODE_USER} ALL=(ALL) NOPASSWD: ALL' > "$1/etc/sudoers.d/{NODE_USER}"
chmod 0440 "$1/etc/sudoers.d/{NODE_USER}"
rm -f "$1"/etc/ssh/ssh_host_*
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer \\
    dpkg-db-backup.timer console-getty.service getty@.service systemd-networkd.service; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
"""

#: What turns a Debian root into a simulated EL host, and what it needs for that: dnf and rpm, the tools that the RPMs
#: of its repositories link to, and what makes these RPMs.
EL8_DIRECTORY = Path(__file__).resolve().parents[1] / "simulated_el8"
EL8_PACKAGES = (
    *("dnf", "dnf-plugins-core", "python3-dnf", "rpm", "createrepo-c", "gpg", "gpg-agent"),
    *("gcc", "g++", "gcc-11", "g++-11", "gcc-12", "g++-12"),
    *("ccache", "cmake", "make", "nftables", "ninja-build", "patch"),
)

#: mmdebstrap's messages, in order, for "step k of n".
_PHASES = (
    ("running apt-get update", "reading package lists"),
    ("downloading packages", "downloading packages"),
    ("extracting archives", "unpacking"),
    ("installing essential", "installing essential packages"),
    ("installing remaining", "installing the other packages"),
    ("running --customize-hook", "making it a node of the lab"),
    ("cleaning package lists", "cleaning up"),
)


@dataclass(frozen=True)
class Recipe:
    """What a root is made from: ``debian`` is the release of Debian below it."""

    suite: str
    debian: str
    packages: tuple[str, ...]
    hooks: tuple[str, ...]
    skip: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """The directory name of the root, such as ``bookworm-1a2b3c4d5e6f``."""
        names = dict.fromkeys([self.suite, self.debian])  # one name where they are the same
        digest = hashlib.sha256("\n".join([*names, *self.packages, CUSTOMIZE, *self.skip]).encode())
        for file in self.files:
            digest.update(f"\n{file.name}\n".encode() + file.read_bytes())
        return f"{self.suite}-{digest.hexdigest()[:12]}"


def recipe(suite: str) -> Recipe:
    """What the root of a suite is made from."""
    if suite != SIMULATED_EL8:
        return Recipe(suite, suite, PACKAGES, (CUSTOMIZE,))
    files = tuple(path for path in sorted(EL8_DIRECTORY.rglob("*")) if path.is_file() and path.suffix != ".pyc")
    return Recipe(
        suite,
        DEFAULT_SUITE,
        (*(package for package in PACKAGES if package != "python3-apt"), *EL8_PACKAGES),
        (CUSTOMIZE, f'sh {shlex.quote(str(EL8_DIRECTORY / "customize.sh"))} "$1"'),
        skip=("cleanup/apt",),  # apt is gone by then
        files=files,
    )


def key(suite: str) -> str:
    """The directory name of a suite's root, such as ``bookworm-1a2b3c4d5e6f``."""
    return recipe(suite).key


def path(name: str) -> Path:
    """Where the root of that name is or will be."""
    return host.CACHE / "roots" / name


def phase(line: str) -> str | None:
    """``step 2 of 6, downloading packages`` from a line of mmdebstrap, or None."""
    for number, (needle, words) in enumerate(_PHASES, 1):
        if needle in line:
            return f"step {number} of {len(_PHASES)}, {words}"
    return None


def ensure(suite: str) -> str:
    """Make the suite's root unless it is there; return its directory name."""
    name = key(suite)
    if path(name).is_dir():
        return name
    host.make_directory(path(name).parent)
    with record.locked(f"root-{name}", f"waiting for the {suite} root that another lab makes"):
        clean(name)
        if not path(name).is_dir():
            _make(suite, name)
    return name


def clean(name: str) -> None:
    """Remove what a killed build left of a root; the caller holds the root's lock."""
    for leftover in path(name).parent.glob(f".{name}.*"):
        shutil.rmtree(leftover)


def clean_all() -> None:
    """Remove what killed builds left, for roots that nobody is making now."""
    for leftover in path("").glob(".*"):
        name = leftover.name[1:].rpartition(".")[0]
        with record.locked(f"root-{name}", f"waiting for the root {name} that another lab makes"):
            clean(name)


def _make(suite: str, name: str) -> None:
    host.say(f"making the {suite} root with mmdebstrap, once (half a minute to two)")
    begin = time.monotonic()
    target = path(name).with_name(f".{name}.{os.getpid()}")
    made_from = recipe(suite)
    proxy = f'Acquire::http::Proxy "http://{PROXY_ADDRESS}:{PROXY_PORT}";'
    mmdebstrap = [
        *("mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase"),
        f"--include={','.join(made_from.packages)}",
        f"--aptopt={proxy}",
        "--dpkgopt=force-unsafe-io",
        *(f"--customize-hook={hook}" for hook in made_from.hooks),
        *(f"--skip={step}" for step in made_from.skip),
        *(made_from.debian, str(target)),
    ]
    # In a pid namespace of its own, and killed with us: whatever ends labctl ends the build.
    # The check of $PPID covers a labctl that died before the kernel was told to watch it.
    guarded = [
        *("setpriv", "--pdeathsig", "KILL"),
        *("sh", "-c", '[ "$PPID" = "$0" ] || exit 1; exec "$@"', str(os.getpid())),
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *mmdebstrap,
    ]
    try:
        tail = _follow(suite, guarded, begin)
    except LabError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    if tail is not None:
        shutil.rmtree(target, ignore_errors=True)
        raise LabError(f"mmdebstrap could not make the {suite} root:\n{tail}")
    os.rename(target, path(name))
    host.say(f"{suite} root ready after {time.monotonic() - begin:.0f} s")


def _follow(suite: str, argv: list[str], begin: float) -> str | None:
    """Run mmdebstrap and tell how far it is; its last lines when it fails, else None."""
    now = "step 0, starting"
    told = begin
    lines: list[str] = []
    done = threading.Event()

    def tell() -> None:
        nonlocal told
        told = time.monotonic()
        host.say(f"{suite} root: {now} ({told - begin:.0f} s)")

    def heartbeat() -> None:
        while not done.wait(1):
            if time.monotonic() - told >= 5:
                tell()

    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=host.ENVIRONMENT,
    ) as process:
        beat = threading.Thread(target=heartbeat, daemon=True)
        beat.start()
        assert process.stderr is not None  # PIPE above
        for line in process.stderr:
            lines = [*lines[-30:], line.rstrip()]
            if (reached := phase(line)) is not None:
                now = reached
                tell()
    done.set()
    beat.join()
    return None if process.returncode == 0 else "\n".join(lines)
