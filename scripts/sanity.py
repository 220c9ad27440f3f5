#!/usr/bin/env python3
"""Run `ansible-test sanity` on the collection, without containers, with the Python of .venv.

ansible-test makes virtual environments of its own (kept in .cache, so that the second run is quick). It wants to
download pip's bootstrap script for them from a host that many networks do not reach, although Python carries pip
itself; it is given a script that says so. For that, and to leave your home directory alone, it gets a home of its own.
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLLECTION = ROOT / "collections" / "ansible_collections" / "llamacpp" / "cluster"
HOME = ROOT / ".cache" / "ansible-test"
BIN = Path(sys.executable).parent
GET_PIP = '''\
"""Stands in for get-pip.py: Python carries a pip of its own."""
import ensurepip

ensurepip.bootstrap(default_pip=True)
'''


def bootstrap_name(package_source: str) -> str:
    """The file name under which ansible-test looks for pip's bootstrap script.

    `package_source` is the text of its python_requirements.py, which names the version in `pip='…'`.
    Raises ValueError when it does not.
    """
    for node in ast.walk(ast.parse(package_source)):
        if isinstance(node, ast.keyword) and node.arg == "pip" and isinstance(node.value, ast.Constant):
            return f"get_pip_{str(node.value.value).replace('.', '_')}.py"
    raise ValueError("this ansible-test does not name the pip version that it wants; look at scripts/sanity.py")


def pip_configuration(listing: str) -> str:
    """A pip.conf with what `pip config list` printed: settings of every file and, above them, of the environment."""
    sections: dict[str, dict[str, str]] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        key, separator, value = line.partition("=")
        if not separator:
            continue
        section, _, name = key.rpartition(".")
        section = "global" if section == ":env:" else section
        sections.setdefault(section, {})[name] = str(ast.literal_eval(value))
    lines = []
    for section in sorted(sections):
        lines.append(f"[{section}]")
        for name, value in sorted(sections[section].items()):
            first, *rest = value.splitlines() or [""]
            lines += [f"{name} = {first}", *(f"    {more}" for more in rest)]
    return "\n".join(lines) + "\n"


def prepare_home() -> None:
    """Give ansible-test its home: the bootstrap script, and pip's and git's settings of the person who runs it."""
    source = subprocess.run(
        [sys.executable, "-c", "import ansible_test._internal.python_requirements as m; print(m.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / bootstrap_name(Path(source).read_text("utf-8"))).write_text(GET_PIP, "utf-8")
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    configuration = HOME / ".config" / "pip" / "pip.conf"
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.touch(mode=0o600)  # an index may be named with a password
    configuration.write_text(pip_configuration(listing), "utf-8")
    link, real = HOME / ".gitconfig", Path.home() / ".gitconfig"
    link.unlink(missing_ok=True)
    if real.exists():
        link.symlink_to(real)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", help="passed on, such as: --test validate-modules plugins/modules/x.py")
    arguments, more = parser.parse_known_args(argv)
    prepare_home()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [str(BIN / "ansible-test"), "sanity", "--local", "--python", version, "--color"]
    command += ["yes" if sys.stdout.isatty() else "no", *more, *arguments.arguments]
    print(f"$ {shlex.join(command)}", flush=True)
    environment = {**os.environ, "HOME": str(HOME), "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=COLLECTION, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
