"""What is left of the lab ``faults``, told by the kernel's own lists and not by labctl's code."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

STATE = Path("/var/lib/llamacpp-lab/faults")
SWITCH = "lclab-faults"
MARKS = re.compile(r"lclab-faults|lclab4[mf]|llamacpp-lab/faults|--name faults|llamacpp-lab faults")


def ip(*words: str) -> str:
    """What an ip(8) command prints."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


def remains() -> list[str]:
    """Every namespace, link, control group, file, process and mount that bears the lab's marks."""
    found = [f"netns {name}" for name in os.listdir("/run/netns")] if Path("/run/netns").is_dir() else []
    found += [f"link {line}" for line in ip("-d", "link", "show").split("\n") if MARKS.search(line)]
    found += [f"cgroup {path}" for path in groups()]
    found += [f"path {path}" for path in (STATE, *Path("/run/systemd/nspawn").glob("*/*")) if path.exists()]
    return sorted(line for line in (*found, *processes()) if MARKS.search(line))


def groups() -> list[Path]:
    """Every control group, in whatever hierarchies this host has."""
    return [Path(directory) for directory, _names, _files in os.walk("/sys/fs/cgroup")]


def processes() -> Iterator[str]:
    """Lines that say what each process runs, its control groups and its mounts."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            group = (process / "cgroup").read_text().replace("\n", " ")
            mounts = (process / "mountinfo").read_text().splitlines()
        except OSError:
            continue  # it ended before or while we looked
        yield f"process {process.name} {command[:300]} {group}"
        yield from (f"mount of {process.name}: {line}" for line in mounts)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait until a condition holds; fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.002)
