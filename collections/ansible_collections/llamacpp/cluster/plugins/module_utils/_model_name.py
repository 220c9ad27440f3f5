# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a model and its files are called in the store, as far as their source tells it. Pure functions."""

from __future__ import annotations

import posixpath
import re

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import piece
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import StoreError, check_file, check_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Rejected
from ansible_collections.llamacpp.cluster.plugins.module_utils._split import shard_names

_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")
_PIECE = re.compile(r"(?P<word>\.part)[0-9]+of(?=[0-9]+$)", re.IGNORECASE)
_STRANGE = re.compile(r"[^A-Za-z0-9._+-]+")


def model_name(value: object) -> str:
    """Check the name of a model, without the ending that names of files have; raises :class:`Rejected`."""
    text = value[: -len(".gguf")] if isinstance(value, str) and value.endswith(".gguf") else value
    try:
        return check_name(text if isinstance(text, str) else "")
    except StoreError as error:
        raise Rejected(str(error).partition(": ")[2]) from error


def file_name(value: str) -> str:
    """Check the name of a file in the store; raises :class:`Rejected`."""
    try:
        return check_file(value)
    except StoreError as error:
        raise Rejected(str(error)) from error


def shards(file: str) -> list[str]:
    """Return the names of all files of a model by that of its first; any other name stands for itself."""
    try:
        return shard_names(file)
    except GgufError:
        return [file]


def beside_each_other(file: str) -> list[str]:
    """Return the names of all files of a model by that of its first: its shards, or the pieces that it was cut into."""
    found = piece(file)
    if found is None or found.pieces < found.number:
        return shards(file)
    return [_PIECE.sub(r"\g<word>%dof" % number, file) for number in range(1, found.pieces + 1)]


def stem(file: str) -> str:
    """Return a file's name without folder, ending, and number of its shard."""
    base = posixpath.basename(file)
    return _SHARD.sub("", base[: -len(".gguf")] if base.endswith(".gguf") else base)


def name_of_file(file: str) -> str:
    """Return the name of a model in a file: its stem, with hyphens for what no name has."""
    return model_name(_STRANGE.sub("-", stem(file)).strip("-."))


def hub_name(repo: str, selection: str) -> str:
    """Return the name of a model of a repository (or directory): ``owner/repo/Q4_K_M``.

    ``selection``: a quantisation, a folder (folders in folders become one word), or a file's stem.
    """
    return model_name("%s/%s" % (repo, _STRANGE.sub("-", selection).strip("-.")))
