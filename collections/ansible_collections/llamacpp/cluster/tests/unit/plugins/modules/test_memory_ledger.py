# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The ledger as a module: a table when all is well, the numbers when it is not."""

from __future__ import annotations

import copy

from ansible_collections.llamacpp.cluster.plugins.modules import memory_ledger

MIB = 1 << 20
SIZES = {"model_bytes": 700, "context_bytes": 200, "compute_bytes": 100, "overhead_bytes": 0, "total_bytes": 1000}
PLAN = {
    "instances": [
        {
            "name": "demo",
            "unit": "llamacpp-demo.service",
            "workers": [],
            "devices": [
                {
                    "node": "node1",
                    "device": "CPU",
                    "kind": "cpu",
                    "endpoint": None,
                    "host": True,
                    **{key: size * MIB for key, size in SIZES.items()},
                }
            ],
        }
    ]
}


def taken(mib):
    return {"node1": {"llamacpp-demo.service": {"rss_bytes": mib * MIB, "file_bytes": 0, "gpus": {}}}}


def test_a_ledger_without_drift(run_module):
    result = run_module(memory_ledger, plan=PLAN, reality=taken(1256), margin_mib=256)
    assert result["ledger"][0]["reality"] == 1256 * MIB
    assert "demo      node1  CPU" in result["table"]
    assert result["changed"] is False


def test_drift_fails_with_the_numbers(run_module):
    plan = copy.deepcopy(PLAN)
    plan["instances"][0]["devices"][0]["host"] = False
    result = run_module(memory_ledger, plan=plan, reality=taken(1257), margin_mib=256)
    assert result["failed"] is True
    assert "demo on CPU of node1: it takes 257 MiB more than planned" in result["msg"]
    assert "predicted 1000" in result["msg"]
    assert "reality 1257 MiB" in result["msg"]
    assert "1257" in result["table"]
