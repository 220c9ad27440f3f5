# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What layers are made of: attention and feed forward with all that surrounds them (llama.cpp b11434, src/models)."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks

# LLM_KV_EXPERTGATING_FUNC.
GATING = {1: "softmax", 2: "sigmoid", 3: "softmax_weight", 4: "sqrt_softplus"}


@dataclass(frozen=True)
class Traits:
    """In what an architecture differs from llama.

    ``rms``: the norms are RMS norms. ``scale_tokens``, ``scale_embedding``: embeddings are scaled,
    token rows alone or all. ``norm_embedding``: they are normalised, with this weight ("" for
    none). ``before_attention``: the norm; ``None`` for none, "" for one without a weight.
    ``rope``: queries and keys are rotated in "all" layers, in "none", in those that slide ("swa"),
    in all but every fourth ("step"), or in the model with 32 layers ("7b"). ``norm_late``: queries
    and keys are normalised after that; ``norm_flat``: before they are divided into heads.
    ``scale_queries``. ``sinks``: attention sinks.
    ``gate``: attention is gated by a projection, made "before" or "after" it. ``cached``: False
    where there is no cache. ``post_attention``, ``before_ffn``, ``post_ffn``: names of norms.
    ``pick``: where the rows of the output are taken out: in the last "layer", "before" the last
    norm, "after" it. ``hidden``: the state that drafting needs is kept, "before" or "after" the
    last norm. ``gating``, ``norm_weights``, ``weight_scale``: of experts; ``None``: as the file
    says. ``dense``: experts are not used even if there are any. ``residual_first``: in the last sum
    of a layer. ``shared_first``: what all experts share comes first. ``relu_squared``. ``residual_scale``,
    ``logit_scale``, ``softcap``.
    """

    rms: bool = True
    scale_tokens: bool = False
    scale_embedding: bool = False
    norm_embedding: str | None = None
    before_attention: str | None = "attn_norm"
    rope: str = "all"
    norm_late: bool = False
    norm_flat: bool = False
    scale_queries: bool = False
    sinks: bool = False
    gate: str | None = None
    cached: bool = True
    post_attention: str | None = None
    before_ffn: str | None = "ffn_norm"
    post_ffn: str | None = None
    pick: str = "layer"
    hidden: str | None = None
    gating: str | None = None
    norm_weights: bool | None = None
    weight_scale: bool = True
    weight_first: bool = False
    shared_first: bool = False
    relu_squared: bool = False
    dense: bool = False
    residual_first: bool = False
    residual_scale: bool = False
    logit_scale: bool = False
    softcap: bool = False


def shared_expert(b: Blocks, t: Traits, layer: int, cur: Tensor) -> Tensor:
    """What every token passes beside its experts, gated in some models."""
    if b.hp.architecture == "qwen2moe":
        gate = b.linear(layer, "ffn_gate_inp_shexp", cur)
        gate = b.like("div", b.unary(gate), gate)
        return b.mul(b.ffn(layer, cur, "_shexp"), gate)
    shared = b.ffn(layer, cur, "_shexp", t.relu_squared)
    if b.has(layer, "ffn_gate_inp_shexp.weight"):
        shared = b.mul(shared, b.unary(b.linear(layer, "ffn_gate_inp_shexp", cur)))
    return shared


def mixture(b: Blocks, t: Traits, layer: int, cur: Tensor) -> Tensor:
    """Experts, with what they all share."""
    gating = t.gating or GATING.get(b.key("expert_gating_func"), "softmax")
    normed = bool(b.key("expert_weights_norm")) if t.norm_weights is None else t.norm_weights
    scale = b.real("expert_weights_scale") if t.weight_scale else 0.0
    shares = b.has(layer, "ffn_up_shexp.weight")
    shared = shared_expert(b, t, layer, cur) if shares and t.shared_first else None
    made = b.experts(layer, cur, gating, normed, scale, relu_squared=t.relu_squared, weight_first=t.weight_first)
    if shares:
        made = b.add(made, shared if shared is not None else shared_expert(b, t, layer, cur))
    return made


def feed_forward(b: Blocks, t: Traits, layer: int, cur: Tensor) -> Tensor:
    """One or the other, as the layer's tensors say."""
    if b.has(layer, "ffn_gate_inp.weight") and not t.dense:
        return mixture(b, t, layer, cur)
    return b.ffn(layer, cur, relu_squared=t.relu_squared)


def _rotates(b: Blocks, t: Traits, layer: int) -> bool:
    if t.rope == "swa":
        return b.hp.swa[layer] or not b.hp.has_swa
    if t.rope == "7b":
        return b.hp.n_layer == 32
    if t.rope == "step":
        return (layer + 1) % 4 != 0
    return t.rope == "all"


def heads(b: Blocks, t: Traits, layer: int, cur: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, normalised and rotated."""
    flat = t.norm_flat and b.has(layer, "attn_q_norm.weight")
    q, k, v = b.qkv(layer, cur, normed=("attn_q_norm", "attn_k_norm") if flat else None)
    made = []
    for part, name in ((q, "attn_q_norm"), (k, "attn_k_norm")):
        normed = b.has(layer, name + ".weight") and not flat
        if normed and not t.norm_late:
            part = b.norm(part, layer, name)
        if _rotates(b, t, layer):
            part = b.rope(part)
        if normed and t.norm_late:
            part = b.norm(part, layer, name)
        made.append(part)
    q, k = made
    if t.scale_queries:
        q = b.scale(q)
    return q, k, v


def attend(b: Blocks, t: Traits, layer: int, cur: Tensor) -> Tensor:
    """Attention with all that surrounds it."""
    gate = b.linear(layer, "attn_gate", cur) if t.gate == "before" else None
    q, k, v = heads(b, t, layer, cur)
    if t.gate is None:
        if not t.cached:
            return b.attention_now(layer, q, k, v)
        return b.attention(layer, q, k, v, sinks=t.sinks)
    made = b.attention(layer, q, k, v, out=None, sinks=t.sinks)
    if gate is None and b.has(layer, "attn_gate.weight"):
        gate = b.linear(layer, "attn_gate", cur)
    if gate is not None:
        made = apply_gate(b, layer, made, b.unary(gate))
    return b.linear(layer, "attn_output", made)


def apply_gate(b: Blocks, layer: int, cur: Tensor, gate: Tensor) -> Tensor:
    """Multiply what was attended to by a gate, of every number or of every head."""
    count = b.hp.n_head[layer]
    if gate.ne[0] != count:
        return b.mul(cur, gate)
    made = b.mul(b.reshape(cur, cur.ne[0] // count, count, b.nt), b.reshape(gate, 1, count, b.nt))
    return b.reshape(made, cur.ne[0], b.nt)


def start(b: Blocks, t: Traits) -> Tensor:
    """Embeddings, with positions or norms where the architecture has them."""
    b.rms = t.rms
    cur = b.embed(t.scale_tokens)
    if b.has(-1, "position_embd.weight"):
        cur = b.add(cur, b.rows(b.need(-1, "position_embd.weight"), b.positions()))
    if t.scale_embedding:
        cur = b.scale(cur)
    if t.norm_embedding is not None:
        cur = b.norm(cur, -1, t.norm_embedding or None)
    return cur


def finish(b: Blocks, t: Traits, cur: Tensor, norm: str = "output_norm") -> Tensor:
    """The last norm and the logits."""
    if t.hidden == "before":
        cur.is_output = True
    if t.pick == "before":
        (cur,) = b.pick(cur)
    cur = b.norm(cur, -1, norm or None)
    if t.hidden == "after":
        cur.is_output = True
    if t.pick == "after":
        (cur,) = b.pick(cur)
    return b.head(cur, t.softcap, t.logit_scale)


def optional_norm(b: Blocks, cur: Tensor, layer: int, name: str | None) -> Tensor:
    """A norm; ``None`` for none, "" for one without a weight."""
    return cur if name is None else b.norm(cur, layer, name or None)


def add_residual(b: Blocks, t: Traits, cur: Tensor, residual: Tensor) -> Tensor:
    """Add what went in, scaled in some models."""
    if t.residual_scale and b.real("residual_scale"):
        cur = b.scale(cur)
    return b.add(cur, residual)
