# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Architectures with latent attention, state spaces or delta nets (src/models/*.cpp of llama.cpp b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_dense import Traits, feed_forward, finish, heads


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
    t = Traits(rope=False, relu_squared=True, gating="sigmoid", pick="after", hidden="after")
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


def deepseek2(b: Blocks) -> None:
    """Latent attention: keys and values from a common low rank."""
    t = Traits(hidden="after")
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = latent_attention(b, layer, b.norm(residual, layer, "attn_norm"))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(cur, residual)
        cur = feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm"))
        cur = b.add(cur, residual)
    finish(b, t, cur)


def latent_attention(b: Blocks, layer: int, cur: Tensor) -> Tensor:
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
            q = b.mul(q, b.new_input("attn_scale", (1, 1, nt), 4))
        return b.attention(layer, q, k, latent, v_mla=b.need(layer, "attn_v_b.weight"), key_only=True)
    kv = b.linear(layer, "attn_kv_b", latent)
    v = b.cont(b.heads(kv, v_size, count))
    k_nope = b.heads(kv, nope, count)
    q = b.rope(q)
    k = b.concat(k_nope, b.op("repeat", (rot, count, nt, 1), k_pe))
    if b.real("attention.temperature_scale"):
        q = b.mul(q, b.new_input("attn_scale", (1, 1, nt), 4))
    return b.attention(layer, q, k, v)


def qwen3next(b: Blocks) -> None:
    """Gated delta nets, and gated attention every fourth layer."""
    t = Traits(norm_weights=True, gating="softmax", pick="after", hidden="after")
    cur = b.embed()
    for layer in b.layers:
        residual = cur
        cur = b.norm(residual, layer, "attn_norm")
        b.expand(cur)
        cur = gated_delta_net(b, layer, cur) if b.hp.recurrent[layer] else gated_attention(b, layer, cur)
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


def delta_core(
    b: Blocks,
    layer: int,
    mixed: Tensor,
    z: Tensor,
    gate: Tensor,
    beta: Tensor,
    dims: tuple[int, int, int, int],
    width: int,
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
    if k_heads != v_heads:
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
