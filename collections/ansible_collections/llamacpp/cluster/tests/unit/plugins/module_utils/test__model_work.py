# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is to be done for models, given what is in the stores."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _model_work

SHA, OTHER = "ab" * 32, "cd" * 32
REPO = {"repo": "o/r", "revision": None, "commit": "c0ffee", "quant": "Q8_0", "from": "node"}
NODES = ("n1", "n2", "n3")


def file(name="m.gguf", sha256=SHA, size=10, role="model"):
    return {"name": name, "sha256": sha256, "bytes": size, "role": role}


def model(**changes):
    facts = {
        "files": [file()],
        "source": REPO,
        "holders": list(NODES),
        "workers": {},
        "fetcher": "n1",
        "transport": "http",
        "why": "declared",
        "addresses": {node: "10.0.1.1%s" % node[1] for node in NODES},
    }
    return {**facts, **changes}


def plan(**changes):
    return {"store": {"path": "/store", "quota": 0}, "models": {"a": model(**changes)}}


def stored(name="a", complete=True, files=None, **more):
    base = {
        "name": name,
        "complete": complete,
        "files": files or [file()],
        "source": {},
        "created": "now",
        "external": {},
    }
    return {**base, **more}


def stores(*have, others=NODES, **changes):
    """Return the stores of all nodes, of which these have the model."""
    return {node: {"models": [stored(**changes)] if node in have else []} for node in others}


def only(made, found, known=None):
    """Return who does what for the only model that is to be brought."""
    (item,) = _model_work.model_work(made, found, known or {})
    return {key: item[key] for key in ("fetch", "land", "link", "seeds", "receivers", "see", "transport") if item[key]}


def test_nothing_is_to_be_done_where_everything_is():
    assert _model_work.model_work(plan(), stores(*NODES), {}) == []


def test_one_fetches_and_the_others_get_it_from_there():
    found = {"fetch": "n1", "seeds": ["n1"], "receivers": ["n2", "n3"], "transport": "http"}
    assert only(plan(), stores()) == found


@pytest.mark.parametrize(
    "different",
    [
        {"complete": False},
        {"name": "b"},
        {"files": [file(sha256=OTHER)]},
        {"files": [file(size=9)]},
        {"files": [file(name="n.gguf")]},
    ],
)
def test_a_store_with_something_else_lacks_it(different):
    assert only(plan(), stores(*NODES, **different))["fetch"] == "n1"


def test_who_has_it_gives_it_and_nobody_fetches():
    assert only(plan(), stores("n2")) == {"seeds": ["n2"], "receivers": ["n1", "n3"], "transport": "http"}


def test_a_node_that_needs_it_no_more_still_gives_it():
    found = only(plan(holders=["n1"], transport="none"), stores("n3"))
    assert found == {"seeds": ["n3"], "receivers": ["n1"], "transport": "http"}


def test_one_that_only_links_to_it_gives_nothing():
    assert only(plan(), stores("n2", external={"m.gguf": "/srv/m.gguf"}))["fetch"] == "n1"


def test_without_a_way_between_them_it_is_fetched_again():
    found = only(plan(addresses={}, fetcher="controller", transport="rsync"), stores("n2"))
    assert found == {"fetch": "controller", "land": ["n1", "n3"], "transport": "none"}


def test_models_are_given_on_the_network_that_their_takers_share():
    made = plan(addresses={"n1": "10.0.1.11", "n2": "10.0.1.12"})
    made["models"]["b"] = model(files=[file("b.gguf", OTHER)], addresses={"n1": "10.0.9.1", "n3": "10.0.9.3"})
    # It has a file of the first one, too.
    made["models"]["c"] = model(files=[file("c.gguf")], addresses={"n1": "10.0.9.1", "n3": "10.0.9.3"})
    for name, holders in (("a", ["n1", "n2"]), ("b", ["n1", "n3"]), ("c", ["n1", "n3"])):
        made["models"][name]["holders"] = holders
    there = {"n1": {"models": [stored(name, files=made["models"][name]["files"]) for name in "abc"]}}
    there.update({node: {"models": []} for node in ("n2", "n3")})
    work = _model_work.model_work(made, there, {})
    known = _model_work.manifests(work, {}, there)
    shares = _model_work.shared_files(made, work, "n1", known)
    assert [(item["address"], item["sha256"], item["peers"]) for item in shares] == [
        ("10.0.1.11", SHA, ["10.0.1.12"]),
        ("10.0.9.1", SHA, ["10.0.9.3"]),
        ("10.0.9.1", OTHER, ["10.0.9.3"]),
    ]
    urls = {"n1": ["http://%s/%s" % (item["address"], item["sha256"]) for item in shares]}
    assert _model_work.share_sources(made, work, "n2", known, urls) == {"a": [{SHA: "http://10.0.1.11/" + SHA}]}
    found = _model_work.share_sources(made, work, "n3", known, urls)
    assert found["b"][0][OTHER] == "http://10.0.9.1/" + OTHER
    assert found["c"][0][SHA] == "http://10.0.9.1/" + SHA


def test_from_the_control_node_it_lands_on_one():
    found = only(plan(fetcher="controller", transport="swarm"), stores())
    assert found == {
        "fetch": "controller",
        "land": ["n1"],
        "seeds": ["n1"],
        "receivers": ["n2", "n3"],
        "transport": "swarm",
    }


def test_one_that_needs_nothing_may_fetch_for_the_others():
    found = only(plan(holders=["n2"], fetcher="n1"), stores())
    assert found == {"fetch": "n1", "seeds": ["n1"], "receivers": ["n2"], "transport": "http"}


def test_what_lies_on_nodes_is_linked():
    found = only(plan(fetcher=None, transport="linked", source={"path": "/srv/m.gguf", "from": "node"}), stores("n1"))
    assert found == {"link": ["n2", "n3"], "transport": "none"}


def test_in_a_store_that_all_share_one_fetch_is_enough_and_the_others_look():
    assert only(plan(transport="shared"), stores()) == {"fetch": "n1", "see": ["n2", "n3"], "transport": "none"}
    found = only(plan(transport="shared", fetcher="controller"), stores())
    assert found == {"fetch": "controller", "land": ["n1"], "see": ["n2", "n3"], "transport": "none"}
    # It is not shared, or not seen yet.
    assert only(plan(transport="shared"), stores("n1")) == {"see": ["n2", "n3"], "transport": "none"}


def test_a_node_that_was_not_asked_gets_nothing():
    assert only(plan(), stores(others=("n1",))) == {"fetch": "n1", "transport": "none"}


def test_what_nobody_knows_is_not_compared_until_somebody_does():
    unknown = plan(files=[file(sha256=None)])
    assert _model_work.model_work(unknown, stores(*NODES), {}) == []
    changed = {"a": {"name": "a", "files": [file(sha256=OTHER)]}}
    assert only(unknown, stores(*NODES), changed)["fetch"] == "n1"


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (REPO, {"repo": "o/r", "revision": "c0ffee", "quant": "Q8_0"}),
        (
            {"repo": "o/r", "revision": "v1", "commit": None, "folder": "UD", "beside": ["mmproj"], "from": "node"},
            {"repo": "o/r", "revision": "v1", "folder": "UD", "beside": ["mmproj"]},
        ),
        ({"urls": ["https://h/m.gguf"], "from": "node"}, {"urls": ["https://h/m.gguf"], "sha256": {"m.gguf": SHA}}),
        (
            {"path": "/srv/m.gguf", "beside": ["/srv/p.gguf"], "from": "controller"},
            {"paths": ["/srv/m.gguf", "/srv/p.gguf"], "external": True, "sha256": {"m.gguf": SHA}},
        ),
        (
            {"path": "/srv/m.gguf.part1of2", "pieces": ["m.gguf.part1of2", "m.gguf.part2of2"], "from": "controller"},
            {
                "paths": ["/srv/m.gguf.part1of2", "/srv/m.gguf.part2of2"],
                "external": False,
                "sha256": {"m.gguf": SHA},
            },
        ),
    ],
)
def test_what_a_model_is_fetched_with(source, options):
    (item,) = _model_work.fetch_items(plan(source=source), ["a"])
    assert _model_work.source_options(item) == options


def test_all_files_of_a_split_model_are_taken():
    names = ["m-0000%d-of-00002.gguf" % number for number in (1, 2)]
    made = plan(files=[file(name, None) for name in names], source={"path": "/srv/" + names[0], "from": "controller"})
    (item,) = _model_work.fetch_items(made, ["a"])
    assert _model_work.source_options(item) == {"paths": ["/srv/" + name for name in names], "external": True}


PATH = {"path": "/srv/m.gguf", "from": "controller"}


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, ["a"]),
        ({"complete": False}, []),
        ({"source": {"paths": ["/srv/other.gguf"]}}, []),
        ({"files": [file(size=9)]}, []),
    ],
)
def test_what_the_control_node_knows_of_its_files(changes, known):
    made = plan(files=[file(sha256=None)], source=PATH, fetcher="controller")
    entry = stored(**{"source": {"paths": ["/srv/m.gguf"]}, "external": {"m.gguf": "/srv/m.gguf"}, **changes})
    found = _model_work.known_manifests(made, {"models": [entry]}, "/control")
    assert list(found) == known
    assert all(manifest["external"] == {} for manifest in found.values()), "nodes hold it themselves"
    assert _model_work.local_models(made) == ["a"]
    assert _model_work.known_manifests(made, {}, "/control") == {}


def test_what_was_converted_lies_in_the_store_of_the_control_node():
    source = {"path": "/control/names/a/m.gguf", "from": "controller"}
    made = plan(files=[file(sha256=None)], source=source, fetcher="controller")
    entry = stored(source={"convert": {"outtype": "f16"}})
    assert list(_model_work.known_manifests(made, {"models": [entry]}, "/control")) == ["a"]
    assert _model_work.known_manifests(made, {"models": [entry]}, "/other") == {}


def test_manifests_come_from_who_fetched_or_has_it():
    work = _model_work.model_work(plan(), stores("n2"), {})
    assert _model_work.manifests(work, {}, stores("n2"))["a"]["files"] == [file()]
    fetched = {"a": {**stored(), "files": [file(sha256=OTHER)]}}
    assert _model_work.manifests(work, fetched, stores("n2"))["a"]["files"][0]["sha256"] == OTHER


def test_holders_offer_blobs_and_the_others_know_where():
    made = plan()
    work = _model_work.model_work(made, stores("n1", "n2"), {})
    known = _model_work.manifests(work, {}, stores("n1", "n2"))
    (offer,) = _model_work.shared_files(made, work, "n1", known)
    assert offer == {"sha256": SHA, "path": "/store/blobs/" + SHA, "address": "10.0.1.11", "peers": ["10.0.1.13"]}
    assert _model_work.shared_files(made, work, "n3", known) == []
    urls = {"n1": ["http://10.0.1.11:1/x/" + SHA], "n2": ["http://10.0.1.12:2/y/" + SHA]}
    sources = _model_work.share_sources(made, work, "n3", known, urls)
    assert sources == {"a": [{SHA: urls["n1"][0]}, {SHA: urls["n2"][0]}]}
    # A share that did not start is no source.
    assert _model_work.share_sources(made, work, "n3", known, {"n1": urls["n1"]}) == {"a": [{SHA: urls["n1"][0]}]}


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ("n1", ["fetch a (1024 MiB) from o/r"]),
        ("n2", ["get a (1024 MiB) from n1 by http"]),
        ("n9", []),
    ],
)
def test_what_is_said_of_it(node, words):
    (item,) = _model_work.model_work(plan(files=[file(size=1 << 30)]), stores(), {})
    assert _model_work.work_words(item, node) == words


def test_what_is_said_of_other_ways():
    (item,) = _model_work.model_work(plan(fetcher="controller", files=[file(size=None)], source=PATH), stores(), {})
    assert _model_work.work_words(item, "n1") == ["get a (a size that nobody knows) from the control node"]
    (item,) = _model_work.model_work(plan(fetcher="controller", files=[file(size=1 << 30)]), stores(), {})
    said = ["get a (1024 MiB) from the control node, which fetches it from o/r"]
    assert _model_work.work_words(item, "n1") == said
    (item,) = _model_work.model_work(plan(transport="shared"), stores(), {})
    assert _model_work.work_words(item, "n2") == ["find a in the store that all nodes share"]
    (item,) = _model_work.model_work(plan(fetcher=None, transport="linked", source=PATH), stores(), {})
    assert _model_work.work_words(item, "n1") == ["link a to /srv/m.gguf"]


def test_a_swarm_has_a_name_and_a_port_that_no_other_run_has():
    made = {**plan(), "models": {name: model(transport="swarm") for name in "ab"}}
    work = _model_work.model_work(made, stores(), {})
    first, second = _model_work.swarms(made, work, "n2", 4711, 28100)
    assert first == {
        "model": "a",
        "name": "4711-0",
        "seed": False,
        "address": "10.0.1.12",
        "port": 28811,
        "peers": ["10.0.1.11:28811", "10.0.1.13:28811"],
    }
    assert (second["model"], second["name"], second["port"]) == ("b", "4711-1", 28812)
    assert [item["seed"] for item in _model_work.swarms(made, work, "n1", 4711, 28100)] == [True, True]
    assert _model_work.swarms(made, work, "n9", 4711, 28100) == []
    assert {item["port"] for item in _model_work.swarms(made, work, "n2", 4711, 65534)} == {65534, 65535}
    http = _model_work.model_work(plan(), stores(), {})
    assert _model_work.swarms(plan(), http, "n2", 4711, 28100) == []
