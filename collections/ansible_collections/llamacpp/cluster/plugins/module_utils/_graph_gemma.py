# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gemma 3n and 4: inputs of every layer's own, shared caches (src/models/gemma3n.cpp, gemma4.cpp, b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import I32
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import Traits, finish

# Gemma 3n's: streams beside each other, and layers whose gates are made sparse.
_ALTUP, _SPARSE_LAYERS = 4, 10


def _inputs_of_layers(b: Blocks, embedded: Tensor) -> Tensor:
    """What every layer gets of the tokens: {width, tokens, layers}."""
    count = b.hp.n_layer
    table = b.need(-1, "per_layer_token_embd.weight")
    width = table.ne[0] // count
    ids = b.new_input("tokens_per_layer", (b.nt,), I32)
    chosen = b.scale(b.reshape(b.rows(table, ids), width, count, b.nt))
    b.expand(chosen)
    made = b.scale(b.mm(b.need(-1, "per_layer_model_proj.weight"), embedded))
    made = b.norm(b.reshape(made, width, count, b.nt), -1, "per_layer_proj_norm")
    made = b.scale(b.add(made, chosen))
    return b.cont(b.permute(made, 0, 2, 1, 3))


def _slice(b: Blocks, tensor: Tensor) -> Tensor:
    """One of the third dimension."""
    nb = (tensor.nb[0], tensor.nb[1], tensor.nb[2], tensor.nb[2])
    return b.view("view", tensor, (tensor.ne[0], tensor.ne[1], 1, 1), nb)


def _shared_attention(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    """Attention with a cache of its own, or with that of the last layer that has one of its kind."""
    hp, nt, swa = b.hp, b.nt, b.hp.swa[layer]
    k_size, v_size = (hp.head_k_swa, hp.head_v_swa) if swa else (hp.head_k, hp.head_v)
    count, kv = hp.n_head[layer], hp.n_head_kv[layer]
    fused = b.linear(layer, "attn_qkv", cur) if b.has(layer, "attn_qkv.weight") else None
    q = b.cont(b.columns(fused, k_size * count, nt)) if fused is not None else b.linear(layer, "attn_q", cur)
    q = b.rope(b.norm(b.reshape(q, k_size, count, nt), layer, "attn_q_norm"))
    if 0 <= hp.kv_from_start <= layer:
        owner = hp.kv_from_start - (2 if swa else 1)
        return b.attention(layer, q, None, None, cached_layer=owner)
    if fused is not None:
        k, v = b.cont(b.columns(fused, k_size * kv, nt)), b.cont(b.columns(fused, v_size * kv, nt))
    else:
        k = b.linear(layer, "attn_k", cur)
        v = b.linear(layer, "attn_v", cur) if b.has(layer, "attn_v.weight") else k
    k, v = b.reshape(k, k_size, kv, nt), b.reshape(v, v_size, kv, nt)
    k = b.norm(k, layer, "attn_k_norm")
    v = b.like("rms_norm", v)
    return b.attention(layer, q, b.rope(k), v)


def gemma4(b: Blocks) -> None:
    """Dense, or with experts beside the dense layer; with inputs of every layer in the small ones."""
    cur = b.embed(scaled=True)
    per_layer = _inputs_of_layers(b, cur) if b.has(-1, "per_layer_token_embd.weight") else None
    for layer in b.layers:
        residual = cur
        cur = _shared_attention(b, layer, b.norm(cur, layer, "attn_norm"))
        residual = b.add(b.norm(cur, layer, "post_attention_norm"), residual)
        if b.has(layer, "ffn_gate_inp.weight"):
            cur = _beside(b, layer, residual)
        else:
            cur = b.ffn(layer, b.norm(residual, layer, "ffn_norm"))
        cur = b.add(b.norm(cur, layer, "post_ffw_norm", pinned=False), residual)
        if per_layer is not None:
            before = cur
            cur = b.mul(b.unary(b.linear(layer, "inp_gate", cur)), _slice(b, per_layer))
            cur = b.add(before, b.norm(b.linear(layer, "proj", cur), layer, "post_norm"))
        if b.has(layer, "layer_output_scale.weight"):
            cur = b.mul(cur, b.need(layer, "layer_output_scale.weight"))
    softcap = bool(b.real("final_logit_softcapping"))
    finish(b, Traits(pick="before", hidden="before", softcap=softcap), cur)


def _beside(b: Blocks, layer: int, residual: Tensor) -> Tensor:
    """The dense layer and the experts, each with norms of its own."""
    dense = b.norm(b.ffn(layer, b.norm(residual, layer, "ffn_norm")), layer, "post_ffw_norm_1")
    cur = b.norm(residual, layer, "pre_ffw_norm_2")
    probe = b.scale(b.like("rms_norm", residual))
    probe = b.mul(probe, b.need(layer, "ffn_gate_inp.scale"))
    logits = b.mm(b.need(layer, "ffn_gate_inp.weight"), probe)
    made = b.experts(layer, cur, "softmax", True, 1.0, logits)
    return b.add(dense, b.norm(made, layer, "post_ffw_norm_2"))


def _magnitude(b: Blocks, tensor: Tensor) -> Tensor:
    squared = b.like("sqr", tensor)
    return b.like("sqrt", b.op("sum_rows", (1, *tensor.ne[1:]), squared))


def _modalities(b: Blocks, layer: int, tensor: Tensor) -> Tensor:
    normed = b.scale(b.norm(tensor, layer, "altup_router_norm"))
    return b.unary(b.mm(b.need(layer, "altup_router.weight"), normed))


def gemma3n(b: Blocks) -> None:
    """Four streams of which one is computed (altup), and a low rank beside attention (laurel)."""
    width, nt = b.hp.n_embd, b.nt
    cur = b.embed(scaled=True)
    per_layer = _inputs_of_layers(b, cur)
    target = _magnitude(b, cur)
    repeated = b.op("repeat", (width, nt, _ALTUP - 1, 1), cur)
    added = b.op("mul_mat", (width, nt, _ALTUP - 1, 1), b.need(-1, "altup_proj.weight"), repeated)
    magnitude = _magnitude(b, added)
    added = b.like("div", b.mul(added, target), magnitude)
    cur = b.concat(cur, added, 2)
    for layer in b.layers:
        cur = _gemma3n_layer(b, layer, cur, per_layer)
    target = _magnitude(b, _slice(b, cur))
    rest = b.columns(cur, width, nt, _ALTUP - 1)
    back = b.op("mul_mat", (width, nt, _ALTUP - 1, 1), b.need(-1, "altup_unembd_proj.weight"), rest)
    back = b.like("div", b.mul(back, target), _magnitude(b, back))
    cur = _slice(b, cur)
    for _index in range(_ALTUP - 1):
        cur = b.add(cur, _slice(b, back))
    finish(b, Traits(pick="before", softcap=True), b.scale(cur))


def _gemma3n_layer(b: Blocks, layer: int, cur: Tensor, per_layer: Tensor) -> Tensor:
    width, nt = b.hp.n_embd, b.nt
    modalities = _modalities(b, layer, _slice(b, cur))
    coefficients = b.reshape(b.linear(layer, "altup_predict_coef", modalities), _ALTUP, _ALTUP, nt)
    turned = b.cont(b.permute(cur, 1, 2, 0, 3))
    predictions = b.cont(b.permute(b.mm(turned, coefficients), 0, 2, 1, 3))
    predictions = b.add(predictions, cur)
    active = _slice(b, predictions)
    normed = b.norm(active, layer, "attn_norm")
    low = b.linear(layer, "laurel_r", b.linear(layer, "laurel_l", normed))
    low = b.add(b.norm(low, layer, "laurel_post_norm"), normed)
    attended = b.norm(_shared_attention(b, layer, normed), layer, "post_attention_norm")
    both = b.scale(b.add(b.add(attended, active), low))
    inner = b.norm(both, layer, "ffn_norm")
    up, gate = b.linear(layer, "ffn_up", inner), b.linear(layer, "ffn_gate", inner)
    if layer < _SPARSE_LAYERS:
        gate = _sparse(b, gate)
    made = b.linear(layer, "ffn_down", b.mul(up, b.unary(gate)))
    gated = b.add(b.norm(made, layer, "post_ffw_norm", pinned=False), both)
    corrected = _corrected(b, layer, predictions, gated)
    first = b.mul(_slice(b, corrected), b.need(layer, "altup_correct_scale.weight"))
    first = b.mul(b.unary(b.linear(layer, "inp_gate", first)), _slice(b, per_layer))
    first = b.norm(b.linear(layer, "proj", first), layer, "post_norm")
    rest = b.columns(corrected, width, nt, _ALTUP - 1)
    return b.concat(_slice(b, corrected), b.add(rest, first), 2)


def _sparse(b: Blocks, gate: Tensor) -> Tensor:
    """Everything below a threshold of each row becomes 0."""
    mean = b.op("mean", (1, gate.ne[1], 1, 1), gate)
    squared = b.like("sqr", b.like("sub", gate, mean))
    deviation = b.like("sqrt", b.scale(b.op("sum_rows", (1, gate.ne[1], 1, 1), squared)))
    cutoff = b.add(mean, b.scale(deviation))
    return b.unary(b.like("sub", gate, cutoff))


def _corrected(b: Blocks, layer: int, predictions: Tensor, activated: Tensor) -> Tensor:
    modalities = _modalities(b, layer, activated)
    innovation = b.like("sub", activated, _slice(b, predictions))
    coefficients = b.scale(b.linear(layer, "altup_correct_coef", modalities))
    coefficients = b.cont(b.transpose(coefficients), 1, b.nt, _ALTUP)
    innovation = b.op("repeat", (b.hp.n_embd, b.nt, _ALTUP, 1), innovation)
    return b.add(b.mul(innovation, coefficients), predictions)
