# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which files of a repository are meant: a quantisation, a folder, a file or glob, and what belongs beside it. Pure."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Union

from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import (
    HubFile,
    quantisation_name,
    quantisations,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import missing_pieces, piece, whole_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._model_name import hub_name, stem

_SHARD = re.compile(r"-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<end>\.[a-z]+)$")
# What a tokenizer and its chat need, as transformers' save_pretrained names them; config.json says what model it is of.
_TOKENIZER = re.compile(
    r"^(config|generation_config|tokenizer.*|special_tokens_map|added_tokens|vocab|chat_template)\.json$"
    r"|^(tokenizer|sentencepiece|spiece).*\.model$|^(chat_template|additional_chat_templates).*\.jinja$"
    r"|^(merges|vocab)\.txt$"
)
_MMPROJ = re.compile(r"mmproj.*\.gguf$", re.IGNORECASE)
_IMATRIX = re.compile(r"imatrix", re.IGNORECASE)
# Projectors are small and kept precise; F16 runs on any GPU, BF16 does not.
_MMPROJ_ORDER = ("F16", "BF16", "F32", "Q8_0")
_MENTIONED = 12
SAFETENSORS = ".safetensors"

Checksums = Union[str, Mapping[str, str], None]


class ChoiceError(Exception):
    """What is asked for is not there, or not one thing; the text says what there is instead."""


class Remote(NamedTuple):
    """A file of a repository: ``name`` with folders, ``size`` in bytes, ``sha256`` where the hub keeps one (LFS).

    ``oid``: git's, a SHA-1 over the bytes for a file that is not LFS.
    """

    name: str
    size: int
    sha256: str | None = None
    oid: str | None = None


class Wanted(NamedTuple):
    """A file that the store is to get. ``name``: without folders. ``parts``: where its bytes are, in order.

    ``sha256``: what it has to be, None when nobody says. ``size``: bytes.
    """

    name: str
    role: str
    size: int
    sha256: str | None
    parts: tuple[Remote, ...]


class Selection(NamedTuple):
    """What was declared of a repository; at most one of ``quant``, ``folder`` and ``file`` (a name or glob)."""

    quant: str | None = None
    folder: str | None = None
    file: str | None = None
    beside: tuple[str, ...] = ()


def choose(repo: str, files: Sequence[Remote], selection: Selection, checksums: Checksums = None) -> list[Wanted]:
    """Return the files of a model, the model's own first and in the order of its shards.

    ``checksums``: what the operator says they are, by name of the file, or one for a model of one file.
    Raises :class:`ChoiceError`.
    """
    whole = _whole(files)
    if selection.quant:
        chosen = _quant(repo, files, whole, selection.quant)
    elif selection.folder:
        chosen = _folder(repo, whole, selection.folder)
    elif selection.file:
        chosen = _file(repo, whole, selection.file)
    else:
        chosen = _only(repo, whole)
    wanted = [_wanted(whole[name], "model") for name in chosen]
    beside = selection.beside
    if chosen[0].endswith(SAFETENSORS):
        # Other than a GGUF file, weights alone are no model.
        beside = tuple(dict.fromkeys((*beside, "tokenizer", *_indices(whole, chosen[0]))))
    wanted += _beside(repo, whole, chosen, beside)
    names = [item.name for item in wanted]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ChoiceError("%s: it has %s in several folders; name one of them" % (repo, ", ".join(twice)))
    return declare(wanted, checksums)


def choose_name(repo: str, selection: Selection, wanted: Sequence[Wanted]) -> str:
    """Return what a model is called whose declaration does not say.

    Raises :class:`_problem.Rejected` when no name can be made of it.
    """
    first = wanted[0].parts[0].name
    if selection.folder:
        return hub_name(repo, selection.folder.strip("/"))
    if first.endswith(SAFETENSORS):
        return hub_name(repo, SAFETENSORS[1:])
    quant = None if selection.file else quantisation_name(_name_of(wanted[0].parts))
    return hub_name(repo, quant or stem(wanted[0].name or first))


def declare(wanted: Sequence[Wanted], checksums: Checksums) -> list[Wanted]:
    """Return ``wanted`` with the operator's checksums. Raises :class:`ChoiceError` when the hub's differ."""
    if isinstance(checksums, str):
        own = [item.name for item in wanted if item.role == "model"]
        if len(own) > 1:
            raise ChoiceError("sha256: the model has %d files; write it as a dictionary, file: sha256" % len(own))
        checksums = {own[0]: checksums}
    given = {name: text.lower() for name, text in (checksums or {}).items()}
    unknown = sorted(set(given) - {item.name for item in wanted})
    if unknown:
        raise ChoiceError(
            "sha256: %s is no file of the model; it has %s" % (unknown[0], listing(item.name for item in wanted))
        )
    for item in wanted:
        if item.sha256 and given.get(item.name, item.sha256) != item.sha256:
            raise ChoiceError(
                "sha256 of %s: declared is %s, the hub says %s: correct it, or pin the revision that was meant"
                % (item.name, given[item.name], item.sha256)
            )
    return [item._replace(sha256=item.sha256 or given.get(item.name)) for item in wanted]


def listing(names: Iterable[str]) -> str:
    """Return names for a message, not more than anybody reads."""
    all_names = list(names)
    shown = ", ".join(all_names[:_MENTIONED]) or "nothing"
    return shown if len(all_names) <= _MENTIONED else "%s and %d more" % (shown, len(all_names) - _MENTIONED)


def role_of(name: str) -> str:
    """Return the role of a file that was named, by its name."""
    base = posixpath.basename(name)
    if _MMPROJ.search(base):
        return "mmproj"
    if _IMATRIX.search(base):
        return "imatrix"
    return "tokenizer" if _TOKENIZER.match(base) else "other"


def beside(name: str) -> bool:
    """Whether a file goes beside a model, as its name says."""
    return role_of(name) != "other"


def _whole(files: Sequence[Remote]) -> dict[str, tuple[Remote, ...]]:
    """Return the files of a repository as they are when pieces are joined: name -> where its bytes are."""
    by_name = {item.name: item for item in files}
    return {name: tuple(by_name[part] for part in parts) for name, parts in whole_files(sorted(by_name)).items()}


def _wanted(parts: tuple[Remote, ...], role: str) -> Wanted:
    name = posixpath.basename(_name_of(parts))
    return Wanted(name, role, _size(parts), parts[0].sha256 if len(parts) == 1 else None, parts)


def _name_of(parts: Sequence[Remote]) -> str:
    return _joined(parts[0].name)


def _size(parts: Sequence[Remote]) -> int:
    return sum(part.size for part in parts)


def _found(whole: Mapping[str, tuple[Remote, ...]]) -> dict[str, dict[str, Any]]:
    return quantisations([HubFile(name, _size(parts), None) for name, parts in whole.items()])


def _quant(repo: str, files: Sequence[Remote], whole: Mapping[str, tuple[Remote, ...]], wanted: str) -> list[str]:
    found = _found(whole)
    # F16 and fp16 are one; so are UD-Q4_K_XL and ud-q4_k_xl.
    name = quantisation_name("-%s.gguf" % wanted) or wanted.upper()
    if name in found:
        return list(found[name]["files"])
    there = _offers(found)
    broken = sorted(
        item.name
        for item in files
        if (piece(item.name) or item.name.endswith(".gguf")) and quantisation_name(_joined(item.name)) == name
    )
    if broken:
        raise ChoiceError("%s: its %s is not complete: %s; it has %s" % (repo, name, _lacking(broken), there))
    raise ChoiceError("%s: it has no quantisation %s; it has %s" % (repo, wanted, there))


def _offers(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return quantisations for a message, smallest first."""
    ordered = sorted(found, key=lambda name: found[name]["bytes"])
    return ", ".join("%s (%s)" % (name, _gib(found[name]["bytes"])) for name in ordered) or "no whole GGUF model"


def _gib(size: int) -> str:
    return "%.1f GiB" % (size / (1 << 30)) if size >= 1 << 30 else "%d MiB" % -(-size // (1 << 20))


def _joined(name: str) -> str:
    """Return the name of the file that a piece is of, or the file's own."""
    found = piece(name)
    return found.whole if found else name


def _lacking(names: Sequence[str]) -> str:
    """Return what of these names' sets is missing."""
    gaps = ["piece %s of %s" % (_numbers(numbers), whole) for whole, numbers in missing_pieces(names).items()]
    sets: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = _SHARD.search(name)
        if match:
            sets.setdefault((name[: match.start()], int(match.group("count"))), set()).add(int(match.group("number")))
    for (prefix, count), numbers in sets.items():
        absent = sorted(set(range(1, count + 1)) - numbers)
        if absent:
            gaps.append("file %s of %d of %s is missing" % (_numbers(absent), count, prefix))
    return "; ".join(gaps) or "its files do not belong together: %s" % listing(names)


def _numbers(numbers: Sequence[int]) -> str:
    return listing(str(number) for number in numbers)


def _sets(names: Iterable[str]) -> dict[str, list[str]]:
    """Return shards by the model that they are of, in order; a file without a number is a model of its own."""
    sets: dict[str, list[str]] = {}
    for name in sorted(names):
        match = _SHARD.search(name)
        sets.setdefault(name[: match.start()] + match.group("end") if match else name, []).append(name)
    return sets


def _complete(repo: str, names: Sequence[str]) -> list[str]:
    match = _SHARD.search(names[0])
    if match and len(names) != int(match.group("count")):
        raise ChoiceError("%s: %s" % (repo, _lacking(names)))
    return list(names)


def _models(whole: Iterable[str]) -> list[str]:
    return [name for name in whole if name.endswith(".gguf") and role_of(name) == "other"]


def _folder(repo: str, whole: Mapping[str, tuple[Remote, ...]], folder: str) -> list[str]:
    inside = folder.strip("/")
    sets = _sets(name for name in _models(whole) if posixpath.dirname(name) == inside)
    if not sets:
        folders = sorted({posixpath.dirname(name) for name in _models(whole)} - {""})
        raise ChoiceError("%s: it has no folder %s with a GGUF model; it has %s" % (repo, folder, listing(folders)))
    if len(sets) > 1:
        raise ChoiceError(
            "%s: the folder %s has several models: %s; name one with file or quant" % (repo, folder, listing(sets))
        )
    return _complete(repo, next(iter(sets.values())))


def _file(repo: str, whole: Mapping[str, tuple[Remote, ...]], pattern: str) -> list[str]:
    matched = _match(whole, pattern)
    if not matched:
        raise ChoiceError("%s: no file is %s; it has %s" % (repo, pattern, listing(_models(whole) or sorted(whole))))
    # A projector of the same quantisation does not make a pattern mean two models.
    matched = [name for name in matched if name in _models(matched)] or matched
    every = _sets(whole)
    sets = {key: names for key, names in every.items() if set(names) & set(matched)}
    if len(sets) > 1:
        raise ChoiceError(
            "%s: file = %s means several models: %s; write what only one of them has" % (repo, pattern, listing(sets))
        )
    return _complete(repo, next(iter(sets.values())))


def _match(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that are ``pattern``, or that match it: with folders, or where it has none, without."""
    every = sorted(names)
    if _joined(pattern) in every:
        return [_joined(pattern)]
    found = [name for name in every if fnmatch.fnmatchcase(name, pattern)]
    if not found and "/" not in pattern:
        found = [name for name in every if fnmatch.fnmatchcase(posixpath.basename(name), pattern)]
    return found


def _only(repo: str, whole: Mapping[str, tuple[Remote, ...]]) -> list[str]:
    found = _found(whole)
    if len(found) == 1:
        return list(next(iter(found.values()))["files"])
    sets = _sets(_models(whole))
    if not found and len(sets) == 1:
        return _complete(repo, next(iter(sets.values())))
    weights = _sets(name for name in whole if name.endswith(SAFETENSORS) and "/" not in name)
    if not sets and weights:
        # Some have the weights a second time, as their makers name them; "model" is what transformers reads.
        own = [names for key, names in weights.items() if key.startswith("model")] or list(weights.values())
        if len(own) == 1:
            return _complete(repo, own[0])
    there = _offers(found) if found else listing(sets or weights)
    raise ChoiceError("%s: say which one with quant, folder or file; it has %s" % (repo, there))


def _indices(whole: Iterable[str], chosen: str) -> list[str]:
    """Return the file that says which of several files of weights has which tensor, where there is one."""
    folder = posixpath.dirname(chosen)
    return [name for name in whole if name.endswith(SAFETENSORS + ".index.json") and posixpath.dirname(name) == folder]


def _beside(
    repo: str, whole: Mapping[str, tuple[Remote, ...]], chosen: Sequence[str], beside: Sequence[str]
) -> list[Wanted]:
    folder = posixpath.dirname(chosen[0])
    others = {name: parts for name, parts in whole.items() if name not in chosen}
    picked: dict[str, str] = {}
    for item in beside:
        if item == "mmproj":
            picked[_mmproj(repo, others, folder)] = "mmproj"
        elif item == "tokenizer":
            picked.update((name, "tokenizer") for name in _tokenizer(repo, others, folder))
        elif item == "imatrix":
            picked[_imatrix(repo, others, folder)] = "imatrix"
        else:
            matched = _match(others, item)
            if not matched:
                raise ChoiceError("%s: beside = %s: it has no such file; it has %s" % (repo, item, listing(others)))
            picked.update((name, role_of(name)) for name in matched if name not in picked)
    return [_wanted(others[name], role) for name, role in picked.items()]


def _near(name: str, folder: str) -> bool:
    """Whether a file is where those of a model in ``folder`` are looked for: there, or at the top."""
    return posixpath.dirname(name) in (folder, "")


def _mmproj(repo: str, others: Mapping[str, tuple[Remote, ...]], folder: str) -> str:
    found = [name for name in others if role_of(name) == "mmproj"]
    if not found:
        raise ChoiceError("%s: beside = mmproj: it has no projector; leave mmproj out" % repo)

    def rank(name: str) -> tuple[bool, int, str]:
        quant = quantisation_name(name)
        order = _MMPROJ_ORDER.index(quant) if quant in _MMPROJ_ORDER else len(_MMPROJ_ORDER)
        return not _near(name, folder), order, name

    return min(found, key=rank)


def _tokenizer(repo: str, others: Mapping[str, tuple[Remote, ...]], folder: str) -> list[str]:
    found = sorted(name for name in others if _near(name, folder) and role_of(name) == "tokenizer")
    # What the model's own folder has, hides what the top has under the same name.
    nearest = {posixpath.basename(name): name for name in sorted(found, key=lambda name: name.count("/"))}
    if not nearest:
        raise ChoiceError("%s: beside = tokenizer: it has no tokenizer's files; leave tokenizer out" % repo)
    return list(nearest.values())


def _imatrix(repo: str, others: Mapping[str, tuple[Remote, ...]], folder: str) -> str:
    found = [name for name in others if role_of(name) == "imatrix"]
    near = [name for name in found if _near(name, folder)] or found
    if len(near) != 1:
        raise ChoiceError(
            "%s: beside = imatrix: it has %s; %s" % (repo, listing(near), "name one" if near else "leave imatrix out")
        )
    return near[0]
