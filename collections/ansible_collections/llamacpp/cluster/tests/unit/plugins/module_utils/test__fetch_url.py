# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What goes on behind a beginning is of the same version, as far as the server tells."""

from __future__ import annotations

import io

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_url import UrlSource
from ansible_collections.llamacpp.cluster.plugins.module_utils._join import Window

URL = "http://127.0.0.1/m.bin"


class Server:
    """A web server with one file, which knows ranges and If-Range; in place of a client."""

    def __init__(self, content, **headers):
        self.content, self.headers = content, headers
        self.asked = []

    def open(self, url, headers):
        self.asked.append(dict(headers))
        first = int(headers.get("Range", "bytes=0-")[len("bytes=") :].partition("-")[0])
        versions = ("", self.headers.get("ETag"), self.headers.get("Last-Modified"))
        partial = "Range" in headers and headers.get("If-Range", "") in versions
        answer = io.BytesIO(self.content[first:] if partial else self.content)
        answer.status = 206 if partial else 200
        size = len(self.content)
        answer.headers = {"Content-Range": "bytes %d-%d/%d" % (first, size - 1, size)} if partial else {}
        answer.headers.update(self.headers, **{"Content-Length": str(len(answer.getvalue()))})
        return answer, url


def rest(server, path, declared=False, later=b"", begun=False):
    """Fetch what is lacking behind a beginning of 4 bytes; ``later``: what the file is by then."""
    source = UrlSource(server, declared)
    part = source.look(URL)
    with open(path, "w+b", buffering=0) as stream:
        window = Window(stream, 0, part.size)
        if begun:
            source.fetch(part, window, 0)
            window.seek(4)
            window.truncate()
        else:
            window.write(b"AAAA")
        server.content = later or server.content
        del server.asked[:]
        source.fetch(part, window, 4)
    return path.read_bytes(), server.asked[0]


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"ETag": '"1"'}, '"1"'),
        ({"ETag": 'W/"1"', "Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}, "Sat, 21 Nov 2026 00:00:00 GMT"),
        ({"Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}, "Sat, 21 Nov 2026 00:00:00 GMT"),
    ],
)
def test_the_rest_is_of_the_version_that_was_begun(tmp_path, headers, version):
    assert rest(Server(b"AAAAaaaa", **headers), tmp_path / "part") == (
        b"AAAAaaaa",
        {"Range": "bytes=4-", "If-Range": version},
    )


def test_another_version_is_fetched_whole(tmp_path):
    server = Server(b"AAAAaaaa", ETag='"1"')
    real = server.open

    def changed(url, headers):
        answer = real(url, headers)
        server.headers = {"ETag": '"2"'}
        return answer

    server.open = changed
    assert rest(server, tmp_path / "part", later=b"BBBBbbbb")[0] == b"BBBBbbbb"


def test_what_has_no_version_is_begun_anew_by_another_run(tmp_path):
    assert rest(Server(b"BBBBbbbb"), tmp_path / "part") == (b"BBBBbbbb", {})
    assert rest(Server(b"AAAAaaaa"), tmp_path / "part", begun=True) == (b"AAAAaaaa", {"Range": "bytes=4-"})


def test_where_a_checksum_tells_nothing_is_fetched_twice(tmp_path):
    assert rest(Server(b"AAAAaaaa"), tmp_path / "part", declared=True) == (b"AAAAaaaa", {"Range": "bytes=4-"})
    # Mirrors behind one name may tag the same file differently.
    assert rest(Server(b"AAAAaaaa", ETag='"1"'), tmp_path / "part", declared=True)[1] == {"Range": "bytes=4-"}
