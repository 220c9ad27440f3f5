#!/usr/bin/env python3
"""Make the repositories of the simulated EL host from the specs beside this file.

Runs inside the host's root, which has rpmbuild and createrepo_c: ``repositories.py TOOLS TARGET``, with TOOLS the
directory that hides Debian's tools from PATH and TARGET where the repositories go.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SPECS = Path(__file__).resolve().parent / "specs"

#: Compilers that the root has, and toolkits that fit one of them; the newest last.
TOOLSETS = ("11", "12")
TOOLKITS = ("11.8.0", "12.2.2", "12.4.1")

#: What links lead to, as specs/tools.spec has it.
TOOLS = ("ccache", "cmake", "createrepo_c", "make", "nft", "ninja", "patch")

#: Files of a Debian root are owned by no RPM, so nothing may depend on one.
NO_DEPENDENCIES = {"__requires_exclude": "^.*$", "__provides_exclude": "^.*$"}

#: Which repository of EL 8 a package is in, where it is not its spec's.
ELSEWHERE = {"make": "baseos", "nftables": "baseos", "patch": "baseos", "ninja-build": "powertools", "ccache": "epel"}


def run(*command: str, **environment: str) -> str:
    """Run a command and return its standard output; what it said otherwise is shown when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def version(*command: str) -> str:
    """The first number with a dot in what a command prints."""
    said = run(*command)
    found = re.search(r"\d+(\.\d+)+", said)
    if found is None:
        raise SystemExit(f"{' '.join(command)} tells no version: {said!r}")
    return found.group()


def build(target: Path, repository: str, spec: str, **macros: str) -> None:
    """Build a spec's packages into their repositories."""
    with tempfile.TemporaryDirectory() as work:
        defines = {"_topdir": work, "_rpmdir": f"{work}/RPMS", **NO_DEPENDENCIES, **macros}
        words = [word for name, value in defines.items() for word in ("--define", f"{name} {value}")]
        run("rpmbuild", "-bb", "--target=noarch", *words, str(SPECS / f"{spec}.spec"))
        for package in Path(work, "RPMS").rglob("*.rpm"):
            place = target / ELSEWHERE.get(package.name.rsplit("-", 2)[0], repository)
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(package, place)


def sign(repository: Path) -> None:
    """Sign a repository's packages with a key that nobody keeps; its public half lies where NVIDIA has its own."""
    owner = "simulated repository"
    with tempfile.TemporaryDirectory() as home:
        gpg = ("gpg", "--batch", "--quiet", "--pinentry-mode=loopback", "--passphrase=")
        run(*gpg, "--quick-generate-key", owner, "rsa2048", "sign", "never", GNUPGHOME=home)
        packages = [str(path) for path in sorted(repository.glob("*.rpm"))]
        program = ("--define", "__gpg /usr/bin/gpg", "--define", f"_gpg_name {owner}")
        run("rpmsign", "--addsign", *program, *packages, GNUPGHOME=home)
        (repository / "D42D0685.pub").write_text(run(*gpg, "--armor", "--export", GNUPGHOME=home))
        run("gpgconf", "--kill", "all", GNUPGHOME=home)


def main(tools: str, target: Path) -> None:
    """Build every package, then the index of every repository."""
    build(target, "baseos", "base")
    build(target, "appstream", "gcc")
    versions = {f"{tool}_version": version(f"{tools}/{tool}", "--version") for tool in TOOLS}
    build(target, "appstream", "tools", tools=tools, **versions)
    for number in TOOLSETS:
        compiler = version(f"{tools}/gcc-{number}", "-dumpfullversion")
        build(target, "appstream", "gcc-toolset", tools=tools, number=number, gcc_version=compiler)
    for toolkit in TOOLKITS:
        major, minor, patch = toolkit.split(".")
        build(target, "cuda", "cuda-toolkit", major=major, minor=minor, patch=patch)
    newest = TOOLKITS[-1]
    build(target, "cuda", "cuda-unversioned", newest="-".join(newest.split(".")[:2]), newest_version=newest)
    sign(target / "cuda")
    for repository in sorted(target.iterdir()):
        run(f"{tools}/createrepo_c", "--quiet", str(repository))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
