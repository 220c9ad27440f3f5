#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Let nodes give a model to each other, by BitTorrent among themselves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swarm
short_description: Let nodes give a model to each other
version_added: 0.4.0
description:
  - Brings a model to many nodes in about the time that one copy takes, because every node gives what it has got to the
    others. The protocol is BitTorrent, version 2, with libtorrent; nobody but O(peers) is asked, told or answered, over
    TCP alone, and there is neither a tracker nor a search for peers.
  - With O(state=started), starts a transient systemd unit without privileges that gives and takes. Where the model is
    in the store already it only gives. Otherwise it may write the parts of the files that lack, and nothing else.
    What an earlier run has left of them is compared with the torrent, and used.
  - With O(state=finished), waits until all is here, takes over the files (each is hashed, a GGUF file's header is
    read), and gives the model its name. The unit goes on giving.
  - With O(state=stopped), ends the unit. What has arrived stays for the next run, also for one of
    M(llamacpp.cluster.model_pull).
  - Wrong bytes are found out by the piece, and who sent them is not asked again.
options:
  name:
    description:
      - Name of the swarm, the same on all nodes, letters, digits and hyphens.
      - Its unit is C(llamacpp-swarm-NAME.service).
    type: str
    required: true
  state:
    description: What to do.
    type: str
    choices: [started, finished, stopped]
    default: started
  store:
    description: Directory of the store.
    type: path
    default: /var/lib/llamacpp/models
  manifest:
    description:
      - The model, as M(llamacpp.cluster.model) returns it. Required, besides with O(state=stopped).
      - With O(state=stopped) it keeps what arrived useful for M(llamacpp.cluster.model_pull).
    type: dict
  torrent:
    description:
      - The torrent file in base64, as RV(torrent) of a node that has the model. Not needed there.
    type: str
  seed:
    description: Whether the model has to be here already, so that this node only gives.
    type: bool
    default: false
  wait:
    description:
      - With O(state=started), whether to go on with what O(state=finished) does, and with O(state=stopped) once no peer
        wants anything any more. That saves two tasks, and needs all nodes that take to run it at the same time
        (C(forks) of Ansible).
    type: bool
    default: false
  address:
    description: Address of the node on the fabric, to listen on and to connect from. Required with O(state=started).
    type: str
  port:
    description: Port to listen on.
    type: int
    default: 6881
  peers:
    description: The other nodes, V(ADDRESS:PORT) or V([ADDRESS]:PORT).
    type: list
    elements: str
    default: []
  python:
    description: Python interpreter that has libtorrent 2.1. Required with O(state=started).
    type: path
  user:
    description: User that the engine runs as. It has to be able to reach the store.
    type: str
    default: nobody
  idle:
    description:
      - Seconds in which not a byte goes either way, after which an engine that has all ends by itself.
      - In a run that works, others may hash for hours what they have, and such a run ends it with O(state=stopped).
        This is for one that was killed.
    type: int
    default: 21600
  stall:
    description: Seconds without a byte after which O(state=finished) gives up, and then an engine that lacks something.
    type: int
    default: 120
  rate:
    description: Bytes a second that the engine may take, and may give; V(0) for no limit.
    type: int
    default: 0
  quota:
    description: Bytes that the store may hold; V(0) for no limit. The least recently used models make room.
    type: int
    default: 0
  keep:
    description: Names of models that do not make room, as those do not that an instance uses.
    type: list
    elements: str
    default: []
  lock_wait:
    description: Seconds to wait for another run that brings one of the files.
    type: int
    default: 21600
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Give the model, where it is
  llamacpp.cluster.swarm:
    name: qwen3
    manifest: "{{ __models_fetched.manifest }}"
    seed: true
    address: 10.0.1.11
    peers: [10.0.1.12:6881, 10.0.1.13:6881]
    python: /opt/llamacpp/swarm/bin/python3
  register: __models_seed

- name: Take it, on the others
  llamacpp.cluster.swarm:
    name: qwen3
    manifest: "{{ __models_fetched.manifest }}"
    torrent: "{{ __models_seed.torrent }}"
    address: 10.0.1.12
    peers: [10.0.1.11:6881, 10.0.1.13:6881]
    python: /opt/llamacpp/swarm/bin/python3

- name: Wait until it is there, after wait=false
  llamacpp.cluster.swarm:
    name: qwen3
    state: finished
    manifest: "{{ __models_fetched.manifest }}"

- name: Give no more, on all of them
  llamacpp.cluster.swarm:
    name: qwen3
    state: stopped
    manifest: "{{ __models_fetched.manifest }}"
"""

RETURN = r"""
unit:
  description: Name of the unit.
  returned: always
  type: str
torrent:
  description: The torrent file in base64. Empty in check mode.
  returned: when O(state=started)
  type: str
evicted:
  description: Models that were removed to make room.
  returned: when O(state=started)
  type: list
  elements: str
fetched_bytes:
  description: Bytes that came over the network.
  returned: when O(state=finished) or O(wait=true)
  type: int
seconds:
  description: How long it took to wait and take over.
  returned: when O(state=finished) or O(wait=true)
  type: float
"""

import base64
import binascii
import ipaddress
import pwd
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress, amount
from ansible_collections.llamacpp.cluster.plugins.module_utils._pull_model import needed_bytes, own
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import File, Manifest, Store, StoreError
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm import split_address
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_store import SwarmStore
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_torrent import TorrentError
from ansible_collections.llamacpp.cluster.plugins.module_utils._swarm_unit import SwarmUnit, addresses, number
from ansible_collections.llamacpp.cluster.plugins.module_utils._transient import UnitError

# Seldom while much is to come, often towards the end: each look costs a process, on nodes that have their hands full.
POLL_SECONDS = 0.3
LONGEST_POLL_SECONDS = 3.0
# Peers that take nothing for as long find enough elsewhere.
LINGER_SECONDS = 5.0
# An engine that gives up says nothing more of how far it is, so this module does it first.
PATIENCE_SECONDS = 30
ORIGIN = "the swarm (if it happens again, the torrent was made of wrong bytes: scrub the stores that give the model)"


class Swarm:
    """This node's part."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.module = module
        self.params = module.params
        self.progress = progress
        self.unit = SwarmUnit(self.params["name"], lambda argv: module.run_command(list(argv)))
        self.store = Store(self.params["store"])

    def swarm_store(self) -> SwarmStore:
        """Return what there is to do with the store."""
        manifest = own(Manifest.from_dict(self.params["manifest"]))
        return SwarmStore(self.store, manifest, self.progress)

    def start(self) -> dict[str, object]:
        """Start the engine."""
        owner = self._check()
        work = self.swarm_store()
        if not self.module.check_mode:
            work.recheck()
        lacking = work.lacking()
        if lacking and self.params["seed"]:
            raise UnitError(
                "seed: %s of %s is not in %s: fetch the model here first"
                % (", ".join(file.name for file in lacking), work.manifest.name, self.store.root)
            )
        if lacking and not self.params["torrent"]:
            raise UnitError("torrent: the model is not here, so give the torrent of a node that has it")
        if self.module.check_mode:
            return {"changed": True, "torrent": "", "evicted": self._room(work, lacking, check=True)}
        data = self._given(work) if lacking else b""
        self.unit.stop()
        evicted = self._room(work, lacking, check=False)
        if lacking:
            work.keep(data)
        else:
            data = work.torrent()
        share = work.prepare(data, owner, self.params["lock_wait"])
        config = {
            "torrent": work.torrent_path,
            "files": share.files,
            "have": share.have,
            "locks": share.locks,
            **{key: self.params[key] for key in ("address", "port", "peers", "idle", "rate")},
            "stall": self.params["stall"] + PATIENCE_SECONDS,
        }
        writable = [path for sha256, path in share.files.items() if path == self.store.part(sha256)]
        self.unit.start(config, self.params["python"], self.params["user"], writable)
        return {"changed": True, "torrent": base64.b64encode(data).decode(), "evicted": evicted}

    def _given(self, work: SwarmStore) -> bytes:
        """Return the torrent of another node. Raises :class:`UnitError` when it is none of this model."""
        try:
            data = base64.b64decode(self.params["torrent"], validate=True)
            work.check(data)
        except (binascii.Error, TorrentError) as error:
            raise UnitError("torrent: %s; take that of a node that has the model" % error) from error
        return data

    def _room(self, work: SwarmStore, lacking: Sequence[File], check: bool) -> list[str]:
        keep = [*self.params["keep"], work.manifest.name]
        return self.store.room(needed_bytes(self.store, lacking), self.params["quota"], keep, check) if lacking else []

    def _check(self) -> tuple[int, int] | None:
        """Return whom parts belong to. Raises :class:`UnitError` for options that cannot be."""
        try:
            ipaddress.ip_address(self.params["address"])
        except ValueError as error:
            raise UnitError("address = %r: write an IP address" % self.params["address"]) from error
        for peer in self.params["peers"]:
            try:
                split_address(peer)
            except ValueError as error:
                raise UnitError("peers: %r: write ADDRESS:PORT, for IPv6 [ADDRESS]:PORT" % peer) from error
        for option, least in (("idle", 1), ("stall", 1), ("port", 1), ("rate", 0)):
            if self.params[option] < least:
                raise UnitError("%s = %d: write %d or more" % (option, self.params[option], least))
        if self.params["port"] > 65535:
            raise UnitError("port = %d: write 1 to 65535" % self.params["port"])
        if not self.params["user"]:
            return None
        try:
            entry = pwd.getpwnam(self.params["user"])
        except KeyError as error:
            raise UnitError("user = %s: this node has no such user" % self.params["user"]) from error
        return entry.pw_uid, entry.pw_gid

    def finish(self) -> dict[str, object]:
        """Wait until all is here, and take it over."""
        work = self.swarm_store()
        started = time.monotonic()
        lacking = [file for file in work.lacking() if file.bytes]
        received = 0
        if self.module.check_mode:
            return {"changed": not self.store.present(work.manifest), "fetched_bytes": 0, "seconds": 0.0}
        if lacking:
            received = self._wait(started)
            for file in lacking:
                work.admit(file, self.unit.stop, self.params["lock_wait"], ORIGIN)
        changed = work.finish(self.params["lock_wait"])
        seconds = round(time.monotonic() - started, 3)
        return {"changed": changed or bool(lacking), "fetched_bytes": received, "seconds": seconds}

    def _wait(self, started: float) -> int:
        """Wait for the engine; return how many bytes it got over the network. Raises :class:`UnitError`."""
        moved, moved_at, first = -1, started, None
        banned: set[str] = set()
        report: Mapping[str, Any] = {}
        while True:
            status = self.unit.status()
            # One that has ended says nothing any more.
            report, now = status.report or report, time.monotonic()
            done, total = number(report, "done"), number(report, "bytes")
            for address in sorted(addresses(report, "banned") - banned):
                self.module.warn("%s sent wrong bytes: scrub the store there" % address)
            banned |= addresses(report, "banned")
            if report.get("complete"):
                return number(report, "received")
            if report.get("error"):
                raise UnitError(self._broken(report, str(report["error"]), "mend that"))
            if not status.active:
                raise UnitError(self._broken(report, self.unit.log(), "mend that, or see that a node gives it"))
            if done != moved:
                moved, moved_at = done, now
            if now - moved_at > self.params["stall"]:
                why = "nothing came for %d s from %d peers" % (self.params["stall"], number(report, "peers"))
                remedy = "see that a node that has the model gives it, and that no packet filter is between"
                raise UnitError(self._broken(report, why, remedy))
            first = done if first is None and total else first
            if total:
                text = amount(done - (first or 0), total - (first or 0), started, now)
                self.progress.say("swarm of %d peers: %s" % (number(report, "peers"), text))
            time.sleep(pause(done - (first or 0), total - done, now - started))

    def linger(self) -> None:
        """Give until nobody takes any more. Engines that all have everything leave each other."""
        sent, sent_at = -1, time.monotonic()
        while True:
            active, report = self.unit.status()
            if not active or not number(report, "peers"):
                return
            if number(report, "sent") != sent:
                sent, sent_at = number(report, "sent"), time.monotonic()
            if time.monotonic() - sent_at > LINGER_SECONDS:
                return
            self.progress.say("giving to %d peers" % number(report, "peers"))
            time.sleep(POLL_SECONDS)

    def _broken(self, report: Mapping[str, Any], why: str, remedy: str) -> str:
        here = "it does not run"
        if number(report, "bytes"):
            figures = number(report, "done"), number(report, "bytes")
            here = "%d of %d bytes are here, and the rest does not come" % figures
        return "%s: %s: %s; %s, and run again: it goes on" % (self.unit.unit, here, why, remedy)

    def stop(self) -> bool:
        """End the engine; what it has written stays useful."""
        status = self.unit.status()
        if self.module.check_mode:
            return status.active
        stopped = self.unit.stop()
        if self.params["manifest"] and stopped:
            work = self.swarm_store()
            work.take_back()
            if work.lacking() and status.report.get("pieces"):
                work.leave(status.report["pieces"])
        return stopped


def pause(came: int, left: int, seconds: float) -> float:
    """Return how long nobody has to look again: a quarter of the time that what is left will take, within bounds."""
    if came <= 0 or left < 0:
        return POLL_SECONDS
    return min(max(left / (came / max(seconds, 0.001)) / 4, POLL_SECONDS), LONGEST_POLL_SECONDS)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "finished", "stopped"], "default": "started"},
            "store": {"type": "path", "default": "/var/lib/llamacpp/models"},
            "manifest": {"type": "dict"},
            "torrent": {"type": "str"},
            "seed": {"type": "bool", "default": False},
            "wait": {"type": "bool", "default": False},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 6881},
            "peers": {"type": "list", "elements": "str", "default": []},
            "python": {"type": "path"},
            "user": {"type": "str", "default": "nobody"},
            "idle": {"type": "int", "default": 21600},
            "stall": {"type": "int", "default": 120},
            "rate": {"type": "int", "default": 0},
            "quota": {"type": "int", "default": 0},
            "keep": {"type": "list", "elements": "str", "default": []},
            "lock_wait": {"type": "int", "default": 21600},
            "progress_file": {"type": "path"},
        },
        required_if=[
            ("state", "started", ("manifest", "address", "python")),
            ("state", "finished", ("manifest",)),
        ],
        supports_check_mode=True,
    )
    progress = Progress(module.params["progress_file"])
    try:
        swarm = Swarm(module, progress)
        if module.params["state"] == "stopped":
            result: dict[str, object] = {"changed": swarm.stop()}
        elif module.params["state"] == "finished":
            result = swarm.finish()
        else:
            result = swarm.start()
            if module.params["wait"] and not module.check_mode:
                result.update(swarm.finish(), changed=True)
                swarm.linger()
                swarm.stop()
    except (UnitError, StoreError, TorrentError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(unit=swarm.unit.unit, **result)


if __name__ == "__main__":
    main()
