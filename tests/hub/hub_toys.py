"""What tests of fetching share: the toy repository, and how the module `model` is run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = "owner/toy-GGUF"
Answer = dict[str, Any]
Run = Callable[..., Answer]


def files_of(root: Path) -> dict[str, bytes | Path]:
    """Return the files below a directory as a repository's."""
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def named(store: Path, name: str) -> dict[str, str]:
    """Return the files of a model as they can be read: name -> sha256."""
    return {path.name: sha256(path) for path in sorted((store / "names" / name).iterdir())}
