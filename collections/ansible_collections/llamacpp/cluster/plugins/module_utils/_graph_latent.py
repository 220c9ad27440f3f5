# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Latent attention: keys and values from a common low rank (src/models/deepseek2.cpp and others, b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import F32
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import Traits, attend, feed_forward, finish


def deepseek2(b: Blocks) -> None:
    """DeepSeek-V2 and V3, and others of their kind."""
    latent(b, Traits(hidden="after"))


def minicpm3(b: Blocks) -> None:
    """Scales on embedding, residuals and logits."""
    latent(b, Traits(scale_embedding=True, logit_scale=True), scales=True)


def plm(b: Blocks) -> None:
    """Queries without a low rank."""
    latent(b, Traits(relu_squared=True), flat=True)


def latent(b: Blocks, t: Traits, scales: bool = False, flat: bool = False) -> None:
    """Latent attention, or plain attention where the file has that (DeepSeek-OCR)."""
    cur = b.embed()
    if t.scale_embedding:
        cur = b.scale(cur)
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        if b.has(layer, "attn_kv_a_mqa.weight"):
            cur = latent_attention(b, layer, cur, flat)
        else:
            cur = attend(b, t, layer, cur)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        if scales:
            cur = b.scale(cur)
        residual = b.add(cur, residual)
        cur = feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm"))
        if scales:
            cur = b.scale(cur)
        cur = b.add(cur, residual)
    finish(b, t, cur)


def latent_attention(b: Blocks, layer: int, cur: Tensor, flat: bool = False, project: bool = True) -> Tensor:
    """Attention of DeepSeek-V2 and later, absorbed (``is_mla``) or unfolded."""
    hp, nt, count = b.hp, b.nt, b.hp.n_head[layer]
    rot, rank = b.key("rope.dimension_count"), b.key("attention.kv_lora_rank")
    k_size = b.key("attention.key_length_mla") if hp.mla else hp.head_k
    v_size = b.key("attention.value_length_mla") if hp.mla else hp.head_v
    nope = k_size - rot
    if b.has(layer, "attn_q.weight"):
        q = b.linear(layer, "attn_q", cur)
    else:
        q = b.linear(layer, "attn_q_b", b.norm(b.linear(layer, "attn_q_a", cur), layer, "attn_q_a_norm"))
    q = b.reshape(q, k_size, count, nt)
    both = b.linear(layer, "attn_kv_a_mqa", cur)
    latent = b.columns(both, rank, nt)
    k_pe = b.rope(b.heads(both, rot, 1))
    latent = b.norm(latent, layer, "attn_kv_a_norm")
    if hp.mla:
        q_nope, q_pe = b.columns(q, nope, count, nt), b.columns(q, rot, count, nt)
        q_pe = b.rope(q_pe)
        absorbed = b.mm(b.need(layer, "attn_k_b.weight"), b.permute(q_nope, 0, 2, 1, 3))
        q = b.concat(b.permute(absorbed, 0, 2, 1, 3), q_pe)
        latent = b.reshape(latent, rank, 1, nt)
        k = b.concat(latent, k_pe)
        if b.real("attention.temperature_scale"):
            q = b.mul(q, b.new_input("attn_scale", (1, 1, nt), F32))
        out = "attn_output" if project else None
        return b.attention(layer, q, k, latent, out, v_mla=b.need(layer, "attn_v_b.weight"), key_only=True)
    kv = b.linear(layer, "attn_kv_b", latent)
    v = b.cont(b.heads(kv, v_size, count))
    if flat:
        v = b.reshape(v, v_size * count, nt)
    k_nope = b.heads(kv, nope, count)
    q = b.rope(q)
    k = b.concat(k_nope, b.op("repeat", (rot, count, nt, 1), k_pe))
    if b.real("attention.temperature_scale"):
        q = b.mul(q, b.new_input("attn_scale", (1, 1, nt), F32))
    return b.attention(layer, q, k, v)
