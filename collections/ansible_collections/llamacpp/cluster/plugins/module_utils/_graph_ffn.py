# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Feed-forward layers and mixtures of experts in llama.cpp's compute graphs (src/llama-graph.cpp, b11434)."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import I32, Operations, Shape

# Below this a limit of an activation is none (build_ffn, build_moe_ffn); these have one operation for it.
_NO_LIMIT = 1e-6
_LIMITED_AT_ONCE = frozenset(("deepseek4", "glm5-next", "maple", "hy_v4"))

# MOE_WEIGHTED_REDUCTION_MAX_EXPERTS (ggml/src/ggml-cuda).
_FUSED_EXPERTS = 15


class FeedForward(Operations):
    """Adds feed-forward layers."""

    def ffn(self, layer: int, cur: Tensor, suffix: str = "", relu_squared: bool = False) -> Tensor:
        """build_ffn with a parallel gate, with both halves in one tensor, or with none."""
        up = self.linear(layer, "ffn_up" + suffix, cur) if self.has(layer, "ffn_up%s.weight" % suffix) else cur
        down = self.w(layer, "ffn_down" + suffix + ".weight")
        if self.has(layer, "ffn_gate" + suffix + ".weight"):
            gate = self.linear(layer, "ffn_gate" + suffix, cur)
            hidden = self._gated(layer, gate, up, "swiglu_clamp_shexp")
        elif down is not None and up.ne[0] == 2 * down.ne[0]:
            hidden = self.glu_halves(up)
        else:
            hidden = self.unary(up)
            if relu_squared:
                hidden = self.like("sqr", hidden)
        return self.linear(layer, "ffn_down" + suffix, hidden) if down is not None else hidden

    def _gated(self, layer: int, gate: Tensor, up: Tensor, key: str) -> Tensor:
        """The gate's activation times the other half; with a limit llama.cpp makes it in steps, in place."""
        limits = self.keys.get(key, 0.0)
        if isinstance(limits, (list, tuple)):
            limits = limits[layer] if layer < len(limits) else 0.0
        if not isinstance(limits, (int, float)) or limits <= _NO_LIMIT or self.hp.architecture in _LIMITED_AT_ONCE:
            return self.glu(gate, up)
        up = self.like("clamp", up)
        return self.mul(self.like("clamp", self.unary(gate)), up)

    def experts(
        self,
        layer: int,
        cur: Tensor,
        gating: str = "softmax",
        norm_weights: bool = False,
        scale: float = 0.0,
        logits: Tensor | None = None,
        relu_squared: bool = False,
        weight_first: bool = False,
        used: int = 0,
        suffix: str = "_exps",
        count: int = 0,
    ) -> Tensor:
        """build_moe_ffn. ``gating``: softmax, sigmoid, or softmax_weight (over the chosen ones)."""
        hp, nt, width = self.hp, cur.ne[1], cur.ne[0]
        count, used = count or hp.n_expert, used or hp.n_expert_used[layer]
        if logits is None:
            logits = self.mm(self.need(layer, "ffn_gate_inp.weight"), cur)
        bias = self.w(layer, "ffn_gate_inp.bias")
        if bias is not None:
            logits = self.add(logits, bias)
        probs = logits
        if gating == "softmax":
            probs = self.like("soft_max", logits)
        elif gating == "sigmoid":
            probs = self.unary(logits)
        elif gating == "sqrt_softplus":
            probs = self.like("sqrt", self.unary(logits))
        selection = probs
        bias = self.w(layer, "exp_probs_b.bias")
        if bias is not None:
            selection = self.add(probs, bias)
        if weight_first:
            selection = logits
        groups = self.key("expert_group_count")
        if groups > 1:
            selection = self._grouped(selection, count, groups, nt)
        order = self.op("argsort", selection.ne, selection, es=I32)
        chosen = self.columns(order, used, nt)
        weights = self.op("get_rows", (1, used, nt, 1), self.reshape(probs, 1, probs.ne[0], nt), chosen)
        if gating == "softmax_weight":
            weights = self.reshape(self.like("soft_max", self.reshape(weights, used, nt)), 1, used, nt)
        if norm_weights:
            weights = self.reshape(weights, used, nt)
            total = self.like("clamp", self.op("sum_rows", (1, nt, 1, 1), weights))
            weights = self.reshape(self.like("div", weights, total), 1, used, nt)
        if scale not in (0.0, 1.0):
            weights = self.scale(weights)
        self.expand(weights)
        cur = self.reshape(cur, width, 1, nt)
        if weight_first:
            cur = self.mul(self.op("repeat", (width, used, nt, 1), cur), weights)
        hidden = self._expert_hidden(layer, cur, chosen, suffix, relu_squared)
        made = self._mm_id(layer, "ffn_down" + suffix, hidden, chosen)
        raw = made
        if not weight_first:
            made = self.mul(made, weights)
        self.expand(made)
        parts = []
        for _index in range(used):
            nb: Shape = (made.es, made.nb[2], made.nb[2] * nt, made.nb[2] * nt)
            parts.append(self.view("view", made, (made.ne[0], nt, 1, 1), nb))
            self.expand(parts[-1])
        total = parts[0]
        for part in parts[1:]:
            total = self.add(total, part)
            self.expand(total)
        if not weight_first and 1 < used <= _FUSED_EXPERTS and self.backend(layer) in self.place.local_cuda:
            # ggml_cuda_match_moe_weighted_reduction: one kernel for all of it, so nothing in place.
            self.keep(raw, weights)
        return self.cont(total) if used == 1 else total

    def _grouped(self, selection: Tensor, count: int, groups: int, nt: int) -> Tensor:
        """Only the experts of the best groups are left to choose from (DeepSeek-V3)."""
        each = count // groups
        by_group = self.reshape(selection, each, groups, nt)
        order = self.op("argsort", by_group.ne, by_group, es=I32)
        scores = self.op(
            "get_rows",
            (1, 2, groups, nt),
            self.reshape(by_group, 1, each, groups, nt),
            self.columns(order, 2, groups, nt),
        )
        total = self.op("sum_rows", (1, groups, nt, 1), self.reshape(scores, 2, groups, nt))
        ranked = self.op("argsort", (groups, nt, 1, 1), self.reshape(total, groups, nt), es=I32)
        best = self.columns(ranked, self.key("expert_group_used_count", 1), nt)
        kept = self.op("get_rows", (each, best.ne[0], nt, 1), by_group, best)
        masked = self.set_rows(self.like("fill", by_group), kept, best)
        return self.reshape(masked, count, nt)

    def _mm_id(self, layer: int, name: str, cur: Tensor, chosen: Tensor) -> Tensor:
        weight = self.need(layer, name + ".weight")
        made = self.op("mul_mat_id", (weight.ne[1], chosen.ne[0], chosen.ne[1], 1), weight, cur, chosen)
        scale = self.w(layer, name + ".scale")
        if scale is not None:
            count, used, nt = weight.ne[2], chosen.ne[0], chosen.ne[1]
            each = self.op("repeat", (1, count, nt, 1), self.reshape(scale, 1, count))
            made = self.mul(made, self.op("get_rows", (1, used, nt, 1), each, chosen))
        bias = self.w(layer, name + ".bias")
        return self.like("add_id", made, bias, chosen) if bias is not None else made

    def _expert_hidden(self, layer: int, cur: Tensor, chosen: Tensor, suffix: str, relu_squared: bool) -> Tensor:
        if self.has(layer, "ffn_gate_up" + suffix + ".weight"):
            both = self._mm_id(layer, "ffn_gate_up" + suffix, cur, chosen)
            half, used, nt = both.ne[0] // 2, both.ne[1], both.ne[2]
            gate, up = self.columns(both, half, used, nt), self.columns(both, half, used, nt)
            return self.glu(gate, up)
        up = self._mm_id(layer, "ffn_up" + suffix, cur, chosen)
        if self.has(layer, "ffn_gate" + suffix + ".weight"):
            gate = self._mm_id(layer, "ffn_gate" + suffix, cur, chosen)
            return self._gated(layer, gate, up, "swiglu_clamp_exp")
        hidden = self.unary(up)
        return self.like("sqr", hidden) if relu_squared else hidden
