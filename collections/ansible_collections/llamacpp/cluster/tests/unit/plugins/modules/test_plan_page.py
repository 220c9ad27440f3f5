# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module around the page: a plan or its file in, a file out. What the page shows is tested in a browser."""

from __future__ import annotations

import json

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import plan_page

DEVICE = {"device": "CUDA0", "name": "L4", "kind": "cuda", "memory_bytes": 1 << 34, "uses": [], "free_bytes": 1 << 34}
PLAN = {
    "schema": 4,
    "release": "b11434",
    "instances": [],
    "nodes": {"node1": {"fabric_address": None, "units": [], "firewall": []}},
    "devices": {"node1": [dict(DEVICE, margin_bytes=0)]},
}


@pytest.fixture
def page(run_module):
    def run(**arguments):
        return run_module(plan_page, **arguments)

    return run


def test_a_page_from_a_plan(page, tmp_path):
    dest = tmp_path / "deep" / "plan.html"
    result = page(plan=PLAN, dest=str(dest), diff=True)
    assert result["changed"] is True
    assert result["dest"] == str(dest)
    assert result["size"] == dest.stat().st_size
    assert dest.read_text().startswith("<!DOCTYPE html>")
    assert "16.0 GiB" in dest.read_text()
    assert result["diff"]["after"] == dest.read_text()


def test_a_file_gives_the_same_page_and_changes_nothing(page, tmp_path):
    dest, src = tmp_path / "plan.html", tmp_path / "plan.json"
    src.write_text(json.dumps(PLAN))
    page(plan=PLAN, dest=str(dest))
    assert page(src=str(src), dest=str(dest))["changed"] is False


def test_check_mode_writes_nothing(page, tmp_path):
    dest = tmp_path / "plan.html"
    result = page(plan=PLAN, dest=str(dest), check=True, diff=True)
    assert result["changed"] is True
    assert result["diff"]["after"].startswith("<!DOCTYPE html>")
    assert not dest.exists()


def test_a_difference_is_shown_to_those_who_ask(page, tmp_path):
    assert "diff" not in page(plan=PLAN, dest=str(tmp_path / "plan.html"))


def test_a_plan_of_another_schema(page, tmp_path):
    result = page(plan=dict(PLAN, schema=1), dest=str(tmp_path / "plan.html"))
    assert result["failed"]
    assert result["msg"] == "the plan has schema 1, the page shows 4; make the plan again"


@pytest.mark.parametrize(
    ("content", "message"), [("{", "the plan cannot be read"), ("[]", "this is JSON, but no plan")]
)
def test_a_file_that_is_no_plan(page, tmp_path, content, message):
    src = tmp_path / "plan.json"
    src.write_text(content)
    result = page(src=str(src), dest=str(tmp_path / "plan.html"))
    assert result["failed"]
    assert result["msg"].startswith("src = %s: %s" % (src, message))


def test_a_file_that_is_missing(page, tmp_path):
    result = page(src=str(tmp_path / "none.json"), dest=str(tmp_path / "plan.html"))
    assert "the plan cannot be read" in result["msg"]


def test_a_place_that_cannot_be_written(page, tmp_path):
    (tmp_path / "file").write_text("")
    dest = tmp_path / "file" / "plan.html"
    result = page(plan=PLAN, dest=str(dest))
    assert result["failed"]
    assert result["msg"].startswith("dest = %s: the page cannot be written" % dest)
