# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Recurrent layers in llama.cpp's compute graphs: state-space models and gated delta nets.

Source (b11434): build_rs in src/llama-graph.cpp, src/models/mamba-base.cpp and
src/models/delta-net-base.cpp. The operations' shapes are those of ggml/src/ggml.c.
"""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import F32, I32, Operations

# Sizes of states for which ggml-cuda has a scan with one decay a head (ggml_backend_cuda_device_supports_op).
_CUDA_STATES = (96, 128, 256)


class Recurrent(Operations):
    """Adds layers that keep a state for each sequence."""

    @property
    def n_seq_tokens(self) -> int:
        """Tokens of one sequence."""
        return self.nt // self.batch.sequences

    def state(self, layer: int, which: str, width: int) -> Tensor:
        """The states of a layer, {width, rows}: ``r`` (convolutions, shifts) or ``s``."""
        key = (layer, "state_" + which)
        found = self._leafs.get(key)
        if found is None:
            found = Tensor("none", (width, self.batch.states, 1, 1), F32)
            found.home = self.backend(layer) if self.batch.offload_kqv else self.place.cpu
            self._leafs[key] = found
        return found

    def read_state(self, states: Tensor, read: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """build_rs: the states of the sequences; ``read`` takes them where they lie."""
        width, rows, sequences = states.ne[0], self.batch.states, self.batch.sequences
        flat = self.reshape(states, width, rows)
        self.expand(self._in_place("scale", self.view("view", flat, (0, 1, 1, 1), (4, 0, 0, 0))))
        main, tail = self._state_ids()
        if read is None:
            every = self.rows(flat, self.new_input("state_ids", (rows,), I32))
            result = self.view("view", every, (width, sequences, 1, 1), every.nb)
        else:
            every = self.rows(flat, tail)
            result = read(flat, main)
        self.expand(result)
        rest = self.view("view", every, (width, rows - sequences, 1, 1), every.nb)
        self.write_state(rest, self.view("view", states, (width, rows - sequences, 1, 1), states.nb))
        return result

    def _state_ids(self) -> tuple[Tensor, Tensor]:
        """The rows of the sequences, and those of all but the first (build_rs_inp)."""
        if self._ids is None:
            rows, sequences = self.batch.states, self.batch.sequences
            ids = self.new_input("state_ids", (rows,), I32)
            main = self.view("view", ids, (sequences, 1, 1, 1), (4, 4 * sequences, 4 * sequences, 4 * sequences))
            tail = self.view("view", ids, (rows - 1, 1, 1, 1), (4, 4 * rows, 4 * rows, 4 * rows))
            self._ids = main, tail
        return self._ids

    def write_state(self, source: Tensor, target: Tensor) -> None:
        """ggml_cpy into the cache."""
        made = Tensor("cpy", target.ne, target.es, (source, target), target.nb, target.view)
        self.expand(made)

    def _in_place(self, name: str, tensor: Tensor) -> Tensor:
        return Tensor(name, tensor.ne, tensor.es, (tensor,), tensor.nb, tensor.view)

    def mamba(self, layer: int, cur: Tensor) -> Tensor:
        """build_mamba_layer: the first generation, a decay for every channel."""
        seqs, steps = self.batch.sequences, self.n_seq_tokens
        conv, inner = self.key("ssm.conv_kernel"), self.key("ssm.inner_size")
        size, rank = self.key("ssm.state_size"), self.key("ssm.time_step_rank")
        states_r = self.state(layer, "r", self.hp.n_embd_r)
        states_s = self.state(layer, "s", self.hp.n_embd_s)
        before = self.reshape(self.read_state(states_r), conv - 1, inner, seqs)
        cur = self.reshape(cur, cur.ne[0], steps, seqs)
        xz = self.linear(layer, "ssm_in", cur)
        x, z = self.columns(xz, inner, steps, seqs), self.columns(xz, inner, steps, seqs)
        x = self._convolve(layer, before, x, states_r)
        x = self.unary(self.add(x, self.need(layer, "ssm_conv1d.bias")))
        x_db = self.linear(layer, "ssm_x", x)
        dt = self.columns(x_db, rank, steps, seqs)
        nb = (x_db.nb[0], size * x_db.nb[0], x_db.nb[1], x_db.nb[2])
        b = self.view("view", x_db, (size, 1, steps, seqs), nb)
        c = self.view("view", x_db, (size, 1, steps, seqs), nb)
        if self.has(layer, "ssm_dt_norm.weight") or self.key("ssm.dt_b_c_rms"):
            dt = self.norm(dt, layer, "ssm_dt_norm", rms=True)
            b = self.norm(b, layer, "ssm_b_norm", rms=True)
            c = self.norm(c, layer, "ssm_c_norm", rms=True)
        else:
            dt = self.cont(dt)
        dt = self.linear(layer, "ssm_dt", dt)
        heads = self.reshape(x, 1, inner, steps, seqs)

        def scan(states: Tensor, ids: Tensor) -> Tensor:
            return self._scan(layer, self.reshape(states, size, 1, inner, self.batch.states), heads, dt, b, c, ids)

        y_ssm = self.read_state(states_s, scan)
        self.write_state(
            self.view("view", y_ssm, (size * inner * seqs, 1, 1, 1), y_ssm.nb),
            self.view("view", states_s, (size * inner * seqs, 1, 1, 1), (4, 0, 0, 0)),
        )
        y = self.view(
            "view", y_ssm, (inner, steps, seqs, 1), (4, 4 * inner, 4 * inner * steps, 4 * inner * steps * seqs)
        )
        y = self.add(y, self.mul(x, self.need(layer, "ssm_d")))
        y = self.glu(self.cont(z), y)
        cur = self.linear(layer, "ssm_out", y)
        return self.reshape(cur, cur.ne[0], self.nt)

    def mamba2(self, layer: int, cur: Tensor) -> Tensor:
        """build_mamba2_layer: heads with one decay each."""
        seqs, steps = self.batch.sequences, self.n_seq_tokens
        conv, inner, size = self.key("ssm.conv_kernel"), self.key("ssm.inner_size"), self.key("ssm.state_size")
        heads, groups = self.key("ssm.time_step_rank"), self.key("ssm.group_count")
        width, head = inner + 2 * groups * size, inner // max(heads, 1)
        states_r = self.state(layer, "r", self.hp.n_embd_r)
        states_s = self.state(layer, "s", self.hp.n_embd_s)
        before = self.reshape(self.read_state(states_r), conv - 1, width, seqs)
        mixed = self.linear(layer, "ssm_in", cur)
        mixed = self.reshape(mixed, mixed.ne[0], steps, seqs)
        by_head = (4, 4 * head, mixed.nb[1], mixed.nb[2])
        z = self.view("view", mixed, (head, heads, steps, seqs), by_head)
        x_bc = self.columns(mixed, width, steps, seqs)
        dt = self.columns(mixed, heads, steps, seqs)
        x_bc = self._convolve(layer, before, x_bc, states_r)
        x_bc = self.unary(self.add(x_bc, self.need(layer, "ssm_conv1d.bias")))
        x = self.view("view", x_bc, (head, heads, steps, seqs), (4, 4 * head, x_bc.nb[1], x_bc.nb[2]))
        by_state = (4, 4 * size, x_bc.nb[1], x_bc.nb[2])
        b = self.view("view", x_bc, (size, groups, steps, seqs), by_state)
        c = self.view("view", x_bc, (size, groups, steps, seqs), by_state)
        dt = self.add(self.cont(dt), self.need(layer, "ssm_dt.bias"))

        def scan(states: Tensor, ids: Tensor) -> Tensor:
            return self._scan(layer, self.reshape(states, size, head, heads, self.batch.states), x, dt, b, c, ids)

        y_ssm = self.read_state(states_s, scan)
        self.write_state(
            self.view("view", y_ssm, (size * inner, seqs, 1, 1), (4, 4 * size * inner, 4 * size * inner * seqs, 0)),
            self.view("view", states_s, (size * inner, seqs, 1, 1), states_s.nb),
        )
        nb = (4, x.nb[1], heads * x.nb[1], steps * heads * x.nb[1])
        y = self.view("view", y_ssm, (head, heads, steps, seqs), nb)
        y = self.add(y, self.mul(x, self.need(layer, "ssm_d")))
        y = self.glu(self.cont(z), y)
        if self.has(layer, "ssm_norm.weight"):
            y = self.norm(self.reshape(y, inner // groups, groups, steps, seqs), layer, "ssm_norm", rms=True)
        return self.linear(layer, "ssm_out", self.reshape(y, inner, self.nt))

    def _convolve(
        self, layer: int, before: Tensor, x: Tensor, states: Tensor, name: str = "ssm_conv1d.weight"
    ) -> Tensor:
        """A convolution over time: what was kept and what is new, and what is kept next."""
        joined = self.concat(before, self.transpose(x))
        kept, width, seqs = before.ne[0], before.ne[1], self.batch.sequences
        last = self.view("view", joined, (kept, width, seqs, 1), joined.nb)
        self.write_state(last, self.view("view", states, (kept * width, seqs, 1, 1), states.nb))
        return self.op("ssm_conv", (joined.ne[1], joined.ne[0] - kept, seqs, 1), joined, self.need(layer, name))

    def _scan(self, layer: int, states: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, ids: Tensor) -> Tensor:
        """ggml_ssm_scan: the outputs, and behind them the new states."""
        count = x.ne[0] * x.ne[1] * x.ne[2] * x.ne[3] + states.ne[0] * states.ne[1] * states.ne[2] * ids.ne[0]
        decay = self.need(layer, "ssm_a")
        made = self.op("ssm_scan", (count, 1, 1, 1), states, x, dt, decay, b, c, ids)
        size, head, heads = states.ne[:3]
        if decay.ne[0] in (1, heads):
            fits = size in _CUDA_STATES and head % 16 == 0
        else:
            fits = size == 16 and head == 1 and heads % 128 == 0
        if not fits:
            made.unfit = self.place.local_cuda
        return made

    def delta_net(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        beta: Tensor,
        states: Tensor,
        state: Tensor,
        contiguous: bool = False,
    ) -> Tensor:
        """build_recurrent_attn with the fused operation: outputs, and the state goes back."""
        size, heads, steps, seqs = v.ne
        made = self.op("gated_delta_net", (size * heads, steps * seqs + size * seqs, 1, 1), q, k, v, gate, beta, state)
        line = 4 * size
        output = self.view("view", made, v.ne, (4, line, line * heads, line * heads * steps))
        if contiguous:
            output = self.cont(output)
        square = line * size
        new = self.view("view", made, (size, size, heads, seqs), (4, line, square, square * heads))
        self.write_state(new, self.view("view", states, (states.ne[0], seqs, 1, 1), states.nb))
        return output

    def mamba_heads(self, layer: int, cur: Tensor) -> Tensor:
        """build_plamo2_mamba_layer: heads with one decay each, and rates of low rank."""
        seqs, steps = self.batch.sequences, self.n_seq_tokens
        conv, inner, size = self.key("ssm.conv_kernel"), self.key("ssm.inner_size"), self.key("ssm.state_size")
        heads, groups = self.key("ssm.time_step_rank"), self.key("ssm.group_count")
        head, rank = inner // max(heads, 1), self.need(layer, "ssm_dt.weight").ne[0]
        states_r = self.state(layer, "r", self.hp.n_embd_r)
        states_s = self.state(layer, "s", self.hp.n_embd_s)
        before = self.reshape(self.read_state(states_r), conv - 1, inner + 2 * groups * size, seqs)
        cur = self.reshape(cur, cur.ne[0], steps, seqs)
        both = self.permute(self.linear(layer, "ssm_in", cur), 0, 2, 1, 3)
        both = self.cont(both, 2 * head, heads, steps, seqs)
        x = self.cont(self.columns(both, head, heads, steps, seqs), inner, steps, seqs)
        z = self.columns(both, head, heads, steps, seqs)
        x = self.unary(self._convolve(layer, before, x, states_r))
        rates = self.linear(layer, "ssm_x", x)
        b = self.norm(self.columns(rates, size, steps, seqs), layer, "ssm_b_norm", rms=True)
        c = self.norm(self.columns(rates, size, steps, seqs), layer, "ssm_c_norm", rms=True)
        dt = self.norm(self.columns(rates, rank, steps, seqs), layer, "ssm_dt_norm", rms=True)
        dt = self.linear(layer, "ssm_dt", dt)
        x = self.reshape(x, head, heads, steps, seqs)
        b, c = self.reshape(b, size, 1, steps, seqs), self.reshape(c, size, 1, steps, seqs)

        def scan(states: Tensor, ids: Tensor) -> Tensor:
            return self._scan(layer, self.reshape(states, size, head, heads, self.batch.states), x, dt, b, c, ids)

        y_ssm = self.read_state(states_s, scan)
        count = inner * size * seqs
        nb = (4, 4 * count, 4 * count, 4 * count)
        self.write_state(
            self.view("view", y_ssm, (count, 1, 1, 1), nb), self.view("view", states_s, (count, 1, 1, 1), nb)
        )
        y = self.view("view", y_ssm, x.ne, x.nb)
        y = self.add(y, self.mul(x, self.reshape(self.need(layer, "ssm_d"), 1, heads)))
        y = self.reshape(self.glu(self.cont(z), y), inner, steps, seqs)
        cur = self.linear(layer, "ssm_out", y)
        return self.reshape(cur, cur.ne[0], self.nt)

    def short_convolution(self, layer: int, cur: Tensor) -> Tensor:
        """build_shortconv_block of lfm2: a gate before, a convolution, and a gate after."""
        seqs, steps, width = self.batch.sequences, self.n_seq_tokens, self.hp.n_embd
        kept = max(self.key("shortconv.l_cache") - 1, 0)
        states = self.state(layer, "r", self.hp.n_embd_r)
        cur = self.reshape(cur, cur.ne[0], steps, seqs)
        parts = self.linear(layer, "shortconv.in_proj", cur)
        b, c, x = (self.columns(parts, width, steps, seqs) for _index in range(3))
        bx = self.transpose(self.mul(b, x))
        before = self.reshape(self.read_state(states), kept, width, seqs)
        joined = self.concat(before, bx)
        last = self.view("view", joined, (kept, width, seqs, 1), joined.nb)
        self.write_state(last, self.view("view", states, (kept * width, seqs, 1, 1), states.nb))
        out = self.op("ssm_conv", (width, steps, seqs, 1), joined, self.need(layer, "shortconv.conv.weight"))
        cur = self.linear(layer, "shortconv.out_proj", self.mul(c, out))
        return self.reshape(cur, cur.ne[0], self.nt)
