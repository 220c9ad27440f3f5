# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The protocol of ggml-rpc-server, as far as a question needs it: who are you, and what devices do you have?

Source: ggml/src/ggml-rpc/ggml-rpc.cpp and ggml/include/ggml-rpc.h of llama.cpp b11434. Everything is little
endian and packed. Request: ``u8 command, u64 length, payload``; reply: ``u64 length, payload``. A worker
serves one client at a time, has no timeouts, and dies of SIGPIPE when it answers a client that has gone
(unless its unit ignores that signal). So :func:`ask` looks for clients before it connects, where it can,
and takes a question back in a way that harms nobody.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

# RPC_PROTO_*_VERSION of b11434. A client wants an equal major, and a minor that is not newer than its own.
PROTOCOL = (7, 0, 0)
CAPS_BYTES = 24

REQUEST = struct.Struct("<BQ")
LENGTH = struct.Struct("<Q")
HELLO = struct.Struct("<BBBx%ds" % CAPS_BYTES)
NUMBER = struct.Struct("<I")
MEMORY = struct.Struct("<QQ")

# llama.cpp uses 16 at most (llama_max_devices); a count beyond this is noise.
MAX_DEVICES = 1024
# Part of the time that the greeting may take; the rest is for whoever waits for the end of a line.
_FOR_THE_GREETING = 0.75
_END_OF_A_LINE = b"\r\n\r\n"
_ESTABLISHED, _LISTEN = "01", "0A"
_CONNECTION_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


class Command(IntEnum):
    """``enum rpc_cmd``."""

    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17


@dataclass(frozen=True)
class RpcDevice:
    """Memory of a worker's device, in bytes, as the worker says it."""

    index: int
    total: int
    free: int


@dataclass(frozen=True)
class RpcAnswer:
    """What a port said.

    ``state``: ``ok``; ``busy`` (it has a client, or somebody listens and does not answer); ``refused``
    (nobody listens); ``unreachable`` (no way to the host); ``wrong_protocol`` (not a worker, or one that
    this llama.cpp cannot talk to). ``protocol``: ``7.0.0``, where it said one. ``message``: a sentence for
    a person.
    """

    state: str
    message: str
    protocol: str | None = None
    devices: tuple[RpcDevice, ...] = ()
    milliseconds: float | None = None
    clients: tuple[str, ...] = ()

    @property
    def reachable(self) -> bool:
        """Somebody listens there."""
        return self.state in ("ok", "busy", "wrong_protocol")

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "reachable": self.reachable,
            "state": self.state,
            "message": self.message,
            "protocol": self.protocol,
            "devices": [asdict(device) for device in self.devices],
            "milliseconds": self.milliseconds,
            "clients": list(self.clients),
        }


class Closed(Exception):
    """The other side hung up in the middle of a message."""


class Garbled(Exception):
    """A reply is not of the length that the protocol says; the text says which."""


def receive(connection: socket.socket, size: int) -> bytes:
    """Return exactly ``size`` bytes; raises :class:`Closed`, or :class:`socket.timeout`."""
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise Closed()
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def call(connection: socket.socket, command: Command, payload: bytes, reply_bytes: int) -> bytes:
    """Send a request and return its reply of ``reply_bytes``; raises :class:`Closed` or :class:`Garbled`."""
    connection.sendall(REQUEST.pack(command, len(payload)) + payload)
    head = receive(connection, LENGTH.size)
    (length,) = LENGTH.unpack(head)
    if length != reply_bytes:
        raise Garbled(
            "it answered %s with %r, which is not the beginning of a reply of %d bytes"
            % (command.name, head, reply_bytes)
        )
    return receive(connection, length)


def ask(host: str, port: int, timeout: float, expected: tuple[int, int, int] = PROTOCOL) -> RpcAnswer:
    """Connect to a port and ask for version and devices; ``timeout``: seconds for all of it.

    Whoever calls this has to know that the port has no client: see :func:`clients`. Never raises for what
    the other side does.
    """
    started = time.monotonic()
    try:
        connection = socket.create_connection((host, port), timeout)
    except ConnectionRefusedError:
        return RpcAnswer("refused", "nobody listens at %s:%d" % (host, port))
    except (socket.timeout, TimeoutError):
        return RpcAnswer("unreachable", "no answer from %s:%d within %g s" % (host, port, timeout))
    except OSError as error:
        return RpcAnswer("unreachable", "no way to %s:%d: %s" % (host, port, error.strerror or error))
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection.settimeout(_left(started, timeout * _FOR_THE_GREETING))
            try:
                greeting = call(connection, Command.HELLO, bytes(CAPS_BYTES), HELLO.size)
            except (socket.timeout, TimeoutError):
                return _no_answer(connection, "%s:%d" % (host, port), started, timeout)
            major, minor, patch, _caps = HELLO.unpack(greeting)
            version = "%d.%d.%d" % (major, minor, patch)
            if major != expected[0] or minor > expected[1]:
                return RpcAnswer(
                    "wrong_protocol",
                    "it speaks RPC %s, llama.cpp here %d.%d.%d; build both from one release" % (version, *expected),
                    version,
                )
            connection.settimeout(_left(started, timeout))
            devices = _devices(connection)
        except (socket.timeout, TimeoutError):
            return RpcAnswer("busy", "%s:%d greets, and says nothing more within %g s" % (host, port, timeout))
        except (Closed, ConnectionError):
            return RpcAnswer(
                "wrong_protocol", "%s:%d hung up on the greeting: it is older, or no RPC worker" % (host, port)
            )
        except Garbled as error:
            return RpcAnswer("wrong_protocol", "%s:%d is no RPC worker: %s" % (host, port, error))
    milliseconds = round((time.monotonic() - started) * 1000, 1)
    listed = ", ".join("%d MiB free of %d" % (device.free >> 20, device.total >> 20) for device in devices)
    return RpcAnswer("ok", "RPC %s with %s" % (version, listed or "no device"), version, devices, milliseconds)


def ask_local(host: str, port: int, timeout: float) -> RpcAnswer:
    """Ask a port of this machine, unless it has a client; raises :class:`OSError` when nobody can know that."""
    connected = clients(port)
    if connected:
        return RpcAnswer("busy", "%s:%d has a client: %s" % (host, port, ", ".join(connected)), clients=connected)
    return ask(host, port, timeout)


def _devices(connection: socket.socket) -> tuple[RpcDevice, ...]:
    (count,) = NUMBER.unpack(call(connection, Command.DEVICE_COUNT, b"", NUMBER.size))
    if count > MAX_DEVICES:
        raise Garbled("%d devices are not believable" % count)
    devices = []
    for index in range(count):
        free, total = MEMORY.unpack(call(connection, Command.GET_DEVICE_MEMORY, NUMBER.pack(index), MEMORY.size))
        devices.append(RpcDevice(index, total, free))
    return tuple(devices)


def _left(started: float, timeout: float) -> float:
    return max(0.05, timeout - (time.monotonic() - started))


def _no_answer(connection: socket.socket, where: str, started: float, timeout: float) -> RpcAnswer:
    """Find out who does not answer: a worker that has a client, or a server of text that waits for the end of a line.

    close() will reset the connection instead of ending it. A worker that is busy reads the greeting later, from
    its queue, and answers. After an ordinary close its second write hits a connection that is gone: SIGPIPE. On
    one that was reset before, its first write fails with ECONNRESET, which it takes for a client that left.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    try:
        connection.sendall(_END_OF_A_LINE)
        connection.settimeout(_left(started, timeout))
        late = connection.recv(LENGTH.size)
    except (socket.timeout, TimeoutError):
        message = "%s took the connection and did not answer within %g s: it has a client" % (where, timeout)
        return RpcAnswer("busy", message)
    if late == LENGTH.pack(HELLO.size):
        return RpcAnswer("busy", "%s answers, but not within %g s" % (where, timeout))
    return RpcAnswer("wrong_protocol", "%s is no RPC worker: it answered with %r" % (where, late))


def clients(port: int, tables: Iterable[str] = _CONNECTION_TABLES) -> tuple[str, ...]:
    """Return ``address:port`` of everyone who is connected to a local port on which somebody listens.

    From the kernel's tables. Connections that wait to be accepted count as well; those that this machine
    made from the same port do not. Raises :class:`OSError` when no table can be read: then nobody knows.
    """
    listening: set[str] = set()
    connected: list[tuple[str, str]] = []
    read = 0
    for table in tables:
        try:
            with open(table, encoding="ascii") as lines:
                rows = lines.read().splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        read += 1
        for row in rows:
            _number, local, remote, state = row.split()[:4]
            address, _colon, digits = local.rpartition(":")
            if int(digits, 16) != port:
                continue
            if state == _LISTEN:
                listening.add(address)
            elif state == _ESTABLISHED:
                connected.append((address, remote))
    if not read:
        raise OSError(errno.ENOENT, "the kernel's table of connections cannot be read", "/proc/net/tcp")
    everywhere = any(int(address, 16) == 0 for address in listening)
    return tuple(sorted({_readable(remote) for address, remote in connected if everywhere or address in listening}))


def _readable(field: str) -> str:
    """Turn ``0100007F:1F90`` of /proc/net/tcp (words in the order of this machine) into an address and a port."""
    digits, _colon, port = field.rpartition(":")
    raw = bytes.fromhex(digits)
    words = len(raw) // 4
    address = ipaddress.ip_address(struct.pack("=%dI" % words, *struct.unpack(">%dI" % words, raw)))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return "[%s]:%d" % (address, int(port, 16))
    return "%s:%d" % (getattr(address, "ipv4_mapped", None) or address, int(port, 16))


def is_local(host: str) -> bool:
    """Return whether ``host`` is an address of this machine; raises :class:`OSError` for one that is none."""
    for family, _kind, _protocol, _name, address in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
            else:
                return True
    return False
