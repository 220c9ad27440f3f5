#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask llama.cpp on the head what an instance takes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: memory_oracle
short_description: Ask llama.cpp itself what an instance takes on the head's real devices
version_added: 0.1.0
description:
  - Runs the release's own llama-server with the arguments of the unit until it has said what it would reserve, and ends
    it before it loads anything. The head's own devices are real. Workers are simulated with the devices of the plan,
    because a real worker serves one client alone, and that is the head.
  - On a GPU the question needs about 600 MiB for a second or two. When llama.cpp gives no answer, RV(why) says so and
    the module does not fail.
  - An answer is remembered under C(/run/llamacpp-proofs) until arguments, release or model change.
options:
  instance:
    description: The instance, an entry of the plan's C(instances).
    type: dict
    required: true
  bin_dir:
    description: Directory of the release's programs.
    type: path
    required: true
  timeout:
    description: Seconds to wait for an answer.
    type: int
    default: 120
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.memory_ledger
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Ask llama.cpp what the instance takes
  llamacpp.cluster.memory_oracle:
    instance: "{{ plan.instances[0] }}"
    bin_dir: /opt/llamacpp/releases/b11434-cuda-0033f4af/bin
  register: oracle
"""

RETURN = r"""
devices:
  description: >-
    Bytes of C(model), C(context) and C(compute) by the name of the device, and by V(host) for the head's own memory.
    Empty without an answer.
  returned: success
  type: dict
  sample:
    CUDA0: {model: 4617000000, context: 4294967296, compute: 155189248}
    host: {model: 295499776, context: 0, compute: 67108864}
why:
  description: Why there is no answer; empty when there is one.
  returned: success
  type: str
remembered:
  description: Whether the answer is that of an earlier question.
  returned: success
  type: bool
"""

import hashlib
import json
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle import ask_real
from ansible_collections.llamacpp.cluster.plugins.module_utils._oracle_run import Answer, OracleError
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_simulated import SimulatedDevice
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

PROOFS = "/run/llamacpp-proofs"


def workers(instance: dict[str, Any]) -> dict[str, list[SimulatedDevice]]:
    """Return the devices behind each endpoint."""
    found: dict[str, list[SimulatedDevice]] = {}
    for device in instance["devices"]:
        if device["endpoint"]:
            memory = device["memory_bytes"]
            found.setdefault(device["endpoint"], []).append(SimulatedDevice(memory, memory, device["kind"]))
    return found


def question(instance: dict[str, Any], bin_dir: str) -> str:
    """Return what tells one question from another, as a digest."""
    try:
        files = [(name, os.stat(name).st_size, os.stat(name).st_mtime_ns) for name in instance["model"]["files"]]
    except OSError:
        files = []
    asked = [bin_dir, instance["args"], instance["environment"], instance["devices"], files]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def recall(path: str, key: str) -> dict[str, Any] | None:
    """Return an earlier answer to the same question."""
    try:
        with open(path, encoding="utf-8") as stream:
            record = json.load(stream)
        return dict(record["devices"]) if record["question"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(path: str, key: str, devices: dict[str, Any]) -> None:
    """Keep an answer."""
    bring(path, json.dumps({"question": key, "devices": devices}))


def as_data(answer: Answer) -> dict[str, Any]:
    """Return an answer as the module does."""
    said = {item.name: item for item in answer.devices}
    said["host"] = answer.host
    return {
        name: {"model": item.model, "context": item.context, "compute": item.compute} for name, item in said.items()
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "instance": {"type": "dict", "required": True},
            "bin_dir": {"type": "path", "required": True},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    instance, bin_dir = module.params["instance"], module.params["bin_dir"]
    # The whole instance is long, and no help to anyone who reads the result.
    module.params["instance"] = {"name": instance["name"]}
    path = os.path.join(PROOFS, "%s.oracle.json" % instance["unit"])
    key = question(instance, bin_dir)
    devices = recall(path, key)
    if devices is not None:
        module.exit_json(changed=False, devices=devices, why="", remembered=True)
    # As the unit sets them: GPUs in the order of their addresses, and what the operator adds.
    os.environ.update({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, **instance["environment"])
    try:
        devices = as_data(ask_real(instance["args"], workers(instance), bin_dir, module.params["timeout"]))
    except (OracleError, Refused) as error:
        module.exit_json(changed=False, devices={}, why=str(error), remembered=False)
    if not module.check_mode:
        try:
            remember(path, key, devices)
        except OSError as error:
            module.warn("%s: the answer cannot be kept: %s" % (path, error))
    module.exit_json(changed=False, devices=devices, why="", remembered=False)


if __name__ == "__main__":
    main()
