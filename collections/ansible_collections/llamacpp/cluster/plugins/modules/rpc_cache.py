#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Seed and scrub the cache of RPC workers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rpc_cache
short_description: Seed and scrub the cache of RPC workers
version_added: 0.4.0
description:
  - A worker of llama.cpp that runs with C(-c) keeps weights of more than 10 MiB in a cache, one file for each, named by
    a hash of its bytes. A head first asks for the hash, and sends the weight only when the worker does not have it.
  - This module fills that cache before a head starts for the first time, with exactly those weights that it will ask
    for, so that even the first load of a model does not send them.
  - On a head O(state=listed) says which weights the workers of its instances need. Their hashes are remembered in the
    store, so that a file is read once.
  - On a worker O(state=seeded) makes entries of them, from the store of the node where it has the file, else from
    O(sources). Bytes get their name when they were hashed. What is there and was hashed before is not read again.
  - On a worker O(state=scrubbed) hashes all entries, in check mode, too. What is not what its name says is moved to a
    quarantine beside the cache and removed from there after a week; llama.cpp itself would serve it, even when it was
    cut short. Where O(directory) is missing there is nothing to do.
  - Workers may run meanwhile.
  - For llama.cpp of RPC protocol 7 and newer. Workers of older ones put everything large into their cache, also what a
    model computes, and fill the disk with it; do not run them with C(-c).
options:
  state:
    description: What to do.
    type: str
    choices: [listed, seeded, scrubbed]
    default: seeded
  program:
    description:
      - C(bin/llamacpp-rpc-cache) of a release that this collection compiled.
      - Without it, as with releases from an archive, Python hashes up to 64 MiB. For more, O(state=listed) and
        O(state=seeded) do nothing but warn, and O(state=scrubbed) fails.
    type: path
    required: true
  store:
    description:
      - The store of models. Required with O(state=listed).
      - With O(state=seeded), entries are made of files that it has, without a copy from elsewhere.
    type: path
  instances:
    description: Instances of the plan whose head this node is, for O(state=listed).
    type: list
    elements: dict
    default: []
  directory:
    description:
      - The cache, C($LLAMA_CACHE/rpc) of the workers.
      - What lies beside it, under the same name with C(-incoming), C(-quarantine), C(-record.json) and C(.lock),
        belongs to this module. It removes C(-planned), with which role models notes that all was seeded, when an entry
        turns out to be wrong.
    type: path
    default: /var/cache/llamacpp/rpc
  owner:
    description: User of the workers, who gets O(directory) when it has to be made.
    type: str
    default: ""
  entries:
    description:
      - What the workers of this node need, of all its instances, as RV(workers) of their heads has it.
      - Entries that are not among them can be evicted. With O(state=scrubbed) and none given here, those stay that were
        needed when the cache was seeded last.
    type: list
    elements: dict
    default: []
    suboptions:
      hash:
        description: Name of the entry.
        type: str
        required: true
      bytes:
        description: Size of the weight.
        type: int
        required: true
      sha256:
        description: sha256 of the file that it is in.
        type: str
        required: true
      offset:
        description: Where it begins in that file.
        type: int
        required: true
  sources:
    description: Who has the files; for each of them, a dictionary from the sha256 of a file to its address.
    type: list
    elements: dict
    default: []
  quota:
    description:
      - Bytes that all entries together may have; V(0) means no limit.
      - Entries that nobody needs any more are evicted for it, longest not needed first. Those that are needed stay;
        when they alone are more, that is an error. O(state=scrubbed) then says what it found, too.
    type: int
    default: 0
  threads:
    description: Threads that hash; V(0) means one a processor.
    type: int
    default: 0
  lock_wait:
    description: Seconds to wait for another run.
    type: int
    default: 3600
  peek:
    description: Set by the action plugin. Do nothing that takes time; say RV(pending) instead.
    type: bool
    default: false
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
seealso:
  - module: llamacpp.cluster.fabric_share
  - module: llamacpp.cluster.llama_build
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: List what the workers of this head need
  llamacpp.cluster.rpc_cache:
    state: listed
    store: /var/lib/llamacpp/models
    instances: "{{ llamacpp_plan.instances | selectattr('head', 'eq', inventory_hostname) }}"
    program: /opt/llamacpp/current/bin/llamacpp-rpc-cache
  register: __rpc_server_needed

- name: Seed the cache of this worker
  llamacpp.cluster.rpc_cache:
    entries: "{{ __rpc_server_entries }}"
    sources: "{{ __rpc_server_sources }}"
    owner: llamacpp
    quota: 536870912000
    program: /opt/llamacpp/current/bin/llamacpp-rpc-cache

- name: Look for entries that are not what they say
  llamacpp.cluster.rpc_cache:
    state: scrubbed
    program: /opt/llamacpp/current/bin/llamacpp-rpc-cache
"""

RETURN = r"""
workers:
  description: Entries that each node with workers needs.
  returned: when O(state=listed)
  type: dict
  sample:
    node2:
      - {hash: 8c2a90b0e8a6b4ff, bytes: 13369344, sha256: 0f3a..., offset: 26738688}
files:
  description: The files that they are in, by sha256, on this node; for M(llamacpp.cluster.fabric_share).
  returned: when O(state=listed)
  type: dict
hashed_bytes:
  description: Bytes that were read to hash them.
  returned: when O(state=listed)
  type: int
seeded:
  description: Names of the entries that are new, in check mode of those that would be.
  returned: when O(state=seeded)
  type: list
  elements: str
present:
  description: How many of O(entries) are there.
  returned: when O(state=seeded)
  type: int
fetched_bytes:
  description: Bytes that came from O(sources).
  returned: when O(state=seeded)
  type: int
evicted:
  description: Names of entries that made room, in check mode of those that would.
  returned: when O(state=seeded) or O(state=scrubbed)
  type: list
  elements: str
findings:
  description: Entries that were not what their names say (C(name), C(bytes), C(why), and C(path) in quarantine).
  returned: when O(state=seeded) or O(state=scrubbed)
  type: list
  elements: dict
entries:
  description: How many entries there are.
  returned: when O(state=scrubbed)
  type: int
bytes:
  description: Size of all entries.
  returned: when O(state=scrubbed)
  type: int
pending:
  description: Whether there is work that takes time.
  returned: when O(peek=true)
  type: bool
seconds:
  description: How long it took.
  returned: always
  type: float
"""

import contextlib
import os
import re
import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache import BEING_WRITTEN, Cache, Entry, Finding
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache_fetch import Fetch
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_cache_list import list_entries
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_program import (
    NAME,
    NoProgramError,
    RpcCacheError,
    hasher,
)


class PendingError(Exception):
    """There is work that takes time, and this was only to find out."""


class Peek:
    """Hashes nothing."""

    def hash(self, _file: str, _ranges: Any) -> list[str]:
        """Raise :class:`PendingError`."""
        raise PendingError()


class RpcCache:
    """One run of the module."""

    def __init__(self, module: AnsibleModule, progress: Progress) -> None:
        self.module = module
        self.params = module.params
        self.progress = progress
        self.hasher = hasher(self.params["program"], progress, self.params["threads"])
        self.cache = Cache(self.params["directory"], self.hasher, self.params["owner"])
        self.wanted = [self.entry(item) for item in self.params["entries"]]

    @staticmethod
    def entry(item: dict[str, Any]) -> Entry:
        """Return an entry of the options. Raises :class:`RpcCacheError` for what is none."""
        named = NAME.fullmatch(item["hash"]) and re.fullmatch("[0-9a-f]{64}", item["sha256"])
        if not named or item["bytes"] < 1 or item["offset"] < 0:
            raise RpcCacheError("entries: %r is no entry: take what state=listed says" % (item,))
        return Entry(item["hash"], item["bytes"], item["sha256"], item["offset"])

    def listed(self) -> dict[str, Any]:
        """Say what the workers of this head's instances need."""
        hashing = Peek() if self.params["peek"] else self.hasher
        found = list_entries(self.params["store"], self.params["instances"], hashing, write=not self.module.check_mode)
        for warning in found.warnings:
            self.module.warn(warning)
        return {"changed": False, "workers": found.workers, "files": found.files, "hashed_bytes": found.hashed}

    def seeded(self) -> dict[str, Any]:
        """Bring the cache to have what is wanted."""
        found = self.cache.sort(self.wanted, self.cache.record())
        if self.params["peek"]:
            if found.doubtful or found.missing or not self.cache.settled(self.wanted, self.params["quota"]):
                raise PendingError()
            return self.answer(present=len(found.known), changed=False)
        keep = {entry.hash for entry in self.wanted}
        if self.module.check_mode:
            evicted = self.cache.room(found.missing, keep, self.params["quota"], check=True)
            return self.answer(
                seeded=[entry.hash for entry in found.missing],
                present=len(found.known) + len(found.doubtful),
                evicted=evicted,
                changed=bool(found.missing or evicted),
            )
        with self.cache.lock(socket.gethostname(), self.params["lock_wait"], self.progress.say):
            findings = self.cache.verify(self.cache.sort(self.wanted, self.cache.record()).doubtful)
            missing = self.cache.sort(self.wanted, self.cache.record()).missing
            evicted = self.cache.room(missing, keep, self.params["quota"])
            fetched = self.bring(missing)
            self.cache.need(keep)
        return self.answer(
            seeded=[entry.hash for entry in missing],
            present=len(keep),
            findings=[finding._asdict() for finding in findings],
            evicted=evicted,
            fetched_bytes=fetched,
            changed=bool(missing or evicted or wrong(findings)),
        )

    def bring(self, missing: list[Entry]) -> int:
        """Make the missing entries; return how many bytes came from peers."""
        remote = []
        files: dict[str, list[Entry]] = {}
        for entry in missing:
            blob = os.path.join(self.params["store"] or "", "blobs", entry.sha256)
            if self.params["store"] and os.path.isfile(blob):
                files.setdefault(blob, []).append(entry)
            else:
                remote.append(entry)
        for blob, entries in files.items():
            self.cache.seed_from(blob, entries)
        fetch = Fetch(self.cache, self.params["sources"], self.progress)
        fetch.run(remote)
        return fetch.fetched

    @staticmethod
    def answer(**values: Any) -> dict[str, Any]:
        """Return what a seeded cache has to report."""
        return {"seeded": [], "present": 0, "findings": [], "evicted": [], "fetched_bytes": 0, **values}

    def scrubbed(self) -> dict[str, Any]:
        """Hash all entries, and keep within the quota."""
        if not os.path.isdir(self.params["directory"]):
            return self.report([], [])
        check: bool = self.module.check_mode
        lock = self.cache.lock(socket.gethostname(), self.params["lock_wait"], self.progress.say)
        with contextlib.nullcontext() if check else lock:
            findings = self.cache.scrub(check)
            keep = {entry.hash for entry in self.wanted} or self.cache.needed()
            try:
                evicted = self.cache.room([], keep, self.params["quota"], check)
            except RpcCacheError as error:
                # What is in quarantine by now is said all the same.
                self.module.fail_json(msg=str(error), **self.report(findings, []))
        return self.report(findings, evicted)

    def report(self, findings: list[Finding], evicted: list[str]) -> dict[str, Any]:
        """Return what a scrubbed cache has to report."""
        there = self.cache.entries()
        return {
            "changed": bool(evicted or wrong(findings)),
            "findings": [finding._asdict() for finding in findings],
            "evicted": evicted,
            "entries": len(there),
            "bytes": sum(info.st_size for info in there.values()),
        }


def wrong(findings: list[Finding]) -> list[Finding]:
    """Return what goes to quarantine."""
    return [finding for finding in findings if finding.why != BEING_WRITTEN]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["listed", "seeded", "scrubbed"], "default": "seeded"},
            "program": {"type": "path", "required": True},
            "store": {"type": "path"},
            "instances": {"type": "list", "elements": "dict", "default": []},
            "directory": {"type": "path", "default": "/var/cache/llamacpp/rpc"},
            "owner": {"type": "str", "default": ""},
            "entries": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "hash": {"type": "str", "required": True},
                    "bytes": {"type": "int", "required": True},
                    "sha256": {"type": "str", "required": True},
                    "offset": {"type": "int", "required": True},
                },
            },
            "sources": {"type": "list", "elements": "dict", "default": []},
            "quota": {"type": "int", "default": 0},
            "threads": {"type": "int", "default": 0},
            "lock_wait": {"type": "int", "default": 3600},
            "peek": {"type": "bool", "default": False},
            "progress_file": {"type": "path"},
        },
        required_if=[("state", "listed", ("store",))],
        supports_check_mode=True,
    )
    for name in ("quota", "threads"):
        if module.params[name] < 0:
            module.fail_json(msg="%s = %d: write 0 or more" % (name, module.params[name]))
    state: str = module.params["state"]
    progress = Progress(module.params["progress_file"])
    started = time.monotonic()
    result: dict[str, Any] = {}
    try:
        run = RpcCache(module, progress)
        result = {"listed": run.listed, "seeded": run.seeded, "scrubbed": run.scrubbed}[state]()
    except PendingError:
        result = {"changed": False, "pending": True}
    except NoProgramError as error:
        if state == "scrubbed":
            module.fail_json(msg=str(error))
        module.warn("The RPC cache is not seeded, so the first start of a head sends all weights: %s" % error)
        empty = {"workers": {}, "files": {}, "hashed_bytes": 0} if state == "listed" else RpcCache.answer()
        result = {"changed": False, **empty}
    except (RpcCacheError, OSError) as error:
        module.fail_json(msg=str(error))
    finally:
        progress.close()
    module.exit_json(seconds=round(time.monotonic() - started, 3), **result)


if __name__ == "__main__":
    main()
