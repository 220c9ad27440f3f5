# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""State spaces and convolutions, alone or beside attention (src/models/*.cpp of llama.cpp b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import (
    Traits,
    add_residual,
    feed_forward,
    finish,
    heads,
)


def state_space(b: Blocks) -> None:
    """Mamba, first and second generation."""
    t = Traits()
    second = b.hp.architecture == "mamba2"
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        cur = b.mamba2(layer, cur) if second else b.mamba(layer, cur)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        cur = b.add(cur, residual)
    finish(b, t, cur)


def falcon_h1(b: Blocks) -> None:
    """Attention and state space side by side in every layer."""
    t = Traits()
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        q, k, v = heads(b, t, layer, b.norm(residual, layer, "attn_norm"))
        attended = b.attention(layer, q, k, v)
        scanned = b.mamba2(layer, b.norm(residual, layer, "attn_norm"))
        cur = b.add(attended, scanned)
        residual = b.add(cur, residual)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        cur = b.add(b.ffn(layer, b.norm(residual, layer, "ffn_norm")), residual)
    finish(b, t, cur)


def nemotron_h(b: Blocks) -> None:
    """A layer is one of three: state space, attention, or feed forward."""
    t = Traits(rope="none", relu_squared=True, gating="sigmoid", pick="after", hidden="after")
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        if b.hp.recurrent[layer]:
            cur = b.mamba2(layer, cur)
        elif b.hp.n_ff[layer] == 0:
            q, k, v = b.qkv(layer, cur)
            cur = b.attention(layer, q, k, v)
        elif b.has(layer, "ffn_gate_inp.weight"):
            cur = _nemotron_experts(b, layer, cur)
        else:
            cur = b.ffn(layer, cur, relu_squared=True)
        cur = b.add(cur, residual)
    finish(b, t, cur)


def _nemotron_experts(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    inner = cur
    if b.has(layer, "ffn_latent_down.weight"):
        inner = b.linear(layer, "ffn_latent_down", cur)
    logits = b.mm(b.need(layer, "ffn_gate_inp.weight"), cur)
    normed = bool(b.key("expert_weights_norm"))
    made = b.experts(layer, inner, "sigmoid", normed, b.real("expert_weights_scale"), logits, True)
    if b.has(layer, "ffn_latent_up.weight"):
        made = b.linear(layer, "ffn_latent_up", made)
    return b.add(made, b.ffn(layer, cur, "_shexp", True))


def jamba(b: Blocks) -> None:
    """First-generation state spaces, attention in some layers, experts in some."""
    t = Traits(gating="softmax", norm_weights=False)
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        cur = b.mamba(layer, cur) if b.hp.n_head_kv[layer] == 0 else b.attention(layer, *b.qkv(layer, cur))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(residual, cur)
        cur = b.add(residual, feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm")))
    finish(b, t, cur)


def granite_hybrid(b: Blocks) -> None:
    """Second-generation state spaces, and attention in some layers."""
    rope = "none" if b.keys.get("rope.scaling.finetuned") is False else "all"
    t = Traits(residual_scale=True, gating="softmax", norm_weights=True, rope=rope)
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        cur = b.mamba2(layer, cur) if b.hp.recurrent[layer] else b.attention(layer, *heads(b, t, layer, cur))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = add_residual(b, t, cur, residual)
        cur = feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm"))
        cur = add_residual(b, t, cur, residual)
    finish(b, Traits(logit_scale=bool(b.real("logit_scale"))), cur)


def plamo2(b: Blocks) -> None:
    """State spaces with heads, and attention in some layers; norms after each."""
    t = Traits()
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        cur = b.mamba_heads(layer, cur) if b.hp.recurrent[layer] else b.attention(layer, *heads(b, t, layer, cur))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(b.norm(cur, layer, "post_attention_norm"), residual)
        cur = b.ffn(layer, b.norm(residual, layer, "ffn_norm"))
        cur = b.add(b.norm(cur, layer, "post_ffw_norm"), residual)
    finish(b, t, cur)


def lfm2(b: Blocks) -> None:
    """Short gated convolutions, and attention in some layers."""
    t = Traits(norm_weights=True)
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        cur = b.short_convolution(layer, cur) if b.hp.recurrent[layer] else b.attention(layer, *heads(b, t, layer, cur))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(residual, cur)
        cur = b.add(residual, feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm")))
    name = "output_norm" if b.has(-1, "output_norm.weight") else "token_embd_norm"
    finish(b, t, cur, name)
