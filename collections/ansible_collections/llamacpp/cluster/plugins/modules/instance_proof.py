#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prove that an instance serves, and that the model lies where the plan put it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: instance_proof
short_description: Prove that an instance answers and that every planned device holds its share
version_added: 0.1.0
description:
  - Runs on the head. Waits until the server is healthy, asks for a real completion, and compares the model
    buffers that the server logged when it loaded with the devices of the plan.
  - Also proves that a connection to every worker is up, and counts the bytes that crossed the fabric
    during the completion.
  - Gives up early when the service fails while it loads, and says its last log lines.
options:
  unit:
    description: systemd unit of the head.
    type: str
    required: true
  endpoint:
    description: Base address of the server as seen from the head, for example V(http://127.0.0.1:8080).
    type: str
    required: true
  devices:
    description: The instance's C(devices) from the plan.
    type: list
    elements: dict
    required: true
  fabric_address:
    description: The head's address on the fabric.
    type: str
  api_key_file:
    description: File with the API keys on the head; the first is used.
    type: path
  timeout:
    description: Seconds to wait for the model to load.
    type: int
    default: 300
  use:
    description:
      - What the server serves. With V(embedding) or V(reranking), which the arguments of these names restrict
        llama-server to, it is asked for that in place of a completion.
    type: str
    choices: [completion, embedding, reranking]
    default: completion
  tokens:
    description: Tokens to generate for the completion.
    type: int
    default: 8
  probe:
    description: Do not wait. When the server is not healthy yet, say so in RV(healthy) and stop there.
    type: bool
    default: false
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Prove that the instance answers from all its devices
  llamacpp.cluster.instance_proof:
    unit: llamacpp-demo.service
    endpoint: http://127.0.0.1:8080
    devices: "{{ instance.devices }}"
    api_key_file: /etc/llamacpp/keys/demo
"""

RETURN = r"""
healthy:
  description: Whether the server is healthy. Only C(false) with O(probe=true).
  returned: success
  type: bool
buffers:
  description:
    - Model buffer of each device as llama.cpp logged it, in MiB. C(null) when the journal no longer has the start.
  returned: success
  type: dict
  sample: {"CPU": 100.68, "10.0.0.2:50052": 109.14}
completion:
  description: Text of the completion.
  returned: when O(use=completion)
  type: str
tokens_per_second:
  description: Decoding rate that the server reports for the completion.
  returned: when O(use=completion)
  type: float
fabric_bytes:
  description: Bytes that the head's fabric interface sent and received for the answer.
  returned: success
  type: int
waited:
  description: Seconds until the server was healthy.
  returned: success
  type: float
"""

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._proof import (
    answered,
    interface_bytes,
    interface_of,
    missing_buffers,
    missing_connections,
    model_buffers,
    question,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._systemd import PROPERTIES, parse_show
from ansible_collections.llamacpp.cluster.plugins.module_utils._textfile import bring

LOG_LINES = 25
PROOFS = "/run/llamacpp-proofs"


class Proof:
    """Collects the evidence for one instance."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.progress = Progress(module.params["progress_file"])
        # The node's own proxy settings must not send a question about this node elsewhere.
        self.http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fail(self, text: str) -> None:
        """Fail with the last log lines of the service."""
        tail = self.journal("--lines", str(LOG_LINES)).rstrip()
        self.module.fail_json(msg="%s: %s\nThe last log lines:\n%s" % (self.params["unit"], text, tail))

    def journal(self, *arguments: str) -> str:
        """Return messages of the service from the journal."""
        command = ["journalctl", "--unit", self.params["unit"], "--no-pager", "--output", "cat", *arguments]
        return str(self.module.run_command(command)[1])

    def state(self) -> Any:
        """Return what systemd says of the service."""
        command = ["systemctl", "show", self.params["unit"], "--property", ",".join(PROPERTIES)]
        return parse_show(self.module.run_command(command)[1], 0.0)

    def request(self, path: str, body: dict[str, Any] | None = None, timeout: float = 5.0) -> tuple[int, Any]:
        """Ask the server; return status (0 when there is no answer) and the decoded JSON."""
        headers = {"Content-Type": "application/json"}
        if body is not None and self.params["api_key_file"]:
            with open(self.params["api_key_file"], encoding="utf-8") as stream:
                headers["Authorization"] = "Bearer %s" % stream.readline().strip()
        data = json.dumps(body).encode() if body is not None else None
        question = urllib.request.Request(self.params["endpoint"] + path, data=data, headers=headers)
        try:
            with self.http.open(question, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, {"error": error.read().decode(errors="replace")[:500]}
        except (OSError, ValueError) as error:
            return 0, {"error": str(error)}

    def wait_healthy(self) -> float:
        """Wait until /health answers 200; fail early when the service has given up."""
        started = time.monotonic()
        restarts = self.state().invocation
        while True:
            status, _answer = self.request("/health")
            waited = time.monotonic() - started
            if status == 200:
                return waited
            state = self.state()
            if state.active in ("failed", "inactive") and waited > 2:
                self.fail("the service is %s (%s)" % (state.active, state.result))
            if state.invocation != restarts and state.active == "activating" and state.sub == "auto-restart":
                self.fail("the service ended while it loaded the model and systemd starts it again (%s)" % state.result)
            if waited > self.params["timeout"]:
                self.fail("not healthy after %d s; /health said %s" % (waited, status or "nothing"))
            what = (
                "loading the model"
                if status == 503
                else "waiting for its workers"
                if not status
                else "status %d" % status
            )
            self.progress.say(
                "%s: %s, %d of at most %d s" % (self.params["unit"], what, waited, self.params["timeout"])
            )
            time.sleep(0.3)

    def buffers(self) -> dict[str, float] | None:
        """Return the model buffers of the running process, remembered across a rotated journal."""
        invocation = self.state().invocation
        remembered = os.path.join(PROOFS, "%s.json" % self.params["unit"])
        try:
            with open(remembered, encoding="utf-8") as stream:
                record = json.load(stream)
            if record["invocation"] == invocation:
                return dict(record["buffers"])
        except (FileNotFoundError, ValueError, KeyError):
            pass
        found = model_buffers(self.journal("_SYSTEMD_INVOCATION_ID=%s" % invocation))
        if not found:
            return None
        bring(remembered, json.dumps({"invocation": invocation, "buffers": found}))
        return found

    def fabric_counter(self) -> int:
        """Return bytes sent and received so far on the interface that has the fabric address."""
        address = self.params["fabric_address"]
        listed = self.module.run_command(["ip", "-o", "-4", "addr", "show"])[1]
        interface = interface_of(str(address), listed)
        # Not /sys: in a container it may be that of the host.
        with open("/proc/net/dev", encoding="ascii") as table:
            return interface_bytes(interface, table.read())

    def connections(self) -> set[str]:
        """Return the remote ends of the node's established IPv4 TCP connections."""
        command = ["ss", "--no-header", "--numeric", "--tcp", "--ipv4", "state", "established"]
        lines = self.module.run_command(command)[1].splitlines()
        return {line.split()[-1] for line in lines if len(line.split()) >= 4}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "endpoint": {"type": "str", "required": True},
            "devices": {"type": "list", "elements": "dict", "required": True},
            "fabric_address": {"type": "str"},
            "api_key_file": {"type": "path", "no_log": False},
            "timeout": {"type": "int", "default": 300},
            "use": {"type": "str", "choices": ["completion", "embedding", "reranking"], "default": "completion"},
            "tokens": {"type": "int", "default": 8, "no_log": False},
            "probe": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    proof = Proof(module)
    try:
        if module.params["probe"] and proof.request("/health")[0] != 200:
            module.exit_json(changed=False, healthy=False)
        waited = proof.wait_healthy()
        before = proof.fabric_counter()
        asked = question(module.params["use"], module.params["tokens"])
        proof.progress.say(
            "asking for a completion" if asked.use == "completion" else "asking for %s" % asked.use, now=True
        )
        status, answer = proof.request(asked.path, dict(asked.body), timeout=module.params["timeout"])
        if status != 200 or not answered(asked.use, answer):
            proof.fail("no %s: status %d, %s" % (asked.use, status, json.dumps(answer)[:500]))
        moved = proof.fabric_counter() - before
        devices = module.params["devices"]
        absent = missing_connections(devices, proof.connections())
        if absent:
            proof.fail("no connection to %s, which the plan gives a share" % ", ".join(absent))
        if any(device["endpoint"] for device in devices) and module.params["fabric_address"] and moved <= 0:
            proof.fail("not a byte crossed the fabric for an answer that needs the workers")
        buffers = proof.buffers()
        if buffers is not None:
            absent = missing_buffers(devices, buffers)
            if absent:
                proof.fail("no model buffer on %s; the buffers are %s" % (", ".join(absent), json.dumps(buffers)))
    except OSError as error:
        module.fail_json(msg="%s: %s" % (module.params["unit"], error))
    finally:
        proof.progress.close()
    result = {"healthy": True, "buffers": buffers, "fabric_bytes": moved, "waited": round(waited, 1)}
    if asked.use == "completion":
        result["completion"] = answer.get("content", "")
        result["tokens_per_second"] = answer.get("timings", {}).get("predicted_per_second")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
