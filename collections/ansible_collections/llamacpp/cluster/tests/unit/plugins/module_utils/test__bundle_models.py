# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which models go into a bundle, and instances that read them from there."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._bundle_models import (
    origin_key,
    packed_files,
    planned_models,
    redirected,
    unreachable_models,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._parse_model import parse_model

SHA = "ab" * 32
URL = "https://models.example.org/small.gguf"


def plan(source, *names, declared="", quant="Q8_0", fetcher="node1"):
    """Return a plan in which these instances have one model."""
    model = {"name": "o/r/Q8_0", "quant": quant}
    files = [
        {"name": "small.gguf", "sha256": SHA, "role": "model"},
        {"name": "mmproj.gguf", "sha256": None, "role": "mmproj"},
    ]
    return {
        "instances": [{"name": name, "declared": declared, "model": model} for name in names],
        "models": {"o/r/Q8_0": {"source": source, "fetcher": fetcher, "files": files}},
    }


def member(origin, quant, file="small.gguf", first=True, role="model"):
    details = {"origin": origin, "quant": quant, "model": "small", "role": role, "first": first, "needed_by": ["demo"]}
    path = "models/%s/%s" % (origin_key(origin, quant), file)
    return {"path": path, "kind": "model", "name": file, "bytes": 1, "sha256": SHA, "details": details}


def bundled(origin, quant="", **changes):
    path = "/opened/models/%s/small.gguf" % origin_key(origin, quant)
    return {"path": path, "sha256": {"small.gguf": SHA}, "name": "small", "from": "controller", **changes}


def test_each_model_is_taken_once_and_says_who_needs_it():
    declared = [{"name": name, "model": {"url": URL, "sha256": SHA, "name": "o/r/Q8_0"}} for name in ("one", "two")]
    (item,) = planned_models(plan({"urls": [URL], "from": "node"}, "one", "two"), declared)
    assert (item["name"], item["source"]["urls"], item["checksums"]) == ("o/r/Q8_0", [URL], {"small.gguf": SHA})
    assert item["files"] == ["small.gguf"]
    assert item["details"] == {"origin": {"url": URL}, "quant": "", "model": "o/r/Q8_0", "needed_by": ["one", "two"]}


def test_a_repository_is_known_by_its_name_and_the_quantisation_that_was_chosen():
    source = {"repo": "o/r", "quant": "Q4_K_M", "from": "node"}
    made = plan(source, "demo-2", declared="demo", quant="Q4_K_M")
    (item,) = planned_models(made, [{"name": "demo", "model": {"repo": "o/r", "quant": "auto"}}])
    assert (item["details"]["origin"], item["details"]["quant"]) == ({"repo": "o/r"}, "Q4_K_M")


def test_a_folder_of_a_repository_is_one_model():
    declared = {"repo": "o/r", "folder": "UD", "beside": ["mmproj"]}
    (item,) = planned_models(plan({"repo": "o/r", "from": "node"}, "demo"), [{"name": "demo", "model": declared}])
    assert (item["details"]["origin"], item["details"]["quant"]) == (declared, "")


def test_a_quantisation_that_lies_around_is_known_by_where_it_lies():
    declared = {"quants": {"Q8_0": {"path": "/srv/q8.gguf"}, "F16": {"path": "/srv/f16.gguf"}}}
    source = {"path": "/srv/f16.gguf", "from": "controller"}
    (item,) = planned_models(plan(source, "demo"), [{"name": "demo", "model": declared}])
    assert item["details"]["origin"] == {"path": "/srv/f16.gguf"}


def test_what_lies_on_a_node_is_not_taken():
    made = plan({"path": "/srv/small.gguf", "from": "node"}, "demo", fetcher=None)
    assert planned_models(made, [{"name": "demo", "model": {"path": "/srv/small.gguf", "from": "node"}}]) == []


def test_the_files_of_a_model_are_packed_and_found_again():
    declared = {"repo": "o/r", "folder": "UD", "beside": ["mmproj"]}
    (item,) = planned_models(plan({"repo": "o/r", "from": "node"}, "demo"), [{"name": "demo", "model": declared}])
    files = [("big-00001-of-00002.gguf", "model"), ("big-00002-of-00002.gguf", "model"), ("mmproj.gguf", "mmproj")]
    manifest = {
        "name": "o/r/Q8_0",
        "files": [{"name": name, "sha256": SHA, "bytes": 1, "role": role} for name, role in files],
    }
    packed = packed_files(item, manifest, "/cache/models")
    assert [entry["file"] for entry in packed] == ["/cache/models/names/o/r/Q8_0/" + name for name, _role in files]
    assert [entry["details"]["first"] for entry in packed] == [True, False, False]
    members = [dict(entry, path="models/%s/%s" % (entry["folder"], entry["name"])) for entry in packed]
    (instance,) = redirected([{"name": "demo", "model": declared}], members, "/opened")
    directory = "/opened/models/%s/" % item["folder"]
    assert instance["model"] == {
        "path": directory + files[0][0],
        "sha256": {name: SHA for name, _role in files},
        "name": "o/r/Q8_0",
        "from": "controller",
        "beside": [directory + "mmproj.gguf"],
    }
    problems = []
    source = parse_model(problems, "llamacpp_instances[0]", instance["model"]).source
    assert problems == [], "the planner does not take it"
    assert (source.name, source.extra) == ("o/r/Q8_0", (("mmproj.gguf", None, SHA, "mmproj"),))


@pytest.mark.parametrize(
    ("declared", "origin", "quant", "expected"),
    [
        ({"url": URL, "sha256": SHA}, {"url": URL}, "", bundled({"url": URL})),
        (
            {"url": URL, "sha256": SHA, "name": "x", "from": "node"},
            {"url": URL},
            "",
            bundled({"url": URL}, name="x"),
        ),
        ({"path": "/srv/small.gguf"}, {"path": "/srv/small.gguf"}, "", bundled({"path": "/srv/small.gguf"})),
        (
            {"repo": "o/r", "quant": "auto"},
            {"repo": "o/r"},
            "Q4_K_M",
            {"quant": "auto", "quants": {"Q4_K_M": bundled({"repo": "o/r"}, "Q4_K_M")}},
        ),
        (
            {"repo": "o/r", "convert": {"outtype": "f16"}},
            {"repo": "o/r", "convert": {"outtype": "f16"}},
            "",
            bundled({"repo": "o/r", "convert": {"outtype": "f16"}}),
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
        {"path": "/srv/small.gguf", "shared": True},
        {"path": "/srv/other.gguf"},
        {"repo": "o/r", "revision": "v2"},
        {"url": "https://models.example.org/other.gguf", "sha256": SHA},
        "no mapping",
    ],
)
def test_what_the_bundle_does_not_have_stays_as_it_is(declared):
    members = [member({"path": "/srv/small.gguf"}, ""), member({"repo": "o/r"}, "Q8_0")]
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
        {"name": "g", "model": {"urls": [URL, URL + ".2"]}},
        {"name": "h", "model": {"path": "/nfs/small.gguf", "shared": True}},
    ]
    assert unreachable_models(instances, ["/srv/there.gguf"]) == [
        ("a", URL),
        ("b", "o/r"),
        ("c", "/srv/gone.gguf"),
        ("f", URL),
        ("g", URL),
    ]
