# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""HRM's loops over stacks, and the linear and the block-sparse attention of MiniMax (src/models/*.cpp, b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import F16, F32, I32, I64
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import Traits, feed_forward, finish, heads


def hrm_text(b: Blocks) -> None:
    """Two states that improve each other, each by its own stack of layers."""
    high = b.embed()
    low = b.need(-1, "hrm.z_l_init")
    slot = 0
    per_stack = b.key("hrm.layers_per_stack")
    passes = b.key("hrm.l_cycles") + 1
    for layer in b.layers:
        # The first layers of the file are the low stack's, the next the high one's; every pass has a cache of its own.
        b.alias[layer] = layer % per_stack + (per_stack if layer // per_stack % passes == passes - 1 else 0)
    for _index in range(b.key("hrm.h_cycles")):
        for _index in range(b.key("hrm.l_cycles")):
            low = _stack(b, b.add(high, low), slot, per_stack)
            slot += per_stack
        high = _stack(b, b.add(high, low), slot, per_stack)
        slot += per_stack
    (cur,) = b.pick(high)
    b.head(cur)


def _stack(b: Blocks, cur: Tensor, first: int, count: int) -> Tensor:
    t = Traits()
    for layer in range(first, first + count):
        residual = cur
        cur = b.norm(cur, layer, None)
        # Neither the gate nor what feeds forward is scaled, even where the file has scales for them.
        gate = b.mm(b.need(layer, "attn_gate.weight"), cur)
        q, k, v = heads(b, t, layer, cur)
        cur = b.mul(b.attention(layer, q, k, v, out=None), b.unary(gate))
        residual = b.add(b.linear(layer, "attn_output", cur), residual)
        cur = b.norm(residual, layer, None)
        hidden = b.glu(b.mm(b.need(layer, "ffn_gate.weight"), cur), b.mm(b.need(layer, "ffn_up.weight"), cur))
        cur = b.add(b.mm(b.need(layer, "ffn_down.weight"), hidden), residual)
    return b.norm(cur, first, None)


def minimax_01(b: Blocks) -> None:
    """Lightning attention, and softmax attention every eighth layer; residuals from the norm."""
    t = Traits(gating="softmax", norm_weights=True)
    cur = b.embed()
    for layer in b.layers:
        normed = b.norm(cur, layer, "attn_norm")
        residual = normed
        cur = _lightning(b, layer, normed) if b.hp.recurrent[layer] else b.attention(layer, *heads(b, t, layer, normed))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        cur = b.add(cur, b.scale(residual))
        cur = b.norm(cur, layer, "ffn_norm")
        residual = cur
        cur = b.add(feed_forward(b, t, layer, cur), b.scale(residual))
    finish(b, t, cur)


def _lightning(b: Blocks, layer: int, cur: Tensor) -> Tensor:
    seqs, steps, size, count = b.batch.sequences, b.n_seq_tokens, b.hp.head_k, b.hp.n_head[layer]
    slopes = b.new_input("slopes", (count,), F32)
    q_decay = b.new_input("q_decay", (1, count, steps, seqs), F32)
    k_decay = b.new_input("k_decay", (1, count, steps, seqs), F32)
    diagonal = b.new_input("diagonal_decay", (steps, steps, count, seqs), F32)
    # No convolution, but the memory keeps an empty state for one.
    b.expand(b.read_state(b.state(layer, "r", b.hp.n_embd_r)))
    rate = b.scale(slopes)
    cur = b.reshape(cur, cur.ne[0], steps, 1, seqs)
    mixed = b.unary(b.linear(layer, "attn_qkv", cur))
    mixed = b.reshape(mixed, 3 * size, count, steps, seqs)
    q, k, v = (b.columns(mixed, size, count, steps, seqs) for _index in range(3))
    states = b.state(layer, "s", b.hp.n_embd_s)
    old = b.reshape(b.read_state(states), size, size, count, seqs)
    q_decay, k_decay, diagonal = (b.unary(b.scale(item)) for item in (q_decay, k_decay, diagonal))
    before = b.mm(old, b.permute(b.mul(q, q_decay), 0, 2, 1, 3))
    scores = b.mm(b.permute(k, 0, 2, 1, 3), b.permute(q, 0, 2, 1, 3))
    scores = b.mul(scores, diagonal)
    v_turned = b.cont(b.permute(v, 1, 2, 0, 3))
    out = b.add(before, b.mm(v_turned, scores))
    b.expand(out)
    decay = b.reshape(b.unary(b.scale(rate)), 1, 1, count)
    kept = b.mul(old, decay)
    turned = b.cont(b.permute(b.mul(k, k_decay), 1, 2, 0, 3))
    new = b.add(kept, b.mm(turned, v_turned))
    total = b.hp.n_embd_s * seqs
    nb = (4, 4 * total, 4 * total, 4 * total)
    b.write_state(new, b.view("view", states, (total, 1, 1, 1), nb))
    out = b.cont(b.permute(out, 0, 2, 1, 3))
    out = b.reshape(out, size * count, steps, 1, seqs)
    normed = b.norm(out, layer, "attn_norm_2")
    gate = b.unary(b.linear(layer, "attn_gate", cur))
    out = b.linear(layer, "attn_output", b.mul(gate, normed))
    return b.reshape(out, out.ne[0], b.nt)


# llama_kv_cache_msa_context::get_n_pos of an empty cache, which is what the graph is reserved with.
_POSITIONS = 256


def minimax_m3(b: Blocks) -> None:
    """Attention to the best blocks of the cache, where flash attention and caches apart allow it."""
    t = Traits(norm_weights=None)
    batch = b.batch
    sparse = batch.flash and (batch.sequences == 1 or batch.streams > 1)
    masks: list[Tensor] = []
    cur = b.embed()
    if sparse:
        # What is not computed with in every graph is an input all the same.
        step = b.nt // batch.streams
        mask = b.mask(False)
        masks.append(b.op("cpy", mask.ne, mask, es=F32))
        if mask.ne[1] != step:
            raise AssertionError("the mask has a row a token")
    for layer in b.layers:
        residual = cur
        normed = b.norm(cur, layer, "attn_norm")
        q, k, v = heads(b, t, layer, normed)
        if sparse and layer >= b.hp.dense_lead:
            cur = _blockwise(b, layer, normed, (q, k, v), masks[0])
        else:
            cur = b.attention(layer, q, k, v)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(cur, residual)
        cur = b.add(feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm")), residual)
    finish(b, t, cur)


def _blockwise(b: Blocks, layer: int, cur: Tensor, qkv: tuple[Tensor, Tensor, Tensor], masks: Tensor) -> Tensor:
    nt, streams, cells = b.nt, b.batch.streams, b.batch.cells
    size, count = b.key("attention.indexer.key_length"), b.key("attention.indexer.head_count")
    width = b.key("attention.indexer.block_size", 128)
    step, blocks = nt // streams, _POSITIONS // width
    best = min(max(b.key("attention.indexer.top_k") // width, 1), blocks)
    asked = b.rope(b.norm(b.reshape(b.linear(layer, "indexer.q_proj", cur), size, count, nt), layer, "indexer.q_norm"))
    key = b.rope(b.norm(b.reshape(b.linear(layer, "indexer.k_proj", cur), size, 1, nt), layer, "indexer.k_norm"))
    store, _rows = b.indexer_cache(layer, size, cells)
    flat = b.view("view", key, (size, nt, 1, 1), (key.es, key.nb[2], key.nb[2] * nt, 0))
    b.expand(b.set_rows(store, flat, b.new_input("k_idxs_indexer", (nt,), I64)))
    q, (k, v) = qkv[0], b.store_and_read(layer, *qkv)
    bias = b.new_input("block_bias", (blocks, nt), F32)
    allowed = b.new_input("position_mask", (_POSITIONS, nt), F32)
    slots = b.new_input("position_slots", (_POSITIONS, streams), I32)
    owners = b.new_input("cell_blocks", (cells, streams), I32)
    outs = []
    for _index in range(streams):
        keys = b.rows(b.view("view", store, (size, cells, 1, 1), (4, 4 * size, 0, 0)), b.columns(slots, _POSITIONS))
        mine = b.columns(asked, size, count, step)
        score = b.mm(keys, b.reshape(mine, size, count * step))
        score = b.reshape(score, _POSITIONS, count, step)
        opened = b.view("view", allowed, (_POSITIONS, 1, step, 1), (4, 0, 4 * _POSITIONS, 0))
        score = Tensor("add", score.ne, F32, (score, opened), score.nb, score.view)
        pooled = b.op("pool_2d", (blocks, count, step, 1), score)
        own_bias = b.view("view", bias, (blocks, 1, step, 1), (4, 0, 4 * blocks, 0))
        chosen = b.op("top_k", (best, count, step, 1), b.add(pooled, own_bias), es=I32)
        closed = b.op("cpy", own_bias.ne, b.scale(own_bias), es=F16)
        closed = b.op("repeat", (blocks, count, step, 1), closed, es=F16)
        zero = b.scale(b.op("cpy", chosen.ne, chosen))
        total = count * step
        mask = b.set_rows(
            b.reshape(closed, 1, blocks, total), b.reshape(zero, 1, best, total), b.reshape(chosen, best, total)
        )
        mask = b.cont(b.permute(b.reshape(mask, blocks, count, step), 0, 2, 1, 3))
        mask = b.cont(b.transpose(b.reshape(mask, blocks, total)))
        mask = b.op("get_rows", (total, cells, 1, 1), mask, b.columns(owners, cells))
        mask = b.reshape(b.cont(b.transpose(mask)), cells, step, count)
        causal = b.view("view", masks, (cells, step, 1, 1), masks.nb)
        mask = Tensor("add", mask.ne, F32, (mask, causal), mask.nb, mask.view)
        mask = b.op("cpy", (cells, step, 1, count), b.reshape(mask, cells, step, 1, count), es=F16)
        outs.append(_attend_blocks(b, layer, q, k, v, mask, step))
    out = outs[0]
    for other in outs[1:]:
        out = b.concat(out, other, 1)
    return b.linear(layer, "attn_output", out)


def _attend_blocks(b: Blocks, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, step: int) -> Tensor:
    size, count, groups = q.ne[0], q.ne[1], mask.ne[3]
    mine = b.columns(q, size, count, step)
    parts = b.permute(b.reshape(mine, size, count // groups, groups, step), 0, 2, 3, 1)
    turned = []
    for item in (k, v):
        one = b.view("view", item, (item.ne[0], item.ne[1], item.ne[2], 1), item.nb, item.nbytes // item.ne[3])
        turned.append(b.permute(one, 0, 3, 1, 2))
    made = b.op("flash_attn", (v.ne[0], parts.ne[2], parts.ne[1], parts.ne[3]), parts, turned[0], turned[1], mask)
    made.tag = "%d" % layer
    out = b.cont(b.permute(made, 0, 1, 3, 2))
    return b.reshape(out, size * count, step)
