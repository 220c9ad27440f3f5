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
    description: Seconds without a transfer after which it ends.
    type: int
    default: 300
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

import inspect
import ipaddress
import json
import os
import pwd
import re
import secrets
import sys
import tempfile
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _share

LOG_LINES = "20"
RUNTIME = "/run"
# As narrow as systemd 239 (EL 8) and newer have in common. CAP_SETUID and CAP_SETGID to become the user, and
# CAP_DAC_READ_SEARCH to open files of others; all three are gone with root.
SANDBOX = (
    "CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_DAC_READ_SEARCH",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateDevices=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "MemoryDenyWriteExecute=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "TasksMax=256",
)


class ShareError(Exception):
    """The share cannot be started or stopped; the text says why and what to do."""


class FabricShare:
    """One share of this node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", self.params["name"]):
            raise ShareError("name = %r: write letters, digits and hyphens alone" % self.params["name"])
        self.unit = "llamacpp-share-%s.service" % self.params["name"]

    def active(self) -> bool:
        """Whether the share runs."""
        rc, _out, _err = self.module.run_command(["systemctl", "is-active", "--quiet", self.unit])
        return rc == 0

    def stop(self) -> bool:
        """Stop the share; return whether it ran."""
        active = self.active()
        if not self.module.check_mode:
            if active:
                rc, _out, err = self.module.run_command(["systemctl", "stop", self.unit])
                if rc != 0:
                    raise ShareError("systemctl cannot stop %s: %s" % (self.unit, err.strip()))
            # One that failed keeps its name until somebody says so.
            self.module.run_command(["systemctl", "reset-failed", self.unit])
        return active

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
        return files

    def start(self) -> tuple[list[str], int]:
        """Start the share; return the addresses of the files, and the port."""
        files = self.check()
        if self.module.check_mode:
            return [], 0
        self.stop()
        secret = secrets.token_urlsafe(24)
        config = {
            "address": self.params["address"],
            "port": self.params["port"],
            "secret": secret,
            "files": files,
            "peers": self.params["peers"],
            "idle": self.params["idle"],
            "user": self.params["user"],
        }
        # Not on the command line, which every user of the node can read. Both are read before systemd-run returns.
        with tempfile.TemporaryDirectory(prefix="llamacpp-share-", dir=RUNTIME) as work:
            script, settings = os.path.join(work, "share.py"), os.path.join(work, "config.json")
            for path, text in ((script, inspect.getsource(_share)), (settings, json.dumps(config))):
                with open(path, "w", encoding="utf-8") as stream:
                    stream.write(text)
            self.run(script, settings)
        port = self.port()
        host = "[%s]" % self.params["address"] if ":" in self.params["address"] else self.params["address"]
        return ["http://%s:%d/%s/%s" % (host, port, secret, quote(name)) for name in files], port

    def run(self, script: str, settings: str) -> None:
        """Let systemd run the script, and wait until it listens."""
        properties = ("Type=notify", "NotifyAccess=main", *SANDBOX)
        argv = ["systemd-run", "--collect", "--quiet", "--unit", self.unit]
        argv += ["--description", "Files for the peers of this node (llamacpp.cluster)"]
        argv += [word for item in properties for word in ("--property", item)]
        rc, _out, err = self.module.run_command([*argv, sys.executable, "-I", "-B", script, settings])
        if rc != 0:
            _rc, log, _err = self.module.run_command(
                ["journalctl", "--unit", self.unit, "--lines", LOG_LINES, "--no-pager", "--output", "cat"]
            )
            raise ShareError("%s does not start: %s\n%s" % (self.unit, err.strip(), log.strip()))

    def port(self) -> int:
        """Return the port that the share says it listens on."""
        _rc, out, _err = self.module.run_command(["systemctl", "show", "--property", "StatusText", self.unit])
        found = re.search(r"StatusText=port (\d+)", out)
        if not found:
            raise ShareError("%s does not say its port: %s" % (self.unit, out.strip()))
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
            "idle": {"type": "int", "default": 300},
            "user": {"type": "str", "default": "nobody"},
        },
        required_if=[("state", "started", ("files", "address", "peers"))],
        supports_check_mode=True,
    )
    try:
        share = FabricShare(module)
        if module.params["state"] == "stopped":
            module.exit_json(changed=share.stop(), unit=share.unit)
        urls, port = share.start()
    except (ShareError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, urls=urls, port=port, unit=share.unit)


if __name__ == "__main__":
    main()
