# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read ``model`` of a declared instance: one file, several quantisations, or a repository of a hub."""

from __future__ import annotations

import posixpath
import urllib.parse
from collections.abc import Mapping
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils import _checks as checks
from ansible_collections.llamacpp.cluster.plugins.module_utils._checks import Fields
from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Model, Source
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem, Rejected, listing

SOURCE_KEYS = ("path", "url", "sha256", "from", "name")
MODEL_KEYS = (*SOURCE_KEYS, "repo", "quant", "revision", "quants")
# One of these says where the model is.
PLACES = ("path", "url", "repo", "quants")


def parse_model(problems: list[Problem], variable: str, data: object) -> Model:
    """Parse and check ``model``; the result is only good when there was no problem."""
    if not isinstance(data, dict):
        problems.append(Problem(variable + ".model", data, "say where it is, e.g. {path: /srv/models/model.gguf}"))
        return Model()
    fields = Fields(problems, variable.replace("%", "%%") + ".model.%s", data, MODEL_KEYS)
    given = [key for key in PLACES if data.get(key) is not None]
    if len(given) > 1:
        fields.problem(given[1], "give one of %s, not several" % ", ".join(PLACES), data[given[1]])
        return Model()
    if not given:
        fields.problem("path", "give path (a file), url (an address), repo (owner/name on a hub) or quants (several)")
        return Model()
    any_quant: tuple[str, ...] = ()
    wanted = fields.take("quant", _quant_names, any_quant)
    if given[0] in ("path", "url"):
        for key in ("quant", "revision"):
            if data.get(key) is not None:
                fields.problem(key, "%s is one file; leave it out, or give repo or quants" % given[0], data[key])
        return Model(source=_source(fields))
    for key in SOURCE_KEYS:
        if key != "from" and data.get(key) is not None:
            fields.problem(key, "it belongs to path or url; leave it out with %s" % given[0], data[key])
    if given[0] == "repo":
        return Model(
            repo=fields.take("repo", _repository, ""),
            revision=fields.take("revision", checks.text, None),
            wanted=wanted,
            from_=fields.take("from", checks.one_of("controller", "node"), "node"),
        )
    quants = _quants(problems, fields, data["quants"])
    for name in wanted:
        if quants and name not in quants:
            fields.problem("quant", "%s is not among quants (%s)" % (name, listing(quants)), data["quant"])
    return Model(quants=quants, wanted=wanted)


def _quants(problems: list[Problem], fields: Fields, data: object) -> Mapping[str, Source]:
    if not isinstance(data, dict) or not data:
        fields.problem("quants", "must be a mapping, e.g. {Q8_0: {path: /srv/models/model-q8_0.gguf}}", data)
        return {}
    found: dict[str, Source] = {}
    for name, item in data.items():
        pattern = fields.pattern % ("quants.%s" % str(name).replace("%", "%%")) + ".%s"
        if not isinstance(item, dict):
            fields.problem("quants.%s" % name, "say where it is, e.g. {path: /srv/models/model-q8_0.gguf}", item)
            continue
        inner: dict[str, Any] = {"from": fields.data["from"]} if "from" in fields.data else {}
        own = Fields(problems, pattern, {**inner, **item}, SOURCE_KEYS)
        if own.data.get("path") is None and own.data.get("url") is None:
            own.problem("path", "give path (a file) or url (an address) of this quantisation")
        found[str(name)] = _source(own)
    return found


def _source(fields: Fields) -> Source:
    path = fields.take("path", checks.absolute_path, None)
    url = fields.take("url", checks.url, None)
    if path and url:
        fields.problem("url", "give either path or url, not both", fields.data["url"])
    sha256 = fields.take("sha256", checks.sha256, None)
    if url and fields.data.get("sha256") is None:
        fields.problem("sha256", "a model from a url needs its sha256; whoever offers the file publishes it")
    default = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path) if url else path or "")
    file = fields.take("name", checks.file_name, "")
    if not file and (path or url):
        try:
            file = checks.file_name(default)
        except Rejected as error:
            fields.problem("name", "%s; give the model such a name" % error, default)
    from_ = fields.take("from", checks.one_of("controller", "node"), "node" if url else "controller")
    return Source(path=path, url=url, from_=from_, sha256=sha256, file=file, renamed=file != default)


def _repository(value: object) -> str:
    """Check for a repository of a hub."""
    words = checks.text(value).split("/")
    if len(words) != 2 or not all(words) or any(letter.isspace() for letter in str(value)):
        raise Rejected("write owner and name of the repository, e.g. mradermacher/OR1-Behemoth-GGUF")
    return str(value)


def _quant_names(value: object) -> tuple[str, ...]:
    """Check for ``auto``, the name of a quantisation, or a list of names to choose among."""
    if value == "auto":
        return ()
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise Rejected("write auto, the name of a quantisation, e.g. Q4_K_M, or a list of names to choose among")
    return tuple(names)
