# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models that are split into several files, as llama.cpp's llama-gguf-split does it.

The first file has all key-values, the others only the three ``split.`` keys; every one has tensors of
its own. Rules: llama_model_loader in src/llama-model-loader.cpp and llama_split_path in src/llama.cpp,
b11434. A file without ``split.count`` is a model by itself, whatever its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import GgufError, Header

_SHARD = re.compile(r"^(?P<prefix>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf$")
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
# llama.cpp would take 65535; models of a terabyte have 200.
MAX_SHARDS = 4096
# As llama.cpp asks for them; it refuses the same number in another type.
_TYPES = {NUMBER: "u16", COUNT: "u16", TENSORS: "i32"}
# What all files of a set would agree on if more than the first had it.
_SAME = ("general.architecture", "general.name")


def shard_count(header: Header) -> int:
    """Return how many files the model of this header has, 1 for one that is not split.

    Raises :class:`GgufError` when the count is no count.
    """
    count = max(_number(header, COUNT, 1), 1)
    if count > MAX_SHARDS:
        raise GgufError(COUNT, 0, "%d files are not believable (at most %d)" % (count, MAX_SHARDS))
    return count


def shard_names(name: str) -> list[str]:
    """Return the names of all files of a model as its first file's name tells them.

    A name without ``-00001-of-00003`` is a model in one file. Raises :class:`GgufError`
    when ``name`` is a shard, but not the first: llama.cpp opens the first.
    """
    match = _SHARD.match(name)
    if not match:
        return [name]
    count, number = int(match.group("count")), int(match.group("number"))
    names = _names(match.group("prefix"), max(count, 1))
    if number != 1:
        raise GgufError("path", 0, "it is shard %d of %d: name the first, %s" % (number, count, names[0]))
    return names


def sibling_names(name: str, count: int) -> list[str]:
    """Return the names of all ``count`` files of a model, given the name of any of them.

    Raises :class:`GgufError` for a name that does not say where the others are.
    """
    if count == 1:
        return [name]
    match = _SHARD.match(name)
    if not match:
        raise GgufError(
            "path", 0, "it is one of %d files; name it ...-00001-of-%05d.gguf, as the others are" % (count, count)
        )
    if int(match.group("count")) != count:
        raise GgufError(COUNT, 0, "it has %d files by its header, %d by its name" % (count, int(match.group("count"))))
    return _names(match.group("prefix"), count)


def _names(prefix: str, count: int) -> list[str]:
    return ["%s-%05d-of-%05d.gguf" % (prefix, number, count) for number in range(1, count + 1)]


def check_set(headers: Sequence[Header], names: Sequence[str]) -> None:
    """See that ``headers``, of the files ``names``, are a whole model in the right order.

    Raises :class:`GgufError` that says which file is out of place, and why.
    """
    count = shard_count(headers[0])
    if count != len(headers):
        raise GgufError(COUNT, 0, "the model has %d files, %d were found" % (count, len(headers)))
    owners: dict[str, str] = {}
    for position, (header, name) in enumerate(zip(headers, names)):
        if count > 1:
            _check_shard(header, name, position, headers[0])
        for tensor in header.tensors:
            if tensor.name in owners:
                files = sorted({name, owners[tensor.name]})
                raise GgufError(
                    "tensor name", 0, "the tensor %s is there twice, in %s" % (ascii(tensor.name), " and ".join(files))
                )
            owners[tensor.name] = name
    if count > 1:
        expected = _number(headers[0], TENSORS, None)
        if expected != len(owners):
            raise GgufError(
                TENSORS, 0, "the model has %d tensors, its files have %d; get them again" % (expected, len(owners))
            )


def _check_shard(header: Header, name: str, position: int, first: Header) -> None:
    number = _number(header, NUMBER, None, name)
    if number != position:
        raise GgufError(
            NUMBER,
            0,
            "%s: it is part %d of the model, not part %d; names are mixed up" % (name, number + 1, position + 1),
        )
    if COUNT in header.values and _number(header, COUNT, None, name) != shard_count(first):
        raise GgufError(COUNT, 0, "%s: it is of a model with %s files" % (name, header.values[COUNT]))
    for key in _SAME:
        if header.values.get(key, first.values.get(key)) != first.values.get(key):
            raise GgufError(
                key,
                0,
                "%s: it is of another model: %s, not %s"
                % (name, ascii(header.values[key]), ascii(first.values.get(key))),
            )


def _number(header: Header, key: str, default: int | None, name: str = "") -> int:
    value = header.values.get(key, default)
    where = "%s: " % name if name else ""
    if value is None:
        raise GgufError(key, 0, "%sthe key is missing, so it is no part of a split model" % where)
    if (key in header.values and header.types[key] != _TYPES[key]) or not isinstance(value, int):
        raise GgufError(key, 0, "%sit must be of type %s, not %s" % (where, _TYPES[key], header.types[key]))
    return value
