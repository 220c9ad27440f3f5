# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which header is read where."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.filter.models import models_from

FILE = {"path": "/m.gguf"}
ADDRESS = {"url": "https://h/m.gguf"}
REPO = {"repo": "owner/name", "quant": ["Q8_0"]}


def selected(place, kind="file", known=(), fetcher="auto", **instance):
    """Return (quantisation, head) of what is read there; every instance has a secret."""
    found = models_from([{"name": "a", "api_keys": ["s3cret"], **instance}], place, kind, known, fetcher)
    assert "s3cret" not in str(found)
    return [(item["quant"], item["head"]) for item in found]


@pytest.mark.parametrize(
    ("instance", "controller", "node"),
    [
        ({"model": FILE, "nodes": ["n1", "n2"]}, [("", "n1")], []),
        ({"model": dict(FILE, **{"from": "node"}), "nodes": ["n1"]}, [], [("", "n1")]),
        ({"model": ADDRESS, "nodes": ["n1"]}, [], [("", "n1")]),
        ({"model": ADDRESS, "head": "n2", "nodes": "auto"}, [], [("", "n2")]),
        # Nobody knows the head yet, so the control node asks.
        ({"model": ADDRESS}, [("", None)], []),
        ({"model": ADDRESS, "nodes": "auto"}, [("", None)], []),
        ({"model": ADDRESS, "nodes": ["n1", "n2"], "replicas": 2}, [("", None)], []),
        ({"model": REPO, "nodes": ["n1"]}, [], []),
    ],
)
def test_files(instance, controller, node):
    assert selected("controller", **instance) == controller
    assert selected("node", **instance) == node


def test_a_single_node_is_the_head():
    assert selected("node", known=["only"], model=ADDRESS) == [("", "only")]


def test_one_item_a_quantisation_that_is_wanted():
    quants = {"Q8_0": FILE, "Q4_0": FILE}
    assert selected("controller", model={"quants": quants}) == [("Q8_0", None), ("Q4_0", None)]
    assert selected("controller", model={"quants": quants, "quant": "Q4_0"}) == [("Q4_0", None)]


def test_repositories():
    (item,) = models_from([{"name": "a", "model": REPO}], "controller", "hub")
    assert (item["model"]["repo"], item["model"]["quants"]) == ("owner/name", ["Q8_0"])
    assert (
        models_from([{"name": "a", "model": dict(REPO, quant="auto")}], "controller", "hub")[0]["model"]["quants"] == []
    )


@pytest.mark.parametrize(
    ("fetcher", "controller", "node"),
    [("auto", [], [("", "n1")]), ("controller", [("", "n1")], []), ("n2", [], [("", "n2")])],
)
@pytest.mark.parametrize(("model", "kind"), [(ADDRESS, "file"), (REPO, "hub")])
def test_who_fetches_looks(model, kind, fetcher, controller, node):
    declared = {"model": model, "nodes": ["n1"], "kind": kind, "fetcher": fetcher}
    assert (selected("controller", **declared), selected("node", **declared)) == (controller, node)


def test_a_file_of_the_control_node_stays_there():
    declared = {"model": FILE, "nodes": ["n1"], "fetcher": "n2"}
    assert selected("controller", **declared) == [("", "n1")]


def test_what_all_nodes_see_is_read_by_any():
    assert selected("node", known=["n1", "n2"], model=dict(FILE, shared=True)) == [("", "n1")]


def test_of_several_checksums_that_of_the_named_file_is_compared():
    declared = dict(FILE, sha256={"m.gguf": "aa", "mmproj.gguf": "bb"})
    (item,) = models_from([{"name": "a", "model": declared}], "controller")
    assert item["model"] == {"path": "/m.gguf", "sha256": "aa"}
    (item,) = models_from([{"name": "a", "model": dict(FILE, sha256={"mmproj.gguf": "bb"})}], "controller")
    assert item["model"] == FILE


def test_what_is_converted_has_no_header_yet():
    assert selected("controller", model=dict(FILE, convert={"outtype": "f16"})) == []


def test_the_checksum_of_what_pieces_become_is_not_that_of_a_piece():
    declared = {"path": "/m.gguf.part1of2", "sha256": "aa"}
    (item,) = models_from([{"name": "a", "model": declared}], "controller")
    assert item["model"] == {"path": "/m.gguf.part1of2"}


def test_a_projector_beside_a_path_is_read_where_its_model_is():
    beside = ["/srv/tokenizer.json", "/srv/mmproj-F16.gguf"]
    declared = dict(FILE, beside=beside, sha256="aa", **{"from": "node"})
    model, eyes = models_from([{"name": "a", "nodes": ["n1"], "model": declared}], "node")
    assert "projector" not in model
    # The checksum is the model's.
    assert eyes == dict(model, model={"path": "/srv/mmproj-F16.gguf"}, projector=True)
    assert models_from([{"name": "a", "nodes": ["n1"], "model": declared}], "controller") == []
    two = dict(declared, beside=[*beside, "/srv/mmproj-BF16.gguf"])
    assert len(models_from([{"name": "a", "nodes": ["n1"], "model": two}], "node")) == 1
