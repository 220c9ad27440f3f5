# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a person sees what was found, and what is in the stores."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.filter.model_tables import scrub_report, stores_table
from ansible_collections.llamacpp.cluster.plugins.module_utils import _model_tables

GIB = 1 << 30


def quantisation(name, gib, fits=None, why="", **more):
    verdict = {"fits": fits, "why": why, "strategy": None, "devices": [], "context": None, "n_ctx_train": None}
    return {"name": name, "bytes": int(gib * GIB), "verdict": {**verdict, **more}}


def repository(name, *quantisations, **more):
    return {
        "repo": name,
        "commit": "c0ffee",
        "downloads": 1234567,
        "likes": 9,
        "updated": "2026-10-01",
        "gated": False,
        "error": "",
        "quantisations": list(quantisations),
        **more,
    }


def table(*repositories, problems=()):
    found = {"endpoint": "https://hub", "repositories": list(repositories), "problems": list(problems)}
    return _model_tables.search_table(found)


def test_what_fits_and_what_to_write():
    placed = {"strategy": "rpc", "devices": ["CUDA0 of node1", "CUDA0 of node2"], "context": 8192, "n_ctx_train": 40960}
    shown = table(
        repository("owner/big-GGUF", quantisation("F16", 140, False, "60.5 GiB are missing")),
        repository(
            "owner/m-GGUF",
            quantisation("Q8_0", 15.5, True, **placed),
            quantisation("Q4_K_M", 9, None, "not looked at"),
            gated=True,
            downloads=4321,
        ),
    )
    assert shown.splitlines() == [
        "owner/big-GGUF  (1.2M downloads, 9 likes, changed on 2026-10-01)",
        "  F16     140.0 GiB  no   60.5 GiB are missing",
        "",
        "owner/m-GGUF  (4.3k downloads, 9 likes, changed on 2026-10-01, gated: accept its licence on its page)",
        "  Q8_0     15.5 GiB  yes  rpc on CUDA0 of node1, CUDA0 of node2, context 8192 of 40960",
        "  Q4_K_M   9216 MiB  ?    not looked at",
        "",
        "To have one, write in its instance, such as:",
        "  model: {repo: owner/m-GGUF, revision: c0ffee, quant: Q8_0}",
    ]


def test_without_a_cluster_there_is_no_column_for_it():
    shown = table(repository("owner/m-GGUF", quantisation("Q8_0", 15.5), downloads=None, likes=None, updated=None))
    assert shown.splitlines()[:2] == ["owner/m-GGUF  (the hub says nothing of it)", "  Q8_0  15.5 GiB"]


def test_when_nothing_fits_nothing_is_advised():
    shown = table(repository("owner/m", quantisation("Q8_0", 15.5, False, "word " * 100)))
    assert "To have one" not in shown
    assert shown.endswith("...")
    assert max(map(len, shown.splitlines())) <= _model_tables.WIDTH


def test_errors_and_problems_are_shown():
    shown = table(repository("owner/m", error="403 Forbidden"), problems=["llamacpp_x = 1: write 2"])
    assert "  403 Forbidden" in shown.splitlines()
    assert shown.splitlines()[-1] == "no model was tried: llamacpp_x = 1: write 2"


def test_nothing_found():
    assert table() == "https://hub has no repository with GGUF files of that name; search for less."


def model(name, **more):
    return {
        "name": name,
        "bytes": 20 * GIB,
        "own_bytes": 11 * GIB,
        "complete": True,
        "used_by": [],
        "created": "2026-11-21T19:40:00Z",
        "last_used": None,
        "used_since": None,
        **more,
    }


def test_stores():
    info = {
        "models": [
            model(
                "o/m/Q8_0",
                used_by=["llamacpp-x.service"],
                last_used="2026-11-22T08:00:00Z",
                used_since="2026-11-22T08:01:30Z",
            )
        ],
        "missing": ["o/m/Q4_0"],
        "store_bytes": 20 * GIB,
        "free_bytes": 100 * GIB,
    }
    empty = {"models": [], "missing": [], "store_bytes": 0, "free_bytes": 50 * GIB}
    hostvars = {
        "node1": {"model_info": info},
        "node2": {"model_info": empty},
        "node3": {"model_info": {"msg": "no answer"}},
    }
    assert stores_table(hostvars, ["node1", "node2", "node3"]).splitlines() == [
        "node   model         size       own  state     here since  last wanted  running since     used by",
        "-----  --------  --------  --------  --------  ----------  -----------  ----------------  ------------------",
        "node1  o/m/Q8_0  20.0 GiB  11.0 GiB  complete  2026-11-21  2026-11-22   2026-11-22 08:01  llamacpp-x.service",
        "       o/m/Q4_0                      missing",
        "node2  none",
        "",
        "node1: 20.0 GiB in its store, 100.0 GiB free",
        "node2: 0 MiB in its store, 50.0 GiB free",
    ]


@pytest.mark.parametrize(("complete", "state"), [(True, "complete"), (False, "incomplete")])
def test_a_model_that_lost_a_file_is_incomplete(complete, state):
    info = {"models": [model("m", complete=complete)], "missing": [], "store_bytes": 1, "free_bytes": 1}
    assert _model_tables.stores_table({"node1": info}).splitlines()[2].split()[6] == state


def test_a_scrub_that_found_something():
    broken = {"names": ["o/m/Q8_0", "other"], "file": "m.gguf", "problem": "it has other bytes", "moved_to": "/q/1"}
    cached = {"name": "8c2a90b0e8a6b4ff", "bytes": 20 << 20, "why": "its bytes are others", "path": ""}
    hostvars = {
        "node1": {"model_store": {"findings": [broken]}, "rpc_cache": {"skipped": True}},
        "node2": {
            "model_store": {"findings": []},
            "rpc_cache": {"findings": [cached], "entries": 3, "bytes": 60 << 20, "evicted": ["1" * 16, "2" * 16]},
        },
        "node3": {"model_store": {"msg": "no answer"}},
    }
    assert scrub_report(hostvars, ["node1", "node2", "node3"]).splitlines() == [
        "node1: o/m/Q8_0, other m.gguf: it has other bytes",
        "  now in /q/1",
        "node2: cached tensor 8c2a90b0e8a6b4ff: its bytes are others",
        "",
        "node2: 3 cached tensors, 60 MiB, 2 removed for the quota",
        "What was found broken is missing now: run playbooks/site.yml, which brings it again.",
    ]


def test_a_scrub_that_found_nothing():
    assert _model_tables.scrub_report({"node1": ({"findings": []}, {})}) == "Every file is what its name says."


def test_what_was_not_scrubbed_is_said_beside_what_was():
    broken = {"names": ["o/m/Q8_0"], "file": "m.gguf", "problem": "it has other bytes", "moved_to": ""}
    cached = {"name": "8c2a90b0e8a6b4ff", "bytes": 20 << 20, "why": "its bytes are others", "path": ""}
    full = {"findings": [cached], "entries": 1, "bytes": 20 << 20, "evicted": [], "failed": True, "msg": "too small"}
    hostvars = {
        "node1": {"model_store": {"findings": [broken]}, "rpc_cache": {"failed": True, "msg": "there is no program"}},
        "node2": {"model_store": {"skipped": True}, "rpc_cache": full},
        "node3": {"model_store": {"failed": True, "msg": "a disk died"}, "rpc_cache": {"skipped": True}},
        "node4": {"model_store": {"skipped": True}, "rpc_cache": {"skipped": True}},
        "node5": {},
    }
    assert scrub_report(hostvars, sorted(hostvars)).splitlines() == [
        "node1: o/m/Q8_0 m.gguf: it has other bytes",
        "node1: there is no program",
        "node2: cached tensor 8c2a90b0e8a6b4ff: its bytes are others",
        "node2: too small",
        "node3: a disk died",
        "",
        "node2: 1 cached tensors, 20 MiB",
        "What was found broken is missing now: run playbooks/site.yml, which brings it again.",
    ]
