# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Transformers of every kind (src/models/*.cpp of llama.cpp b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import F32
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import (
    GATING,
    Traits,
    add_residual,
    attend,
    feed_forward,
    finish,
    heads,
    mixture,
    optional_norm,
    start,
)


def transformer(b: Blocks, t: Traits) -> None:
    """Attention, then feed forward, each added to what went in."""
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        cur = attend(b, t, layer, optional_norm(b, cur, layer, t.before_attention))
        picks = layer == b.last and t.pick == "layer"
        # plamo3 and afmoe normalise all rows before they pick.
        if t.post_attention and b.hp.architecture == "afmoe":
            cur = b.norm(cur, layer, t.post_attention)
        if picks:
            cur, residual = b.pick(cur, residual)
        if t.post_attention and b.hp.architecture != "afmoe":
            cur = b.norm(cur, layer, t.post_attention)
        residual = add_residual(b, t, cur, residual)
        cur = feed_forward(b, t, layer, optional_norm(b, residual, layer, t.before_ffn))
        if t.post_ffn:
            cur = b.norm(cur, layer, t.post_ffn)
        cur = b.add(residual, cur) if t.residual_first else add_residual(b, t, cur, residual)
    finish(b, t, cur)


def parallel(b: Blocks, t: Traits) -> None:
    """Attention and feed forward side by side (command-r, phi2, falcon)."""
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        before = b.norm(residual, layer, "attn_norm")
        cur = b.norm(residual, layer, "attn_norm_2") if b.has(layer, "attn_norm_2.weight") else before
        attended = attend(b, t, layer, cur)
        if layer == b.last and t.pick == "layer":
            attended, residual, before = b.pick(attended, residual, before)
        if b.hp.architecture == "gptneox":
            before = b.norm(residual, layer, "ffn_norm")
        cur = feed_forward(b, t, layer, before)
        if b.has(layer, "ffn_gate_inp.weight") and b.has(layer, "ffn_up_shexp.weight"):
            cur = b.scale(cur)
        if b.hp.architecture == "phi2":
            cur = b.add(b.add(attended, cur), residual)
        elif b.hp.architecture in ("plamo", "falcon"):
            cur = b.add(b.add(cur, attended), residual)
        else:
            cur = b.add(b.add(cur, residual), attended)
    finish(b, t, cur)


def gptneox(b: Blocks) -> None:
    """Side by side or one after the other, as the file says."""
    t = Traits(rms=False)
    if b.key("use_parallel_residual"):
        parallel(b, t)
    else:
        transformer(b, t)


def stablelm(b: Blocks) -> None:
    """Without a norm of its own, feed forward takes what attention took."""
    t = Traits(rms=False)
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        before = b.norm(residual, layer, "attn_norm")
        cur = attend(b, t, layer, before)
        if layer == b.last:
            cur, residual, before = b.pick(cur, residual, before)
        residual = b.add(cur, residual)
        cur = b.norm(residual, layer, "ffn_norm") if b.has(layer, "ffn_norm.weight") else before
        cur = b.add(b.ffn(layer, cur), residual)
    finish(b, t, cur)


def bitnet(b: Blocks) -> None:
    """Norms within attention and within feed forward; the embedding is the output."""
    t = Traits()
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        q, k, v = heads(b, t, layer, b.norm(cur, layer, "attn_norm"))
        cur = b.norm(b.attention(layer, q, k, v, out=None), layer, "attn_sub_norm")
        cur = b.linear(layer, "attn_output", cur)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(cur, residual)
        cur = b.norm(residual, layer, "ffn_norm")
        up = b.linear(layer, "ffn_up", cur)
        cur = b.norm(b.glu(b.linear(layer, "ffn_gate", cur), up), layer, "ffn_sub_norm")
        cur = b.add(b.linear(layer, "ffn_down", cur), residual)
    cur = b.norm(cur, -1, "output_norm")
    cur.is_output = True
    cur = b.mm(b.need(-1, "token_embd.weight"), cur)
    cur.is_output = True
    b.expand(cur)


def arctic(b: Blocks) -> None:
    """A dense layer, and experts beside it that start from the layer's input."""
    t = Traits(gating="softmax", norm_weights=True)
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        cur = attend(b, t, layer, b.norm(cur, layer, "attn_norm"))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        after = b.add(cur, residual)
        dense = b.add(b.ffn(layer, b.norm(after, layer, "ffn_norm")), after)
        cur = b.add(mixture(b, t, layer, b.norm(residual, layer, "ffn_norm_exps")), dense)
    finish(b, t, cur)


def grok(b: Blocks) -> None:
    """Experts beside a dense layer; without flash attention, always."""
    t = Traits(gating="softmax", norm_weights=True, logit_scale=True)
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        cur = attend(b, t, layer, b.norm(cur, layer, "attn_norm"))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(b.norm(cur, layer, "attn_output_norm"), residual)
        cur = b.norm(residual, layer, "ffn_norm")
        made = mixture(b, t, layer, cur)
        if b.has(layer, "ffn_up.weight"):
            made = b.scale(b.add(b.ffn(layer, cur), made))
        name = "layer_output_norm" if b.has(layer, "layer_output_norm.weight") else "post_ffw_norm"
        cur = b.add(b.norm(made, layer, name), residual)
    t = Traits(logit_scale=True, softcap=bool(b.real("final_logit_softcapping")))
    finish(b, t, cur)


def talkie(b: Blocks) -> None:
    """Norms without weights; the embedding is added to every layer again."""
    t = Traits(norm_embedding="")
    cur = start(b, t)
    again = cur
    for layer in b.layers:
        residual, skip = cur, again
        q, k, v = b.qkv(layer, b.norm(cur, layer, None))
        q, k = b.norm(b.rope(q), layer, "attn_q_norm"), b.norm(b.rope(k), layer, None)
        cur = b.attention(layer, q, k, v)
        if layer == b.last:
            cur, residual, skip = b.pick(cur, residual, skip)
        residual = b.add(cur, residual)
        cur = b.add(b.ffn(layer, b.norm(residual, layer, None)), residual)
        cur = b.add(cur, b.mul(skip, b.need(layer, "layer_output_scale.weight")))
    finish(b, Traits(logit_scale=True), cur, "")


def grovemoe(b: Blocks) -> None:
    """Two mixtures of experts with the same choice."""
    t = Traits(gating="softmax", norm_weights=True)
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        cur = attend(b, t, layer, b.norm(cur, layer, "attn_norm"))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(cur, residual)
        cur = b.norm(residual, layer, "ffn_norm")
        probs = b.mm(b.need(layer, "ffn_gate_inp.weight"), cur)
        scale = b.real("expert_weights_scale")
        made = b.experts(layer, cur, "softmax", True, scale, probs)
        chunks = b.need(layer, "ffn_up_chexps.weight").ne[2]
        more = b.experts(
            layer,
            made,
            "softmax",
            True,
            scale,
            probs,
            used=min(chunks, b.hp.n_expert_used[layer]),
            suffix="_chexps",
            count=chunks,
        )
        cur = b.add(b.add(made, b.scale(more)), residual)
    finish(b, t, cur)


def smallthinker(b: Blocks) -> None:
    """The experts are chosen before attention."""
    t = Traits(rope="swa")
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        probs = b.mm(b.need(layer, "ffn_gate_inp.weight"), cur)
        cur = attend(b, t, layer, b.norm(cur, layer, "attn_norm"))
        if layer == b.last:
            cur, residual, probs = b.pick(cur, residual, probs)
        residual = b.add(cur, residual)
        gating = GATING.get(b.key("expert_gating_func"), "softmax")
        cur = b.experts(layer, b.norm(residual, layer, "ffn_norm"), gating, True, b.real("expert_weights_scale"), probs)
        cur = b.add(cur, residual)
    finish(b, t, cur)


def llama4(b: Blocks) -> None:
    """Windows or chunks with rotation, and every fourth layer without."""
    t = Traits(gating="sigmoid", norm_weights=False, weight_first=True)
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        q, k, v = b.qkv(layer, b.norm(cur, layer, "attn_norm"))
        if (layer + 1) % 4 != 0 or not b.hp.has_swa:
            q, k = b.rope(q), b.rope(k)
            if b.key("use_kq_norm", 1):
                q, k = b.like("rms_norm", q), b.like("rms_norm", k)
        else:
            q = b.mul(q, b.new_input("attn_scale", (1, 1, b.nt), F32))
        cur = b.attention(layer, q, k, v)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(cur, residual)
        cur = b.add(feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm")), residual)
    finish(b, t, cur)


def mistral3(b: Blocks) -> None:
    """Llama, with a temperature for long contexts where the file has one."""
    t = Traits(gating="softmax", norm_weights=True)
    scaled = bool(b.real("attention.temperature_scale"))
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        q, k, v = heads(b, t, layer, b.norm(cur, layer, "attn_norm"))
        if scaled:
            q = b.mul(q, b.new_input("attn_scale", (1, 1, b.nt), F32))
        cur = b.attention(layer, q, k, v)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(cur, residual)
        cur = b.add(feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm")), residual)
    finish(b, t, cur)


def deci(b: Blocks) -> None:
    """Layers without attention, with a linear one, or without feed forward (Nemotron, pruned)."""
    t = Traits()
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        count, kv = b.hp.n_head[layer], b.hp.n_head_kv[layer]
        if count:
            cur = b.norm(cur, layer, "attn_norm")
        if count and not kv:
            cur = b.linear(layer, "attn_output", cur)
        elif count:
            q, k, v = heads(b, t, layer, cur)
            cur = b.attention(layer, q, k, v)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        if b.hp.n_ff[layer] == 0:
            continue
        after = cur
        if count:
            after = b.add(cur, residual)
            cur = b.norm(after, layer, "ffn_norm")
        cur = b.add(b.ffn(layer, cur), after)
    finish(b, t, cur)


def chameleon(b: Blocks) -> None:
    """Norms before or after; the tokens of images are masked in the logits."""
    t = Traits()
    swin = bool(b.key("swin_norm"))
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        if not swin:
            cur = b.norm(cur, layer, "attn_norm")
        q, k, v = b.qkv(layer, cur)
        q = b.rope(b.norm(q, layer, "attn_q_norm", rms=False) if b.has(layer, "attn_q_norm.weight") else q)
        k = b.rope(b.norm(k, layer, "attn_k_norm", rms=False) if b.has(layer, "attn_k_norm.weight") else k)
        cur = b.attention(layer, q, k, v)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        if swin:
            cur = b.norm(cur, layer, "attn_norm")
        residual = cur = b.add(cur, residual)
        if not swin:
            cur = b.norm(cur, layer, "ffn_norm")
        cur = b.ffn(layer, cur)
        if swin:
            cur = b.norm(cur, layer, "ffn_norm")
        cur = b.add(cur, residual)
    logits = finish(b, t, cur)
    b.expand(b.like("set", logits, b.new_input("image_tokens", (1,), F32)))


def cogvlm(b: Blocks) -> None:
    """A text and an image expert; the graph has the one for text."""
    t = Traits(pick="none")
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        q, k, v = heads(b, t, layer, b.norm(cur, layer, "attn_norm"))
        cur = b.add(b.attention(layer, q, k, v), residual)
        residual = cur
        cur = b.add(b.ffn(layer, b.norm(cur, layer, "ffn_norm")), residual)
    finish(b, t, cur)
