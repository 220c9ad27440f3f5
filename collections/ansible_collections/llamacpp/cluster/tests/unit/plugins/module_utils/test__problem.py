# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How problems read."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import (
    HIDDEN,
    VALUE_WIDTH,
    PlanError,
    Problem,
    nearest,
    show,
    size_text,
)


def test_a_problem_is_one_line():
    problem = Problem("llamacpp_instances[0].context", 0, "must be at least 1 token; write e.g. 4096")
    assert str(problem) == "llamacpp_instances[0].context = 0: must be at least 1 token; write e.g. 4096"


def test_values_as_an_operator_wrote_them():
    assert show("text") == "text"
    assert show("") == '""'
    assert show(" ") == '" "'
    assert show(None) == "(not set)"
    assert show(True) == "true"
    assert show(["a", "b"]) == '["a", "b"]'
    assert show(HIDDEN) == "(not shown)"


def test_long_values_and_line_breaks_do_not_spread():
    shown = show("a\nb" * 200)
    assert len(shown) == VALUE_WIDTH
    assert shown.startswith("a ba b")
    assert shown.endswith("...")


def test_all_problems_at_once():
    error = PlanError([Problem("a", 1, "x"), Problem("b", 2, "y")])
    assert str(error) == "a = 1: x\nb = 2: y"


def test_nearest_name():
    assert nearest("contxt", ["context", "parallel"]) == "; did you mean context?"
    assert nearest("zzz", ["context"]) == ""


def test_sizes():
    assert [size_text(size << 20) for size in (0, 1, 10239, 10240, 81920 + 512)] == [
        "0 MiB",
        "1 MiB",
        "10239 MiB",
        "10.0 GiB",
        "80.5 GiB",
    ]
