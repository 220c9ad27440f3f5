#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keep a systemd service equal to its declaration, files and running process alike."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_unit
short_description: Keep a systemd service equal to its unit file, its files and its process
version_added: 0.1.0
description:
  - Writes a unit file and the files that the service reads, reloads systemd, enables the service,
    and starts it, or restarts it when its process is older than one of those files.
  - Because the process itself is looked at, a run that was killed between writing a file and
    restarting the service is finished by the next run. Handlers cannot do that.
  - With O(state=absent) stops and disables the service and removes the unit and O(files).
options:
  name:
    description: Name of the unit, with its suffix, for example V(llamacpp-demo.service).
    type: str
    required: true
  content:
    description: Content of the unit file. Required with O(state=started).
    type: str
  files:
    description: Files that belong to the service. They are written before the unit.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      content:
        description: Content. Ignored with O(state=absent).
        type: str
        default: ""
      mode:
        description: Permissions, as an octal string.
        type: str
        default: "0644"
      owner:
        description: User who owns the file.
        type: str
        default: root
      restart:
        description: Whether the service has to be restarted when this file changes.
        type: bool
        default: true
  watch:
    description:
      - Files that the process reads at start and that another task writes.
      - The service is restarted when one of them is newer than its process.
    type: list
    elements: path
    default: []
  restart:
    description: Restart the service in any case, because an earlier task changed what it reads at start.
    type: bool
    default: false
  state:
    description: Whether the service shall run, or not be there.
    type: str
    choices: [started, absent]
    default: started
  wait:
    description:
      - Wait until systemd has started the service. Switch it off for a service that takes minutes
        to start, and wait for it in a task of its own that shows progress.
    type: bool
    default: true
  unit_directory:
    description: Where unit files of the administrator live.
    type: path
    default: /etc/systemd/system
extends_documentation_fragment:
  - llamacpp.cluster.attributes
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Run the RPC worker of an instance
  llamacpp.cluster.service_unit:
    name: llamacpp-rpc-demo.service
    content: "{{ lookup('ansible.builtin.template', 'rpc-server.service.j2') }}"

- name: Remove the units of an instance that is no longer declared
  llamacpp.cluster.service_unit:
    name: llamacpp-old.service
    state: absent
"""

RETURN = r"""
actions:
  description: What was done (in check mode, what would be done), in order.
  returned: always
  type: list
  elements: str
  sample: [write /etc/systemd/system/llamacpp-demo.service, reload, enable, start]
reason:
  description: Why the service was started or restarted; empty when it was left alone.
  returned: always
  type: str
  sample: its configuration changed
invocation_id:
  description: systemd's invocation id of the running process.
  returned: when O(state=started) and not in check mode
  type: str
"""

import os
import pwd
import tempfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._systemd import (
    PROPERTIES,
    UnitState,
    decide,
    parse_show,
)

LOG_LINES = 20


class ServiceUnit:
    """One unit on one node: reads its state, compares, and mutates only outside check mode."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name = module.params["name"]
        self.path = os.path.join(module.params["unit_directory"], self.name)
        self.actions: list[str] = []
        self.diff: list[dict[str, str]] = []

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Run systemctl and return its output; fail with the service's last log lines."""
        rc, out, err = self.module.run_command(["systemctl", *arguments])
        if rc != 0 and check:
            self.module.fail_json(
                msg="systemctl %s failed on %s: %s\n%s"
                % (" ".join(arguments), self.name, err.strip() or out.strip(), self.log_tail()),
                actions=self.actions,
            )
        return str(out)

    def log_tail(self) -> str:
        """Return the service's last log lines, for an error message."""
        _rc, out, _err = self.module.run_command(
            ["journalctl", "--unit", self.name, "--lines", str(LOG_LINES), "--no-pager", "--output", "cat"]
        )
        return "Its last log lines:\n%s" % out.rstrip() if out.strip() else "It left nothing in the journal."

    def state(self) -> UnitState:
        """Ask systemd for the state of the unit."""
        offset = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        return parse_show(self.systemctl("show", self.name, "--property", ",".join(PROPERTIES)), offset)

    def write(self, path: str, content: str, mode: str, owner: str) -> bool:
        """Bring one file to its content, owner and mode; return whether its content changed."""
        before = _read(path)
        uid = pwd.getpwnam(owner).pw_uid if _has_user(owner) else None
        if before == content:
            info = os.stat(path)
            if info.st_mode & 0o7777 != int(mode, 8) or uid not in (None, info.st_uid):
                self.actions.append("permissions of %s" % path)
                if not self.module.check_mode and uid is not None:
                    os.chown(path, uid, -1)
                    os.chmod(path, int(mode, 8))
            return False
        self.actions.append("write %s" % path)
        self.diff.append({"before_header": path, "after_header": path, "before": before or "", "after": content})
        if self.module.check_mode:
            return True
        if uid is None:
            self.module.fail_json(msg="%s shall belong to %s, and there is no such user" % (path, owner))
        directory = os.path.dirname(path)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".%s." % os.path.basename(path), dir=directory)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(content)
            os.chown(temporary, uid, -1)
            os.chmod(temporary, int(mode, 8))
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        return True

    def start(self) -> dict[str, Any]:
        """Bring files and process to the declared state."""
        params = self.module.params
        changed = bool(params["restart"])
        watched = {path: _mtime(path) for path in [self.path, *params["watch"]]}
        for item in params["files"]:
            written = self.write(item["path"], item["content"], item["mode"], item["owner"])
            if item["restart"]:
                changed = changed or written
                watched[item["path"]] = _mtime(item["path"])
        changed = self.write(self.path, params["content"], "0644", "root") or changed
        before = self.state()
        wanted = decide(before, changed, watched)
        block = [] if params["wait"] else ["--no-block"]
        for needed, action, command in (
            (wanted.reload, "reload", ["daemon-reload"]),
            (wanted.enable, "enable", ["enable", "--quiet", self.name]),
            (wanted.start, "start", ["start", *block, self.name]),
            (wanted.restart, "restart", ["restart", *block, self.name]),
        ):
            if not needed:
                continue
            self.actions.append(action)
            if not self.module.check_mode:
                if action == "start" and before.active == "failed":
                    self.systemctl("reset-failed", self.name, check=False)
                self.systemctl(*command)
        result = {"reason": wanted.reason}
        if not self.module.check_mode:
            result["invocation_id"] = self.state().invocation
        return result

    def remove(self) -> dict[str, Any]:
        """Stop the service and remove everything that belongs to it."""
        state = self.state()
        if state.running or state.active == "failed":
            self.actions.append("stop")
        if state.enabled:
            self.actions.append("disable")
        paths = [
            path
            for path in [self.path] + [item["path"] for item in self.module.params["files"]]
            if os.path.lexists(path)
        ]
        self.actions += ["remove %s" % path for path in paths]
        for path in paths:
            self.diff.append({"before_header": path, "after_header": "/dev/null", "before": "%s\n" % path, "after": ""})
        if self.actions and not self.module.check_mode:
            if state.loaded:
                self.systemctl("disable", "--now", "--quiet", self.name)
            for path in paths:
                os.unlink(path)
            self.systemctl("daemon-reload")
            self.systemctl("reset-failed", self.name, check=False)
        return {"reason": "it is not declared" if self.actions else ""}


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _mtime(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "content": {"type": "str"},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "default": ""},
                    "mode": {"type": "str", "default": "0644"},
                    "owner": {"type": "str", "default": "root"},
                    "restart": {"type": "bool", "default": True},
                },
            },
            "watch": {"type": "list", "elements": "path", "default": []},
            "restart": {"type": "bool", "default": False},
            "state": {"type": "str", "choices": ["started", "absent"], "default": "started"},
            "wait": {"type": "bool", "default": True},
            "unit_directory": {"type": "path", "default": "/etc/systemd/system"},
        },
        required_if=[("state", "started", ("content",))],
        supports_check_mode=True,
    )
    unit = ServiceUnit(module)
    try:
        result = unit.start() if module.params["state"] == "started" else unit.remove()
    except OSError as error:
        module.fail_json(msg="%s: %s" % (unit.name, error), actions=unit.actions)
    module.exit_json(changed=bool(unit.actions), actions=unit.actions, diff=unit.diff, **result)


if __name__ == "__main__":
    main()
