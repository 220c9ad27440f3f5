# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models that embed: BERT and its relatives, and T5 (src/models/*.cpp of llama.cpp b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import F32, I32
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import (
    Traits,
    attend,
    feed_forward,
    optional_norm,
    start,
)


def embedding(b: Blocks, cur: Tensor) -> None:
    """What comes out is the embedding, pooled where llama-server was asked for embeddings (build_pooling)."""
    cur.is_output = True
    b.expand(cur)
    pooling = b.key("pooling_type")
    if not b.batch.embeddings or pooling == 0:
        return
    sequences = b.batch.sequences
    if pooling == 1:
        mean = b.new_input("mean", (b.nt, sequences), F32)
        cur = b.mm(b.cont(b.transpose(cur)), mean)
    else:
        cur = b.rows(cur, b.new_input("cls", (sequences,), I32))
    if pooling == 4 and b.has(-1, "cls.weight"):
        cur = b.unary(b.linear(-1, "cls", cur))
        if b.has(-1, "cls.output.weight"):
            cur = b.linear(-1, "cls.output", cur)
    cur.is_output = True
    b.expand(cur)


def bert(b: Blocks) -> None:
    """Norms after attention and after feed forward."""
    arch = b.hp.architecture
    rotates = arch in ("nomic-bert", "nomic-bert-moe", "jina-bert-v3")
    t = Traits(rms=False, cached=False, rope="all" if rotates else "none", norm_flat=True)
    b.rms = False
    cur = b.embed()
    if b.has(-1, "token_types.weight"):
        cur = b.add(cur, b.columns(b.need(-1, "token_types.weight"), b.hp.n_embd))
    if arch == "bert":
        cur = b.add(b.rows(b.need(-1, "position_embd.weight"), b.positions()), cur)
    cur = b.norm(cur, -1, "token_embd_norm")
    for layer in b.layers:
        residual = cur
        cur = attend(b, t, layer, cur)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        cur = b.norm(b.add(cur, residual), layer, "attn_output_norm")
        if b.has(layer, "attn_norm_2.weight"):
            cur = b.norm(b.add(cur, residual), layer, "attn_norm_2")
        residual = cur
        if b.has(layer, "ffn_gate_inp.weight"):
            made = b.experts(layer, cur, "softmax", False, b.real("expert_weights_scale"))
        else:
            made = b.ffn(layer, cur)
        cur = b.norm(b.add(made, residual), layer, "layer_output_norm")
    embedding(b, cur)


def encoder(b: Blocks, t: Traits, norm: str = "output_norm") -> None:
    """Norms before attention and before feed forward, and no cache."""
    cur = start(b, t)
    for layer in b.layers:
        residual = cur
        name = t.before_attention if b.has(layer, "attn_norm.weight") else None
        cur = attend(b, t, layer, optional_norm(b, cur, layer, name))
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        if t.post_attention:
            cur = b.norm(cur, layer, t.post_attention)
        residual = b.add(cur, residual)
        cur = feed_forward(b, t, layer, b.norm(residual, layer, "ffn_norm"))
        if t.post_ffn:
            cur = b.norm(cur, layer, t.post_ffn)
        cur = b.add(cur, residual)
    embedding(b, b.norm(cur, -1, norm))


def t5_encoder(b: Blocks) -> None:
    """T5's encoder alone: scores are biased by distance, so flash attention is never used."""
    cur = b.embed()
    bucket = b.new_input("pos_bucket", (b.nt, b.nt), I32)
    for layer in b.layers:
        residual = cur
        prefix = "enc.blk.%d." % layer
        cur = b.norm(cur, -1, prefix + "attn_norm")
        q, k, v = _t5_heads(b, layer, prefix, cur, cur)
        bias = _t5_bias(b, prefix, "enc.blk.0.", bucket)
        cur = b.attention_now(layer, q, k, v, out="", bias=bias)
        cur = b.linear(-1, prefix + "attn_o", cur)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        cur = _t5_feed_forward(b, prefix, b.add(cur, residual))
    embedding(b, b.norm(cur, -1, "enc.output_norm"))


def t5_decoder(b: Blocks) -> None:
    """T5's decoder, whose graph is the one that llama-server reserves."""
    cur = b.embed()
    length = b.hp.n_ctx_train
    encoded = b.new_input("cross_embd", (b.hp.n_embd, length), F32)
    bucket = b.new_input("pos_bucket", (b.batch.cells, b.nt), I32)
    for layer in b.layers:
        residual = cur
        prefix = "dec.blk.%d." % layer
        cur = b.norm(cur, -1, prefix + "attn_norm")
        q, k, v = _t5_heads(b, layer, prefix, cur, cur)
        cur = b.attention(layer, q, k, v, out=None, bias=_t5_bias(b, prefix, "dec.blk.0.", bucket))
        residual = b.add(b.linear(-1, prefix + "attn_o", cur), residual)
        cur = b.norm(residual, -1, prefix + "cross_attn_norm")
        q, k, v = _t5_heads(b, layer, prefix + "cross_", cur, encoded)
        cur = b.attention_now(layer, q, k, v, out="", mask=("mask_cross", length))
        cur = b.linear(-1, prefix + "cross_attn_o", cur)
        if layer == b.last:
            cur, residual = b.pick(cur, residual)
        cur = _t5_feed_forward(b, prefix, b.add(cur, residual))
    b.head(b.norm(cur, -1, "dec.output_norm"))


def _t5_heads(b: Blocks, layer: int, prefix: str, cur: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hp = b.hp
    q, k, v = (b.linear(-1, prefix + "attn_" + name, cur if name == "q" else other) for name in "qkv")
    return (
        b.reshape(q, hp.head_k, hp.n_head[layer], cur.ne[1]),
        b.reshape(k, hp.head_k, hp.n_head_kv[layer], other.ne[1]),
        b.reshape(v, hp.head_v, hp.n_head_kv[layer], other.ne[1]),
    )


def _t5_bias(b: Blocks, prefix: str, first: str, bucket: Tensor) -> Tensor:
    """build_pos_bias: for every pair of tokens a number a head."""
    table = b.w(-1, prefix + "attn_rel_b.weight") or b.need(-1, first + "attn_rel_b.weight")
    flat = b.rows(table, b.reshape(bucket, bucket.ne[0] * bucket.ne[1]))
    shaped = b.reshape(flat, flat.ne[0], bucket.ne[0], bucket.ne[1])
    return b.cont(b.permute(shaped, 2, 0, 1, 3))


def _t5_feed_forward(b: Blocks, prefix: str, residual: Tensor) -> Tensor:
    cur = b.norm(residual, -1, prefix + "ffn_norm")
    up = b.linear(-1, prefix + "ffn_up", cur)
    hidden = b.glu(b.linear(-1, prefix + "ffn_gate", cur), up) if b.has(-1, prefix + "ffn_gate.weight") else b.unary(up)
    return b.add(b.linear(-1, prefix + "ffn_down", hidden), residual)
