"""One node: the files that make it itself, power on, power off."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from . import host, network, roots, supervise
from .names import (
    NODE_UID,
    NODE_USER,
    PROXY_ADDRESS,
    PROXY_PORT,
    SIMULATED_EL8,
    Lab,
    LabError,
)
from .record import LabRecord, state_directory

#: Mounts the overlay and runs systemd-nspawn ("$@") inside a mount namespace of its own, so that
#: no mount of a node is ever seen on the host and all are gone with its processes. The status 133
#: is nspawn's word for "the node asked for a reboot".
_BOOT = """
tries=0
until mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" lclab "$2/root"; do
    tries=$((tries + 1))
    [ "$tries" -lt 20 ] || exit 1
    sleep 0.1
done
shift 2
while :; do
    status=0
    "$@" || status=$?
    [ "$status" = 133 ] || exit "$status"
done
"""


def directory(lab: Lab, node: str) -> Path:
    """Where a node's disk (``upper``) and console log are."""
    return state_directory(lab) / "nodes" / node


def console(lab: Lab, node: str) -> Path:
    """What the node wrote to its console in all its boots."""
    return directory(lab, node) / "console.log"


def place(upper: Path, lower: Path, name: str, text: str, mode: int = 0o644, uid: int = 0) -> None:
    """Write a file into a node's disk while the node is off.

    Directories on the way take mode and owner from the root below, because the upper layer's
    word counts for a directory that both layers have.
    """
    target = upper / name.lstrip("/")
    missing = [parent for parent in target.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir()
        below = lower / parent.relative_to(upper)
        if below.is_dir():
            known = below.stat()
            os.chown(parent, known.st_uid, known.st_gid)
            parent.chmod(stat.S_IMODE(known.st_mode))
        else:
            os.chown(parent, uid, uid)
            parent.chmod(0o700 if uid else 0o755)
    target.write_text(text)
    os.chown(target, uid, uid)
    target.chmod(mode)


def hosts_file(lab: Lab, record: LabRecord) -> str:
    """The /etc/hosts that every node of the lab has: all names on the management network."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    for name in record.nodes:
        lines.append(f"{lab.address(name, 'management')} {name}")
        lines.append(f"{lab.address(name, 'fabric')} {name}-fabric")
    return "\n".join(lines) + "\n"


def seed(lab: Lab, record: LabRecord, node: str) -> None:
    """Make the node's disk from nothing; what a crash left of an earlier try is dropped."""
    known = record.nodes[node]
    home = directory(lab, node)
    if home.exists():
        shutil.rmtree(home)
    for part in ("upper", "work", "root"):
        host.make_directory(home / part)
    lower = roots.path(known.root)
    apt = f'Acquire::http::Proxy "http://{PROXY_ADDRESS}:{PROXY_PORT}";\nAcquire::Languages "none";\n'
    packages = {} if known.suite == SIMULATED_EL8 else {"/etc/apt/apt.conf.d/90lab": apt}
    ssh = state_directory(lab) / "ssh"
    host_key = ssh / "host_keys" / node
    files = {
        "/etc/hostname": f"{node}\n",
        "/etc/machine-id": f"{known.machine_id}\n",
        # Without name servers a lookup fails at once; with one that is out of reach every
        # gathering of facts would wait 10 s for it.
        "/etc/resolv.conf": "",
        **packages,
        "/etc/systemd/journald.conf.d/10-lab.conf": ("[Journal]\nStorage=persistent\nSystemMaxUse=64M\n"),
        "/etc/ssh/sshd_config.d/10-lab.conf": (
            "HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\nGSSAPIAuthentication no\nPasswordAuthentication no\n"
        ),
        "/etc/ssh/ssh_host_ed25519_key.pub": host_key.with_suffix(".pub").read_text(),
    }
    upper = home / "upper"
    for name, text in files.items():
        place(upper, lower, name, text)
    place(upper, lower, "/etc/ssh/ssh_host_ed25519_key", host_key.read_text(), 0o600)
    place(
        upper,
        lower,
        f"/home/{NODE_USER}/.ssh/authorized_keys",
        (ssh / "id_ed25519.pub").read_text(),
        0o600,
        NODE_UID,
    )
    known.seeded = True
    record.save()


def update_hosts(lab: Lab, record: LabRecord, node: str) -> None:
    """Tell a running node the names of all nodes.

    Through the node's own view of its disk: the kernel forbids changing an overlay from below.
    """
    pid = supervise.leader(lab.unit(node))
    if pid is None:
        raise LabError(f"{node} has stopped; bring the lab up again to boot it")
    text = hosts_file(lab, record)
    if host.run([*enter(pid), "cat", "/etc/hosts"]).stdout != text:
        host.run([*enter(pid), "tee", "/etc/hosts"], text=text)


def enter(pid: int) -> list[str]:
    """The command prefix that runs something as root inside the node whose PID 1 is ``pid``."""
    return ["nsenter", f"--target={pid}", "--all", "--"]


def power_on(lab: Lab, record: LabRecord, node: str) -> None:
    """Boot the node on the disk it has; returns when its processes are there, not when it is up.

    The caller has made sure that it is off (:func:`power_off`).
    """
    known = record.nodes[node]
    network.attach(lab, record, node)
    home = directory(lab, node)
    ccache = host.CACHE / "ccache"
    host.make_directory(ccache)
    environment = {"SYSTEMD_NSPAWN_TMPFS_TMP": "0", "SYSTEMD_NSPAWN_LOCK": "0"}
    if known.suite == "trixie":
        environment["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"  # its systemd knows no other
    nspawn = [
        *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
        *("--settings=no", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
        "--capability=CAP_NET_ADMIN,CAP_NET_RAW",
        f"--network-namespace-path={host.NETNS / lab.node_namespace(node)}",
        f"--machine={lab.unit(node)}",
        f"--hostname={node}",
        f"--bind={ccache}:/var/cache/llamacpp/ccache",
        f"--directory={home / 'root'}",
    ]
    boot = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _BOOT, "lab"]
    unit = lab.unit(node)
    supervise.spawn(
        unit,
        [*boot, str(roots.path(known.root)), str(home), *nspawn],
        console(lab, node),
        environment,
    )
    if not supervise.wait_populated(unit):
        raise LabError(f"{node} did not start; see {console(lab, node)}")


def boot(lab: Lab, record: LabRecord, node: str) -> None:
    """Boot a node that is not running, after clearing what its end, or a crash, left of it."""
    if not roots.path(record.nodes[node].root).is_dir():
        raise LabError(
            f"the Debian root of {node} is gone from {roots.path('')}; take the lab down and bring it up again"
        )
    power_off(lab, record, node)
    network.abort_connections(lab, node)
    lower = roots.path(record.nodes[node].root)
    place(directory(lab, node) / "upper", lower, "/etc/hosts", hosts_file(lab, record))
    power_on(lab, record, node)


def power_off(lab: Lab, record: LabRecord, node: str) -> None:
    """Take the node's power away: cables first, then every process at once."""
    network.detach(lab, record, node)
    supervise.kill(lab.unit(node))
    for remains in ("propagate", "unix-export"):
        shutil.rmtree(Path("/run/systemd/nspawn") / remains / lab.unit(node), ignore_errors=True)


def remove(lab: Lab, record: LabRecord, node: str) -> None:
    """Switch a node off and delete its disk, its host key and its place in the record."""
    power_off(lab, record, node)
    network.abort_connections(lab, node)
    record.nodes[node].seeded = False  # so that half a disk is never booted
    record.save()
    if directory(lab, node).exists():
        shutil.rmtree(directory(lab, node))
    keys = state_directory(lab) / "ssh" / "host_keys"
    for path in (keys / node, keys / f"{node}.pub"):
        path.unlink(missing_ok=True)
    del record.nodes[node]
    record.save()
