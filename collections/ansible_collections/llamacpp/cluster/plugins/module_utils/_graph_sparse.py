# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sparse latent attention: an indexer chooses what is attended to (src/models/deepseek32.cpp, glm-dsa.cpp, b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import F16, F32, I32, I64
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import Traits, feed_forward, finish


def sparse_latent(b: Blocks) -> None:
    """DeepSeek-V3.2 and GLM-5: layers without an indexer of their own use the choice of the one before."""
    t = Traits(hidden="before")
    every = b.hp.architecture == "deepseek32"
    cur = b.embed()
    chosen: Tensor | None = None
    for layer in b.layers:
        residual = cur
        cur = b.norm(cur, layer, "attn_norm")
        low = b.norm(b.linear(layer, "attn_q_a", cur), layer, "attn_q_a_norm")
        if every or b.hp.indexer_full[layer] or chosen is None:
            chosen = _choose(b, layer, cur, low)
        cur = _attend(b, layer, cur, low, chosen)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        residual = b.add(cur, residual)
        cur = b.add(feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm")), residual)
    finish(b, t, cur)


def _choose(b: Blocks, layer: int, cur: Tensor, low: Tensor) -> Tensor:
    """The lightning indexer: for every token the cells that matter, {count, tokens, 1, streams}."""
    nt, streams, cells = b.nt, b.batch.streams, b.batch.cells
    size, count = b.key("attention.indexer.key_length"), b.key("attention.indexer.head_count")
    q = b.rope(b.reshape(b.linear(layer, "indexer.attn_q_b", low), size, count, nt))
    k = b.norm(b.linear(layer, "indexer.attn_k", cur), layer, "indexer.k_norm", rms=False)
    k = b.rope(b.reshape(k, size, 1, nt))
    matrix = b.new_input("rotate_indexer", (size, size), F32)
    q, k = b.mm(matrix, q), b.mm(matrix, k)
    store, read = b.indexer_cache(layer, size, cells)
    flat = b.view("view", k, (size, nt, 1, 1), (k.es, k.nb[2], k.nb[2] * nt, 0))
    b.expand(b.set_rows(store, flat, b.new_input("k_idxs_indexer", (nt,), I64)))
    weights = b.linear(layer, "indexer.proj", cur)
    step = nt // streams
    q = b.view("view", q, (size, count, step, streams), (q.nb[0], q.nb[1], q.nb[2], q.nb[2] * step))
    nb = (weights.nb[0], weights.nb[1], weights.nb[1] * step, weights.nb[1] * step)
    weights = b.scale(b.view("view", weights, (count, step, 1, streams), nb))
    mask = b.new_input("mask_indexer", (cells, step, 1, streams), F16)
    score = b.op("lightning_indexer", (cells, step, 1, streams), q, read, weights, mask)
    top = b.op("top_k", (min(b.hp.indexer_top_k, cells), step, 1, streams), score, es=I32)
    return b.cont(top)


def _attend(b: Blocks, layer: int, cur: Tensor, low: Tensor, chosen: Tensor) -> Tensor:
    """Absorbed latent attention with all but the chosen cells masked."""
    nt, count = b.nt, b.hp.n_head[layer]
    rot, rank = b.key("rope.dimension_count"), b.key("attention.kv_lora_rank")
    nope = b.key("attention.key_length_mla") - rot
    q = b.linear(layer, "attn_q_b", low)
    nb = (4, 4 * (nope + rot), 4 * (nope + rot) * count, 4 * (nope + rot) * count * nt)
    q_nope = b.view("view", q, (nope, count, nt, 1), nb)
    q_pe = b.view("view", q, (rot, count, nt, 1), nb)
    both = b.linear(layer, "attn_kv_a_mqa", cur)
    latent, k_pe = b.columns(both, rank, nt), b.heads(both, rot, 1)
    q_pe, k_pe = b.rope(q_pe), b.rope(k_pe)
    latent = b.norm(latent, layer, "attn_kv_a_norm")
    absorbed = b.mm(b.need(layer, "attn_k_b.weight"), b.permute(q_nope, 0, 2, 1, 3))
    q = b.concat(b.permute(absorbed, 0, 2, 1, 3), q_pe)
    latent = b.reshape(latent, rank, 1, nt)
    k = b.concat(latent, k_pe)
    v_mla = b.need(layer, "attn_v_b.weight")
    return b.attention(layer, q, k, latent, v_mla=v_mla, key_only=True, chosen=chosen)
