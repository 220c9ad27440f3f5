# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Read what a Linux node says of itself: text of /proc, /etc and tools in, data out. Pure functions."""

from __future__ import annotations

import json
import re
from typing import Any, Callable

# What decides which CPU code llama.cpp can run (ggml/src/ggml-cpu, b11434), x86 and Arm names.
RELEVANT_FLAGS = frozenset(
    re.findall(
        r"\w+",
        """
        sse3 ssse3 sse4_1 sse4_2 avx f16c fma bmi2 avx2 avx_vnni
        avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni avx512vbmi avx512_bf16
        amx_tile amx_int8 amx_bf16
        asimd asimddp asimdhp i8mm sve sve2 sme bf16
        """,
    )
)
# link_type as iproute2 says it (lib/ll_types.c).
KINDS = {"ether": "ethernet", "infiniband": "infiniband", "loopback": "loopback"}
_TCP_LISTEN = "0A"
_UNIT_KEYS = {
    "X-Llamacpp-Role": "role",
    "X-Llamacpp-Instance": "instance",
    "X-Llamacpp-Port": "port",
    "X-Llamacpp-Release": "release",
}


def os_release(text: str) -> dict[str, str]:
    """Read /etc/os-release: id, family (debian, redhat), version (empty for a rolling release), name."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.strip().partition("=")
        if separator and not key.startswith("#"):
            values[key] = value.strip("\"'")
    relatives = [values.get("ID", "linux"), *values.get("ID_LIKE", "").split()]
    return {
        "id": relatives[0],
        "family": "redhat" if {"rhel", "fedora", "centos"} & set(relatives) else "debian",
        "version": values.get("VERSION_ID", ""),
        "name": values.get("PRETTY_NAME", ""),
    }


def memory(text: str) -> dict[str, int]:
    """Read /proc/meminfo: total and available memory in bytes."""
    found = {key: int(value) * 1024 for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return {"total_bytes": found["MemTotal"], "available_bytes": found.get("MemAvailable", found["MemFree"])}


def processor(text: str, usable: frozenset[int]) -> dict[str, Any]:
    """Read /proc/cpuinfo: ``name``, ``cores`` (physical) and ``cpu_flags``.

    ``usable``: numbers of the CPUs that a process may run on. Machines that do not say which
    CPUs share a core (virtual ones, Arm) are taken to have a core a CPU.
    """
    cores = set()
    name = ""
    flags: frozenset[str] = frozenset()
    for block in text.split("\n\n"):
        values = {}
        for line in block.splitlines():
            key, separator, value = line.partition(":")
            if separator:
                values[key.strip()] = value.strip()
        if "processor" not in values:
            continue
        name = name or values.get("model name", "")
        flags = flags or frozenset((values.get("flags") or values.get("Features") or "").split())
        number = int(values["processor"])
        if number in usable:
            cores.add((values.get("physical id", "0"), values.get("core id", "cpu%d" % number)))
    return {
        "name": name,
        "cores": len(cores) or len(usable),
        "cpu_flags": sorted(flags & RELEVANT_FLAGS),
    }


def addresses(text: str, speed: Callable[[str], int | None]) -> list[dict[str, Any]]:
    """Read ``ip -j address``: addresses of interfaces that are up, link-local IPv6 left out.

    ``speed(interface)``: Mbit/s or None.
    """
    found = []
    for link in json.loads(text):
        if not link or "UP" not in link.get("flags", []):
            continue
        name = link["ifname"]
        for item in link.get("addr_info", []):
            if "local" not in item or (item.get("scope") == "link" and item["family"] == "inet6"):
                continue
            found.append(
                {
                    "interface": name,
                    "address": item["local"],
                    "prefix": item["prefixlen"],
                    "speed_mbit": speed(name),
                    "mtu": link["mtu"],
                    "kind": KINDS.get(link.get("link_type", ""), "other"),
                }
            )
    return sorted(found, key=lambda item: (item["interface"], item["address"]))


def listening_ports(*tables: str) -> list[int]:
    """Read /proc/net/tcp and tcp6: the TCP ports that somebody listens on."""
    ports = set()
    for table in tables:
        for line in table.splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == _TCP_LISTEN:
                ports.add(int(words[1].rsplit(":", 1)[1], 16))
    return sorted(ports)


def unit(text: str) -> dict[str, Any] | None:
    """Read a unit file: what it says of itself; None when it is not a head's or worker's."""
    values: dict[str, Any] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator and key.strip() in _UNIT_KEYS:
            values[_UNIT_KEYS[key.strip()]] = value.strip()
    if values.get("role") not in ("head", "worker") or not values.get("port", "").isdigit():
        return None
    return {
        "role": values["role"],
        "instance": values.get("instance", ""),
        "port": int(values["port"]),
        "release": values.get("release", ""),
    }


def systemd_version(text: str) -> int | None:
    """Read ``systemctl --version``; None when it says nothing of the kind."""
    match = re.match(r"systemd (\d+)", text)
    return int(match.group(1)) if match else None
