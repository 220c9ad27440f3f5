#!/usr/bin/env python3
"""Make the repositories of the simulated EL host from the specs beside this file.

Runs inside the host's root, which has rpmbuild and createrepo_c: ``repositories.py TOOLS TARGET``, with TOOLS the
directory that hides Debian's tools from PATH and TARGET where the repositories go.
"""

from __future__ import annotations

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

#: Files of a Debian root are owned by no RPM, so nothing may depend on one.
NO_DEPENDENCIES = {"__requires_exclude": "^.*$", "__provides_exclude": "^.*$"}

#: Which repository of EL 8 a package is in, where it is not its spec's.
ELSEWHERE = {"make": "baseos", "nftables": "baseos", "patch": "baseos", "ninja-build": "powertools", "ccache": "epel"}


def version(*command: str) -> str:
    """The first number with a dot in what a command prints."""
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    if found is None:
        raise SystemExit(f"{' '.join(command)} tells no version: {said!r}")
    return found.group()


def build(target: Path, repository: str, spec: str, **macros: str) -> None:
    """Build a spec's packages into their repositories."""
    with tempfile.TemporaryDirectory() as work:
        defines = {"_topdir": work, "_rpmdir": f"{work}/RPMS", **NO_DEPENDENCIES, **macros}
        words = [word for name, value in defines.items() for word in ("--define", f"{name} {value}")]
        command = ["rpmbuild", "-bb", "--target=noarch", *words, str(SPECS / f"{spec}.spec")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        for package in Path(work, "RPMS").rglob("*.rpm"):
            place = target / ELSEWHERE.get(package.name.rsplit("-", 2)[0], repository)
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(package, place)


def main(tools: str, target: Path) -> None:
    """Build every package, then the index of every repository."""
    build(target, "baseos", "base")
    build(target, "appstream", "gcc")
    asked = {"cmake": "cmake", "make": "make", "patch": "patch", "ninja": "ninja", "ccache": "ccache", "nft": "nft"}
    versions = {f"{macro}_version": version(f"{tools}/{tool}", "--version") for macro, tool in asked.items()}
    build(target, "appstream", "tools", tools=tools, **versions)
    for number in TOOLSETS:
        compiler = version(f"{tools}/gcc-{number}", "-dumpfullversion")
        build(target, "appstream", "gcc-toolset", tools=tools, number=number, gcc_version=compiler)
    for toolkit in TOOLKITS:
        major, minor, patch = toolkit.split(".")
        build(target, "cuda", "cuda-toolkit", major=major, minor=minor, patch=patch)
    newest = TOOLKITS[-1]
    build(target, "cuda", "cuda-unversioned", newest="-".join(newest.split(".")[:2]), newest_version=newest)
    for repository in sorted(target.iterdir()):
        subprocess.run(["createrepo_c", "--quiet", str(repository)], check=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
