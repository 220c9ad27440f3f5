# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find instances that contradict each other: names, ports of one node, files in one store."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ansible_collections.llamacpp.cluster.plugins.module_utils._declared import Instance
from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import Problem


def name_clashes(instances: Sequence[Instance]) -> list[Problem]:
    """Find names that two instances have, or that replicas of one would have."""
    problems = []
    names: dict[str, str] = {}
    for instance in instances:
        if instance.name in names:
            fix = "%s has this name; choose another" % names[instance.name]
            problems.append(Problem(instance.variable + ".name", instance.name, fix))
        names.setdefault(instance.name, instance.variable)
    for instance in instances:
        base = re.sub(r"-[1-9][0-9]?$", "", instance.name)
        for other in instances:
            if other.replicas is not None and other.name == base and base != instance.name:
                fix = "a replica of %s may get this name; choose another" % other.variable
                problems.append(Problem(instance.variable + ".name", instance.name, fix))
    return problems


def place_clashes(instances: Sequence[Instance]) -> list[Problem]:
    """Find declared ports that two instances want on one node, where their heads are known."""
    problems = []
    ports: dict[tuple[str, int], str] = {}
    for instance in instances:
        if instance.head is None or instance.nodes is None:
            continue
        wanted = [("port", instance.head, instance.port)]
        wanted += [("rpc_port", node, instance.rpc_port) for node in instance.workers]
        for key, node, port in wanted:
            if port is None:
                continue
            variable = "%s.%s" % (instance.variable, key)
            taken = ports.get((node, port))
            if taken and taken != variable:
                fix = "%s uses this port of %s; choose another, or leave it out to get a free one" % (taken, node)
                problems.append(Problem(variable, port, fix))
            ports.setdefault((node, port), variable)
    return problems


def model_clashes(instances: Sequence[Instance]) -> list[Problem]:
    """Find different models of one name: a store keeps one of each."""
    problems = []
    named: dict[str, Instance] = {}
    for instance in instances:
        source = instance.model.source
        if source is None:
            continue
        other = named.setdefault(source.name, instance)
        if other.model.source != source:
            fix = "the model of %s is another one and has this name; give one of them a name" % other.variable
            problems.append(Problem(instance.variable + ".model.name", source.name, fix))
    return problems
