# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""RWKV, sixth and seventh generation, and transformers turned into it (src/models/rwkv*.cpp, b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_blocks import Blocks
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph_layers import Traits, finish


def _shift(b: Blocks, layer: int) -> Tensor:
    """What the last token left: {width, shifts, sequences}."""
    count = b.key("token_shift_count", 2)
    states = b.state(layer, "r", b.hp.n_embd_r)
    return b.reshape(b.read_state(states), b.hp.n_embd, count, b.batch.sequences)


def _keep_shift(b: Blocks, layer: int, shift: Tensor) -> None:
    states = b.state(layer, "r", b.hp.n_embd_r)
    count = b.hp.n_embd_r * b.batch.sequences
    nb = (4, 4 * count, 4 * count, 4 * count)
    b.write_state(b.view("view", shift, (count, 1, 1, 1), nb), b.view("view", states, (count, 1, 1, 1), nb))


def _before(b: Blocks, first: Tensor, cur: Tensor) -> Tensor:
    """Every token's predecessor."""
    rest = b.columns(cur, b.hp.n_embd, b.n_seq_tokens - 1, b.batch.sequences)
    return b.concat(first, rest, 1)


def _last(b: Blocks, cur: Tensor) -> Tensor:
    return b.columns(cur, b.hp.n_embd, 1, b.batch.sequences)


def rwkv(b: Blocks) -> None:
    """Time mixing and channel mixing."""
    seventh = b.hp.architecture == "rwkv7"
    width, seqs, steps = b.hp.n_embd, b.batch.sequences, b.n_seq_tokens
    b.rms = False
    first_value: list[Tensor] = []
    cur = b.norm(b.embed(), -1, "token_embd_norm")
    for layer in b.layers:
        inp = b.reshape(cur, width, steps, seqs)
        shift = _shift(b, layer)
        normed = b.norm(inp, layer, "attn_norm")
        previous = _before(b, b.columns(shift, width, 1, seqs), normed)
        mixed = mix7(b, layer, normed, previous, first_value) if seventh else mix6(b, layer, normed, previous)
        after = b.add(mixed, inp)
        normed_2 = b.norm(after, layer, "attn_norm_2")
        previous = _before(b, b.columns(shift, width, 1, seqs), normed_2)
        shift = b.concat(_last(b, normed), _last(b, normed_2), 1)
        b.expand(shift)
        _keep_shift(b, layer, shift)
        flat = [b.reshape(item, width, b.nt) for item in (after, normed_2, previous)]
        if layer == b.last:
            flat = b.pick(*flat)
        residual, cur, previous = flat
        cur = b.add(channel_mix(b, layer, cur, previous), residual)
        rescale = b.key("rescale_every_n_layers")
        if rescale and (layer + 1) % rescale == 0 and not seventh:
            cur = b.scale(cur)
    finish(b, Traits(rms=False), cur)


def rwkv_attention(b: Blocks) -> None:
    """Time mixing in place of attention, in what was a transformer."""
    seventh = b.hp.architecture == "arwkv7"
    width, seqs, steps = b.hp.n_embd, b.batch.sequences, b.n_seq_tokens
    first_value: list[Tensor] = []
    cur = b.embed()
    for layer in b.layers:
        inp = b.reshape(cur, width, steps, seqs)
        shift = _shift(b, layer)
        normed = b.norm(inp, layer, "attn_norm")
        previous = _before(b, shift, normed)
        mixed = mix7(b, layer, normed, previous, first_value) if seventh else mix6(b, layer, normed, previous)
        _keep_shift(b, layer, _last(b, normed))
        residual = b.reshape(b.add(mixed, inp), width, b.nt)
        if layer == b.last:
            (residual,) = b.pick(residual)
        cur = b.add(b.ffn(layer, b.norm(residual, layer, "ffn_norm")), residual)
    finish(b, Traits(), cur)


def channel_mix(b: Blocks, layer: int, cur: Tensor, previous: Tensor) -> Tensor:
    """Feed forward of both generations."""
    difference = b.like("sub", previous, cur)
    key = b.add(b.mul(difference, b.need(layer, "channel_mix_lerp_k.weight")), cur)
    if not b.has(layer, "channel_mix_receptance.weight"):
        hidden = b.like("sqr", b.unary(b.linear(layer, "channel_mix_key", key)))
        return b.linear(layer, "channel_mix_value", hidden)
    gate = b.add(b.mul(difference, b.need(layer, "channel_mix_lerp_r.weight")), cur)
    gate = b.unary(b.linear(layer, "channel_mix_receptance", gate))
    hidden = b.like("sqr", b.unary(b.linear(layer, "channel_mix_key", key)))
    return b.mul(gate, b.linear(layer, "channel_mix_value", hidden))


def _recur(b: Blocks, layer: int, name: str, size: int, *parts: Tensor) -> Tensor:
    """The recurrence; what comes out is the output, and the state goes back."""
    width, seqs = b.hp.n_embd, b.batch.sequences
    states = b.state(layer, "s", b.hp.n_embd_s)
    made = b.op(name, (width, b.nt + size * seqs, 1, 1), *parts, b.read_state(states))
    count = width * size * seqs
    nb = (4, 4 * count, 4 * count, 4 * count)
    b.write_state(b.view("view", made, (count, 1, 1, 1), nb), b.view("view", states, (count, 1, 1, 1), nb))
    return b.columns(made, width * b.nt)


def mix6(b: Blocks, layer: int, cur: Tensor, previous: Tensor) -> Tensor:
    """build_rwkv6_time_mix."""
    width, nt, size = b.hp.n_embd, b.nt, b.key("wkv.head_size")
    count = width // size
    turned = not b.has(layer, "time_mix_first.weight")
    difference = b.reshape(b.like("sub", previous, cur), width, nt)
    cur = b.reshape(cur, width, nt)
    mixed = b.add(b.mul(difference, b.need(layer, "time_mix_lerp_x.weight")), cur)
    first = b.need(layer, "time_mix_w1.weight")
    mixed = b.reshape(b.unary(b.mm(first, mixed)), first.ne[1] // 5, 1, 5, nt)
    mixed = b.cont(b.permute(mixed, 0, 1, 3, 2))
    second = b.need(layer, "time_mix_w2.weight")
    mixed = b.mm(b.reshape(second, second.ne[0], second.ne[1], 1, 5), mixed)
    if b.has(layer, "time_mix_lerp_fused.weight"):
        difference, cur = b.reshape(difference, width, 1, nt), b.reshape(cur, width, 1, nt)
        mixed = b.add(mixed, b.need(layer, "time_mix_lerp_fused.weight"))
        mixed = b.add(b.mul(mixed, difference), cur)
        xw, xk, xv, xr, xg = (b.view("view", mixed, (width, nt, 1, 1), mixed.nb) for _index in range(5))
    else:
        parts = []
        for name in "wkvrg":
            part = b.view("view", mixed, (width, nt, 1, 1), mixed.nb)
            part = b.add(part, b.need(layer, "time_mix_lerp_%s.weight" % name))
            parts.append(b.add(b.mul(part, difference), cur))
        xw, xk, xv, xr, xg = parts
    r = b.linear(layer, "time_mix_receptance", xr)
    k = b.linear(layer, "time_mix_key", xk)
    v = b.linear(layer, "time_mix_value", xv)
    gate = b.unary(b.linear(layer, "time_mix_gate", xg))
    kv = k.ne[0] // size
    if kv != count:
        k, v = (b.reshape(item, size, 1, kv, nt) for item in (k, v))
        k, v = (b.op("repeat", (size, count // kv, kv, nt), item) for item in (k, v))
    k, v, r = (b.reshape(item, size, count, nt) for item in (k, v, r))
    w = b.linear(layer, "time_mix_decay_w2", b.unary(b.linear(layer, "time_mix_decay_w1", xw)))
    w = b.unary(b.unary(b.unary(b.add(w, b.need(layer, "time_mix_decay.weight")))))
    w = b.reshape(w, size, count, nt)
    if turned:
        k = b.like("sub", k, b.mul(k, w))
        out = _recur(b, layer, "gla", size, k, v, r, w)
        out = b.reshape(out, width, nt)
    else:
        out = _recur(b, layer, "wkv6", size, k, v, r, b.need(layer, "time_mix_first.weight"), w)
        out = b.reshape(b.like("norm", b.reshape(out, size, count, nt)), width, nt)
        out = b.add(b.mul(out, b.need(layer, "time_mix_ln.weight")), b.need(layer, "time_mix_ln.bias"))
    out = b.linear(layer, "time_mix_output", b.mul(out, gate))
    return b.reshape(out, width, b.n_seq_tokens, b.batch.sequences)


def mix7(b: Blocks, layer: int, cur: Tensor, previous: Tensor, first_value: list[Tensor]) -> Tensor:
    """build_rwkv7_time_mix. ``first_value``: the first layer's, which later ones mix in."""
    width, nt, size = b.hp.n_embd, b.nt, b.key("wkv.head_size")
    count, seqs, steps = width // size, b.batch.sequences, b.n_seq_tokens
    gated = b.has(layer, "time_mix_g1.weight")
    difference = b.like("sub", previous, cur)
    difference = b.op("repeat", (width, steps, seqs, 6 if gated else 5), difference)
    mixed = b.add(b.mul(difference, b.need(layer, "time_mix_lerp_fused.weight")), cur)
    xr, xw, xk, xv, xa, xg = (b.view("view", mixed, (width, nt, 1, 1), mixed.nb) for _index in range(6))
    r = b.linear(layer, "time_mix_receptance", xr)
    w = b.linear(layer, "time_mix_w2", b.unary(b.linear(layer, "time_mix_w1", xw)))
    w = b.unary(b.scale(b.unary(b.add(w, b.need(layer, "time_mix_w0.weight")))))
    k = b.linear(layer, "time_mix_key", xk)
    v = b.linear(layer, "time_mix_value", xv)
    if not first_value:
        first_value.append(v)
    else:
        share = b.linear(layer, "time_mix_v2", b.linear(layer, "time_mix_v1", xv))
        share = b.unary(b.add(share, b.need(layer, "time_mix_v0.weight")))
        v = b.add(v, b.mul(b.like("sub", first_value[0], v), share))
    gate = None
    if gated:
        gate = b.linear(layer, "time_mix_g2", b.unary(b.linear(layer, "time_mix_g1", xg)))
    a = b.linear(layer, "time_mix_a2", b.linear(layer, "time_mix_a1", xa))
    a = b.unary(b.add(a, b.need(layer, "time_mix_a0.weight")))
    kk = b.op(
        "l2_norm", (size, count, nt, 1), b.reshape(b.mul(k, b.need(layer, "time_mix_k_k.weight")), size, count, nt)
    )
    ka = b.mul(k, b.need(layer, "time_mix_k_a.weight"))
    k = b.add(k, b.like("sub", b.mul(a, ka), ka))
    r, w, k, v, a = (b.reshape(item, size, count, nt) for item in (r, w, k, v, a))
    out = _recur(b, layer, "wkv7", size, r, w, k, v, b.unary(kk), b.mul(kk, a))
    if b.has(layer, "time_mix_ln.weight"):
        out = b.reshape(b.like("norm", b.reshape(out, size, count, nt)), width, nt)
        out = b.add(b.mul(out, b.need(layer, "time_mix_ln.weight")), b.need(layer, "time_mix_ln.bias"))
    else:
        out = b.reshape(out, width, nt)
    rk = b.mul(b.mul(k, r), b.reshape(b.need(layer, "time_mix_r_k.weight"), size, count))
    rk = b.op("sum_rows", (1, count, nt, 1), rk)
    out = b.add(out, b.reshape(b.mul(v, rk), width, nt))
    if gate is not None:
        out = b.mul(out, gate)
    out = b.linear(layer, "time_mix_output", out)
    return b.reshape(out, width, steps, seqs)
