# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the ledger gathers from nodes."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.filter.ledger import found_memory, found_oracle


def test_nodes_that_were_not_asked_are_left_out():
    hostvars = {"node1": {"taken": {"memory": {"u": None}}}, "node2": {"taken": {"skipped": True}}, "node3": {}}
    assert found_memory(["node1", "node2", "node3"], hostvars, "taken") == {"node1": {"u": None}}


def test_answers_by_instance():
    results = [{"item": "a", "devices": {"host": {}}}, {"item": "b", "skipped": True}]
    hostvars = {"node1": {"said": {"results": results}}, "node2": {"said": {"skipped": True}}, "node3": {}}
    assert found_oracle(["node1", "node2", "node3"], hostvars, "said") == {"a": {"host": {}}}
