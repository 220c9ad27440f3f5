#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Look at a node: what the planner has to know, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: Say what the planner has to know of a node
version_added: 0.1.0
description:
  - Finds operating system, processor, memory, GPUs, addresses and link speeds, free disk, installed releases,
    the collection's own services and the ports that are in use.
  - Replaces fact gathering for this collection and is much faster. Changes nothing.
options:
  disks:
    description: Directories to say the free space of. What does not exist yet counts as its nearest parent.
    type: list
    elements: path
    default: []
  store:
    description: Directory of models. Of every file that has a name there or is on its way in, the size is said.
    type: path
  files:
    description: Files to say the size of.
    type: list
    elements: path
    default: []
  managed:
    description: Files to say content, mode and owner of, so that a run need not ask for each of them again.
    type: list
    elements: path
    default: []
  users:
    description: Users to say the presence of.
    type: list
    elements: str
    default: []
  prefix:
    description: Directory that holds C(releases/).
    type: path
    default: /opt/llamacpp
  unit_directory:
    description: Where unit files of the administrator live.
    type: path
    default: /etc/systemd/system
  cuda_homes:
    description: Directories to look for CUDA toolkits in, besides those where they usually are.
    type: list
    elements: path
    default: []
  pynvml:
    description: Set by the action plugin. The control node's pynvml, packed.
    type: str
extends_documentation_fragment:
  - llamacpp.cluster.attributes.info
seealso:
  - module: llamacpp.cluster.gpu_info
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Look at the node
  llamacpp.cluster.node_info:
    disks: [/var/lib/llamacpp/models, /opt/llamacpp]
    store: /var/lib/llamacpp/models
  register: node
"""

RETURN = r"""
node:
  description: What was found.
  returned: success
  type: dict
  contains:
    hostname:
      description: The node's own name.
      type: str
    os:
      description: C(id), C(version), C(name) and C(family) (V(debian) or V(redhat)) of C(/etc/os-release).
      type: dict
    python:
      description: Version of the Python that runs modules.
      type: str
    machine:
      description: Machine as the kernel calls it.
      type: str
    libc:
      description: Version of the C library; empty when it does not say.
      type: str
    systemd:
      description: Version of systemd, or null.
      type: int
    cpus:
      description: CPUs that a process may run on.
      type: int
    cores:
      description: Physical cores behind them.
      type: int
    cpu_flags:
      description: Instruction sets that llama.cpp makes use of.
      type: list
      elements: str
    memory:
      description: C(total_bytes) and C(available_bytes).
      type: dict
    addresses:
      description: >-
        C(interface), C(address), C(prefix), C(speed_mbit) (null when unknown; an RDMA port's rate where the interface
        does not say), C(mtu) and C(kind) (V(ethernet), V(infiniband), V(loopback), V(other)) of each address.
      type: list
      elements: dict
    disks:
      description: C(free_bytes) and C(total_bytes) by directory of O(disks).
      type: dict
    files:
      description: Size in bytes, or null, by file of O(files) and O(store).
      type: dict
    managed:
      description: C(sha256), C(mode) and C(owner), or null, by file of O(managed).
      type: dict
    users:
      description: Those of O(users) that are there.
      type: list
      elements: str
    devices:
      description: >-
        C(kind), C(name), C(index), C(memory_bytes), C(free_bytes) and C(compute_capability) of each NVIDIA GPU (or MIG
        instance in place of it), else of each AMD GPU that the kernel's ROCm driver knows, or of the CPU where there is
        none. C(memory_bytes) of a GPU is what CUDA can give, without the driver's own part. GPUs also have C(uuid)
        (which CUDA_VISIBLE_DEVICES takes), C(pci_id), C(numa_node), C(nvlink) (indices of the devices that NVLinks join
        it to), C(nvlinks) (how many to each), and C(mig), the index of the GPU that an instance is a part of.
      type: list
      elements: dict
    releases:
      description: Ids of the releases that are installed with all their files.
      type: list
      elements: str
    manifests:
      description: C(inputs), C(kind), C(build_number), C(commit) and C(rpc_server) of each of C(releases), by id.
      type: dict
    current_release:
      description: Id of the release that C(current) points to, or null.
      type: str
    previous_release:
      description: Id of the release that was current before, or null.
      type: str
    driver:
      description: Version of NVIDIA's driver; empty without one.
      type: str
    toolkits:
      description: C(version) and C(home) of each CUDA toolkit that has a compiler, newest first.
      type: list
      elements: dict
    compilers:
      description: Version of the default C(gcc); empty without one.
      type: dict
    rdma:
      description: RDMA devices with an active port.
      type: list
      elements: str
    units:
      description: C(role), C(instance), C(port), C(release) and C(active) by unit of the collection.
      type: dict
    listening:
      description: TCP ports that somebody listens on.
      type: list
      elements: int
    firewall:
      description: V(firewalld) when it runs, V(nftables) when its tool is there, or V(none).
      type: str
"""

import os
import platform
import pwd
import socket
import stat
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils import _compilers, _gpu_find, _gpu_other, _links, _node
from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_nvml import unpack
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import complete, file_sha256, read_manifest
from ansible_collections.llamacpp.cluster.plugins.module_utils._tree import Tree

MANIFEST_KEYS = ("inputs", "kind", "build_number", "commit", "rpc_server")
# A service on its way up, or down, is still ours.
RUNNING_STATES = ("active", "activating", "reloading", "deactivating")


def disk(path: str) -> dict[str, int]:
    """Return free and total bytes of the file system that ``path`` is or will be on."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    info = os.statvfs(path)
    return {"free_bytes": info.f_bavail * info.f_frsize, "total_bytes": info.f_blocks * info.f_frsize}


def owner_id(name: str) -> int | None:
    """Return the id of a user; None when there is none of that name."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def size_of(path: str) -> int | None:
    """Return the size of a file; None when there is none, also when it goes while somebody looks."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def managed(path: str) -> dict[str, str] | None:
    """Return sha256, mode (octal) and owner's name (or id) of a file; None when it is not there."""
    if not os.path.isfile(path):
        return None
    info = os.stat(path)
    try:
        owner = pwd.getpwuid(info.st_uid).pw_name
    except KeyError:
        owner = str(info.st_uid)
    return {"sha256": file_sha256(path), "mode": "%04o" % (info.st_mode & 0o7777), "owner": owner}


class NodeInfo:
    """Asks the node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.tree = Tree()
        self.run = _gpu_find.runner(module.get_bin_path, module.run_command)
        self.gpus = self._gpus()

    def _gpus(self) -> dict[str, Any]:
        try:
            return _gpu_find.find(self.run, self.tree, unpack(self.module.params["pynvml"], self.module.tmpdir))
        except _gpu_find.GpuError as error:
            self.module.fail_json(msg=str(error))

    def say(self, *command: str) -> str | None:
        """Return what a command says; None when it is not there or fails."""
        output = self.run(*command)
        return output.out if output is not None and output.code == 0 else None

    def addresses(self) -> list[dict[str, Any]]:
        """Return the node's addresses."""
        text = self.say("ip", "-j", "address")
        if text is None:
            self.module.fail_json(
                msg="ip -j address does not work on this node: install the package iproute2 (Debian) or iproute (EL)"
            )
        return _node.addresses(text, _links.speeds(self.tree, _links.rdma(self.tree)).get)

    def units(self) -> dict[str, dict[str, Any]]:
        """Return the collection's own services."""
        directory = self.module.params["unit_directory"]
        names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        found = {}
        for name in names:
            if name.startswith("llamacpp-") and name.endswith(".service"):
                facts = _node.unit(self.tree.read(os.path.join(directory, name)))
                if facts:
                    found[name] = facts
        for name, state in zip(found, self.states(list(found))):
            found[name]["active"] = state in RUNNING_STATES
        return found

    def states(self, names: list[str]) -> list[str]:
        """Return systemd's word for each unit."""
        if not names:
            return []
        if not self.module.get_bin_path("systemctl"):
            return ["unknown"] * len(names)
        # Its return code only says whether all of them are active.
        _rc, out, _err = self.module.run_command(["systemctl", "is-active", *names])
        words = str(out).split()
        return words if len(words) == len(names) else ["unknown"] * len(names)

    def devices(self, memory: dict[str, int], name: str) -> list[dict[str, Any]]:
        """Return the GPUs, or the CPU where there is none."""
        try:
            gpus = _gpu_find.devices(self.gpus)
        except _gpu_find.GpuError as error:
            self.module.fail_json(msg=str(error))
        gpus = gpus or _gpu_other.devices(_gpu_other.amd(self.tree, {}))
        if gpus:
            return gpus
        for note in self.gpus["notes"]:
            self.module.warn(note)
        return [
            {
                "kind": "cpu",
                "name": name,
                "index": 0,
                "memory_bytes": memory["total_bytes"],
                "free_bytes": memory["available_bytes"],
                "compute_capability": None,
            }
        ]

    def files(self) -> dict[str, int | None]:
        """Return the sizes of the files that were asked for."""
        paths = list(self.module.params["files"])
        store = self.module.params["store"]
        if store:
            # os.walk does not fail for a directory that is not there.
            for top in ("names", "incoming"):
                for directory, _directories, names in os.walk(os.path.join(store, top)):
                    paths += [os.path.join(directory, name) for name in names]
        return {path: size_of(path) for path in sorted(paths)}

    def releases(self) -> list[str]:
        """Return the ids of installed releases."""
        directory = os.path.join(self.module.params["prefix"], "releases")
        names = os.listdir(directory) if os.path.isdir(directory) else []
        return sorted(name for name in names if complete(os.path.join(directory, name)))

    def manifests(self, releases: list[str]) -> dict[str, dict[str, Any]]:
        """Return what a plan asks of the manifests of installed releases."""
        directory = os.path.join(self.module.params["prefix"], "releases")
        found = {}
        for name in releases:
            manifest = read_manifest(os.path.join(directory, name))
            found[name] = {key: manifest.get(key) for key in MANIFEST_KEYS}
        return found

    def link(self, name: str) -> str | None:
        """Return the id of the release that a link, ``current`` or ``previous``, points to."""
        link = os.path.join(self.module.params["prefix"], name)
        return os.path.basename(os.readlink(link)) if os.path.islink(link) else None

    def firewall(self) -> str:
        """Return who filters packets here."""
        if self.states(["firewalld.service"]) == ["active"]:
            return "firewalld"
        return "nftables" if self.module.get_bin_path("nft") else "none"

    def look(self) -> dict[str, Any]:
        """Return everything."""
        usable = frozenset(os.sched_getaffinity(0))
        memory = _node.memory(self.tree.read("/proc/meminfo"))
        processor = _node.processor(self.tree.read("/proc/cpuinfo"), usable)
        params = self.module.params
        releases = self.releases()
        return {
            "hostname": socket.gethostname(),
            "os": _node.os_release(self.tree.read("/etc/os-release")),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "libc": (os.confstr("CS_GNU_LIBC_VERSION") or "").replace("glibc ", ""),
            "systemd": _node.systemd_version(self.say("systemctl", "--version") or ""),
            "cpus": len(usable),
            "cores": processor["cores"],
            "cpu_flags": processor["cpu_flags"],
            "memory": memory,
            "addresses": self.addresses(),
            "disks": {path: disk(path) for path in params["disks"]},
            "files": self.files(),
            "managed": {path: managed(path) for path in params["managed"]},
            "users": [name for name in params["users"] if owner_id(name) is not None],
            "devices": self.devices(memory, processor["name"] or platform.machine()),
            "releases": releases,
            "manifests": self.manifests(releases),
            "current_release": self.link("current"),
            "previous_release": self.link("previous"),
            "driver": self.gpus["driver_version"] or "",
            "toolkits": _compilers.toolkits(self.tree, self.run, params["cuda_homes"]),
            "compilers": _compilers.compilers(self.run),
            "rdma": sorted({port["device"] for port in _links.rdma(self.tree) if port["state"] == "active"}),
            "units": self.units(),
            "listening": _node.listening_ports(self.tree.read("/proc/net/tcp"), self.tree.read("/proc/net/tcp6")),
            "firewall": self.firewall(),
        }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "disks": {"type": "list", "elements": "path", "default": []},
            "files": {"type": "list", "elements": "path", "default": []},
            "store": {"type": "path"},
            "managed": {"type": "list", "elements": "path", "default": []},
            "users": {"type": "list", "elements": "str", "default": []},
            "prefix": {"type": "path", "default": "/opt/llamacpp"},
            "unit_directory": {"type": "path", "default": "/etc/systemd/system"},
            "cuda_homes": {"type": "list", "elements": "path", "default": []},
            # Not secret, but nothing to read in logs and results either.
            "pynvml": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, node=NodeInfo(module).look())


if __name__ == "__main__":
    main()
