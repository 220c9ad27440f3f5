# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What role models reads out of the results of its tasks."""

from __future__ import annotations

import hashlib

from ansible_collections.llamacpp.cluster.plugins.filter import stored
from ansible_collections.llamacpp.cluster.plugins.module_utils import _model_seeds
from ansible_collections.llamacpp.cluster.plugins.module_utils._found import NodeFacts
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, instance, link, model, node, nodes

SHA = "ab" * 32
MANIFEST = {
    "name": "toy",
    "files": [{"name": "toy.gguf", "sha256": SHA, "bytes": 1, "role": "model"}],
    "source": {},
    "created": "2026-11-21T20:00:00Z",
    "external": {"toy.gguf": "/srv/toy.gguf"},
}


def test_stores_of_nodes_that_were_asked():
    hostvars = {"n1": {"found": {"models": []}}, "n2": {"found": {"skipped": True}}, "n3": {}}
    assert stored.found_stores(["n1", "n2", "n3"], hostvars, "found") == {"n1": {"models": []}}


def test_what_is_wanted_is_noted_once_a_day():
    def stored_model(name, last_used, used_by=()):
        return {"name": name, "last_used": last_used, "used_by": list(used_by)}

    today, before = "2026-11-21T08:00:00Z", "2026-11-19T08:00:00Z"
    store = {
        "models": [
            stored_model("declared", before),
            stored_model("in-use", before, ["llamacpp-demo.service"]),
            stored_model("noted", today),
            stored_model("forgotten", before),
        ]
    }
    noon = 1795262400.0  # 2026-11-21T12:00:00Z
    assert stored.models_to_note(store, ["declared", "noted"], noon) == ["declared", "in-use"]
    assert stored.models_to_note({"failed": True}, ["declared"], noon) == []


def test_what_loops_have_fetched():
    loops = [{"results": [{"manifest": MANIFEST}, {"skipped": True}, {"manifest": None}]}, {"skipped": True}]
    found = stored.fetched_models(loops)
    assert list(found) == ["toy"]
    assert found["toy"]["external"] == {}, "other nodes hold it themselves"


def test_torrents_come_from_who_has_the_model():
    hostvars = {
        "n1": {"seeds": {"results": [{"item": {"model": "toy"}, "torrent": "ZA=="}]}},
        "n2": {"seeds": {"results": [], "skipped": True}},
        "n3": {},
    }
    assert stored.swarm_torrents(["n1", "n2", "n3"], hostvars, "seeds") == {"toy": "ZA=="}


def test_heads_offer_the_files_of_their_entries_to_those_that_reach_them():
    shares = [
        {"item": {"nodes": ["n4"]}, "urls": ["http://10.0.1.11:1/s/x"]},
        {"item": {"nodes": ["n5"]}, "urls": ["http://10.0.9.11:1/t/x"]},
    ]
    hostvars = {
        "n1": {"listed": {"files": {SHA: "/store/blobs/x"}}, "shared": {"results": shares}},
        "n2": {"listed": {"skipped": True}, "shared": {"skipped": True, "results": [{"skipped": True}]}},
        "n3": {},
    }
    names = ["n1", "n2", "n3"]
    assert stored.seed_sources(names, hostvars, "listed", "shared", "n4") == [{SHA: "http://10.0.1.11:1/s/x"}]
    assert stored.seed_sources(names, hostvars, "listed", "shared", "n5") == [{SHA: "http://10.0.9.11:1/t/x"}]
    assert stored.seed_sources(names, hostvars, "listed", "shared", "n1") == []


def test_a_head_gives_files_on_each_network_that_it_speaks_rpc_on():
    facts = {
        name: NodeFacts.from_dict(node(addresses=[link(*place) for place in places]))
        for name, places in {
            "node1": [("fab0", "10.0.1.11"), ("eth0", "10.0.9.11")],
            "node2": [("fab0", "10.0.1.12")],
            "node3": [("eth0", "10.0.9.13")],
        }.items()
    }
    pair = [
        instance("a", nodes=["node1", "node2"]),
        instance("b", nodes=["node1", "node3"], model={"path": "/srv/other.gguf"}),
    ]
    plan = make_plan(accept(*pair), facts, {"a": model(8), "b": model(8)})
    assert stored.seed_shares(plan, "node1", {"node2": ["node1"], "node3": ["node1"]}) == [
        {"address": "10.0.1.11", "nodes": ["node2"], "peers": ["10.0.1.12"]},
        {"address": "10.0.9.11", "nodes": ["node3"], "peers": ["10.0.9.13"]},
    ]
    assert [item["nodes"] for item in stored.seed_shares(plan, "node1", {"node3": ["node1"]})] == [["node3"]]
    assert stored.seed_shares(plan, "node2", {"node2": ["node1"]}) == []


def test_urls_of_several_shares_belong_to_files_in_the_order_of_both():
    files = [dict(MANIFEST["files"][0], sha256=sha256) for sha256 in (SHA, "cd" * 32)]
    models = {
        name: {"addresses": {"n1": address + "1", "n2": address + "2"}}
        for name, address in (("a", "10.0.9."), ("b", "10.0.1."))
    }
    plan = {"store": {"path": "/store"}, "models": models}
    work = [{"name": name, "transport": "http", "seeds": ["n1"], "receivers": ["n2"]} for name in "ab"]
    known = {name: {"files": [file]} for name, file in zip("ab", files)}
    # As the loop goes over them: by address.
    results = [{"urls": ["http://10.0.1.1/b"]}, {"urls": ["http://10.0.9.1/a"]}]
    found = stored.share_sources(plan, work, "n2", known, {"n1": {"shared": {"results": results}}}, "shared")
    assert found == {"a": [{SHA: "http://10.0.9.1/a"}], "b": [{"cd" * 32: "http://10.0.1.1/b"}]}


def test_entries_are_those_that_heads_listed():
    entry = {"hash": "a" * 16, "bytes": 1, "sha256": SHA, "offset": 0}
    hostvars = {"n1": {"listed": {"workers": {"n2": [entry]}}}, "n3": {}}
    assert stored.seed_entries(["n1", "n3"], hostvars, "listed", "n2") == [entry]


def test_a_cache_that_was_seeded_is_seen_by_its_stamp():
    plan = make_plan(accept(instance(nodes=["node1", "node2"])), nodes(2), {"demo": model(8)})
    kept = hashlib.sha256((_model_seeds.stamp(plan, "node2") + "\n").encode()).hexdigest()

    def hostvars(found):
        return {
            "node1": {"preflight_node": {"node": {"managed": {}}}},
            "node2": {"preflight_node": {"node": {"managed": {"/c-planned": found}}}},
            "node3": {"preflight_node": {"unreachable": True}},
        }

    names = ["node1", "node2", "node3"]
    assert stored.model_seeding(plan, names, hostvars(None), "-planned", []) == {"node2": ["node1"]}
    assert stored.model_seeding(plan, names, hostvars({"sha256": kept}), "-planned", []) == {}


def test_words_of_all_models():
    item = {
        "name": "toy",
        "bytes": 0,
        "source": {"repo": "o/r"},
        "fetch": "n1",
        "land": [],
        "link": [],
        "receivers": [],
        "see": [],
        "seeds": [],
        "transport": "none",
    }
    words = stored.words([item, dict(item, name="b")], "n1")
    assert [word.split()[:2] for word in words] == [["fetch", "toy"], ["fetch", "b"]]
