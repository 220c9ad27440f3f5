# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What lies in a directory that is to become GGUF: weights as safetensors, a configuration, a tokenizer.

Looked at before anything is converted, because the converter reads for minutes before it finds that a file is cut, and
because a repository may bring code that nobody has asked for.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

# safetensors itself reads no longer header (MAX_HEADER_SIZE of safetensors 0.8, src/tensor.rs).
MAX_HEADER = 100_000_000
# A module of sentence-transformers has a folder of its own, and nothing below it.
DEPTH = 1
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
# The largest models have some hundred; a name that says more is not believed.
MAX_SHARDS = 4096
# What runs code when it is read: Python, and pickles under the names that PyTorch's have.
CODE = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Bytes a weight, by outtype. q8_0: blocks of 32 with a scale of 2 bytes (ggml-common.h, block_q8_0). auto: 16 bits,
# whichever of the two kinds the weights need (conversion/base.py, b11434).
BYTES_A_WEIGHT = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "auto": 2.0}
OUTTYPES = tuple(BYTES_A_WEIGHT)
# What the names of tokenizers' files have in them; their settings alone are no tokenizer.
_TOKENIZER = re.compile(r"tokenizer\.|vocab|merges|spiece|sentencepiece|tekken|tiktoken", re.IGNORECASE)
# Keys, names and offsets of tensors, and a vocabulary as it is in GGUF, beside the weights: 256000 tokens of 16 bytes
# with two merges of 20 bytes for each are 14 MiB.
BESIDE_WEIGHTS = 32 << 20


class ConvertError(Exception):
    """It cannot be converted; the text tells the operator what, which value, and what to do."""


@dataclass(frozen=True)
class Source:
    """A directory that can be converted.

    ``files``: relative name -> path of what the converter gets to see. ``withheld``: names of files that run code and
    are kept from it. ``tensors`` and ``weights``: how many there are in the parts that the converter reads.
    ``architectures``: from config.json. ``own_code``: the configuration names Python code of the repository.
    """

    files: Mapping[str, str]
    withheld: tuple[str, ...]
    tensors: int
    weights: int
    architectures: tuple[str, ...]
    own_code: bool

    @property
    def tokenizer(self) -> bool:
        """Whether any file looks like a tokenizer. Nearly every architecture needs one."""
        return any(_TOKENIZER.search(os.path.basename(name)) for name in self.files)

    def result_bytes(self, outtype: str) -> int:
        """Return how many bytes the result takes at most. ``outtype``: one of :data:`OUTTYPES`."""
        return int(self.weights * BYTES_A_WEIGHT[outtype]) + BESIDE_WEIGHTS


def survey(directory: str, trust_code: bool, names: Container[str] | None = None) -> Source:
    """Look at a directory. ``trust_code``: code of the repository is not withheld. ``names``: other files do not count.

    Raises :class:`ConvertError` when it holds no model, or not all of one; and :class:`OSError`.
    """
    if not os.path.isdir(directory):
        raise ConvertError("source = %s: no such directory on this node" % directory)
    found = {name: path for name, path in _files(directory, "", DEPTH) if names is None or name in names}
    parts = _parts(directory, found)
    if "config.json" not in found:
        raise ConvertError(
            "source = %s: no config.json beside the weights, so nobody knows what they are: fetch it too" % directory
        )
    config = _json(found["config.json"])
    withheld = () if trust_code else tuple(sorted(name for name in found if name.lower().endswith(CODE)))
    tensors = weights = 0
    for name in parts:
        count, elements = read_header(found[name])
        tensors, weights = tensors + count, weights + elements
    architectures = config.get("architectures")
    return Source(
        files={name: path for name, path in sorted(found.items()) if name not in withheld},
        withheld=withheld,
        tensors=tensors,
        weights=weights,
        architectures=tuple(str(name) for name in architectures) if isinstance(architectures, list) else (),
        own_code=any(
            "auto_map" in _json(found[name]) for name in ("config.json", "tokenizer_config.json") if name in found
        ),
    )


def read_header(path: str) -> tuple[int, int]:
    """Return how many tensors and weights are in a safetensors file.

    The format: 8 bytes little-endian that say how long the header is, the header (JSON: name -> dtype, shape,
    data_offsets behind the header), the data. Raises :class:`ConvertError` when the file is none or is not whole.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as stream:
        start = stream.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
        if not 2 <= length <= min(MAX_HEADER, max(size - 8, 0)):
            raise ConvertError("%s is not a safetensors file, or is cut (%d bytes): fetch it again" % (path, size))
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        tensors = {name: item for name, item in header.items() if name != "__metadata__"}
        end = max((int(item["data_offsets"][1]) for item in tensors.values()), default=0)
        weights = sum(prod(int(extent) for extent in item["shape"]) for item in tensors.values())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ConvertError("%s is not a safetensors file (its header: %r): fetch it again" % (path, error)) from error
    if 8 + length + end != size:
        raise ConvertError(
            "%s is cut or has something behind it: %d bytes, and its header says %d: fetch it again"
            % (path, size, 8 + length + end)
        )
    return len(tensors), weights


def _files(directory: str, prefix: str, depth: int) -> Iterable[tuple[str, str]]:
    """Go through the files of a directory and its folders, without hidden ones, as (relative name, path)."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_file():
                yield prefix + entry.name, entry.path
            elif depth and entry.is_dir():
                yield from _files(entry.path, prefix + entry.name + "/", depth - 1)


def _parts(directory: str, found: Mapping[str, str]) -> list[str]:
    """Return the files of weights that the converter reads (conversion/base.py, index_tensors, b11434).

    Those that the index names, or else ``model*.safetensors``. Raises :class:`ConvertError`.
    """
    if INDEX in found:
        named = _json(found[INDEX]).get("weight_map")
        if not isinstance(named, dict):
            raise ConvertError("%s has no weight_map: fetch it again" % found[INDEX])
        return _all_there(directory, sorted({str(name) for name in named.values()}), found)
    parts = sorted(name for name in found if name.startswith("model") and name.endswith(".safetensors"))
    if not parts:
        others = sorted(name for name in found if name.lower().endswith((".safetensors", ".gguf", *CODE[1:])))
        raise ConvertError(
            "source = %s: no model*.safetensors there%s: only safetensors are converted; a GGUF file is declared as it "
            "is, without convert" % (directory, ", but %s" % _some(others) if others else "")
        )
    # Without an index the converter takes what it finds, and does not miss a shard.
    counted = [match for match in map(_SHARD.fullmatch, parts) if match]
    whole = {
        "%s-%05d-of-%05d.safetensors" % (match.group("stem"), number, int(match.group("count")))
        for match in counted
        for number in range(1, min(int(match.group("count")), MAX_SHARDS) + 1)
    }
    _all_there(directory, sorted(whole), found)
    return parts


def _all_there(directory: str, names: list[str], found: Container[str]) -> list[str]:
    """Return ``names``. Raises :class:`ConvertError` when one is not among the files."""
    absent = [name for name in names if name not in found]
    if absent:
        raise ConvertError(
            "source = %s: %d of %d files of weights are missing: %s: fetch them too"
            % (directory, len(absent), len(names), _some(absent))
        )
    return names


def _json(path: str) -> Mapping[str, Any]:
    """Return the object in a JSON file. Raises :class:`ConvertError` when there is none, and :class:`OSError`."""
    try:
        with open(path, encoding="utf-8") as stream:
            loaded = json.load(stream)
    except ValueError as error:
        raise ConvertError("%s is not JSON (%s): fetch it again" % (path, error)) from error
    if not isinstance(loaded, dict):
        raise ConvertError("%s is not a JSON object: fetch it again" % path)
    return loaded


def _some(names: list[str]) -> str:
    """Return the first names as text."""
    return ", ".join(names[:5]) + (" and %d more" % (len(names) - 5) if len(names) > 5 else "")
