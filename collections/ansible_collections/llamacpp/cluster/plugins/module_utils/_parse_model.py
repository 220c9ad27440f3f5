# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read ``model`` of a declared instance: files by path or address, several quantisations, or a repository of a hub."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any, Union
from urllib.parse import quote, unquote, urlsplit

from ansible_collections.llamacpp.cluster.plugins.module_utils import _checks as checks
from ansible_collections.llamacpp.cluster.plugins.module_utils._checks import Fields
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Convert, Model, Source
from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import role_of
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import missing_pieces, piece, whole_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._model_name import (
    beside_each_other,
    file_name,
    hub_name,
    model_name,
    name_of_file,
    shards,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, Rejected, listing

PLACES = ("path", "url", "urls", "repo", "quants")
SOURCE_KEYS = ("path", "url", "urls", "sha256", "from", "name", "shared", "beside")
MODEL_KEYS = (*SOURCE_KEYS, "repo", "revision", "quant", "folder", "file", "convert", "quants")
# What else of a model belongs to which of PLACES.
BELONGS: Mapping[str, tuple[str, ...]] = {
    "path": ("sha256", "from", "name", "shared", "beside", "convert"),
    "url": ("sha256", "from", "name"),
    "urls": ("sha256", "from", "name"),
    "repo": ("revision", "quant", "folder", "file", "beside", "from", "name", "convert"),
    "quants": ("quant", "from"),
}
SELECTIONS = ("quant", "folder", "file")
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")
# What systemd's ProtectHome=yes hides from services: a link into it leads nowhere (systemd.exec(5)).
UNSEEN = ("/home/", "/root/", "/run/user/")
_EXAMPLE = "{path: /srv/models/model.gguf}"

Checksums = Union[str, Mapping[str, str]]


def parse_model(problems: list[Problem], variable: str, data: object, from_default: str = "node") -> Model:
    """Parse and check ``model``; the result is only good when there was no problem.

    ``from_default``: who reads addresses and repositories that do not say, controller or node.
    """
    if not isinstance(data, dict):
        problems.append(Problem(variable + ".model", data, "say where it is, e.g. %s" % _EXAMPLE))
        return Model()
    fields = Fields(problems, variable.replace("%", "%%") + ".model.%s", data, MODEL_KEYS)
    place = _place(fields)
    if place is None:
        return Model()
    for key in MODEL_KEYS:
        if key not in PLACES and data.get(key) is not None and key not in BELONGS[place]:
            owners = [name for name in PLACES if key in BELONGS[name]]
            fix = "it belongs to %s; leave it out with %s" % (" or ".join(owners), place)
            fields.problem(key, fix, data[key])
    if place == "quants":
        return _several(problems, fields, from_default)
    if place == "repo":
        return _hub(problems, fields, from_default)
    convert = _convert(problems, fields) if place == "path" else None
    if convert is None:
        return Model(source=_source(fields, from_default), name=data.get("name"))
    path = fields.take("path", checks.absolute_path, "/").rstrip("/")
    from_ = fields.take("from", checks.one_of("controller", "node"), "controller")
    source = Source(name="", file="", from_=from_, path=path)
    return Model(source=_converted(source, convert, posixpath.basename(path), fields), name=data.get("name"))


def _place(fields: Fields) -> str | None:
    """Return which of :data:`PLACES` is given; None when there are none or several."""
    given = [key for key in PLACES if fields.data.get(key) is not None]
    if len(given) > 1:
        fields.problem(given[1], "give one of %s, not several" % ", ".join(PLACES), fields.data[given[1]])
    elif not given:
        fix = "give path (a file), url or urls (addresses), repo (owner/name on a hub) or quants (several)"
        fields.problem("path", fix)
    return given[0] if len(given) == 1 else None


def _hub(problems: list[Problem], fields: Fields, from_default: str) -> Model:
    """Read a model that is in a repository."""
    data = fields.data
    given = [key for key in SELECTIONS if data.get(key) is not None]
    if len(given) > 1:
        fields.problem(given[1], "give one of %s, not several" % ", ".join(SELECTIONS), data[given[1]])
    any_quant: tuple[str, ...] = ()
    model = Model(
        repo=fields.take("repo", _repository, ""),
        revision=fields.take("revision", checks.text, None),
        wanted=fields.take("quant", _quant_names, any_quant),
        folder=fields.take("folder", _folder, None),
        file=fields.take("file", _pattern, None),
        beside=fields.take("beside", _beside, ()),
        name=fields.take("name", model_name, None),
        from_=fields.take("from", checks.one_of("controller", "node"), from_default),
    )
    convert = _convert(problems, fields)
    if convert is None or not model.repo:
        return model
    if given:
        fix = "of a repository that is converted all is taken; leave it out, and write quant below convert"
        fields.problem(given[0], fix, data[given[0]])
    source = Source(name="", file="", from_=model.from_, repo=model.repo, revision=model.revision, convert=convert)
    return Model(source=_converted(source, convert, model.repo, fields), name=model.name)


def _several(problems: list[Problem], fields: Fields, from_default: str) -> Model:
    """Read a model that lies around in several quantisations."""
    any_quant: tuple[str, ...] = ()
    wanted = fields.take("quant", _quant_names, any_quant)
    data = fields.data["quants"]
    if not isinstance(data, dict) or not data:
        fields.problem("quants", "must be a mapping, e.g. {Q8_0: {path: /srv/models/model-q8_0.gguf}}", data)
        return Model()
    found: dict[str, Source] = {}
    for name, item in data.items():
        pattern = fields.pattern % ("quants.%s" % str(name).replace("%", "%%")) + ".%s"
        if not isinstance(item, dict):
            fields.problem("quants.%s" % name, "say where it is, e.g. {path: /srv/models/model-q8_0.gguf}", item)
            continue
        inner: dict[str, Any] = {"from": fields.data["from"]} if "from" in fields.data else {}
        own = Fields(problems, pattern, {**inner, **item}, SOURCE_KEYS)
        given = [key for key in ("path", "url", "urls") if own.data.get(key) is not None]
        if len(given) != 1:
            fix = "give path (a file), url or urls (addresses) of this quantisation"
            own.problem(given[1] if given else "path", fix, own.data[given[1]] if given else None)
            continue
        source = _source(own, from_default)
        if source:
            found[str(name)] = source
    for name in wanted:
        if found and name not in found:
            fields.problem("quant", "%s is not among quants (%s)" % (name, listing(found)), fields.data["quant"])
    return Model(quants=found, wanted=wanted)


def _source(fields: Fields, from_default: str) -> Source | None:
    """Read where the files of one model are; None when their names cannot be told."""
    data = fields.data
    path = fields.take("path", checks.absolute_path, None)
    none: tuple[str, ...] = ()
    urls = fields.take("urls", _urls, none)
    if data.get("url") is not None:
        url = fields.take("url", checks.url, None)
        urls = _shard_urls(url) if url else ()
    shared = fields.take("shared", checks.yes_or_no, False)
    from_ = fields.take("from", checks.one_of("controller", "node"), from_default if urls else "controller")
    sha256 = fields.take("sha256", _checksums, None)
    if shared and data.get("from") == "controller":
        fields.problem("from", "a shared path is read on the nodes; leave it out", "controller")
    places = [path] if path else list(urls)
    if not places:
        return None
    names = [posixpath.basename(unquote(urlsplit(place).path)) for place in urls]
    names = names or beside_each_other(posixpath.basename(places[0]))
    if path and names[0] != posixpath.basename(path) and piece(names[0]):
        fields.problem("path", "it is not the first piece: name that, %s" % names[0], path)
    for whole, numbers in missing_pieces(names).items():
        fix = "of %s, piece %s is missing; list all of them" % (whole, listing(map(str, numbers)))
        fields.problem("urls" if urls else "path", fix, places[0])
        return None
    try:
        file = file_name(next(iter(whole_files(names))))
        name = fields.take("name", model_name, None) or name_of_file(file)
    except Rejected as error:
        fields.problem("urls" if len(urls) > 1 else "url" if urls else "path", str(error), places[0])
        return None
    if path and (shared or from_ == "node") and path.startswith(UNSEEN):
        fix = "services see no home directories (ProtectHome=): move it, or take it from: controller, which copies it"
        fields.problem("path", fix, path)
    checksums = _by_file(fields, names, sha256, bool(urls))
    if urls and data.get("beside") is not None:
        fields.problem("beside", "it belongs to path or repo; leave it out with an address", data["beside"])
    beside = fields.take("beside", _paths, none) if path else none
    others = [posixpath.basename(other) for other in beside]
    return Source(
        name=name,
        file=file,
        from_="node" if shared else from_,
        path=path,
        urls=urls,
        shared=shared,
        pieces=tuple(names) if path and names[0] != file and piece(names[0]) else (),
        checksums={name: item for name, item in checksums.items() if name not in others},
        beside=beside,
        extra=tuple((other, None, checksums.get(other), role_of(other)) for other in others),
    )


def _shard_urls(url: str) -> tuple[str, ...]:
    """Return the addresses of all files of a model, given that of the first; they lie beside each other."""
    place = urlsplit(url)
    folder, _slash, name = unquote(place.path).rpartition("/")
    names = shards(name)
    if len(names) == 1:
        return (url,)
    return tuple(place._replace(path=quote("%s/%s" % (folder, item))).geturl() for item in names)


def _by_file(fields: Fields, names: list[str], given: Checksums | None, required: bool) -> dict[str, str]:
    """Return sha256 by the name of a file; pieces are checked when they are joined."""
    kept = list(whole_files(names))
    if given is None:
        if required:
            fields.problem("sha256", "a model from a url needs its sha256; whoever offers the file publishes it")
        return {}
    if isinstance(given, str):
        if required and len(kept) > 1:
            example = "{%s: ..., %s: ...}" % (kept[0], kept[1])
            fix = "the model has %d files; write the sha256 of each, %s" % (len(kept), example)
            fields.problem("sha256", fix, given)
        return {kept[0]: given}
    beside = [posixpath.basename(str(item)) for item in fields.data.get("beside") or ()]
    known = [*kept, *beside]
    strange = [name for name in given if name not in known]
    if strange:
        fields.problem("sha256", "%s is none of its files (%s)" % (strange[0], listing(known)), strange[0])
        return {}
    missing = [name for name in kept if name not in given]
    if required and missing:
        fields.problem("sha256", "that of %s is missing; whoever offers the file publishes it" % listing(missing))
    return dict(given)


def _convert(problems: list[Problem], fields: Fields) -> Convert | None:
    """Read what a directory or repository of safetensors shall become."""
    data = fields.data.get("convert")
    if data is None:
        return None
    if not isinstance(data, dict):
        fields.problem("convert", "say what it shall become, e.g. {outtype: f16, quant: Q4_K_M}", data)
        return None
    own = Fields(problems, fields.pattern % "convert.%s", data, ("outtype", "quant"))
    return Convert(own.take("outtype", checks.one_of(*OUTTYPES), "auto"), own.take("quant", _one_quant, None))


def _converted(source: Source, convert: Convert, origin: str, fields: Fields) -> Source:
    """Return the source of what the conversion makes: a model in one file, named for what it is made of."""
    kind = convert.quant or convert.outtype.upper()
    name = fields.data.get("name")
    try:
        name = model_name(name) if name else hub_name(origin, kind)
    except Rejected as error:
        fields.problem("name", "%s; give the model a name" % error, origin)
        name = "unnamed"
    return Source(
        name=name,
        file="%s.gguf" % name.replace("/", "-"),
        from_=source.from_,
        path=source.path,
        repo=source.repo,
        revision=source.revision,
        convert=convert,
    )


def _repository(value: object) -> str:
    """Check for a repository of a hub."""
    words = checks.text(value).split("/")
    if len(words) != 2 or not all(words) or any(letter.isspace() for letter in str(value)):
        raise Rejected("write owner and name of the repository, e.g. mradermacher/OR1-Behemoth-GGUF")
    return model_name(value)


def _quant_names(value: object) -> tuple[str, ...]:
    """Check for ``auto``, the name of a quantisation, or a list of names to choose among."""
    if value == "auto":
        return ()
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise Rejected("write auto, the name of a quantisation, e.g. Q4_K_M, or a list of names to choose among")
    return tuple(names)


def _one_quant(value: object) -> str:
    """Check for the name of one quantisation."""
    if not isinstance(value, str) or not value.strip() or value == "auto":
        raise Rejected("write the name of a quantisation, e.g. Q4_K_M; leave it out to keep what outtype makes")
    return value.strip().upper()


def _folder(value: object) -> str:
    """Check for a folder of a repository; returns it without slashes around it."""
    folder = checks.text(value).strip("/")
    if not folder or any(part in ("", ".", "..") for part in folder.split("/")):
        raise Rejected("write a folder of the repository, e.g. UD-Q2_K_XL")
    return folder


def _pattern(value: object) -> str:
    """Check for a file of a repository, or a pattern that names its files."""
    pattern = checks.text(value)
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise Rejected("write a file of the repository or a pattern, e.g. *-Q4_K_M*.gguf")
    return pattern


def _beside(value: object) -> tuple[str, ...]:
    """Check for what lies beside a model: mmproj, tokenizer, imatrix, or files and patterns of the repository."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise Rejected("must be a list of mmproj, tokenizer, imatrix, or files of the repository, e.g. [mmproj]")
    return tuple(_pattern(name) for name in names)


def _paths(value: object) -> tuple[str, ...]:
    """Check for files that lie beside a model, by path."""
    if not isinstance(value, list) or not value:
        raise Rejected("must be a list of files, e.g. [/srv/models/mmproj-F16.gguf]")
    found = tuple(checks.absolute_path(item) for item in value)
    for item in found:
        file_name(posixpath.basename(item))
    return found


def _urls(value: object) -> tuple[str, ...]:
    """Check for the addresses of the files of one model, or of its parts, in order."""
    if not isinstance(value, list) or not value:
        raise Rejected("must be a list of addresses, in order: the files of a split model, or the parts of one file")
    found = tuple(checks.url(item) for item in value)
    if len(set(found)) < len(found):
        raise Rejected("names an address twice; list each once")
    return found


def _checksums(value: object) -> Checksums:
    """Check for one sha256, or those of several files by name."""
    if not isinstance(value, dict):
        return checks.sha256(value)
    return {str(name): checks.sha256(item) for name, item in value.items()}
