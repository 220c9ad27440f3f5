# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The quantisations of a model that an instance may get, each with its files and what its header says."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Instance, Source
from ansible_collections.llamacpp.cluster.plugins.module_utils._flags import own_projector, projector_device
from ansible_collections.llamacpp.cluster.plugins.module_utils._hub import quantisation_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._mmproj import Eyes, is_projector
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._model_name import hub_name, stem
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, Rejected, listing

_SHARD = re.compile(r"^(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class HubFile(NamedTuple):
    """A file of a repository: ``name`` with folders, ``bytes``, ``sha256`` where the hub keeps one; what it is for.

    ``pieces``: that it is joined of; more than one have a sha256 each, which is checked when they are fetched.
    """

    name: str
    bytes: int
    sha256: str | None
    role: str = "model"
    pieces: int = 1


@dataclass(frozen=True)
class Found:
    """A quantisation that somebody looked at: ``facts``, or ``error`` in words; the same of its ``projector``.

    Of a hub also ``files`` in order, what lies ``beside`` them, and the ``commit`` that they are of.
    """

    facts: ModelFacts | None
    error: str = ""
    files: tuple[HubFile, ...] = ()
    beside: tuple[HubFile, ...] = ()
    commit: str | None = None
    projector: Found | None = None

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Found:
        """Read a result of gguf_info: ``gguf`` or ``msg``."""
        projector = cls.from_result(result["projector"]) if result.get("projector") else None
        if "gguf" not in result:
            return cls(None, str(result.get("msg") or "its header was not read"), projector=projector)
        return cls(ModelFacts.from_dict(result["gguf"]), projector=projector)

    @classmethod
    def from_hub(cls, result: Mapping[str, Any], quantisation: Mapping[str, Any]) -> Found:
        """Read one of the ``quantisations`` of a result of hub_info."""
        own = cls.from_result(quantisation)
        columns = zip(*(quantisation[key] for key in ("files", "sizes", "sha256", "parts")))
        files = [HubFile(name, size, sha256, pieces=len(parts)) for name, size, sha256, parts in columns]
        beside = [HubFile(item["name"], item["size"], item["sha256"], item["role"]) for item in result["beside"]]
        read = [cls.from_result(item) for item in result["beside"] if "gguf" in item or "msg" in item]
        projector = read[0] if read else None
        return cls(own.facts, own.error, tuple(files), tuple(beside), str(result["commit"]), projector)


# By name of the quantisation; the empty name is the only one of a model in one source.
Looked = Mapping[str, Found]


@dataclass(frozen=True)
class Offer:
    """A quantisation that an instance can get. ``facts``: None in a static plan without header.

    ``eyes``: the projector that it is served with.
    """

    quant: str
    source: Source
    facts: ModelFacts | None
    eyes: Eyes | None = None

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return self.facts.tensor_bytes if self.facts else 0

    @property
    def label(self) -> str:
        """Return what people call it: its name, else what its header says."""
        return self.quant or (self.facts.file_type if self.facts and self.facts.file_type else "") or "as it is"

    @property
    def sizes(self) -> Mapping[str, int]:
        """Return the bytes of its files by name, as far as they are known."""
        shards = self.facts.shards if self.facts else ()
        read = dict(zip(self.file_names, (shard.size for shard in shards)))
        return {**read, **self.source.sizes}

    @property
    def checksums(self) -> Mapping[str, str]:
        """Return sha256 of its files by name, as far as they are known."""
        read = {self.source.file: self.facts.sha256} if self.facts and self.facts.sha256 else {}
        return {**read, **self.source.checksums}

    @property
    def file_names(self) -> tuple[str, ...]:
        """Return the names of its files in the store."""
        if self.facts and len(self.facts.shards) > 1:
            return tuple(posixpath.basename(shard.name) for shard in self.facts.shards)
        match = _SHARD.match(self.source.file)
        if self.facts or not match:
            return (self.source.file,)
        prefix, count = match.group("prefix"), int(match.group("count"))
        return tuple("%s-%05d-of-%05d.gguf" % (prefix, number, count) for number in range(1, count + 1))


def offers(declared: Declared, instance: Instance, looked: Looked | str | None) -> tuple[list[Offer], list[Problem]]:
    """Return the quantisations that an instance may get, largest first, and what stands against others.

    ``looked``: what was found of each, or why nothing was.
    """
    variable = instance.variable + ".model"
    model = instance.model
    if isinstance(looked, str):
        return [], [Problem(variable, model.label, _without(model.label, looked))]
    if looked is None and model.source and model.source.convert and not declared.static:
        fix = "it has yet to be converted, which playbooks/site.yml does; until then nobody knows what it takes"
        return [], [Problem(variable + ".convert", model.label, fix)]
    if looked is None and not declared.static:
        return [], [Problem(variable, model.label, "its header was not read; run the playbook that makes the plan")]
    sources: dict[str, Source | None] = {"": model.source} if model.source else dict(model.quants)
    if model.repo:
        try:
            sources = {name: _hub_source(instance, name, found) for name, found in (looked or {}).items()}
        except Rejected as error:
            return [], [Problem(variable + ".name", model.repo, "%s; give the model a name" % error)]
    wanted = _wanted(model.wanted, sources)
    missing = [name for name in model.wanted if _key(name) not in {_key(item) for item in sources}]
    if model.wanted and not wanted:
        fix = "%s does not have it; there are %s" % (model.label, listing(sorted(sources)))
        return [], [Problem(variable + ".quant", listing(missing), fix)]
    found_offers, problems = [], []
    for name, source in wanted.items():
        if source is None:
            problems.append(Problem(variable, name, "the hub gives no sha256 for it; give url and sha256 instead"))
            continue
        own = variable + (".quants.%s" % name if model.quants else "")
        found = (looked or {}).get(name)
        if found is None and not declared.static:
            problems.append(Problem(own, source.where, "its header was not read; run the playbook that makes the plan"))
            continue
        if found is not None and found.facts is None:
            problems.append(Problem(own, source.where, _without(source.where, found.error)))
            continue
        try:
            eyes = _eyes(instance, source, found)
        except Rejected as error:
            files = [file for file, _size, _sha256, role in source.extra if role == "mmproj"]
            wrong = Problem(own + ".beside", listing(files), str(error))
            # It is the same for every quantisation of a repository.
            problems += [] if wrong in problems else [wrong]
            continue
        offer = Offer(name, source, found.facts if found else None, eyes)
        unfit = offer.facts.servable() if offer.facts else None
        if unfit:
            problems.append(Problem(own, source.where, unfit))
            continue
        problem = _check(own, offer)
        if problem:
            problems.append(problem)
        else:
            found_offers.append(offer)
    # One that cannot be read is no problem while another can.
    return sorted(found_offers, key=lambda item: (-item.size, item.quant)), [] if found_offers else problems


def _eyes(instance: Instance, source: Source, found: Found | None) -> Eyes | None:
    """Return the projector that lies beside a model, where the instance's own words say nothing of one.

    Raises :class:`Rejected` for several, and for a file that is none.
    """
    files = [(name, size) for name, size, _sha256, role in source.extra if role == "mmproj"]
    if not files or own_projector(instance.extra_args, instance.environment):
        return None
    if len(files) > 1:
        fix = "llama-server takes one projector: keep one, or name it yourself, extra_args: [--mmproj, PATH]"
        raise Rejected(fix)
    device = projector_device(instance.extra_args, instance.environment)
    read = found.projector if found else None
    if read is None:
        return Eyes(files[0][0], size=files[0][1], device=device)
    if read.facts and not is_projector(read.facts):
        kind = read.facts.architecture or "a file without an architecture"
        raise Rejected("it is no projector, but %s; name the projector, or leave it out" % kind)
    return Eyes(files[0][0], read.facts, files[0][1], read.error, device)


def _check(variable: str, offer: Offer) -> Problem | None:
    source = offer.source
    match = _SHARD.match(source.file)
    if match and int(match.group("number")) != 1:
        first = "%s-00001-of-%s.gguf" % (match.group("prefix"), match.group("count"))
        fix = "it is shard %d of %d: name the first, %s" % (
            int(match.group("number")),
            int(match.group("count")),
            first,
        )
        return Problem(variable, source.where, fix)
    unknown = [name for name in offer.file_names if name not in offer.checksums]
    if source.urls and unknown:
        fix = "that of %s is missing; whoever offers the file publishes it" % listing(unknown)
        return Problem(variable + ".sha256", source.where, fix)
    return None


def _wanted(names: Sequence[str], sources: Mapping[str, Source | None]) -> dict[str, Source | None]:
    """Return the sources of the quantisations that are wanted, or all."""
    if not names:
        return dict(sources)
    wanted = {_key(name) for name in names}
    return {name: source for name, source in sources.items() if _key(name) in wanted}


def _key(name: str) -> str:
    return name.replace("-", "_").upper()


def _hub_source(instance: Instance, quant: str, found: Found) -> Source | None:
    """Return where the files of a hub are; None when a checksum is missing. Raises :class:`Rejected` for a name."""
    if not found.files or not all(item.sha256 or item.pieces > 1 for item in found.files):
        return None
    model, repo = instance.model, instance.model.repo or ""
    names = [posixpath.basename(item.name) for item in found.files]
    selection, called = ("quant", quant), quant
    if quantisation_name("-%s.gguf" % quant) is None:
        selection, called = ("file", found.files[0].name), stem(names[0])
    if model.folder:
        selection, called = ("folder", model.folder), model.folder
    elif model.file:
        selection, called = ("file", model.file), stem(names[0])
    name = hub_name(repo, called)
    if model.name:
        # A name that is given to what may become one quantisation or another must tell them apart.
        chosen = model.folder or model.file or len(model.wanted) == 1
        name = model.name if chosen else hub_name(model.name, called)
    return Source(
        name=name,
        file=names[0],
        from_=model.from_,
        repo=repo,
        revision=model.revision,
        commit=found.commit,
        selection=selection,
        checksums={name: item.sha256 for name, item in zip(names, found.files) if item.sha256},
        sizes={name: item.bytes for name, item in zip(names, found.files)},
        beside=model.beside,
        extra=tuple((posixpath.basename(item.name), item.bytes, item.sha256, item.role) for item in found.beside),
    )


def _without(source: str, error: str) -> str:
    """Return an error without the source that it begins with: the problem says it anyway."""
    return error[len("%s: " % source) :] if error.startswith("%s: " % source) else error
