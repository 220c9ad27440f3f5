# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Web servers that refuse, stumble, redirect and want tokens."""

from __future__ import annotations

import email.utils
import time

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._http import ATTEMPTS, Client, RemoteError, origin, shown
from ansible_collections.llamacpp.cluster.tests.unit.hub_server import HubServer


@pytest.fixture
def waits():
    return []


@pytest.fixture
def client(waits):
    return Client(timeout=5, sleep=waits.append)


def read(client, url):
    answer, _place = client.open(url)
    with answer:
        return answer.read()


def test_an_answer(hub, client, waits):
    hub.files["a"] = b"hello"
    assert read(client, hub.url + "/a") == b"hello"
    assert waits == []


def test_a_busy_server_is_asked_again_when_it_says(hub, client, waits):
    hub.files["a"] = b"hello"
    hub.refusals = [(429, {"Retry-After": "7"}), (503, {}), (500, {"Retry-After": "soon"})]
    assert read(client, hub.url + "/a") == b"hello"
    assert waits == [7.0, 2.0, 4.0]


def test_a_server_may_name_a_time(hub, client, waits):
    hub.files["a"] = b"hello"
    hub.refusals = [(503, {"Retry-After": email.utils.formatdate(time.time() + 20, usegmt=True)})]
    assert read(client, hub.url + "/a") == b"hello"
    assert 10 < waits[0] <= 20


def test_nobody_waits_for_an_hour(hub, client, waits):
    hub.refusals = [(429, {"Retry-After": "3600"})]
    with pytest.raises(RemoteError, match="says 429 Too Many Requests and wants us to wait for 3600 s") as caught:
        client.open(hub.url + "/a")
    assert (caught.value.status, waits) == (429, [])


def test_a_server_that_stays_broken(hub, client, waits):
    hub.refusals = [(502, {})] * ATTEMPTS
    with pytest.raises(RemoteError, match="says 502 Bad Gateway, 5 times; try again later"):
        client.open(hub.url + "/a")
    assert waits == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "wants a token; set HF_TOKEN"),
        (403, {}, "does not let you have it; accept the licence"),
        (403, {"X-Error-Code": "GatedRepo"}, "licence has to be accepted on its page"),
        (404, {}, "404 Not Found; correct the address"),
        (404, {"X-Error-Code": "RepoNotFound"}, "no such repository"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no such revision"),
        (404, {"X-Error-Code": "EntryNotFound"}, "no such file"),
        (410, {}, "410 Gone"),
        (418, {}, "418 I'm a Teapot; correct the address"),
        (302, {}, "302 Found; correct the address"),
    ],
)
def test_refusals_say_what_to_do(hub, client, waits, status, headers, words):
    hub.refusals = [(status, headers)]
    with pytest.raises(RemoteError, match=words) as caught:
        client.open(hub.url + "/a")
    assert caught.value.status == status
    assert waits == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_on_the_same_server_keep_the_token(hub, status):
    hub.files["b"] = b"hello"
    hub.refusals = [(status, {"Location": "/b"})]
    answer, place = Client("secret", hub.url).open(hub.url + "/a")
    answer.close()
    assert place == hub.url + "/b"
    assert [headers.get("Authorization") for _path, headers in hub.requests] == ["Bearer secret"] * 2


def test_the_token_does_not_go_elsewhere(hub):
    other = HubServer()
    try:
        other.files["b"] = b"hello"
        hub.refusals = [(302, {"Location": other.url + "/b"})]
        assert read(Client("secret", hub.url), hub.url + "/a") == b"hello"
        assert [headers.get("Authorization") for _path, headers in other.requests] == [None]
        assert read(Client("secret", hub.url), other.url + "/b") == b"hello"
        assert [headers.get("Authorization") for _path, headers in other.requests] == [None, None]
    finally:
        other.stop()


def test_redirects_in_a_circle(hub, client):
    hub.refusals = [(302, {"Location": "/a"})] * 20
    with pytest.raises(RemoteError, match="round in circles"):
        client.open(hub.url + "/a")


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_redirects_to_other_protocols(hub, client, place):
    hub.refusals = [(302, {"Location": place})]
    with pytest.raises(RemoteError, match="only http and https are read"):
        client.open(hub.url + "/a")


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:none/a", "http://127.0.0.1:1/a b", "file:///etc/passwd"])
def test_what_is_no_address(client, url):
    with pytest.raises(RemoteError):
        client.open(url)


def test_a_silent_server(hub, waits):
    hub.silence = 2.0
    with pytest.raises(RemoteError, match="timed out"):
        Client(timeout=0.2, sleep=waits.append).open(hub.url + "/a")
    assert waits == []


def test_secrets_are_not_shown():
    assert shown("https://me:secret@host:8443/a/b?signature=secret#x") == "https://host:8443/a/b"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://hub/a", "https://HUB:443/b", True),
        ("https://hub/a", "http://hub/a", False),
        ("https://hub/a", "https://hub.evil/a", False),
        ("https://hub/a", "https://hub:8443/a", False),
        ("https://hub/a", "https://hub@evil/a", False),
    ],
)
def test_who_may_hear_a_token(one, other, same):
    assert (origin(one) == origin(other)) is same
