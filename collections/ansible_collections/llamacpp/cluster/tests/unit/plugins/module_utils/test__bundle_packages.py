# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The index of a directory of packages, and what package managers are told about it."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils import _bundle_packages as packages

CONTROL = """\
Package: g++
Version: 4:12.2.0-3
Description: GNU C++ compiler
 Version: this line belongs to the description.
 .
 Package: so does this one
"""
# Lines of apt-get --print-uris, as apt 2.6 writes them, with what else it says.
URIS = """\
Reading package lists...
'http://deb.example.org/debian/pool/g/g%2b%2b_12.2.0-3_amd64.deb' g++_4%3a12.2.0-3_amd64.deb 1356 MD5Sum:ab
'http://deb.example.org/debian/pool/main/m/make/make_4.3-4.1_amd64.deb' make_4.3-4.1_amd64.deb 396000 MD5Sum:cd
"""


def test_a_stanza_is_the_control_file_with_place_size_and_checksum():
    stanza = packages.index_stanza(CONTROL, "g++_4%3a12.2.0-3_amd64.deb", 1356, "ab")
    assert stanza.startswith("Package: g++\n")
    assert stanza.endswith("\nFilename: ./g++_4%3a12.2.0-3_amd64.deb\nSize: 1356\nSHA256: ab\n\n")


def test_versions_of_an_index():
    index = packages.index_stanza(CONTROL, "a.deb", 1, "ab") + packages.index_stanza(
        "Package: make\nVersion: 4.3-4.1\n", "b.deb", 1, "cd"
    )
    assert packages.index_versions(index.splitlines()) == {"g++": "4:12.2.0-3", "make": "4.3-4.1"}


def test_apt_says_which_files_it_would_fetch():
    assert packages.apt_file_names(URIS) == {"g++_4%3a12.2.0-3_amd64.deb", "make_4.3-4.1_amd64.deb"}


def test_apt_reads_no_list_of_the_system():
    options = packages.apt_options("/var/cache/p")
    assert "--option=Dir::Etc::sourceparts=/dev/null" in options
    (source,) = [option for option in options if option.startswith("--option=Dir::Etc::sourcelist=")]
    files = packages.apt_files("/var/cache/p")
    assert files == {source.partition("sourcelist=")[2]: "deb [trusted=yes] file:/var/cache/p ./\n"}
    (lists,) = [option for option in options if "Dir::State::lists=" in option]
    assert lists.endswith("=/var/cache/p/" + packages.APT_LISTS)


def test_dnf_knows_one_repository_alone():
    options = packages.dnf_options("/var/cache/p")
    assert "--disablerepo=*" in options
    assert "--repofrompath=llamacpp-bundle,file:///var/cache/p" in options
    assert options.index("--disablerepo=*") < options.index("--enablerepo=llamacpp-bundle")


def test_what_a_node_has_already_is_collected_as_well():
    apt = packages.apt_collect(["make"], "/tmp/nothing", "/tmp/archives")
    assert "--option=Dir::State::status=/tmp/nothing" in apt
    assert "--download-only" in apt
    assert apt[-1] == "make"
    assert "--alldeps" in packages.dnf_collect(["make"], "/tmp/archives")


def test_lacking_keeps_the_order_and_says_each_once():
    assert packages.lacking(["b", "a", "b", "c"], {"c": "1"}) == ["b", "a"]
