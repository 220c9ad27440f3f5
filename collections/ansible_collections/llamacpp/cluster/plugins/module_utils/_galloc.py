# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ggml reserves for a graph: who computes which node, and the peak of the liveness allocator.

A model of ggml_backend_sched_split_graph (ggml/src/ggml-backend.cpp) and of ggml_gallocr_reserve
(ggml/src/ggml-alloc.c), both b11434, for graphs that carry shapes but no data. Sizes in bytes.
What is left out cannot change a size that matters: chunks of a buffer (only Vulkan limits their
size), names, compute flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# ggml_op_can_inplace. LayerNorm ("norm"), GLU and everything else take a place of their own.
IN_PLACE = frozenset(
    [
        "fill",
        "scale",
        "add",
        "add_id",
        "add1",
        "sub",
        "mul",
        "div",
        "sqr",
        "sqrt",
        "log",
        "unary",
        "rope",
        "rms_norm",
        "clamp",
        "soft_max",
    ]
)
VIEWS = frozenset(("view", "reshape", "permute", "transpose", "keep"))
# Not views to the allocator: what keeps something in place for longer.
_KEEPERS = ("none", "keep")
# The allocator's alignment: 128 on CUDA and on simulated workers, 32 or 64 elsewhere.
ALIGNMENT = 128
PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES


class Tensor:
    """A tensor of the graph. ``ne``: four dimensions; ``nb``: strides in bytes, as ggml has them.

    ``home``: the backend whose buffer it lies in, for weights and caches; -1 for what the
    allocator places. ``nbytes``: what it takes there. ``view``: the tensor whose memory it is a
    view of (never itself a view). ``src``: what it is computed from. ``pin``: the backend that
    llama.cpp chose for it, or -1. ``unfit``: backends that cannot compute it.
    """

    home = -1
    weight = False
    is_input = False
    is_output = False
    pin = -1
    unfit: frozenset[int] = frozenset()
    tag = ""
    # Of the scheduler and the allocator.
    seen = False
    backend = -1
    children = 0
    views = 0
    own = False
    slot = -1
    copies: dict[int, list[Tensor]] | None = None

    def __init__(
        self,
        op: str,
        ne: tuple[int, int, int, int],
        es: int,
        src: Sequence[Tensor] = (),
        nb: tuple[int, int, int, int] | None = None,
        view: Tensor | None = None,
    ) -> None:
        self.op = op
        self.ne = ne
        self.es = es
        self.src = list(src)
        if nb is None:
            nb1 = es * ne[0]
            nb2 = nb1 * ne[1]
            nb3 = nb2 * ne[2]
            self.nb = (es, nb1, nb2, nb3)
            self.nbytes = nb3 * ne[3]
        else:
            self.nb = nb
            # Written out: half of all tensors are views.
            extent = (ne[0] - 1) * nb[0] + (ne[1] - 1) * nb[1] + (ne[2] - 1) * nb[2] + (ne[3] - 1) * nb[3]
            self.nbytes = 0 if 0 in ne else es + extent
        self.view = view

    def on(self, backend: int) -> list[Tensor]:
        """Its copies on another backend."""
        return (self.copies or {})[backend]

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie one after another (ggml_is_contiguous)."""
        ne, nb = self.ne, self.nb
        expected = self.es
        for size, stride in zip(ne, nb):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class Graph:
    """Nodes in the order of evaluation, as ggml_build_forward_expand leaves them."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []

    def expand(self, tensor: Tensor) -> None:
        """Append ``tensor`` after everything that it is computed from."""
        if tensor.seen:
            return
        tensor.seen = True
        for source in tensor.src:
            if not source.seen:
                self.expand(source)
        if tensor.op == "none":
            self.leafs.append(tensor)
        else:
            self.nodes.append(tensor)


class Split:
    """Consecutive nodes on one backend, and what has to be copied there first."""

    __slots__ = ("backend", "end", "inputs", "start")

    def __init__(self, backend: int, start: int) -> None:
        self.backend = backend
        self.start = start
        self.end = start
        self.inputs: list[Tensor] = []


class Event(NamedTuple):
    """A step of the allocator. ``slot``: the place that is taken or given back; ``size``: bytes, -1 to give back."""

    backend: int
    slot: int
    size: int


def record(
    graph: Graph, backends: int, copies: int, offload: int, offload_batch: int = 32, pinned: bool = False
) -> list[Event]:
    """Return the allocator's steps for ``graph`` on ``backends``, of which the last is the CPU.

    ``copies``: of the inputs of each split, 4 with pipeline parallelism, else 1. ``offload``: the
    device that takes over operations on the host's weights when at least ``offload_batch`` rows
    are computed at once (CUDA and its like do; a worker behind RPC never), or -1. ``pinned``: as when
    memory is allocated, where llama.cpp's pins hold; ggml_backend_sched_reserve_size, which only
    measures, forgets them before it starts. A graph can be recorded once only.
    """
    nodes = graph.nodes
    if not pinned:
        for node in nodes:
            node.pin = -1
    _assign(nodes, graph.leafs, backends - 1, offload, offload_batch)
    splits = _split(nodes, copies)
    order, first = _order(graph, splits, copies)
    return _Allocation().run(order, first + graph.leafs)


def replay(events: Sequence[tuple[int, int, int]], backends: int) -> list[int]:
    """Return the bytes that each of ``backends`` reserves: ggml_dyn_tallocr with best fit, in one chunk."""
    peaks = [0] * backends
    # Free blocks [offset, size] by address; the last one has no end.
    free = [[[0, 1 << 62]] for _index in range(backends)]
    places: dict[int, tuple[int, int]] = {}
    for backend, slot, size in events:
        blocks = free[backend]
        if size < 0:
            _give_back(blocks, *places[slot])
            continue
        size = -(-size // ALIGNMENT) * ALIGNMENT
        best = len(blocks) - 1
        if best:
            smallest = 1 << 63
            for index in range(best):
                have = blocks[index][1]
                if size <= have <= smallest:
                    best, smallest = index, have
        block = blocks[best]
        offset = block[0]
        places[slot] = offset, size
        if block[1] == size:
            del blocks[best]
        else:
            block[0] = offset + size
            block[1] -= size
        if offset + size > peaks[backend]:
            peaks[backend] = offset + size
    return peaks


def _give_back(blocks: list[list[int]], offset: int, size: int) -> None:
    """ggml_dyn_tallocr_free_bytes: joins what is free before and after."""
    end = offset + size
    for index, block in enumerate(blocks):
        start = block[0]
        if start + block[1] == offset:
            block[1] += size
            if index + 1 < len(blocks) and blocks[index + 1][0] == end:
                block[1] += blocks.pop(index + 1)[1]
            return
        if start == end:
            block[0] = offset
            block[1] += size
            if index and blocks[index - 1][0] + blocks[index - 1][1] == offset:
                blocks[index - 1][1] += blocks.pop(index)[1]
            return
    # Tensors without elements leave blocks without a size behind: more than one may start at an address.
    position = 0
    while position < len(blocks) and blocks[position][0] < offset:
        position += 1
    blocks.insert(position, [offset, size])


def place_nodes(graph: Graph, backends: int) -> None:
    """Say who computes each node, with what llama.cpp pinned; nothing is offloaded."""
    _assign(graph.nodes, graph.leafs, backends - 1, -1, 0)


def _location(tensor: Tensor) -> int:
    return tensor.view.home if tensor.view is not None else tensor.home


def _batch_rows(tensor: Tensor) -> int:
    """get_op_batch_size of ggml-cuda.cu."""
    if tensor.op == "get_rows":
        return 0
    if tensor.op == "mul_mat":
        return tensor.ne[1]
    if tensor.op in ("mul_mat_id", "rope"):
        return tensor.ne[2]
    return tensor.ne[1] * tensor.ne[2] * tensor.ne[3]


def _initial(tensor: Tensor, cpu: int, offload: int, offload_batch: int) -> int:
    """ggml_backend_sched_backend_id_from_cur."""
    if tensor.pin >= 0:
        return tensor.pin
    home = _location(tensor)
    if home >= 0:
        return home
    if tensor.is_input:
        return cpu
    if tensor.op in ("rope", "flash_attn"):
        return -1
    for source in tensor.src:
        if source.weight:
            if source.home in tensor.unfit:
                return -1
            if source.home == cpu and offload not in (-1, *tensor.unfit) and _batch_rows(tensor) >= offload_batch:
                return offload
            return source.home
    return -1


def _assign(nodes: Sequence[Tensor], leafs: Sequence[Tensor], cpu: int, offload: int, offload_batch: int) -> None:
    """Passes 1 to 4: weights, caches and inputs decide, and their neighbours follow where they can."""
    for leaf in leafs:
        leaf.backend = _initial(leaf, cpu, offload, offload_batch)
    for node in nodes:
        node.backend = _initial(node, cpu, offload, offload_batch)
    real = [node for node in nodes if node.op not in VIEWS]
    for devices_only in (True, False):
        for ordered in (real, real[::-1]):
            current = -1
            for node in ordered:
                if node.backend != -1:
                    current = -1 if devices_only and node.backend == cpu else node.backend
                elif current != -1 and current not in node.unfit:
                    node.backend = current
    for node in real:
        if node.backend == -1 and node.unfit:
            # Pass 3: what the devices around it cannot compute.
            node.backend = cpu
    for node in nodes:
        if node.backend == -1 and node.view is not None:
            node.backend = node.view.backend
        for source in node.src:
            if source.backend == -1:
                source.backend = source.view.backend if source.view is not None else node.backend
                if source.backend == -1:
                    source.backend = node.backend
        if node.backend == -1:
            node.backend = 0


def _split(nodes: Sequence[Tensor], copies: int) -> list[Split]:
    """Pass 5: cut where the backend changes, and give each part copies of what lies elsewhere."""
    start = next((index for index, node in enumerate(nodes) if node.op not in VIEWS), 0)
    split = Split(nodes[start].backend if nodes else 0, 0)
    splits = [split]
    for index in range(start, len(nodes)):
        node = nodes[index]
        if node.op in VIEWS:
            continue
        new = node.backend != split.backend
        if not new and split.inputs:
            new = any(source.weight and source.backend != split.backend for source in node.src)
        if new:
            split.end = index
            split = Split(node.backend, index)
            splits.append(split)
        backend = split.backend
        for position, source in enumerate(node.src):
            if source.backend == backend:
                continue
            if source.copies is None:
                source.copies = {}
            made = source.copies.get(backend)
            if made is None:
                made = []
                for _index in range(copies):
                    copy = Tensor("none", source.ne, source.es, nb=source.nb)
                    copy.nbytes = source.nbytes
                    copy.backend = backend
                    copy.is_input = copy.is_output = copies > 1
                    made.append(copy)
                source.copies[backend] = made
                split.inputs.append(source)
            node.src[position] = made[0]
    split.end = len(nodes)
    return splits


def _order(graph: Graph, splits: Sequence[Split], copies: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the nodes as the allocator meets them, and the leafs that it places first."""
    first: list[Tensor] = []
    if copies > 1:
        for leaf in graph.leafs:
            if leaf.is_input:
                leaf.is_output = True
                first.append(leaf)
                for _index in range(copies - 1):
                    copy = Tensor("none", leaf.ne, leaf.es, nb=leaf.nb)
                    copy.backend = leaf.backend
                    copy.is_input = copy.is_output = True
                    first.append(copy)
        for split in splits:
            for source in split.inputs:
                first.extend(source.on(split.backend))
    order: list[Tensor] = []
    for split in splits:
        for source in split.inputs:
            # Keeps the original until it is copied; a view without an operation is no view to the allocator.
            keep = Tensor("none", source.ne, source.es, (source,), nb=source.nb, view=source.view or source)
            keep.backend = source.backend
            order.append(keep)
            order.append(source.on(split.backend)[0])
        order.extend(graph.nodes[split.start : split.end])
    return order, first


class _Allocation:
    """ggml_gallocr_alloc_graph_impl: when each tensor gets and loses its place, whatever the place may be."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._slots = 0

    def run(self, nodes: Sequence[Tensor], leafs: Sequence[Tensor]) -> list[Event]:
        for leaf in leafs:
            self._place(leaf)
        for node in nodes:
            if node.view is not None and node.op not in _KEEPERS:
                node.view.views += 1
            if node.is_input:
                self._place(node)
            for source in node.src:
                source.children += 1
                if source.is_input:
                    self._place(source)
        for node in nodes:
            for source in node.src:
                self._place(source)
            self._place(node)
            for source in node.src:
                source.children -= 1
                if source.children == 0 and source.views == 0:
                    root = source.view
                    if root is not None:
                        root.views -= 1
                        if root.views == 0 and root.children == 0 and root.own:
                            self._release(root)
                    elif source.own:
                        self._release(source)
        return self._events

    def _place(self, tensor: Tensor) -> None:
        if tensor.own or tensor.view is not None or tensor.home >= 0:
            return
        tensor.own = True
        if tensor.op in IN_PLACE:
            for source in tensor.src:
                # A view is never "own", so nothing is computed in place of one.
                if (
                    source.own
                    and not source.is_output
                    and source.children == 1
                    and source.views == 0
                    and source.ne == tensor.ne
                    and source.nb == tensor.nb
                ):
                    tensor.slot = source.slot
                    tensor.backend = source.backend
                    source.own = False
                    return
        tensor.slot = self._slots
        self._slots += 1
        self._events.append(Event(tensor.backend, tensor.slot, tensor.nbytes))

    def _release(self, tensor: Tensor) -> None:
        if not tensor.is_output:
            tensor.own = False
            self._events.append(Event(tensor.backend, tensor.slot, -1))
