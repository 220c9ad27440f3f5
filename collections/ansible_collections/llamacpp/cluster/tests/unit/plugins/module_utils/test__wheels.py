# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What pip is asked to download."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._wheels import (
    WheelError,
    download_arguments,
    group_requirements,
)

PROJECT = {
    "dependency-groups": {
        "control": ["ansible-core==2.19.14", "jinja2==3.1.6"],
        "all": [{"include-group": "control"}, "pytest"],
        "one": [{"include-group": "two"}],
        "two": [{"include-group": "one"}],
    }
}


def test_groups_include_groups():
    assert group_requirements(PROJECT, "all") == ["ansible-core==2.19.14", "jinja2==3.1.6", "pytest"]


@pytest.mark.parametrize("group", ["none", "one"])
def test_a_group_that_is_not_there_or_includes_itself_is_refused(group):
    with pytest.raises(WheelError, match="no dependency group"):
        group_requirements(PROJECT, group)


def test_no_source_distribution_is_taken_and_known_wheels_are_not_fetched():
    arguments = download_arguments(["jinja2"], "/new", "/known")
    assert arguments == ["download", "--only-binary=:all:", "--dest", "/new", "--find-links", "/known", "jinja2"]


def test_another_python_takes_wheels_of_old_and_new_systems():
    arguments = download_arguments(["jinja2"], "/new", "/known", "3.13", "x86_64")
    assert arguments[arguments.index("--python-version") + 1] == "3.13"
    assert "--platform=manylinux_2_28_x86_64" in arguments
    assert "--platform=manylinux2014_x86_64" in arguments
    assert arguments[-1] == "jinja2"
