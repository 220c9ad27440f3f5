# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tensors and operations of llama.cpp's compute graphs, as shapes; what goes in, and what comes out.

Source: src/llama-graph.cpp (b11434). Only what decides how much memory
a graph needs is here: shapes, the order of evaluation, and which tensor is a view of which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Graph, Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import Hparams

F32, F16, I32, I64 = 4, 2, 4, 8
# LLAMA_ROPE_TYPE_MROPE and IMROPE of llama_model_rope_type: four positions a token.
_MROPE = frozenset(
    [
        "qwen2vl",
        "paddleocr",
        "hunyuan_vl",
        "glm4",
        "glm4moe",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen35",
        "qwen35moe",
        "qwen3tts",
    ]
)
# What llama_model_base::load_tensors reads by a layer's own number, even if it has the weights of another.
_OWN_SCALES = frozenset(("attn_q.scale", "attn_k.scale", "attn_v.scale", "attn_output.scale"))
# llm_arch_supports_mixed_batch: those that take no batch of tokens and vectors at once.
_NO_MIXED_BATCH = frozenset(("cogvlm", "deepseek4", "graniteswitch", "eagle3", "dflash", "gemma4-assistant"))
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Weight:
    """A weight of a layer: its shape, its bytes, and the backend that has it."""

    ne: Shape
    nbytes: int
    backend: int


@dataclass(frozen=True)
class Batch:
    """What the graph is reserved for.

    ``tokens``: in the ubatch, ``sequences`` of equal length. ``outputs``: rows of logits.
    ``streams``: caches apart from each other (1 when unified). ``cells``, ``cells_swa``: of the
    cache and of the sliding one, a stream. ``states``: recurrent states. ``type_k``, ``type_v``:
    of the cache. ``flash``: flash attention. ``offload_kqv``: caches lie on the devices.
    ``v_trans``: values are stored turned, as they are without flash attention unless that was
    found out too late. ``full_offload``: every layer and the output is on a device. ``embeddings``: ``--embedding``.
    """

    tokens: int
    sequences: int
    outputs: int
    streams: int
    cells: int
    cells_swa: int
    states: int
    type_k: str
    type_v: str
    flash: bool
    v_trans: bool
    offload_kqv: bool
    full_offload: bool
    embeddings: bool


@dataclass(frozen=True)
class Place:
    """Where things are: ``layers`` to compute with their backends, ``output``'s, and the CPU's number.

    ``cuda``: backends whose flash attention copies a quantised cache to f16 first.
    ``owners``: backends of layers whose caches others read. ``local_cuda``: backends that llama.cpp
    knows to be ggml-cuda, which a worker's is not: they add up the results of experts in one step,
    for which those have to stay where they are, and leave to the CPU what they have no kernel for.
    """

    layers: Mapping[int, int]
    output: int
    cpu: int
    cuda: frozenset[int] = frozenset()
    owners: Mapping[int, int] = field(default_factory=dict)
    local_cuda: frozenset[int] = frozenset()


class Operations:
    """One graph under construction. ``weights``: tensors by layer (-1: outside of the blocks) and name."""

    def __init__(
        self,
        hp: Hparams,
        keys: Mapping[str, Any],
        weights: Mapping[int, Mapping[str, Weight]],
        batch: Batch,
        place: Place,
    ) -> None:
        self.hp = hp
        self.keys = keys
        self.batch = batch
        self.place = place
        self.graph = Graph()
        self.nt = batch.tokens
        self.layers = sorted(place.layers)
        self.last = hp.n_layer - 1
        self._weights = weights
        self._leafs: dict[tuple[int, str], Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self.rms = True
        # Layers that have the weights of another.
        self.alias: dict[int, int] = {}
        self._ids: tuple[Tensor, Tensor] | None = None

    # Tensors

    def w(self, layer: int, name: str) -> Tensor | None:
        """Return the weight ``name`` (without ``blk.N.`` and ``.weight``) of a layer; -1 for none."""
        if name not in _OWN_SCALES:
            layer = self.alias.get(layer, layer)
        key = (layer, name)
        found = self._leafs.get(key)
        if found is None:
            weight = self._weights.get(layer, {}).get(name)
            if weight is None:
                return None
            found = Tensor("none", weight.ne, F32)
            found.nbytes = weight.nbytes
            found.home = weight.backend
            found.weight = True
            self._leafs[key] = found
        return found

    def need(self, layer: int, name: str) -> Tensor:
        """Return a weight that the architecture cannot do without; :class:`KeyError` without it."""
        found = self.w(layer, name)
        if found is None:
            raise KeyError(name)
        return found

    def has(self, layer: int, name: str) -> bool:
        """Whether the layer has this weight."""
        return name in self._weights.get(self.alias.get(layer, layer), {})

    def key(self, name: str, default: int = 0) -> int:
        """Return a hyper-parameter that is one number."""
        value = self.keys.get(name, default)
        return int(value) if isinstance(value, (bool, int, float)) else default

    def real(self, name: str, default: float = 0.0) -> float:
        """Return a hyper-parameter that is a real number."""
        value = self.keys.get(name, default)
        return float(value) if isinstance(value, (bool, int, float)) else default

    def backend(self, layer: int) -> int:
        """Return the backend of a layer."""
        found = self.place.layers.get(layer)
        return self.place.owners[layer] if found is None else found

    def new_input(self, name: str, ne: Sequence[int], es: int) -> Tensor:
        """Return the input ``name``, made at its first use."""
        found = self._inputs.get(name)
        if found is None:
            padded = tuple(ne) + (1,) * (4 - len(ne))
            found = Tensor("none", padded, es)  # type: ignore[arg-type]
            found.is_input = True
            self._inputs[name] = found
        return found

    def expand(self, tensor: Tensor) -> None:
        """Append to the graph what ``tensor`` needs, and it."""
        self.graph.expand(tensor)

    def keep(self, *tensors: Tensor) -> None:
        """Let nothing take the place of ``tensors`` before what was last added to the graph is computed."""
        made = Tensor("keep", tensors[0].ne, tensors[0].es, tensors, tensors[0].nb, tensors[0])
        self.expand(made)

    # Operations

    def op(self, name: str, ne: Shape, *src: Tensor | None, es: int = F32) -> Tensor:
        """Return the result of an operation with a place of its own."""
        return Tensor(name, ne, es, [item for item in src if item is not None])

    def like(self, name: str, first: Tensor, *src: Tensor | None) -> Tensor:
        """Return the result of an operation that has the shape of its first source."""
        return Tensor(name, first.ne, first.es, [first, *(item for item in src if item is not None)])

    def view(self, name: str, tensor: Tensor, ne: Shape, nb: Shape | None = None, nbytes: int = -1) -> Tensor:
        """Return other dimensions of the same memory."""
        made = Tensor(name, ne, tensor.es, (tensor,), nb, tensor.view if tensor.view is not None else tensor)
        if nbytes >= 0:
            made.nbytes = nbytes
        return made

    def reshape(self, tensor: Tensor, *ne: int) -> Tensor:
        """ggml_reshape."""
        return self.view("reshape", tensor, (*ne, *(1,) * (4 - len(ne))))  # type: ignore[arg-type]

    def columns(self, tensor: Tensor, *ne: int) -> Tensor:
        """A part of each column: a view with the strides of ``tensor`` (ggml_view_3d and _4d)."""
        full: Shape = (*ne, *(1,) * (4 - len(ne)))  # type: ignore[assignment]
        return self.view("view", tensor, full, tensor.nb)

    def heads(self, tensor: Tensor, size: int, count: int) -> Tensor:
        """A part of each column, as heads: {size, count, tokens} of {all, tokens}."""
        es = tensor.es
        step = tensor.nb[1]
        return self.view("view", tensor, (size, count, tensor.ne[1], 1), (es, es * size, step, step * tensor.ne[1]))

    def permute(self, tensor: Tensor, *axes: int) -> Tensor:
        """ggml_permute: dimension i becomes dimension ``axes[i]``."""
        ne, nb = [1] * 4, [0] * 4
        for index, axis in enumerate(axes):
            ne[axis], nb[axis] = tensor.ne[index], tensor.nb[index]
        return self.view("permute", tensor, tuple(ne), tuple(nb), tensor.nbytes)  # type: ignore[arg-type]

    def transpose(self, tensor: Tensor) -> Tensor:
        """ggml_transpose."""
        return self.permute(tensor, 1, 0, 2, 3)

    def cont(self, tensor: Tensor, *ne: int) -> Tensor:
        """ggml_cont: a copy without gaps, in another shape if wished."""
        shape: Shape = (*ne, *(1,) * (4 - len(ne))) if ne else tensor.ne  # type: ignore[assignment]
        return self.op("cont", shape, tensor, es=tensor.es)

    def mm(self, weight: Tensor, tensor: Tensor) -> Tensor:
        """ggml_mul_mat."""
        return self.op("mul_mat", (weight.ne[1], tensor.ne[1], tensor.ne[2], tensor.ne[3]), weight, tensor)

    def linear(self, layer: int, name: str, tensor: Tensor) -> Tensor:
        """A weight, its scale and its bias where it has them (build_lora_mm)."""
        made = self.mm(self.need(layer, name + ".weight"), tensor)
        scale = self.w(layer, name + ".scale")
        if scale is not None:
            made = self.like("mul", made, scale)
        bias = self.w(layer, name + ".bias")
        return self.like("add", made, bias) if bias is not None else made

    def add(self, first: Tensor, second: Tensor) -> Tensor:
        """ggml_add."""
        return self.like("add", first, second)

    def mul(self, first: Tensor, second: Tensor) -> Tensor:
        """ggml_mul."""
        return self.like("mul", first, second)

    def scale(self, tensor: Tensor) -> Tensor:
        """ggml_scale."""
        return self.like("scale", tensor)

    def unary(self, tensor: Tensor) -> Tensor:
        """silu, gelu, sigmoid, tanh …"""
        return self.like("unary", tensor)

    def concat(self, first: Tensor, second: Tensor, axis: int = 0) -> Tensor:
        """ggml_concat."""
        ne = list(first.ne)
        ne[axis] += second.ne[axis]
        return self.op("concat", tuple(ne), first, second, es=first.es)  # type: ignore[arg-type]

    def rows(self, tensor: Tensor, ids: Tensor) -> Tensor:
        """ggml_get_rows."""
        return self.op("get_rows", (tensor.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]), tensor, ids)

    def glu(self, gate: Tensor, up: Tensor) -> Tensor:
        """swiglu, geglu and reglu of two tensors."""
        return self.op("glu", gate.ne, gate, up)

    def glu_halves(self, tensor: Tensor) -> Tensor:
        """The same of the two halves of one tensor."""
        return self.op("glu", (tensor.ne[0] // 2, *tensor.ne[1:]), tensor)

    def rope(self, tensor: Tensor, layer: int = -1) -> Tensor:
        """ggml_rope_ext."""
        return self.like("rope", tensor, self.positions())

    def norm(
        self, tensor: Tensor, layer: int, name: str | None, rms: bool | None = None, pinned: bool = True
    ) -> Tensor:
        """build_norm: over the first dimension, with weight and bias where there are any."""
        weight = (self.w(layer, name + ".weight") or self.w(layer, name)) if name else None
        bias = self.w(layer, name + ".bias") if name else None
        made = self.like("rms_norm" if (self.rms if rms is None else rms) else "norm", tensor)
        # graph_get_cb: the norm is pinned to its layer's device, which saves copies.
        pins = pinned and layer >= 0 and (weight is not None or bias is not None)
        if pins and (self.batch.full_offload or self.nt < 32):
            made.pin = self.backend(layer)
        if weight is not None:
            made = self.mul(made, weight)
        return self.add(made, bias) if bias is not None else made

    def l2_norm(self, tensor: Tensor) -> Tensor:
        """build_gdn_l2_norm."""
        return self.scale(self.like("rms_norm", tensor))

    # Inputs

    def positions(self) -> Tensor:
        """build_inp_pos."""
        each = 4 if self.hp.architecture in _MROPE else 1
        return self.new_input("pos", (self.nt * each,), I32)

    def out_ids(self) -> Tensor:
        """build_inp_out_ids."""
        return self.new_input("out_ids", (self.batch.outputs,), I32)

    def embed(self, scaled: bool = False, width: int = 0) -> Tensor:
        """build_inp_embd. ``scaled``: token rows are multiplied. ``width``: of the input, when not n_embd."""
        width = width or self.hp.n_embd
        table = self.need(-1, "token_embd.weight")

        def tokens_of(ids: Tensor) -> Tensor:
            made = self.rows(table, ids)
            if width != self.hp.n_embd:
                made = self.op("pad", (width, self.nt, 1, 1), made)
            return made

        current = tokens_of(self.new_input("tokens", (self.nt,), I32))
        self.expand(current)
        self.expand(self.new_input("embd", (width, self.nt), F32))
        if self.hp.architecture not in _NO_MIXED_BATCH:
            mixed = self.like("dup", self.new_input("mixed_embd", (width, self.nt), F32))
            ids = tokens_of(self.new_input("mixed_tokens", (self.nt,), I32))
            slots = self.new_input("mixed_slots", (self.nt,), I64)
            self.expand(self.set_rows(mixed, ids, slots))
        if width != self.hp.n_embd:
            current = self.columns(current, self.hp.n_embd, self.nt)
        if self.real("embedding_scale") and not self.key("n_deepstack_layers"):
            if not current.contiguous:
                current = self.cont(current)
            current = self.scale(current)
        if scaled:
            current = self.mul(current, self.new_input("scale_rows", (1, self.nt), F32))
        self.expand(current)
        return current

    def set_rows(self, target: Tensor, source: Tensor, ids: Tensor) -> Tensor:
        """ggml_set_rows: a view of what it writes into."""
        made = Tensor("set_rows", target.ne, target.es, (source, ids, target), target.nb)
        made.view = target.view if target.view is not None else target
        made.nbytes = target.nbytes
        return made

    # Output

    def pick(self, *tensors: Tensor) -> list[Tensor]:
        """The rows that logits are wanted for."""
        return [self.rows(item, self.out_ids()) for item in tensors]

    def head(self, cur: Tensor, softcap: bool = False, scaled: bool = False) -> Tensor:
        """The output layer: what comes out is the logits."""
        cur.is_output = True
        cur = self.linear(-1, "output", cur)
        if scaled:
            cur = self.scale(cur)
        if softcap:
            cur = self.scale(self.unary(self.scale(cur)))
        cur.is_output = True
        self.expand(cur)
        return cur
