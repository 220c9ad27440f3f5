# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read small files of /proc and /sys below a root that tests can replace."""

from __future__ import annotations

import os
import re

_PCI_ID = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")


class Tree:
    """Files of the kernel. What is not there, or cannot be read, is empty or None: no kernel has them all."""

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def _path(self, path: str) -> str:
        return os.path.join(self._root, path.lstrip("/"))

    def read(self, path: str) -> str:
        """Return a file's text without the space around it; empty when there is none."""
        try:
            with open(self._path(path), encoding="utf-8", errors="replace") as stream:
                return stream.read().strip()
        except OSError:
            # Also EINVAL, as for the speed of a link that has none, and EACCES.
            return ""

    def number(self, path: str) -> int | None:
        """Return the number (decimal, or hexadecimal after 0x) in a file; None when there is none."""
        try:
            return int(self.read(path), 0)
        except ValueError:
            return None

    def positive(self, path: str) -> int | None:
        """Return the positive number in a file; None when there is none, as where the kernel says -1 for "unknown"."""
        number = self.number(path)
        return number if number is not None and number > 0 else None

    def names(self, path: str) -> list[str]:
        """Return what is in a directory, sorted; empty when there is none."""
        try:
            return sorted(os.listdir(self._path(path)))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether there is such a file or directory."""
        return os.path.exists(self._path(path))

    def target(self, path: str) -> str | None:
        """Return the last part of what a link leads to; None when there is no link."""
        full = self._path(path)
        return os.path.basename(os.path.realpath(full)) if os.path.islink(full) else None

    def pci_id(self, device: str) -> str | None:
        """Return the PCI id of a device's directory; None when it is on another bus, as virtio's are."""
        name = self.target(device) or ""
        return name if _PCI_ID.match(name) else None

    def numa_node(self, device: str) -> int | None:
        """Return the NUMA node of a device's directory; None when it has none (the kernel says -1)."""
        number = self.number(device + "/numa_node")
        return number if number is not None and number >= 0 else None
