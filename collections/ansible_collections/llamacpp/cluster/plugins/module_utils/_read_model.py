# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read the headers of a model, wherever it is: a path, an address, ``hf://owner/repo/file``."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Sequence
from typing import Callable, NamedTuple
from urllib.parse import unquote, urlsplit

from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import (
    MAX_TENSORS,
    GgufError,
    Header,
    parse,
    read_header,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf_cursor import ChainedSource, FileSource
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import piece, whole_files
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import ModelFacts, describe
from ansible_collections.llamacpp.cluster.plugins.module_utils._model_name import beside_each_other
from ansible_collections.llamacpp.cluster.plugins.module_utils._split import shard_count, sibling_names


class Model(NamedTuple):
    """The headers of all files of a model, in order, and the files' names; ``fetched``: bytes over the network."""

    headers: tuple[Header, ...]
    names: tuple[str, ...]
    fetched: int


def read_model(
    place: str,
    revision: str | None = None,
    token: str | None = None,
    timeout: float = 30,
    whole: bool = False,
) -> ModelFacts:
    """Return the facts of the model at ``place``, of which any file may be named; see :func:`read_headers`."""
    model = read_headers(place, revision, token, timeout, whole)
    return describe(model.headers, model.names)


def read_headers(
    place: str,
    revision: str | None = None,
    token: str | None = None,
    timeout: float = 30,
    whole: bool = False,
) -> Model:
    """Read the headers of all files of the model at ``place``, of which any file may be named.

    ``place``: a path, ``http(s)://...`` or ``hf://owner/repo/file[@revision]``. ``token``: for the hub; without
    one, HF_TOKEN's or that of its command line; for another server, only what is given. ``timeout``: seconds
    that a server may be silent. ``whole``: keep long arrays and strings.
    Raises :class:`GgufError`, and :class:`OSError` for a server that does not give it (``_http.RemoteError``).
    """
    if "://" in place:
        return _remote(place, revision, token, timeout, whole)
    path = os.path.abspath(os.path.expanduser(place))
    directory, name = os.path.split(path)
    if piece(name):
        return _joined(directory, name, whole)
    first = read_header(path, whole)
    names = sibling_names(name, shard_count(first))
    missing = [item for item in names if not os.path.exists(os.path.join(directory, item))]
    if missing:
        more = " and %d more" % (len(missing) - 3) if len(missing) > 3 else ""
        raise GgufError(
            "path", 0, "of its %d files, %s%s are missing beside it" % (len(names), ", ".join(missing[:3]), more)
        )
    return Model(
        _all(first, name, names, lambda item: read_header(os.path.join(directory, item), whole)), tuple(names), 0
    )


def _joined(directory: str, name: str, whole: bool) -> Model:
    """Read the header of a file that was cut into pieces, which lie beside each other."""
    names = beside_each_other(name)
    missing = [item for item in names if not os.path.isfile(os.path.join(directory, item))]
    if missing:
        raise GgufError("path", 0, "of its %d pieces, %s is missing beside it" % (len(names), missing[0]))
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(open(os.path.join(directory, item), "rb")) for item in names]
        sources = [FileSource(stream, os.fstat(stream.fileno()).st_size) for stream in streams]
        header = parse(ChainedSource(sources), whole)
    return Model((header,), (next(iter(whole_files(names)), name),), 0)


def read_addresses(urls: Sequence[str], token: str | None = None, timeout: float = 30) -> ModelFacts:
    """Return the facts of the model whose files are at ``urls``; see :func:`address_headers`."""
    model = address_headers(urls, token, timeout)
    return describe(model.headers, model.names)


def address_headers(urls: Sequence[str], token: str | None = None, timeout: float = 30, whole: bool = False) -> Model:
    """Read the headers of the model whose files, or pieces of them (``_join``), are at ``urls``.

    Other arguments as for :func:`read_headers`, which also says what is raised.
    """
    from ansible_collections.llamacpp.cluster.plugins.module_utils import _hub, _range

    places = {posixpath.basename(unquote(urlsplit(url).path)): url for url in urls}
    files = whole_files(list(places))
    client = _hub.hub_client(token, timeout)
    fetched = 0

    def read(item: str) -> Header:
        nonlocal fetched
        with _range.JoinedSource(client, [places[piece] for piece in files[item]]) as source:
            header = parse(source, whole)
            fetched += source.fetched
        return header

    name = next(iter(files))
    first = read(name)
    names = sibling_names(name, shard_count(first))
    missing = [item for item in names if item not in files]
    if missing:
        raise GgufError("path", 0, "of its %d files, %s has no address" % (len(names), missing[0]))
    return Model(_all(first, name, names, read), tuple(names), fetched)


def _remote(place: str, revision: str | None, token: str | None, timeout: float, whole: bool) -> Model:
    # Late, because most models are read from files, and this takes longer than reading one.
    from ansible_collections.llamacpp.cluster.plugins.module_utils import _http, _hub, _range

    if place.startswith(_hub.PREFIX):
        address = _hub.parse_address(place, revision)
        folder, _slash, name = address.file.rpartition("/")

        def where(item: str) -> str:
            return address._replace(file="%s/%s" % (folder, item) if folder else item).url()

    else:
        base, question, query = place.partition("?")
        base, _slash, name = base.rpartition("/")

        def where(item: str) -> str:
            return "%s/%s%s%s" % (base, item, question, query)

    if token and _http.origin(where(name)) != _http.origin(_hub.endpoint()):
        client = _http.Client(token, where(name), timeout)
    else:
        client = _hub.hub_client(token, timeout)
    fetched = 0

    def read(item: str) -> Header:
        nonlocal fetched
        with _range.RangeSource(client, where(item)) as source:
            header = parse(source, whole)
            fetched += source.fetched
        return header

    first = read(name)
    names = sibling_names(name, shard_count(first))
    return Model(_all(first, name, names, read), tuple(names), fetched)


def _all(first: Header, name: str, names: list[str], read: Callable[[str], Header]) -> tuple[Header, ...]:
    """Return the headers of ``names`` in order, of which that of ``name`` has been read."""
    headers = []
    tensors = 0
    for item in names:
        try:
            header = first if item == name else read(item)
        except GgufError as error:
            raise GgufError(error.field, error.offset, "%s: %s" % (item, error.message)) from error
        tensors += len(header.tensors)
        if tensors > MAX_TENSORS:
            raise GgufError("tensor count", 0, "%d tensors in %d files are not believable" % (tensors, len(names)))
        headers.append(header)
    return tuple(headers)
