# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Headers over HTTP: how much is fetched, and what happens when a server misbehaves."""

from __future__ import annotations

import random

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _range
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import Header, parse
from ansible_collections.llamacpp.cluster.plugins.module_utils._http import ATTEMPTS, Client, RemoteError
from ansible_collections.llamacpp.cluster.plugins.module_utils._range import RangeSource
from ansible_collections.llamacpp.cluster.tests.unit.gguf_bytes import build, pair, tensor
from ansible_collections.llamacpp.cluster.tests.unit.hub_server import HubServer

MIB = 1 << 20


def big(words: int, numbers: int = 0, data: int = 4 * MIB) -> bytes:
    """Return a file with a vocabulary, and more data behind the header than anyone should fetch."""
    dice = random.Random(words)
    pairs = [pair("general.architecture", "str", "llama")]
    pairs.append(pair("tokens", "[str]", ["x" * dice.randrange(30) for _index in range(words)]))
    pairs.append(pair("scores", "[f32]", [0.5] * numbers))
    pairs.append(pair("after", "u32", 7))
    return build(pairs, [tensor(shape=(data // 4,))], data=data)


def fetch(hub: HubServer, name: str = "m", **settings: object) -> tuple[Header, RangeSource]:
    client = Client(timeout=5, sleep=lambda _seconds: None, **settings)
    with RangeSource(client, "%s/%s" % (hub.url, name)) as source:
        return parse(source), source


@pytest.mark.parametrize("words", [1, 1000, 20_000, 300_000])
@pytest.mark.parametrize("numbers", [0, 500_000])
def test_no_more_than_the_header_and_a_mebibyte_is_fetched(hub, words, numbers):
    hub.files["m"] = big(words, numbers)
    header, source = fetch(hub)
    assert header.values["after"] == 7
    assert header.values["tokens"].length == words
    assert source.fetched <= header.data_offset + MIB
    assert hub.sent <= source.fetched


def test_what_is_walked_over_is_not_fetched(hub):
    hub.files["m"] = big(10, numbers=2_000_000)
    header, source = fetch(hub)
    assert header.data_offset > 7 * MIB
    assert source.fetched < 2 * MIB


def test_a_large_header_takes_few_requests(hub):
    hub.files["m"] = big(300_000)
    header, _source = fetch(hub)
    assert header.data_offset > 6 * MIB
    assert len(hub.requests) <= 8


def test_a_connection_that_breaks_is_taken_up_again(hub):
    hub.files["m"] = big(50_000)
    hub.cuts = [1000, 0, 100_000, 77]
    header, _source = fetch(hub)
    assert header.values["after"] == 7
    starts = [int(headers["Range"][6:].partition("-")[0]) for _path, headers in hub.requests]
    assert starts[:4] == [0, 1000, 1000, 101_000]


def test_a_connection_that_breaks_without_end(hub):
    hub.files["m"] = big(50_000)
    hub.cuts = [5000] + [0] * ATTEMPTS
    with pytest.raises(RemoteError, match="the connection broke 5 times at byte 5000"):
        fetch(hub)


def test_a_server_without_ranges_is_hung_up_on(hub):
    hub.ranges = False
    hub.files["m"] = big(50_000, data=64 * MIB)
    header, source = fetch(hub)
    assert header.values["after"] == 7
    assert source.fetched <= header.data_offset + MIB
    assert len(hub.requests) == 1


def test_a_server_without_ranges_cannot_go_on(hub):
    hub.ranges = False
    hub.files["m"] = big(50_000)
    hub.cuts = [300_000]
    with pytest.raises(RemoteError, match="cannot go on in the middle of the file"):
        fetch(hub)


def test_downloads_that_are_elsewhere(hub):
    other = HubServer()
    try:
        hub.files["m.gguf"] = other.files["m.gguf"] = big(100_000)
        hub.elsewhere = other.url
        header, _source = fetch(hub, "owner/model/resolve/main/m.gguf", token="secret", token_origin=hub.url)
        assert header.values["after"] == 7
        # The hub is asked once; the storage hears nothing of the token.
        assert len(hub.requests) == 1 and len(other.requests) > 1
        assert {headers.get("Authorization") for _path, headers in other.requests} == {None}
    finally:
        other.stop()


def test_an_address_that_expired_is_asked_for_again(hub):
    other = HubServer()
    try:
        hub.files["m.gguf"] = other.files["m.gguf"] = big(100_000)
        hub.elsewhere = other.url
        client = Client(timeout=5, sleep=lambda _seconds: None)
        with RangeSource(client, hub.url + "/owner/model/resolve/main/m.gguf") as source:
            other.refusals = [(403, {})]
            assert parse(source).values["after"] == 7
        assert len(hub.requests) == 2
    finally:
        other.stop()


def test_a_file_that_changes_in_between(hub):
    hub.files["m"] = big(100_000)
    client = Client(timeout=5, sleep=lambda _seconds: None)
    with RangeSource(client, hub.url + "/m") as source:
        hub.tag = "2"
        with pytest.raises(RemoteError, match="changed while it was read"):
            parse(source)


def test_an_empty_file(hub):
    hub.files["m"] = b""
    with pytest.raises(RemoteError, match="the file is empty"):
        fetch(hub)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "does not say how large"),
        ({"Content-Range": "bytes 0-9/*"}, "does not say how large"),
        ({"Content-Range": "bytes 5-9/100"}, "cannot go on in the middle"),
        ({"Content-Range": "bytes 0-200/100"}, "an impossible range"),
        ({"Content-Range": "bytes 9-0/100"}, "an impossible range"),
    ],
)
def test_answers_that_make_no_sense(hub, headers, words):
    hub.refusals = [(206, headers)]
    with pytest.raises(RemoteError, match=words):
        fetch(hub)


def test_a_server_cannot_make_us_read_for_ever(hub, monkeypatch):
    monkeypatch.setattr(_range, "LIMIT", MIB)
    hub.files["m"] = big(300_000)
    with pytest.raises(RemoteError, match="its header has more than 1 MiB"):
        fetch(hub)


def test_a_server_that_drips(hub, monkeypatch):
    hub.files["m"] = big(1000)
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr(_range.time, "monotonic", lambda: next(clock))
    hub.drip = 100
    with pytest.raises(RemoteError, match="sends too slowly"):
        fetch(hub)
