# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What role models reads out of the results of its tasks."""

from __future__ import annotations

import hashlib

from ansible_collections.llamacpp.cluster.plugins.filter import stored
from ansible_collections.llamacpp.cluster.plugins.module_utils import _model_seeds
from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, instance, model, nodes

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


def test_heads_offer_the_files_of_their_entries():
    hostvars = {
        "n1": {"listed": {"files": {SHA: "/store/blobs/x"}}, "shared": {"urls": ["http://10.0.1.11:1/s/x"]}},
        "n2": {"listed": {"skipped": True}, "shared": {"skipped": True}},
        "n3": {},
    }
    assert stored.seed_sources(["n1", "n2", "n3"], hostvars, "listed", "shared") == [{SHA: "http://10.0.1.11:1/s/x"}]


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
        "seeds": [],
        "transport": "none",
    }
    words = stored.words([item, dict(item, name="b")], "n1")
    assert [word.split()[:2] for word in words] == [["fetch", "toy"], ["fetch", "b"]]
