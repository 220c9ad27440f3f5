# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tests of apt's sources: what is added uses the mirrors and keys that are there."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._apt_sources import Entry, added, deb822, one_line

ONE_LINE = """\
# deb http://mirror/debian bookworm contrib
deb http://mirror/debian bookworm main contrib # as installed
deb-src http://mirror/debian bookworm main
deb [arch=amd64 signed-by=/etc/apt/keyrings/own.gpg lang=none] http://mirror/debian bookworm-updates main
deb http://security/debian-security/ bookworm-security main
deb http://mirror/debian bookworm-backports main
deb https://other/apt stable main
"""

DEB822 = """\
# Debian
Types: deb deb-src
URIs: http://mirror/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://mirror/debian
Suites: trixie
Components: non-free

Types: deb
URIs: http://security/debian-security
Suites: trixie-security
Components: main non-free
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQ==
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_one_line() -> None:
    entries = one_line(ONE_LINE)
    assert entries[0] == Entry(("http://mirror/debian",), ("bookworm",), ("main", "contrib"))
    assert entries[1].options == {"architectures": "amd64", "signed-by": "/etc/apt/keyrings/own.gpg"}
    assert len(entries) == 5


def test_deb822() -> None:
    first, second = deb822(DEB822)
    assert (first.suites, first.components) == (("trixie", "trixie-updates"), ("main",))
    assert second.options["signed-by"].splitlines()[1] == " -----BEGIN PGP PUBLIC KEY BLOCK-----"


def test_a_component_is_added_wherever_main_of_the_release_is() -> None:
    text = added(one_line(ONE_LINE), "bookworm", ["non-free"])
    assert [(entry.uris, entry.suites, entry.components) for entry in deb822(text)] == [
        (("http://mirror/debian",), ("bookworm",), ("non-free",)),
        (("http://mirror/debian",), ("bookworm-updates",), ("non-free",)),
        (("http://security/debian-security/",), ("bookworm-security",), ("non-free",)),
    ]
    assert "Signed-By: /etc/apt/keyrings/own.gpg\n" in text


def test_what_is_there_is_not_added_again() -> None:
    text = added(deb822(DEB822), "trixie", ["non-free"])
    assert [entry.suites for entry in deb822(text)] == [("trixie", "trixie-updates")]
    assert added(deb822(DEB822) + deb822(text), "trixie", ["non-free"]) == ""


def test_an_embedded_key_goes_along() -> None:
    (entry,) = deb822(added(deb822(DEB822)[1:], "trixie", ["contrib"]))
    assert entry.options == deb822(DEB822)[1].options


def test_a_machine_without_its_own_archive_is_an_error() -> None:
    with pytest.raises(ValueError, match="component main of bookworm"):
        added(one_line("deb https://other/apt stable main\n"), "bookworm", ["non-free"])
