# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The simulated worker answers what the real one would."""

from __future__ import annotations

import socket

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc import (
    HELLO,
    LENGTH,
    MEMORY,
    NUMBER,
    REQUEST,
    Command,
    call,
    receive,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._rpc_simulated import (
    TENSOR,
    SimulatedDevice,
    SimulatedRpcServer,
    alloc_size,
)

GIB = 1 << 30
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12
NOTHING = bytes(TENSOR.size)


def tensor(kind, ne, nb, op=0, number=1, view_src=0):
    return TENSOR.pack(number, kind, 0, *ne, *nb, op, bytes(64), 0, bytes(80), view_src, 0, 0, b"t", 1)


def request(target, *sources):
    return NUMBER.pack(0) + target + b"".join(sources) + NOTHING * (10 - len(sources))


def test_the_structure_is_as_long_as_in_llama_cpp():
    """rpc_tensor is packed; its length is checked to be a multiple of 8 there."""
    assert TENSOR.size == 296


@pytest.mark.parametrize(
    ("kind", "ne", "nb", "cpu", "cuda"),
    [
        (F32, (100, 3, 1, 1), (4, 400, 1200, 1200), 1200, 1200),
        # A view with gaps between its rows ends with its last row.
        (F16, (64, 4, 2, 1), (2, 1024, 4096, 8192), 126 + 3 * 1024 + 4096 + 2, 126 + 3 * 1024 + 4096 + 2),
        (Q4_K, (512, 2, 1, 1), (144, 288, 576, 576), 576, 576),
        # CUDA reads rows in pieces of 512 numbers; what is missing of the last row is added once.
        (Q4_K, (768, 2, 1, 1), (144, 432, 864, 864), 864, 864 + 144),
        (Q8_0, (64, 2, 1, 1), (34, 68, 136, 136), 136, 136 + 14 * 34),
    ],
)
def test_sizes_of_tensors(kind, ne, nb, cpu, cuda):
    asked = request(tensor(kind, ne, nb))
    assert alloc_size(asked, "cpu") == cpu
    assert alloc_size(asked, "vulkan") == cpu
    assert alloc_size(asked, "cuda") == cuda
    assert alloc_size(asked, "rocm") == cuda


def attention(tokens, key, value):
    """A flash attention of 8 heads of 128 over 1024 cells of 2 heads; its result is F32."""
    size = 128 * 8 * tokens * 4
    result = tensor(F32, (128, 8, tokens, 1), (4, 512, 4096, size), op=74)
    query = tensor(F32, (128, tokens, 8, 1), (4, 512, 512 * tokens, size), number=2)
    return size, request(result, query, key, value)


def cache(kind, number, view_src=0):
    row = {F16: 256, Q8_0: 136}[kind]
    return tensor(kind, (128, 1024, 2, 1), (2 if kind == F16 else 34, row, row * 1024, row * 2048), 0, number, view_src)


def test_cuda_keeps_f16_copies_of_a_quantised_cache_behind_the_result_of_flash_attention():
    copy = 128 * 1024 * 2 * 2
    size, asked = attention(512, cache(Q8_0, 3), cache(Q8_0, 4))
    assert alloc_size(asked, "cuda") == size + 2 * copy
    assert alloc_size(asked, "cpu") == size
    assert alloc_size(attention(512, cache(Q8_0, 3), cache(F16, 4))[1], "cuda") == size + copy
    assert alloc_size(attention(512, cache(F16, 3), cache(F16, 4))[1], "cuda") == size
    # Values that are a view of the keys (MLA) share their copy.
    assert alloc_size(attention(512, cache(Q8_0, 3, 9), cache(Q8_0, 4, 9))[1], "cuda") == size + copy
    assert alloc_size(attention(512, cache(Q8_0, 3), cache(Q8_0, 4, 3))[1], "cuda") == size + copy
    # A single token goes to the vector kernel, which reads the cache as it is.
    size, asked = attention(1, cache(Q8_0, 3), cache(Q8_0, 4))
    assert alloc_size(asked, "cuda") == size


@pytest.fixture
def worker():
    with SimulatedRpcServer([SimulatedDevice(8 * GIB, 7 * GIB), SimulatedDevice(80 * GIB, GIB, "cuda")]) as server:
        yield server


@pytest.fixture
def client(worker):
    with socket.create_connection((worker.host, worker.port), 5) as connection:
        call(connection, Command.HELLO, bytes(24), HELLO.size)
        yield connection


def test_each_device_answers_for_itself(client):
    assert NUMBER.unpack(call(client, Command.DEVICE_COUNT, b"", 4)) == (2,)
    assert MEMORY.unpack(call(client, Command.GET_DEVICE_MEMORY, NUMBER.pack(1), 16)) == (GIB, 80 * GIB)
    assert LENGTH.unpack(call(client, Command.GET_ALIGNMENT, NUMBER.pack(0), 8)) == (32,)
    assert LENGTH.unpack(call(client, Command.GET_ALIGNMENT, NUMBER.pack(1), 8)) == (128,)
    assert LENGTH.unpack(call(client, Command.GET_MAX_SIZE, NUMBER.pack(0), 8)) == ((1 << 64) - 1,)


def test_buffers_are_granted_but_nothing_is_allocated(client):
    first = MEMORY.unpack(call(client, Command.ALLOC_BUFFER, NUMBER.pack(0) + LENGTH.pack(1 << 50), 16))
    second = MEMORY.unpack(call(client, Command.ALLOC_BUFFER, NUMBER.pack(0) + LENGTH.pack(5), 16))
    assert first[1] == 1 << 50
    assert second[1] == 5
    assert first[0] != second[0]
    assert first[0]


def test_weights_are_swallowed_without_a_reply(client):
    payload = NOTHING + LENGTH.pack(0) + bytes(1000)
    client.sendall(REQUEST.pack(Command.SET_TENSOR, len(payload)) + payload)
    assert NUMBER.unpack(call(client, Command.DEVICE_COUNT, b"", 4)) == (2,)


def test_weights_by_hash_are_known_already(client):
    assert call(client, Command.SET_TENSOR_HASH, NOTHING + bytes(16), 1) == b"\x01"


@pytest.mark.parametrize(
    "message",
    [
        REQUEST.pack(Command.GET_TENSOR, 312) + bytes(312),
        REQUEST.pack(Command.GET_ALIGNMENT, 4) + NUMBER.pack(7),
        REQUEST.pack(99, 0),
    ],
    ids=["a result", "a device that is not there", "no command"],
)
def test_what_it_cannot_answer_ends_the_connection(client, message):
    client.sendall(message)
    client.settimeout(5)
    assert client.recv(1) == b""


def test_it_serves_more_than_one_client(worker, client):
    with socket.create_connection((worker.host, worker.port), 5) as other:
        other.settimeout(5)
        call(other, Command.HELLO, bytes(24), HELLO.size)
        assert NUMBER.unpack(call(other, Command.DEVICE_COUNT, b"", 4)) == (2,)
        assert NUMBER.unpack(call(client, Command.DEVICE_COUNT, b"", 4)) == (2,)


def test_closing_hangs_up_and_frees_the_port():
    server = SimulatedRpcServer([SimulatedDevice(GIB, GIB)])
    with socket.create_connection((server.host, server.port), 5) as connection:
        call(connection, Command.HELLO, bytes(24), HELLO.size)
        server.close()
        assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), 5)
    with socket.create_server((server.host, server.port)):
        pass


def test_receive_puts_pieces_together():
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"ab")
        left.sendall(b"cd")
        assert receive(right, 4) == b"abcd"
