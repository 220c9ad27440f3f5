# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is converted before there is a plan, and who uses it."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._conversions import (
    conversions,
    converted,
    with_results,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import check_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse_model import parse_model
from ansible_collections.llamacpp.cluster.tests.unit.builders import declare, instance

REPO = {"name": "a", "model": {"repo": "o/r", "revision": "v1", "convert": {"outtype": "f16", "quant": "q4_k_m"}}}
PATH = {"name": "b", "model": {"path": "/srv/MiniLM/", "convert": {}}}
OTHER = {"name": "c", "model": {"path": "/srv/toy.gguf"}}


def made(place="o/r/v1", outtype="f16", quant="Q4_K_M", name="o/r/Q4_K_M", complete=True):
    source = {"convert": {"from": place, "outtype": outtype, "quant": quant, "release": "b1"}}
    return {"models": [{"name": name, "complete": complete, "source": source}]}


def test_each_conversion_is_made_once():
    first, second = conversions([REPO, PATH, OTHER, dict(REPO, name="d")])
    assert first == {
        "name": "o/r/Q4_K_M",
        "file": "o-r-Q4_K_M.gguf",
        "path": None,
        "repo": "o/r",
        "revision": "v1",
        "source": "o/r/v1",
        "outtype": "f16",
        "quant": "Q4_K_M",
        "variable": "llamacpp_instances[0].model",
    }
    assert (second["name"], second["path"], second["source"], second["outtype"], second["quant"]) == (
        "MiniLM/AUTO",
        "/srv/MiniLM",
        "/srv/MiniLM",
        "auto",
        None,
    )


def at(revision, **more):
    return dict(REPO, model=dict(REPO["model"], revision=revision, **more))


def test_each_revision_is_fetched_under_a_name_of_its_own():
    revisions = ("v1", "v2", "a" * 40, "refs/pr/1", "refs-pr-1", "refs/pr-1", "ブ", "..", "x.json", "b" * 300)
    sources = [conversions([at(revision)])[0]["source"] for revision in revisions]
    assert sources[:3] == ["o/r/v1", "o/r/v2", "o/r/" + "a" * 40]
    assert sources[3].startswith("o/r/refs-pr-1-")
    assert len(set(sources)) == len(revisions)
    assert [check_name(source) for source in sources] == sources
    assert conversions([at(None)])[0]["source"] == "o/r"


@pytest.mark.parametrize(
    "instances",
    [None, "text", [7], [{"name": "a"}], [{"name": "a", "model": {"repo": "o", "convert": {"outtype": "q2"}}}]],
)
def test_bad_declarations_are_left_for_preflight(instances):
    assert conversions(instances) == []
    assert with_results(instances, ["x"], "/store") == instances


@pytest.mark.parametrize(
    ("store", "done"),
    [
        (made(), ["o/r/Q4_K_M"]),
        (made(complete=False), []),
        (made(outtype="bf16"), []),
        (made(quant=None), []),
        (made(place="/srv/other"), []),
        (made(place="o/r/v2"), []),
        (made(place="o/r"), []),
        (made(name="o/r/F16"), []),
        ({"models": [{"name": "o/r/Q4_K_M", "complete": True, "source": {"repo": "o/r"}}]}, []),
        ({}, []),
    ],
)
def test_what_was_made_is_not_made_again(store, done):
    assert converted(conversions([REPO]), store) == done


def test_a_result_that_notes_no_revision_counts_when_its_commit_is_known():
    """Earlier versions noted the repository alone."""
    pinned = at("a" * 40)
    store = made(place="o/r")
    assert converted(conversions([pinned]), store) == []
    store["models"][0]["source"]["of"] = {"repo": "o/r", "commit": "b" * 40}
    assert converted(conversions([pinned]), store) == []
    store["models"][0]["source"]["of"]["commit"] = "a" * 40
    assert converted(conversions([pinned]), store) == ["o/r/Q4_K_M"]
    # Of which tag that commit was is not known.
    assert converted(conversions([at("v1")]), store) == []


def test_different_conversions_of_one_name_are_left_for_preflight():
    instances = [REPO, dict(at("v2"), name="b")]
    assert conversions(instances) == []
    assert with_results(instances, [item["name"] for item in conversions(instances)], "/store") == instances
    _declared, problems = declare(*(instance(item["name"], model=item["model"]) for item in instances))
    assert [str(problem) for problem in problems] == [
        "llamacpp_instances[1].model.name = o/r/Q4_K_M: the model of llamacpp_instances[0] is another one and has this "
        "name; give one of them a name"
    ]
    named = [REPO, dict(at("v2", name="o/r/new"), name="b")]
    assert [(item["name"], item["source"]) for item in conversions(named)] == [
        ("o/r/Q4_K_M", "o/r/v1"),
        ("o/r/new", "o/r/v2"),
    ]


def test_an_instance_uses_the_result():
    first, second, third = with_results([REPO, PATH, OTHER], ["o/r/Q4_K_M"], "/cache/models")
    path = "/cache/models/names/o/r/Q4_K_M/o-r-Q4_K_M.gguf"
    assert first == {"name": "a", "model": {"path": path, "name": "o/r/Q4_K_M", "from": "controller"}}
    assert (second, third) == (PATH, OTHER)
    problems = []
    assert parse_model(problems, "llamacpp_instances[0]", first["model"]).source.name == "o/r/Q4_K_M"
    assert problems == []
