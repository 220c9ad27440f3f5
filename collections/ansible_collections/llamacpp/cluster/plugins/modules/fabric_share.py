#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Let a node give files to its peers over the fabric for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_share
short_description: Let a node give files to its peers over the fabric for a while
version_added: 0.1.0
description:
  - With O(state=started), serves O(files) over HTTP on O(address) at a free port, under a path that cannot be guessed,
    to O(peers) alone. Others get no answer.
  - What serves is a transient systemd unit without privileges that sees the file system read-only. It ends by itself
    when nobody took anything for O(idle) seconds, and with O(state=stopped).
  - Several peers are served at a time, and parts of files on request, so a transfer that broke off can go on.
  - Every started share has a new port and path; one of the same O(name) is replaced.
  - Bytes are not encrypted on their way, so whoever takes them should know their sha256.
options:
  name:
    description:
      - Name of the share on this node, letters, digits and hyphens.
      - Its unit is C(llamacpp-share-NAME.service).
    type: str
    required: true
  state:
    description: Whether it shall run.
    type: str
    choices: [started, stopped]
    default: started
  files:
    description: Files to serve. Their names have to differ. Required with O(state=started).
    type: list
    elements: path
    default: []
  address:
    description: Address to listen on, that of the node on the fabric. Required with O(state=started).
    type: str
  port:
    description: Port to listen on; V(0) means any that is free.
    type: int
    default: 0
  peers:
    description: Addresses that are answered. Required with O(state=started).
    type: list
    elements: str
    default: []
  idle:
    description:
      - Seconds without a transfer after which it ends.
      - In a run that works, peers may hash what they have or take other files first, for hours; such a run ends it
        with O(state=stopped). This is for one that was killed.
    type: int
    default: 21600
  user:
    description: User that it runs as once files and port are open.
    type: str
    default: nobody
extends_documentation_fragment:
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Give the release to the others
  llamacpp.cluster.fabric_share:
    name: release
    files: [/var/cache/llamacpp/build/b11434-cpu-1a2b3c4d.tar.gz]
    address: 10.0.1.11
    peers: [10.0.1.12, 10.0.1.13]
  register: __llama_cpp_shared

- name: Give no more
  llamacpp.cluster.fabric_share:
    name: release
    state: stopped
"""

RETURN = r"""
urls:
  description: Address of each file, in the order of O(files). Empty in check mode.
  returned: when O(state=started)
  type: list
  elements: str
  sample: [http://10.0.1.11:38211/Zm9vYmFyYmF6/b11434-cpu-1a2b3c4d.tar.gz]
port:
  description: The port; 0 in check mode.
  returned: when O(state=started)
  type: int
unit:
  description: Name of the unit.
  returned: always
  type: str
"""

import ipaddress
import os
import pwd
import re
import secrets
import sys
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _share
from ansible_collections.llamacpp.cluster.plugins.module_utils._transient import TransientUnit, UnitError

# To become the user, and to open files of others; all three are gone with root.
PROPERTIES = (
    "CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_DAC_READ_SEARCH",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
)


class ShareError(Exception):
    """The share cannot be started; the text says why and what to do."""


class FabricShare:
    """One share of this node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.unit = TransientUnit("share", self.params["name"], lambda argv: module.run_command(list(argv)))

    def stop(self) -> bool:
        """Stop the share; return whether it ran."""
        return self.unit.said()[0] if self.module.check_mode else self.unit.stop()

    def check(self) -> dict[str, str]:
        """Return name -> path of the files. Raises :class:`ShareError` for what cannot be served."""
        files: dict[str, str] = {}
        for path in self.params["files"]:
            name = os.path.basename(path)
            if name in files:
                raise ShareError(
                    "files: %s and %s have the same name; share them one after another" % (files[name], path)
                )
            if not self.module.check_mode and not os.path.isfile(path):
                raise ShareError("files: %s is no file of this node" % path)
            files[name] = os.path.realpath(path)
        for option in ("address", "peers"):
            for value in [self.params[option]] if option == "address" else self.params[option]:
                try:
                    ipaddress.ip_address(value)
                except ValueError as error:
                    raise ShareError("%s = %r: write an IP address, not a name" % (option, value)) from error
        try:
            pwd.getpwnam(self.params["user"])
        except KeyError as error:
            raise ShareError("user = %s: this node has no such user" % self.params["user"]) from error
        if self.params["idle"] < 1:
            raise ShareError("idle = %d: write 1 or more" % self.params["idle"])
        if not 0 <= self.params["port"] <= 65535:
            raise ShareError("port = %d: write 1 to 65535, or 0 for any that is free" % self.params["port"])
        return files

    def start(self) -> tuple[list[str], int]:
        """Start the share; return the addresses of the files, and the port."""
        files = self.check()
        if self.module.check_mode:
            return [], 0
        self.stop()
        secret = secrets.token_urlsafe(24)
        config = {
            "secret": secret,
            "files": files,
            # As they come in: an address of IPv6 can be written in many ways.
            "peers": [str(ipaddress.ip_address(peer)) for peer in self.params["peers"]],
            **{key: self.params[key] for key in ("address", "port", "idle", "user")},
        }
        description = "Files for the peers of this node (llamacpp.cluster)"
        self.unit.launch(description, _share, config, sys.executable, PROPERTIES, secret=True)
        port = self.port()
        host = "[%s]" % self.params["address"] if ":" in self.params["address"] else self.params["address"]
        return ["http://%s:%d/%s/%s" % (host, port, secret, quote(name)) for name in files], port

    def port(self) -> int:
        """Return the port that the share says it listens on."""
        _active, text = self.unit.said()
        found = re.fullmatch(r"port (\d+)", text)
        if not found:
            raise ShareError("%s does not say its port: %s" % (self.unit.unit, text))
        return int(found.group(1))


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "files": {"type": "list", "elements": "path", "default": []},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 0},
            "peers": {"type": "list", "elements": "str", "default": []},
            "idle": {"type": "int", "default": 21600},
            "user": {"type": "str", "default": "nobody"},
        },
        required_if=[("state", "started", ("files", "address", "peers"))],
        supports_check_mode=True,
    )
    try:
        share = FabricShare(module)
        if module.params["state"] == "stopped":
            module.exit_json(changed=share.stop(), unit=share.unit.unit)
        urls, port = share.start()
    except (ShareError, UnitError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, urls=urls, port=port, unit=share.unit.unit)


if __name__ == "__main__":
    main()
