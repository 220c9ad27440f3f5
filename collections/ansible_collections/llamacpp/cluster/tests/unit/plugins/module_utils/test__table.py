# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan as people read it."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._plan import make_plan
from ansible_collections.llamacpp.cluster.plugins.module_utils._table import plan_table
from ansible_collections.llamacpp.cluster.tests.unit.builders import accept, instance, model, nodes


def test_a_table_with_endpoints_and_reasons():
    declared = accept(instance("demo", api_keys=["k"], parallel=2), instance("solo", nodes=["node2"], host="::"))
    plan = make_plan(declared, nodes(), {"demo": model(), "solo": model()})
    assert plan_table(plan, {"node2": "fd00::12"}) == "\n".join(
        [
            "instance  node   device     layers  model  context  compute  total  of MiB  hardware",
            "--------  -----  ------  ---------  -----  -------  -------  -----  ------  --------",
            "demo      node1  CPU       0-7 (8)    900      128       36   1064   32768  Xeon",
            "          node2  RPC0     8-15 (8)    800      128       32    960   32768  Xeon",
            "          node3  RPC1    16-24 (9)    900      128       32   1060   32768  Xeon",
            "solo      node2  CPU     0-24 (25)   2600      192       36   2828   32768  Xeon",
            "",
            "demo: http://node1:8080/v1 (with an API key)",
            "  2 slots of 4096 tokens. The layers are spread over 3 devices of the declared nodes "
            "(node1, node2, node3) in proportion to memory.",
            "",
            "solo: http://[fd00::12]:8080/v1",
            "  1 slot of 4096 tokens. The whole model runs on one device of node2, the only node declared.",
        ]
    )


def test_what_is_unknown_is_a_question_mark():
    devices = {"devices": [{"kind": "cuda", "name": "V100S", "memory": "32 GiB"}]}
    declared = accept(
        instance(nodes=["node1", "node2"]),
        nodes={
            "node1": dict(devices, fabric_address="10.0.0.1"),
            "node2": dict(devices, fabric_address="10.0.0.2"),
        },
        static=True,
    )
    lines = plan_table(make_plan(declared, {}, {})).splitlines()
    assert lines[2].split() == ["demo", "node2", "RPC0", "?", "?", "?", "?", "?", "32768", "V100S"]
    assert "llama.cpp counts them, as the model's header was not read" in lines[-1]


def test_a_device_without_layers():
    declared = accept(instance(gpu_layers="all"))
    lines = plan_table(make_plan(declared, nodes(), {"demo": model()})).splitlines()
    assert lines[2].split()[:4] == ["demo", "node1", "CPU", "none"]


def test_nothing_declared():
    assert plan_table({"instances": []}) == "No instances are declared."
