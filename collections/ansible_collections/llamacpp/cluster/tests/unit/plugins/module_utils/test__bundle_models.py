# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which models go into a bundle, and instances that read them from there."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle_models import (
    origin_key,
    planned_models,
    redirected,
    unreachable_models,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse_model import parse_model

SHA = "ab" * 32
URL = "https://models.example.org/small.gguf"


def planned(name, source, files=("/store/small.gguf",), **model):
    return {
        "name": name,
        "declared": "",
        "model": {"source": source, "files": list(files), "sha256": SHA, "checksums": {}, "quant": "Q8_0", **model},
    }


def member(origin, quant, file="small.gguf", first=True):
    return {
        "path": "models/%s/%s" % (origin_key(origin, quant), file),
        "kind": "model",
        "name": file,
        "bytes": 1,
        "sha256": SHA,
        "details": {"origin": origin, "quant": quant, "first": first, "needed_by": ["demo"]},
    }


def bundled(origin, quant=""):
    return {"path": "/opened/models/%s/small.gguf" % origin_key(origin, quant), "sha256": SHA, "from": "controller"}


def test_each_model_is_taken_once_and_says_who_needs_it():
    plan = {"instances": [planned(name, {"url": URL, "from": "node"}) for name in ("one", "two")]}
    (item,) = planned_models(plan, [{"name": name, "model": {"url": URL, "sha256": SHA}} for name in ("one", "two")])
    assert (item["url"], item["path"], item["sha256"], item["name"]) == (URL, None, SHA, "small.gguf")
    assert item["details"] == {"origin": {"url": URL}, "quant": "", "first": True, "needed_by": ["one", "two"]}


def test_a_split_model_has_all_its_files_and_one_that_is_the_first():
    files = ["/store/big-0000%d-of-00002.gguf" % number for number in (1, 2)]
    plan = {"instances": [planned("big", {"path": "/srv/big-00001-of-00002.gguf", "from": "controller"}, files)]}
    items = planned_models(plan, [{"name": "big", "model": {"path": "/srv/big-00001-of-00002.gguf"}}])
    assert [(item["path"], item["details"]["first"]) for item in items] == [
        ("/srv/big-00001-of-00002.gguf", True),
        ("/srv/big-00002-of-00002.gguf", False),
    ]
    assert len({item["folder"] for item in items}) == 1


def test_a_repository_is_known_by_its_name_and_the_quantisation_that_was_chosen():
    source = {"url": "https://hub.example.org/o/r/resolve/c/small-Q4_K_M.gguf", "from": "node"}
    plan = {"instances": [planned("demo-2", source, quant="Q4_K_M")]}
    plan["instances"][0]["declared"] = "demo"
    (item,) = planned_models(plan, [{"name": "demo", "model": {"repo": "o/r", "quant": "auto"}}])
    assert item["details"]["origin"] == {"repo": "o/r", "revision": ""}
    assert item["details"]["quant"] == "Q4_K_M"


def test_what_lies_on_a_node_is_not_taken():
    plan = {"instances": [planned("demo", {"path": "/srv/small.gguf", "from": "node"})]}
    assert planned_models(plan, [{"name": "demo", "model": {"path": "/srv/small.gguf", "from": "node"}}]) == []


@pytest.mark.parametrize(
    ("declared", "origin", "quant", "expected"),
    [
        ({"url": URL, "sha256": SHA}, {"url": URL}, "", bundled({"url": URL})),
        (
            {"url": URL, "sha256": SHA, "name": "x.gguf", "from": "node"},
            {"url": URL},
            "",
            {"name": "x.gguf", **bundled({"url": URL})},
        ),
        ({"path": "/srv/small.gguf"}, {"path": "/srv/small.gguf"}, "", bundled({"path": "/srv/small.gguf"})),
        (
            {"repo": "o/r", "quant": "auto"},
            {"repo": "o/r", "revision": ""},
            "Q4_K_M",
            {"quant": "auto", "quants": {"Q4_K_M": bundled({"repo": "o/r", "revision": ""}, "Q4_K_M")}},
        ),
        (
            {"quants": {"Q8_0": {"url": URL, "sha256": SHA}, "F16": {"path": "/srv/f16.gguf"}}, "quant": ["Q8_0"]},
            {"url": URL},
            "",
            {"quants": {"Q8_0": bundled({"url": URL}), "F16": {"path": "/srv/f16.gguf"}}, "quant": ["Q8_0"]},
        ),
    ],
)
def test_an_instance_reads_its_model_from_the_bundle(declared, origin, quant, expected):
    (instance,) = redirected([{"name": "demo", "model": declared}], [member(origin, quant)], "/opened")
    assert instance["model"] == expected
    problems = []
    parse_model(problems, "llamacpp_instances[0]", instance["model"])
    assert problems == [], "the planner does not take it"


@pytest.mark.parametrize(
    "declared",
    [
        {"path": "/srv/small.gguf", "from": "node"},
        {"path": "/srv/other.gguf"},
        {"repo": "o/r", "revision": "v2"},
        {"url": "https://models.example.org/other.gguf", "sha256": SHA},
        "no mapping",
    ],
)
def test_what_the_bundle_does_not_have_stays_as_it_is(declared):
    members = [member({"path": "/srv/small.gguf"}, ""), member({"repo": "o/r", "revision": ""}, "Q8_0")]
    instances = [{"name": "demo", "model": declared}]
    assert redirected(instances, members, "/opened") == instances


@pytest.mark.parametrize("instances", [None, "text", {"name": "demo"}, [7, {"name": "demo"}]])
def test_bad_declarations_are_left_for_the_planner(instances):
    assert redirected(instances, [member({"url": URL}, "")], "/opened") == instances
    assert unreachable_models(instances) == []


def test_what_a_run_would_still_fetch():
    instances = [
        {"name": "a", "model": {"url": URL}},
        {"name": "b", "model": {"repo": "o/r"}},
        {"name": "c", "model": {"path": "/srv/gone.gguf"}},
        {"name": "d", "model": {"path": "/srv/there.gguf"}},
        {"name": "e", "model": {"path": "/srv/on-the-node.gguf", "from": "node"}},
        {"name": "f", "model": {"quants": {"Q8_0": {"path": "/srv/there.gguf"}, "F16": {"url": URL}}}},
    ]
    assert unreachable_models(instances, ["/srv/there.gguf"]) == [
        ("a", URL),
        ("b", "o/r"),
        ("c", "/srv/gone.gguf"),
        ("f", URL),
    ]
