# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A simulated ggml-rpc-server: devices of any number and size, which hold nothing and compute nothing.

llama-fit-params and llama-server ask a worker for its devices' memory and for the size of tensors before
they load anything. With answers from here they say what a model would take on devices that do not exist.
Source of the answers: ``rpc_server`` in ggml/src/ggml-rpc/ggml-rpc.cpp, and the buffer types of the backends
behind it (ggml-cpu, ggml-cuda), llama.cpp b11434.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Callable, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import TENSOR_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc import (
    CAPS_BYTES,
    HELLO,
    LENGTH,
    MEMORY,
    NUMBER,
    PROTOCOL,
    REQUEST,
    Closed,
    Command,
    receive,
)

# struct rpc_tensor: id, type, buffer, ne, nb, op, op_params, flags, src, view_src, view_offs, data, name, use_count.
TENSOR = struct.Struct("<QIQ4I4II64si80sQQQ64si")
_SOURCES = 10  # GGML_MAX_SRC
_ALLOC_SIZE = struct.Struct("<I%ds%ds" % (TENSOR.size, TENSOR.size * _SOURCES))
_ALLOC_BUFFER = struct.Struct("<IQ")
_SIZE_MAX = (1 << 64) - 1

# ggml_backend_cuda_buffer_type_get_alignment, and the CPU's TENSOR_ALIGNMENT (ggml-impl.h). Of other backends it
# depends on the device; 128 is as much as any of them wants.
_ALIGNMENT = {"cpu": 32}
_LARGEST_ALIGNMENT = 128
# CUDA and what is made of it read quantised rows in pieces of MATRIX_ROW_PADDING numbers (ggml-cuda/common.cuh).
_ROW_PADDING = 512
_LIKE_CUDA = ("cuda", "rocm")
_FLASH_ATTN_EXT = 74  # enum ggml_op
_F16_BYTES = 2
_F16 = 1  # enum ggml_type

# Commands without a reply.
_SILENT = frozenset(
    (
        Command.FREE_BUFFER,
        Command.BUFFER_CLEAR,
        Command.SET_TENSOR,
        Command.GRAPH_COMPUTE,
        Command.INIT_TENSOR,
        Command.GRAPH_RECOMPUTE,
        Command.MEMSET_TENSOR,
    )
)


class SimulatedDevice(NamedTuple):
    """A device that does not exist. ``total``, ``free``: bytes; ``backend``: whose buffers it plays (cuda, cpu)."""

    total: int
    free: int
    backend: str = "cpu"

    @property
    def alignment(self) -> int:
        """Bytes to which its tensors are aligned."""
        return _ALIGNMENT.get(self.backend, _LARGEST_ALIGNMENT)


class _Tensor(NamedTuple):
    """What counts of a ``struct rpc_tensor`` for its size."""

    id: int
    type: int
    ne: tuple[int, ...]
    nb: tuple[int, ...]
    op: int
    view_src: int
    view_offs: int

    @classmethod
    def parse(cls, raw: bytes) -> _Tensor:
        numbers = TENSOR.unpack(raw)
        return cls(numbers[0], numbers[1], numbers[3:7], numbers[7:11], numbers[11], numbers[15], numbers[16])

    @property
    def elements(self) -> int:
        return self.ne[0] * self.ne[1] * self.ne[2] * self.ne[3]

    @property
    def bytes(self) -> int:
        """``ggml_nbytes``."""
        kind = TENSOR_TYPES[self.type]
        rows = sum((count - 1) * stride for count, stride in zip(self.ne[1:], self.nb[1:]))
        if kind.block_elements == 1:
            return kind.block_bytes + (self.ne[0] - 1) * self.nb[0] + rows
        return self.ne[0] * self.nb[0] // kind.block_elements + rows


def alloc_size(request: bytes, backend: str) -> int:
    """Return what a tensor takes in a buffer of ``backend``, in bytes; ``request``: ``rpc_msg_get_alloc_size_req``.

    Source: ggml_backend_cuda_buffer_type_get_alloc_size in ggml-cuda.cu; other backends take ``ggml_nbytes``.
    """
    _device, raw, sources = _ALLOC_SIZE.unpack(request)
    tensor = _Tensor.parse(raw)
    size = tensor.bytes
    if backend not in _LIKE_CUDA:
        return size
    kind = TENSOR_TYPES[tensor.type]
    if kind.block_elements > 1 and tensor.ne[0] % _ROW_PADDING:
        size += (_ROW_PADDING - tensor.ne[0] % _ROW_PADDING) // kind.block_elements * kind.block_bytes
    if tensor.op == _FLASH_ATTN_EXT:
        query, key, value = (_Tensor.parse(sources[at * TENSOR.size : (at + 1) * TENSOR.size]) for at in range(3))
        size = _with_f16_copies(size, query, key, value)
    return size


def _with_f16_copies(size: int, query: _Tensor, key: _Tensor, value: _Tensor) -> int:
    """Add the f16 copies of a quantised cache that CUDA's flash attention keeps behind its result.

    Source: ggml_cuda_flash_attn_ext_get_alloc_size (fattn.cu). Every kernel for more than two tokens wants them;
    the vector kernel, for one or two, reads quantised caches as they are.
    """
    if query.ne[1] <= 2:
        return size
    if key.type != _F16:
        size = _padded(size) + key.elements * _F16_BYTES
    shared = value.view_src and (
        value.view_src == key.id or (value.view_src == key.view_src and value.view_offs == key.view_offs)
    )
    if value.type != _F16 and not shared:
        size = _padded(size) + value.elements * _F16_BYTES
    return size


def _padded(size: int) -> int:
    return (size + 127) // 128 * 128


class SimulatedRpcServer:
    """Listens on a free port of ``host`` and plays a worker with ``devices``, for any number of clients.

    A context manager; leaving it hangs up on everyone. ``protocol``: the version that it claims. Weights
    that are sent to it are read and forgotten, so a model "loads", but nothing can be computed: a client
    that tries is hung up on.
    """

    def __init__(
        self,
        devices: Sequence[SimulatedDevice],
        host: str = "127.0.0.1",
        protocol: tuple[int, int, int] = PROTOCOL,
    ) -> None:
        self.devices = tuple(devices)
        self.protocol = protocol
        self._listener = socket.create_server((host, 0))
        self.host, self.port = self._listener.getsockname()[:2]
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False
        self._start(self._listen)

    @property
    def endpoint(self) -> str:
        """What llama.cpp's ``--rpc`` takes."""
        return "%s:%d" % (self.host, self.port)

    def __enter__(self) -> SimulatedRpcServer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and hang up."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        # A thread that waits in accept() or recv() wakes up from shutdown(), not from close().
        for connection in [self._listener, *connections]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections.add(connection)
                self._start(lambda connection=connection: self._serve(connection))  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffers = 0
            while True:
                number, length = REQUEST.unpack(receive(connection, REQUEST.size))
                command = Command(number)
                payload = receive(connection, length)
                if command is Command.ALLOC_BUFFER:
                    buffers += 1
                    reply = MEMORY.pack(buffers, _ALLOC_BUFFER.unpack(payload)[1])
                elif command in _SILENT:
                    continue
                else:
                    reply = self.answer(command, payload)
                connection.sendall(LENGTH.pack(len(reply)) + reply)
        except (Closed, OSError, ValueError, IndexError, KeyError, struct.error):
            pass  # as a worker does: whoever speaks nonsense is hung up on
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def answer(self, command: Command, payload: bytes) -> bytes:
        """Return the reply to a question; raises :class:`ValueError` and its like for one that it cannot answer."""
        if command is Command.HELLO:
            return HELLO.pack(*self.protocol, bytes(CAPS_BYTES))
        if command is Command.DEVICE_COUNT:
            return NUMBER.pack(len(self.devices))
        if command is Command.BUFFER_GET_BASE:
            # Any aligned address will do: nothing is ever at it.
            return LENGTH.pack(1 << 32)
        if command is Command.SET_TENSOR_HASH:
            return b"\x01"  # "I have these weights already"
        device = self.devices[NUMBER.unpack(payload[: NUMBER.size])[0]]
        if command is Command.GET_ALIGNMENT:
            return LENGTH.pack(device.alignment)
        if command is Command.GET_MAX_SIZE:
            return LENGTH.pack(_SIZE_MAX)
        if command is Command.GET_DEVICE_MEMORY:
            return MEMORY.pack(device.free, device.total)
        if command is Command.GET_ALLOC_SIZE:
            return LENGTH.pack(alloc_size(payload, device.backend))
        raise ValueError("a simulated worker computes nothing: %s" % command.name)
