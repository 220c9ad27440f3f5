# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of single values. Each returns the value, parsed, or raises ``Rejected`` with what to write instead."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable, TypeVar

from ansible_collections.llamacpp.cluster.plugins.module_utils._problem import (
    HIDDEN,
    Problem,
    Rejected,
    listing,
    nearest,
)

T = TypeVar("T")
Check = Callable[[object], T]

MIB = 1 << 20
GIB = 1 << 30
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": MIB, "GIB": GIB, "TIB": 1 << 40}
_UNITS.update({"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12})
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?B|)\s*$", re.IGNORECASE)
_INSTANCE_NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,31}$")
_RELEASE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
_FILE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._+@-]*$")
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_DEVICE = re.compile(r"^(CPU|[A-Z][A-Za-z]*[0-9]+)$")
_SHA256 = re.compile(r"^[0-9a-fA-F]{64}$")


class Fields:
    """Takes the keys of one mapping, checks each, and gathers the problems."""

    def __init__(self, problems: list[Problem], pattern: str, data: Mapping[str, Any], known: Sequence[str]) -> None:
        """``pattern``: how a key is called in a message, e.g. ``llamacpp_instances[0].%s``."""
        self.problems = problems
        self.pattern = pattern
        self.data = data
        for key in sorted(set(data) - set(known), key=str):
            # The value may be a secret under a misspelt name.
            advice = nearest(str(key), known) or "; known are %s" % ", ".join(known)
            self.problem(str(key), "there is no such key%s" % advice, HIDDEN)

    def take(self, key: str, check: Check[T], default: T) -> T:
        """Return the checked value of ``key``, or ``default`` when it is absent, null or wrong."""
        value = self.data.get(key)
        if value is None:
            return default
        try:
            return check(value)
        except Rejected as error:
            self.problem(key, str(error), value)
            return default

    def choice(self, key: str, check: Check[T], default: T | None) -> T | None:
        """Return the checked value of ``key``; None, where the word ``auto`` leaves it to the planner."""
        return None if self.data.get(key) == "auto" else self.take(key, auto_or(check), default)

    def problem(self, key: str, fix: str, value: object = None) -> None:
        """Note a problem with ``key``."""
        self.problems.append(Problem(self.pattern % key, value, fix))


def whole(low: int, high: int, unit: str, example: int) -> Check[int]:
    """Check for a whole number from ``low`` to ``high``; ``unit`` is its word in messages, empty for none."""

    def amount(number: int) -> str:
        return "%d %s" % (number, unit) if unit else str(number)

    def check(value: object) -> int:
        if isinstance(value, str) and value.strip().lstrip("-").isdigit():
            raise Rejected("it is text; write the number without quotes, e.g. %d" % example)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Rejected("must be a whole number; write e.g. %d" % example)
        if value < low:
            raise Rejected("must be at least %s; write e.g. %d" % (amount(low), example))
        if value > high:
            raise Rejected("must be at most %s; write e.g. %d" % (amount(high), example))
        return value

    return check


port = whole(1, 65535, "", 8080)


def auto_or(check: Check[T]) -> Check[T | None]:
    """Check for what ``check`` takes, where the word ``auto`` may stand too and a message says so."""

    def checked(value: object) -> T | None:
        try:
            return check(value)
        except Rejected as error:
            raise Rejected("%s, or auto" % error if "must be" in str(error) else str(error)) from error

    return checked


def replicas(value: object) -> int:
    """Check for a number of replicas; ``auto``, as many as fit, is 0."""
    return 0 if value == "auto" else auto_or(whole(1, 64, "replica", 2))(value) or 0


def one_of(*choices: str) -> Check[str]:
    """Check for one of some words."""

    def check(value: object) -> str:
        # YAML 1.1 reads a bare on and off as booleans.
        word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        if not isinstance(word, str) or word not in choices:
            raise Rejected("must be one of %s" % ", ".join(choices))
        return word

    return check


def yes_or_no(value: object) -> bool:
    """Check for a boolean."""
    if not isinstance(value, bool):
        raise Rejected("write true or false, without quotes")
    return value


def text(value: object) -> str:
    """Check for one line of text."""
    if not isinstance(value, str) or not value.strip():
        raise Rejected("must be text and not empty")
    if any(ord(letter) < 32 for letter in value):
        raise Rejected("must be one line without control characters")
    return value


def instance_name(value: object) -> str:
    """Check for the name of an instance, which becomes part of unit and file names."""
    if not isinstance(value, str) or not _INSTANCE_NAME.match(value):
        raise Rejected("a name has 1 to 32 lower-case letters, digits and hyphens, e.g. qwen3-14b")
    if value.startswith("rpc-"):
        raise Rejected("a name must not begin with rpc-, which the workers' units begin with")
    return value


def release(value: object) -> str:
    """Check for the name of a release of llama.cpp."""
    if not isinstance(value, str) or not _RELEASE.match(value):
        raise Rejected("write a build number, tag or commit of llama.cpp, e.g. b11434")
    return value


def file_name(value: object) -> str:
    """Check for a file name without directory."""
    if not isinstance(value, str) or not _FILE_NAME.match(value):
        raise Rejected("must be a file name of letters, digits and . _ + @ - without directory, e.g. model.gguf")
    return value


def absolute_path(value: object) -> str:
    """Check for an absolute path."""
    if not isinstance(text(value), str) or not str(value).startswith("/"):
        raise Rejected("must be an absolute path, e.g. /srv/models/model.gguf")
    return str(value)


def cache_path(value: object) -> str:
    """Check for the cache of RPC workers, which ggml-rpc-server calls rpc below ``LLAMA_CACHE``."""
    path = absolute_path(value).rstrip("/")
    if not path.endswith("/rpc"):
        raise Rejected("llama.cpp wants it to be called rpc; write e.g. /var/cache/llamacpp/rpc")
    return path


def url(value: object) -> str:
    """Check for an address of a file."""
    if not re.match(r"^https?://[^/\s]+/\S+$", text(value)):
        raise Rejected("must be an http or https address of a file")
    return str(value)


def sha256(value: object) -> str:
    """Check for a sha256 in hexadecimal."""
    if not isinstance(value, str) or not _SHA256.match(value):
        raise Rejected("a sha256 has 64 hexadecimal digits; sha256sum FILE prints it")
    return value.lower()


def host(value: object) -> str:
    """Check for an address to listen on."""
    try:
        return str(ipaddress.ip_address(text(value)))
    except ValueError as error:
        raise Rejected("must be an IPv4 or IPv6 address, e.g. 0.0.0.0 for all") from error


def ipv4(value: object) -> str:
    """Check for an IPv4 address of one node; ggml-rpc-server takes no other."""
    try:
        address = ipaddress.IPv4Address(text(value))
    except ValueError as error:
        raise Rejected("must be an IPv4 address, e.g. 10.0.1.11; RPC takes no names and no IPv6") from error
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise Rejected("must be an address that the other nodes reach, e.g. 10.0.1.11")
    return str(address)


def size(value: object) -> int:
    """Check for a size: bytes, or a number with a unit as in ``32 GiB``. Returns bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if not match or float(match.group(1)) <= 0:
        raise Rejected("must be a size, e.g. 32 GiB, or a number of bytes")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


def quota(value: object) -> int:
    """Check for a size that something may grow to, 0 for no limit. Returns bytes."""
    return 0 if value == 0 and not isinstance(value, bool) else size(value)


def fetcher(known: Sequence[str]) -> Check[str | None]:
    """Check for who fetches models: a node of the inventory, the control node, or ``auto`` (None)."""

    def check(value: object) -> str | None:
        if value == "auto":
            return None
        if value != "controller" and (not isinstance(value, str) or value not in known):
            raise Rejected("write auto, controller, or a node of the inventory (%s)" % listing(known))
        return str(value)

    return check


def node_names(known: Sequence[str]) -> Check[tuple[str, ...]]:
    """Check for a list of nodes of the inventory."""

    def check(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise Rejected("must be a list of nodes, e.g. [%s]" % ", ".join(known[:3]))
        for name in value:
            node_name(known)(name)
        return tuple(str(name) for name in value)

    return check


def node_name(known: Sequence[str]) -> Check[str]:
    """Check for one node of the inventory."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise Rejected(
                "%s is no node of the inventory (%s)%s" % (value, listing(known), nearest(str(value), known))
            )
        return value

    return check


def indices(value: object) -> tuple[int, ...]:
    """Check for a list of indices of GPUs."""
    numbers = value if isinstance(value, list) else [None]
    if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 64 for item in numbers):
        raise Rejected("must be a list of indices of the GPUs that NVLink joins it with, e.g. [1, 2, 3]")
    return tuple(sorted(set(numbers)))


def device_names(value: object) -> tuple[str, ...]:
    """Check for llama.cpp's names of devices on their own node."""
    names = value if isinstance(value, list) else []
    if not names or not all(isinstance(name, str) and _DEVICE.match(name) for name in names):
        raise Rejected("must be a list of devices as their node calls them, e.g. [CUDA0, CUDA1]")
    if len(set(names)) < len(names):
        raise Rejected("names a device twice; list each once")
    return tuple(names)


def gpu_layers(value: object) -> int | str | None:
    """Check for a number of layers to put on devices, ``all``, or ``auto``, which leaves it to the planner (None)."""
    if value == "auto":
        return None
    if isinstance(value, str) and value != "all" and not value.isdigit():
        raise Rejected("must be a number of layers, or the word all or auto; write e.g. 32")
    return "all" if value == "all" else whole(0, 100000, "layers", 32)(value)


def shares(value: object) -> tuple[float, ...]:
    """Check for the shares of a tensor split."""
    numbers = value if isinstance(value, list) else []
    good = [item for item in numbers if isinstance(item, (int, float)) and not isinstance(item, bool) and item >= 0]
    if not good or len(good) != len(numbers) or sum(good) <= 0:
        raise Rejected("must be a list of numbers, one a device, e.g. [3, 1]")
    return tuple(float(item) for item in good)


def arguments(value: object) -> tuple[str, ...]:
    """Check for a list of command line words; numbers become text."""
    if not isinstance(value, list):
        raise Rejected('must be a list of words, e.g. ["--temp", "0.6"]')
    words = []
    for word in value:
        if isinstance(word, bool) or not isinstance(word, (str, int, float)):
            raise Rejected("%s is no word of a command line; quote it" % (word,))
        words.append(text(str(word)))
    return tuple(words)


def environment(value: object) -> dict[str, str]:
    """Check for environment variables; numbers become text."""
    if not isinstance(value, dict):
        raise Rejected("must be a mapping, e.g. {GGML_RDMA_DEV: mlx5_0}")
    for key, item in value.items():
        if not isinstance(key, str) or not _VARIABLE.match(key):
            raise Rejected("%s is no name of an environment variable" % (key,))
        if isinstance(item, bool) or not isinstance(item, (str, int, float)) or "\n" in str(item):
            raise Rejected("the value of %s must be one line of text; quote it" % key)
    return {key: str(item) for key, item in sorted(value.items())}
