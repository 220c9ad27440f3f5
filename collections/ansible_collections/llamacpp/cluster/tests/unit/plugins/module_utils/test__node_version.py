# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ranges of versions, as npm's own semver answers them."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._node_version import (
    parse_version,
    refusals,
    satisfies,
)


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        (">=20", ["20.0.0", "99.0.0"], ["19.9.9"]),
        (">= 18.12.0", ["18.12.0"], ["18.11.9"]),
        ("^20.19.0 || >=22.12.0", ["20.19.0", "20.99.0", "22.12.0", "25.0.0"], ["20.18.3", "21.0.0", "22.11.0"]),
        ("18 || 20 || >=22", ["18.0.0", "18.99.0", "20.1.0", "22.0.0"], ["19.0.0", "21.9.0"]),
        ("~1.2", ["1.2.9"], ["1.3.0"]),
        ("~1", ["1.9.0"], ["2.0.0"]),
        ("1.x", ["1.9.0"], ["2.0.0"]),
        ("^0.2.3", ["0.2.9"], ["0.3.0", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        (">18", ["19.0.0"], ["18.9.9"]),
        ("<=18", ["18.99.0"], ["19.0.0"]),
        ("<18", ["17.9.9"], ["18.0.0"]),
        ("18.1 - 20.3.1", ["18.1.0", "20.3.1"], ["20.3.2", "18.0.9"]),
        (">=18 <21", ["20.9.0"], ["21.0.0", "17.0.0"]),
        ("*", ["0.0.1"], []),
        ("", ["0.0.1"], []),
        ("what is this", ["20.0.0"], []),
    ],
)
def test_ranges(wanted, inside, outside):
    assert [satisfies(parse_version(version), wanted) for version in inside] == [True] * len(inside)
    assert [satisfies(parse_version(version), wanted) for version in outside] == [False] * len(outside)


def test_packages_that_npm_may_leave_out_do_not_count():
    lock = {
        "packages": {
            "": {"engines": {"node": ">=1"}},
            "node_modules/a/node_modules/@scope/b": {"version": "2.0.0", "engines": {"node": ">=22"}},
            "node_modules/c": {"version": "3.0.0", "optional": True, "engines": {"node": ">=22"}},
            "node_modules/d": {"version": "4.0.0", "engines": ["node >= 99"]},
        }
    }
    package = {"engines": {"node": "^21"}}
    assert refusals((20, 1, 0), package, lock) == ["the web UI needs ^21", "@scope/b 2.0.0 needs >=22"]


def test_no_version():
    with pytest.raises(ValueError, match="no version"):
        parse_version("node: command not found")
