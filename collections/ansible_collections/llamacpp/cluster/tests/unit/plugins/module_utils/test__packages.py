# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which packages are missing, and what apt's status pipe says."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _packages

STATUS = """\
Package: cmake
Status: install ok installed
Version: 3.25

Package: ccache
Status: deinstall ok config-files

Package: g++
Status: install ok half-configured
"""


def test_only_installed_packages_count():
    assert _packages.installed_in_status(STATUS.splitlines(True)) == {"cmake"}


def test_rpm_names_packages_also_to_say_that_they_are_not_there():
    said = "libstdc++\npackage gcc-toolset-12-gcc is not installed\ncmake\n"
    assert _packages.installed_in_rpm(said.splitlines(True)) == {"libstdc++", "cmake"}


def test_missing_keeps_the_order_and_says_each_once():
    assert _packages.missing(["g++", "cmake", "ccache", "g++"], {"cmake"}) == ["g++", "ccache"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pmstatus:g++:40.5:Unpacking g++ (amd64)\n", "installing: 40 % (Unpacking g++ (amd64))"),
        ("dlstatus:1:20.0:Retrieving file 1 of 5\n", "downloading: 20 % (Retrieving file 1 of 5)"),
        ("media-change: something", ""),
        ("pmstatus:x:many:y", ""),
    ],
)
def test_apt_progress(line, words):
    assert _packages.apt_progress(line) == words
