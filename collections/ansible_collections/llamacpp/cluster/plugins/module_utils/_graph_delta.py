# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Linear attention by the delta rule (src/models/qwen3next.cpp, qwen35.cpp, kimi-linear.cpp, b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_latent import latent_attention
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import (
    Traits,
    apply_gate,
    feed_forward,
    finish,
)


def qwen3next(b: Blocks) -> None:
    """Gated delta nets, and gated attention every fourth layer; qwen35 the same with rotation in sections."""
    t = Traits(norm_weights=True, gating="softmax", pick="after", hidden="after")
    first = b.hp.architecture == "qwen3next"
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        b.expand(cur)
        if not b.hp.recurrent[layer]:
            cur = gated_attention(b, layer, cur)
        else:
            cur = gated_delta_net(b, layer, cur) if first else split_delta_net(b, layer, cur)
        residual = b.add(cur, residual)
        cur = feed_forward(b, t, layer, b.norm(residual, layer, "post_attention_norm"))
        cur = b.add(cur, residual)
    finish(b, t, cur)


def gated_attention(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    """Attention whose output is gated by half of what the queries' projection gives."""
    hp, nt, size = b.hp, b.nt, b.hp.head_k
    count, kv = hp.n_head[layer], hp.n_head_kv[layer]
    both = b.reshape(b.linear(layer, "attn_q", cur), 2 * size, count, nt)
    k = b.linear(layer, "attn_k", cur)
    v = b.linear(layer, "attn_v", cur)
    q, gate = b.columns(both, size, count, nt), b.columns(both, size, count, nt)
    k, v = b.reshape(k, size, kv, nt), b.reshape(v, size, kv, nt)
    q = b.rope(b.norm(q, layer, "attn_q_norm"))
    k = b.rope(b.norm(k, layer, "attn_k_norm"))
    cur = b.attention(layer, q, k, v, out=None)
    cur = b.mul(cur, b.unary(b.cont(gate, size * count, nt)))
    return b.linear(layer, "attn_output", cur)


def gated_delta_net(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    """The linear attention of qwen3next."""
    seqs, steps = b.batch.sequences, b.n_seq_tokens
    inner, k_dim = b.key("ssm.inner_size"), b.key("ssm.state_size")
    k_heads, v_heads = b.key("ssm.group_count"), b.key("ssm.time_step_rank")
    v_dim = inner // v_heads
    ratio = v_heads // k_heads
    width = 2 * k_dim * k_heads + v_dim * v_heads
    if b.has(layer, "attn_qkv.weight"):
        mixed = b.linear(layer, "attn_qkv", cur)
        mixed = b.reshape(mixed, mixed.ne[0], steps, seqs)
        z = b.linear(layer, "attn_gate", cur)
    else:
        mixed, z = _fused_inputs(b, layer, cur)
    ba = b.reshape(b.linear(layer, "ssm_ba", cur), 2 * ratio, k_heads, steps, seqs)
    part, alpha = b.columns(ba, ratio, k_heads, steps, seqs), b.columns(ba, ratio, k_heads, steps, seqs)
    beta = b.unary(b.cont(part))
    alpha = b.cont(alpha, v_heads, steps, seqs)
    gate = b.mul(b.unary(b.add(alpha, b.need(layer, "ssm_dt.bias"))), b.need(layer, "ssm_a"))
    beta, gate = b.reshape(beta, 1, v_heads, steps, seqs), b.reshape(gate, 1, v_heads, steps, seqs)
    return delta_core(b, layer, mixed, z, gate, beta, (k_dim, k_heads, v_dim, v_heads), width)


def split_delta_net(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    """The linear attention of qwen35: decay and step size from tensors of their own."""
    seqs, steps = b.batch.sequences, b.n_seq_tokens
    inner, k_dim = b.key("ssm.inner_size"), b.key("ssm.state_size")
    k_heads, v_heads = b.key("ssm.group_count"), b.key("ssm.time_step_rank")
    v_dim = inner // v_heads
    mixed = b.linear(layer, "attn_qkv", cur)
    mixed = b.reshape(mixed, mixed.ne[0], steps, seqs)
    z = b.linear(layer, "attn_gate", cur)
    beta = b.unary(b.reshape(b.linear(layer, "ssm_beta", cur), 1, v_heads, steps, seqs))
    alpha = b.reshape(b.linear(layer, "ssm_alpha", cur), v_heads, steps, seqs)
    gate = b.mul(b.unary(b.add(alpha, b.need(layer, "ssm_dt.bias"))), b.need(layer, "ssm_a"))
    gate = b.reshape(gate, 1, v_heads, steps, seqs)
    width = 2 * k_dim * k_heads + v_dim * v_heads
    return delta_core(b, layer, mixed, z, gate, beta, (k_dim, k_heads, v_dim, v_heads), width, repeats=False)


def delta_core(
    b: Blocks,
    layer: int,
    mixed: Tensor,
    z: Tensor,
    gate: Tensor,
    beta: Tensor,
    dims: tuple[int, int, int, int],
    width: int,
    repeats: bool = True,
) -> Tensor:
    """Convolution, the delta rule, and the gated norm."""
    seqs, steps = b.batch.sequences, b.n_seq_tokens
    k_dim, k_heads, v_dim, v_heads = dims
    kernel = b.need(layer, "ssm_conv1d.weight")
    states_r, states_s = b.state(layer, "r", b.hp.n_embd_r), b.state(layer, "s", b.hp.n_embd_s)
    before = b.reshape(b.read_state(states_r), kernel.ne[0] - 1, width, seqs)
    joined = b.concat(before, b.transpose(mixed))
    last = b.view("view", joined, (kernel.ne[0] - 1, width, seqs, 1), joined.nb)
    b.write_state(last, b.view("view", states_r, (states_r.ne[0], seqs, 1, 1), states_r.nb))
    state = b.reshape(b.read_state(states_s), v_dim, v_dim, v_heads, seqs)
    conv = b.unary(b.op("ssm_conv", (width, steps, seqs, 1), joined, kernel))
    line = 4 * width
    q = b.view("view", conv, (k_dim, k_heads, steps, seqs), (4, 4 * k_dim, line, line * steps))
    k = b.view("view", conv, (k_dim, k_heads, steps, seqs), (4, 4 * k_dim, line, line * steps))
    v = b.view("view", conv, (v_dim, v_heads, steps, seqs), (4, 4 * v_dim, line, line * steps))
    q, k = b.l2_norm(q), b.l2_norm(k)
    if repeats and k_heads != v_heads:
        each = v_heads // k_heads
        repeated = []
        for part in (q, k):
            flat = b.reshape(part, k_dim, 1, k_heads, steps * seqs)
            repeated.append(flat)
        repeated = [b.op("repeat", (k_dim, each, k_heads, steps * seqs), flat) for flat in repeated]
        q, k = (b.reshape(item, k_dim, v_heads, steps, seqs) for item in repeated)
    out = b.delta_net(layer, q, k, v, gate, beta, states_s, state)
    z = b.reshape(z, v_dim, v_heads, steps, seqs)
    cur = b.mul(b.norm(out, layer, "ssm_norm"), b.unary(z))
    cur = b.linear(layer, "ssm_out", b.reshape(cur, v_dim * v_heads, steps, seqs))
    return b.reshape(cur, cur.ne[0], b.nt)


def _fused_inputs(b: Blocks, layer: int, cur: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, keys, values and gate from one tensor, interleaved by head (older files)."""
    seqs, steps = b.batch.sequences, b.n_seq_tokens
    k_dim, k_heads, v_heads = b.key("ssm.state_size"), b.key("ssm.group_count"), b.key("ssm.time_step_rank")
    v_all = b.key("ssm.inner_size") // k_heads
    del v_heads
    mixed = b.reshape(b.linear(layer, "ssm_in", cur), 2 * k_dim + 2 * v_all, k_heads, steps, seqs)
    q, k = b.columns(mixed, k_dim, k_heads, steps, seqs), b.columns(mixed, k_dim, k_heads, steps, seqs)
    v = b.columns(mixed, v_all, k_heads, steps, seqs)
    z = b.cont(b.columns(mixed, v_all, k_heads, steps, seqs))
    flat = [b.cont(q, k_dim * k_heads, steps, seqs), b.cont(k, k_dim * k_heads, steps, seqs)]
    flat.append(b.cont(v, v_all * k_heads, steps, seqs))
    return b.concat(b.concat(flat[0], flat[1]), flat[2]), z


def kimi_linear(b: Blocks) -> None:
    """Kimi's delta attention, and latent attention where the file says."""
    t = Traits(norm_weights=True)
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        cur = delta_attention(b, layer, cur) if b.hp.recurrent[layer] else latent_unrotated(b, layer, cur)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(cur, residual)
        cur = feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm"))
        cur = b.add(cur, residual)
    finish(b, t, cur)


def bailingmoe3(b: Blocks) -> None:
    """Ling 3: the same with gates of full rank, and latent attention that is gated by head."""
    t = Traits(pick="after", hidden="after")
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        cur = delta_attention(b, layer, cur) if b.hp.recurrent[layer] else _gated_latent(b, layer, cur)
        residual = b.add(cur, residual)
        cur = feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm"))
        cur = b.add(cur, residual)
    finish(b, t, cur)


def _gated_latent(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    out = latent_attention(b, layer, cur, project=False)
    gate = b.unary(b.linear(layer, "attn_gate", cur))
    return b.linear(layer, "attn_output", apply_gate(b, layer, out, gate))


def _rank(b: Blocks, layer: int, name: str, cur: Tensor) -> Tensor:
    """A projection of low rank, or of full rank where there is no second factor."""
    made = b.linear(layer, name + "_a", cur)
    return b.linear(layer, name + "_b", made) if b.has(layer, name + "_b.weight") else made


def delta_attention(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    """A delta net with a decay for every number of a key, convolutions apart for queries, keys and values."""
    seqs, steps, nt = b.batch.sequences, b.n_seq_tokens, b.nt
    size, count = b.key("kda.head_dim"), b.hp.n_head[layer]
    inner, taps = size * count, max(b.key("ssm.conv_kernel"), 1) - 1
    states_r, states_s = b.state(layer, "r", b.hp.n_embd_r), b.state(layer, "s", b.hp.n_embd_s)
    before = b.read_state(states_r)
    made = []
    for name in ("q", "k", "v"):
        nb = (4, 4 * taps, before.nb[1], before.nb[1] * seqs)
        kept = b.view("view", before, (taps, inner, seqs, 1), nb)
        x = b.reshape(b.mm(b.need(layer, "attn_%s.weight" % name), cur), inner, steps, seqs)
        joined = b.concat(kept, b.transpose(x))
        last = b.view("view", joined, (taps, inner, seqs, 1), joined.nb)
        b.write_state(last, b.view("view", states_r, (taps, inner, seqs, 1), (4, 4 * taps, states_r.nb[1], 0)))
        kernel = b.reshape(b.need(layer, "ssm_conv1d_%s.weight" % name), taps + 1, inner)
        out = b.unary(b.reshape(b.op("ssm_conv", (inner, steps, seqs, 1), joined, kernel), inner, nt))
        made.append(b.reshape(out, size, count, steps, seqs))
    q, k, v = made
    decay = _rank(b, layer, "ssm_f", cur)
    decay = b.reshape(b.unary(b.add(decay, b.need(layer, "ssm_dt.bias"))), size, count, nt)
    decay = b.reshape(b.mul(decay, b.reshape(b.need(layer, "ssm_a"), 1, count)), size, count, steps, seqs)
    beta = b.unary(b.reshape(b.linear(layer, "ssm_beta", cur), 1, count, steps, seqs))
    state = b.reshape(b.read_state(states_s), size, size, count, seqs)
    q, k = b.l2_norm(q), b.l2_norm(k)
    out = b.delta_net(layer, q, k, v, decay, beta, states_s, state, contiguous=True)
    gate = b.reshape(_rank(b, layer, "ssm_g", cur), size, count, nt)
    normed = b.norm(b.reshape(out, size, count, nt), layer, "ssm_norm")
    return b.linear(layer, "attn_output", b.cont(b.mul(normed, b.unary(gate)), inner, nt))


def latent_unrotated(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    """Latent attention without rotation."""
    nt, count = b.nt, b.hp.n_head[layer]
    rot, rank = b.key("rope.dimension_count"), b.key("attention.kv_lora_rank")
    k_size, v_size = b.key("attention.key_length_mla"), b.key("attention.value_length_mla")
    nope = k_size - rot
    q = b.linear(layer, "attn_q", cur)
    both = b.linear(layer, "attn_kv_a_mqa", cur)
    latent = b.norm(b.columns(both, rank, nt), layer, "attn_kv_a_norm")
    k_pe = b.heads(both, rot, 1)
    if not b.has(layer, "attn_k_b.weight"):
        kv = b.linear(layer, "attn_kv_b", latent)
        v = b.cont(b.heads(kv, v_size, count))
        k = b.concat(b.op("repeat", (rot, count, nt, 1), k_pe), b.heads(kv, nope, count))
        return b.attention(layer, b.reshape(q, k_size, count, nt), k, v)
    nb = (4, 4 * k_size, 4 * k_size * count, 4 * k_size * count * nt)
    q_nope = b.view("view", q, (nope, count, nt, 1), nb)
    q_pe = b.view("view", q, (rot, count, nt, 1), nb)
    absorbed = b.mm(b.need(layer, "attn_k_b.weight"), b.permute(q_nope, 0, 2, 1, 3))
    q = b.concat(b.permute(absorbed, 0, 2, 1, 3), q_pe)
    latent = b.reshape(latent, rank, 1, nt)
    k = b.concat(latent, k_pe)
    return b.attention(layer, q, k, latent, v_mla=b.need(layer, "attn_v_b.weight"), key_only=True)
