# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The quantisations of a model that an instance may get, each with its files and what its header says."""

from __future__ import annotations

import posixpath
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Declared, Instance, Source
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, listing

_SHARD = re.compile(r"^(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class Found:
    """A quantisation that somebody looked at: ``facts``, or ``error`` in words.

    ``files``: of a hub, url and sha256 of each file in order; empty for what was declared.
    """

    facts: ModelFacts | None
    error: str = ""
    files: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_result(cls, result: Mapping[str, Any]) -> Found:
        """Read a result of gguf_info: ``gguf`` or ``msg``; of a hub also ``files``, pairs of url and sha256."""
        files = tuple((url, sha256 or "") for url, sha256 in result.get("files") or ())
        if "gguf" not in result:
            return cls(None, str(result.get("msg") or "its header was not read"), files)
        return cls(ModelFacts.from_dict(result["gguf"]), "", files)


# By name of the quantisation; the empty name is the only one of a model in one source.
Looked = Mapping[str, Found]


@dataclass(frozen=True)
class Offer:
    """A quantisation that an instance can get. ``facts``: None in a static plan without header."""

    quant: str
    source: Source
    facts: ModelFacts | None

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return self.facts.tensor_bytes if self.facts else 0

    @property
    def label(self) -> str:
        """Return what people call it: its name, else what its header says."""
        return self.quant or (self.facts.file_type if self.facts and self.facts.file_type else "") or "as it is"

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
    if looked is None and not declared.static:
        return [], [Problem(variable, model.label, "its header was not read; run the playbook that makes the plan")]
    sources: dict[str, Source | None] = {"": model.source} if model.source else dict(model.quants)
    if model.repo:
        sources = {name: _hub_source(instance, found) for name, found in (looked or {}).items()}
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
        offer = Offer(name, source, found.facts if found else None)
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
    if len(offer.file_names) > 1 and source.renamed:
        fix = "the model is in %d files, which keep their names; leave name out" % len(offer.file_names)
        return Problem(variable + ".name", source.file, fix)
    return None


def _wanted(names: Sequence[str], sources: Mapping[str, Source | None]) -> dict[str, Source | None]:
    """Return the sources of the quantisations that are wanted, or all."""
    if not names:
        return dict(sources)
    wanted = {_key(name) for name in names}
    return {name: source for name, source in sources.items() if _key(name) in wanted}


def _key(name: str) -> str:
    return name.replace("-", "_").upper()


def _hub_source(instance: Instance, found: Found) -> Source | None:
    """Return where the files of a hub are; None when a checksum is missing."""
    if not found.files or not all(sha256 for _url, sha256 in found.files):
        return None
    names = [posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) for url, _sha in found.files]
    return Source(
        path=None,
        url=found.files[0][0],
        from_=instance.model.from_,
        sha256=found.files[0][1] if len(names) == 1 else None,
        file=names[0],
        checksums={name: sha256 for name, (_url, sha256) in zip(names, found.files)},
    )


def _without(source: str, error: str) -> str:
    """Return an error without the source that it begins with: the problem says it anyway."""
    return error[len("%s: " % source) :] if error.startswith("%s: " % source) else error
