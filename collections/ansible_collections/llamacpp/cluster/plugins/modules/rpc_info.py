#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask a ggml-rpc-server who it is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rpc_info
short_description: Ask an RPC worker of llama.cpp for its version and its devices
version_added: 0.1.0
description:
  - Says whether an RPC worker (C(ggml-rpc-server)) answers at a port, which protocol it speaks, and how much memory
    each of its devices has; or that it has a client, that nobody listens, or that something else does.
  - A worker serves one client at a time. The module never opens a port that has one. Run on the worker's node it
    knows that from the kernel's table of connections, without touching the worker.
  - Never fails because of what it finds at the port.
options:
  host:
    description: Address at which the worker listens.
    type: str
    default: 127.0.0.1
  port:
    description: Port of the worker.
    type: int
    required: true
  timeout:
    description: Seconds to wait for the whole answer.
    type: float
    default: 2
  remote:
    description:
      - Ask even if O(host) is no address of the machine where the module runs. From elsewhere nobody can see whether
        the worker has a client. If it has, the question waits until O(timeout) and is taken back so that the worker
        takes no harm; RV(state) is then V(busy), too.
      - A head that starts in that very moment waits until the question is answered.
    type: bool
    default: false
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.vram_fit
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Ask the worker of this node
  llamacpp.cluster.rpc_info:
    host: "{{ llamacpp_fabric_address }}"
    port: 50052
  register: worker
  until: worker.state in ['ok', 'busy']
  retries: 10
  delay: 1
"""

RETURN = r"""
state:
  description: >-
    V(ok); V(busy) when it has a client, or takes connections and does not answer; V(refused) when nobody listens;
    V(unreachable) when there is no way to O(host); V(wrong_protocol) when it is something else, or a worker of a
    version that this collection's llama.cpp cannot talk to.
  returned: success
  type: str
  sample: ok
reachable:
  description: Whether somebody listens there.
  returned: success
  type: bool
message:
  description: The same in words.
  returned: success
  type: str
  sample: RPC 7.0.0 with 24105 MiB free of 24576
protocol:
  description: Version of the protocol, where the other side said one.
  returned: success
  type: str
  sample: 7.0.0
devices:
  description: Devices in the order in which llama.cpp numbers them.
  returned: success
  type: list
  elements: dict
  contains:
    index:
      description: Number at this worker.
      type: int
    total:
      description: Bytes of memory.
      type: int
    free:
      description: Bytes of it that are free.
      type: int
milliseconds:
  description: How long the answer took; null without one.
  returned: success
  type: float
clients:
  description: Who is connected, as C(address:port). Empty with O(remote), when nobody can know.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc import ask, ask_local, is_local


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "default": "127.0.0.1"},
            "port": {"type": "int", "required": True},
            "timeout": {"type": "float", "default": 2},
            "remote": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    host, port, timeout = module.params["host"], module.params["port"], module.params["timeout"]
    if not 0 < port < 65536:
        module.fail_json(msg="port %d: write a port between 1 and 65535" % port)
    if timeout <= 0:
        module.fail_json(msg="timeout %g: write seconds above 0" % timeout)
    try:
        local = is_local(host)
    except OSError as error:
        module.fail_json(msg="host %s: %s; write an address" % (host, error.strerror or error))
    if not local and not module.params["remote"]:
        module.fail_json(
            msg="host %s is no address of this machine, so nobody can see here whether the worker has a client; "
            "run the module on the worker's node, or set remote: true" % host
        )
    try:
        answer = ask_local(host, port, timeout) if local else ask(host, port, timeout)
    except OSError as error:
        module.fail_json(msg="nobody can see whether port %d has a client: %s" % (port, error))
    module.exit_json(changed=False, **answer.as_dict())


if __name__ == "__main__":
    main()
