"""What tests of fetching share: the toy repository, and how the module `model` is run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.modules import model

REPO = "owner/toy-GGUF"
COLLECTIONS = Path(model.__file__).parents[5]
# Arguments come by stdin, as Ansible gives them: nobody reads them in the list of processes.
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from ansible.module_utils.testing import patch_module_args
from ansible_collections.llamacpp.cluster.plugins.module_utils import _fetch_hub
from ansible_collections.llamacpp.cluster.plugins.modules import model
_fetch_hub.CHUNK = 4096
with patch_module_args(json.load(sys.stdin)):
    model.main()
"""
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
