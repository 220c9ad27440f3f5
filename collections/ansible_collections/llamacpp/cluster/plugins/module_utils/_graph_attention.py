# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Attention in llama.cpp's compute graphs: projections, caches, masks, flash attention and what it replaces.

Source: src/llama-graph.cpp and src/llama-kv-cache.cpp (b11434).
"""

from __future__ import annotations

from typing import Any

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import Tensor
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import by_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._graph import F16, F32, I64, Operations, Shape


class Attention(Operations):
    """Adds attention with a cache, and its inputs."""

    def mask(self, swa: bool) -> Tensor:
        """build_attn_inp_kq_mask, of the cache or of the sliding one."""
        batch = self.batch
        cells = batch.cells_swa if swa else batch.cells
        shape = (cells, self.nt // batch.streams, 1, batch.streams)
        return self.new_input("mask_swa" if swa else "mask", shape, F16 if batch.flash else F32)

    def qkv(self, layer: int, cur: Tensor, normed: tuple[str, str] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """build_qkv: queries, keys and values as heads. ``normed``: norms of all heads at once."""
        hp = self.hp
        k_size = hp.head_k_swa if hp.swa[layer] else hp.head_k
        v_size = hp.head_v_swa if hp.swa[layer] else hp.head_v
        n_head, n_kv = hp.n_head[layer], hp.n_head_kv[layer]
        clamps = self.real("attention.clamp_kqv") > 0
        if self.has(layer, "attn_qkv.weight"):
            fused = self.linear(layer, "attn_qkv", cur)
            if clamps:
                fused = self.like("clamp", fused)
            if normed is None:
                return (
                    self.heads(fused, k_size, n_head),
                    self.heads(fused, k_size, n_kv),
                    self.heads(fused, v_size, n_kv),
                )
            widths = (k_size * n_head, k_size * n_kv, v_size * n_kv)
            made = [self.cont(self.columns(fused, width, self.nt)) for width in widths]
        else:
            made = [self.linear(layer, name, cur) for name in ("attn_q", "attn_k", "attn_v")]
            if clamps:
                made = [self.like("clamp", part) for part in made]
        if normed is not None:
            for index, name in enumerate(normed):
                if self.has(layer, name + ".weight"):
                    made[index] = self.norm(made[index], layer, name)
        return (
            self.reshape(made[0], k_size, n_head, self.nt),
            self.reshape(made[1], k_size, n_kv, self.nt),
            self.reshape(made[2], v_size, n_kv, self.nt),
        )

    def attention_now(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: str = "attn_output",
        bias: Tensor | None = None,
        mask: tuple[str, int] | None = None,
    ) -> Tensor:
        """build_attn without a cache: the tokens of the batch attend to each other, or to others.

        ``mask``: name and length of what they attend to, when it is not themselves.
        """
        for item in (q, k, v):
            self.expand(item)
        name, length = mask or ("mask_swa" if self.hp.swa[layer] else "mask", self.nt)
        masking = self.new_input(name, (length, self.nt), F16 if self.batch.flash else F32)
        cur = self._attend(layer, q, k, v, masking, False, None, bias)
        return self.linear(layer, out, cur) if out else cur

    def attention(
        self,
        layer: int,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        out: str | None = "attn_output",
        sinks: bool = False,
        cached_layer: int = -1,
        v_mla: Tensor | None = None,
        key_only: bool = False,
        bias: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """build_attn with a cache: stores keys and values, attends, and projects with ``out``.

        ``cached_layer``: whose cache is read, when it is another layer's. ``key_only``: the values
        are a part of the keys (latent attention), ``v_mla`` unfolds them. ``bias``: added to the
        scores, which rules flash attention out. ``chosen``: the only cells that count.
        """
        batch, hp = self.batch, self.hp
        swa = hp.swa[layer]
        rotate_k = (
            self._rotation("k", batch.type_k, hp.head_k, hp.head_k_swa, swa) if not (key_only and not swa) else None
        )
        rotate_v = None if key_only else self._rotation("v", batch.type_v, hp.head_v, hp.head_v_swa, swa)
        if rotate_k is not None:
            q = self._hadamard(q, rotate_k)
            k = self._hadamard(k, rotate_k) if k is not None else None
        if rotate_v is not None and v is not None:
            v = self._hadamard(v, rotate_v)
        self.expand(q)
        for item in (k, v) if hp.has_swa and not key_only else (v, k):
            if item is not None:
                self.expand(item)
        owner = layer if cached_layer < 0 else cached_layer
        cached_k, cached_v = self._caches(owner, swa, key_only, v)
        if k is not None:
            self._store(cached_k, k, swa, False)
        if v is not None and not key_only:
            self._store(cached_v, v, swa, True)
        mask = self.mask(swa)
        if chosen is not None:
            mask = self._mask_all_but(mask, chosen)
        cur = self._attend(layer, q, cached_k[1], cached_v[1], mask, sinks, v_mla, bias)
        if rotate_v is not None or (rotate_k is not None and key_only):
            cur = self._hadamard(cur, rotate_v or rotate_k)  # type: ignore[arg-type]
        return self.linear(layer, out, cur) if out else cur

    def _rotation(self, which: str, kind: str, full: int, sliding: int, swa: bool) -> Tensor | None:
        """A quantised cache is rotated: the Hadamard matrix, an input (llama_kv_cache's constructor)."""
        if by_name(kind).block_elements == 1:
            return None
        hp = self.hp
        # build_inp_mem_hybrid_iswa has no place for it.
        if hp.has_swa and any(hp.recurrent):
            return None
        if full % 64 or any(hp.n_head_kv[layer] and full <= 0 for layer in self.layers):
            return None
        size = 64
        if which == "k":
            widths = {
                hp.head_k_swa if hp.swa[layer] else hp.head_k
                for layer in range(hp.n_layer)
                if hp.n_head_kv[layer] and (not hp.has_swa or hp.swa[layer] == swa)
            }
            if len(widths) != 1:
                return None
            width = widths.pop()
            while width % (2 * size) == 0:
                size *= 2
        del sliding
        return self.new_input("rotate_%s%s" % (which, "_swa" if swa else ""), (size, size), F32)

    def _hadamard(self, cur: Tensor, matrix: Tensor) -> Tensor:
        """llama_mul_mat_hadamard."""
        size = matrix.ne[0]
        count = cur.ne[0] * cur.ne[1] * cur.ne[2] * cur.ne[3] // size
        flat = self.reshape(cur, size, count) if cur.contiguous else self.cont(cur, size, count)
        return self.reshape(self.mm(matrix, flat), *cur.ne)

    def _caches(self, layer: int, swa: bool, key_only: bool, v: Tensor | None) -> tuple[Any, Any]:
        """The cache of a layer: (what is stored into, what is read)."""
        batch, hp = self.batch, self.hp
        cells = batch.cells_swa if swa else batch.cells
        home = self.backend(layer) if batch.offload_kqv else self.place.cpu
        n_kv = 1 if key_only else hp.n_head_kv[layer]
        k_size = hp.head_k_swa if swa else hp.head_k
        v_size = hp.head_v_swa if swa else hp.head_v
        cached_k = self._cache("k", layer, batch.type_k, k_size, n_kv, cells, home)
        if key_only:
            if v is None:
                raise AssertionError("a latent cache holds keys alone, and they come with values")
            read = cached_k[1]
            part = self.view("view", read, (v.ne[0], *read.ne[1:]), read.nb, read.nbytes)
            return cached_k, (cached_k[0], part)
        return cached_k, self._cache("v", layer, batch.type_v, v_size, n_kv, cells, home, batch.v_trans)

    def _cache(
        self, which: str, layer: int, kind: str, size: int, heads: int, cells: int, home: int, turned: bool = False
    ) -> tuple[Tensor, Tensor]:
        info = by_name(kind)
        width = size * heads
        if turned:
            width = max(self.hp.v_gqa(item) for item in range(self.hp.n_layer_all))
        row = width * info.block_bytes // info.block_elements
        key = (layer, "cache_" + which)
        store = self._leafs.get(key)
        streams = self.batch.streams
        if store is None:
            store = Tensor("none", (width, cells, streams, 1), 2)
            store.nbytes = row * cells * streams
            store.home = home
            store.tag = kind
            self._leafs[key] = store
        head_row = size * info.block_bytes // info.block_elements
        if turned:
            column = cells * info.block_bytes // info.block_elements
            ne: Shape = (cells, heads, size, streams)
            nb: Shape = (2, column * size, column, row * cells)
        else:
            ne = (size, heads, cells, streams)
            nb = (2, head_row, row, row * cells)
        read = self.view("view", store, ne, nb, store.nbytes)
        read.tag = kind
        return store, read

    def _store(self, cached: tuple[Tensor, Tensor], cur: Tensor, swa: bool, value: bool) -> None:
        """cpy_k and cpy_v: set_rows into the cache; without flash attention values are stored turned."""
        suffix = "_swa" if swa else ""
        width = cur.ne[0] * cur.ne[1]
        store = cached[0]
        if value and self.batch.v_trans:
            widest = store.ne[0]
            flat = self.reshape(cur, width, self.nt) if cur.contiguous else self.cont(cur, width, self.nt)
            if width < store.ne[0]:
                flat = self.op("pad", (store.ne[0], self.nt, 1, 1), flat)
            flat = self.reshape(flat, 1, flat.ne[0] * flat.ne[1])
            ids = self.new_input("v_idxs" + suffix, (self.nt * widest,), I64)
        else:
            flat = self.view("view", cur, (width, cur.ne[2], 1, 1), (cur.es, cur.nb[2], cur.nb[2] * cur.ne[2], 0))
            ids = self.new_input(("v_idxs" if value else "k_idxs") + suffix, (self.nt,), I64)
        self.expand(self.set_rows(store, flat, ids))

    def _mask_all_but(self, mask: Tensor, chosen: Tensor) -> Tensor:
        """The mask of sparse attention: filled, opened where the chosen cells are, and added to the causal one."""
        cells, step, _one, streams = mask.ne
        filled = self.like("fill", mask)
        one = mask.es
        rows = self.view("view", filled, (1, cells, step, streams), (one, one, one * cells, one * cells * step))
        # A tensor that nothing computes: the allocator gives it its place before the graph starts.
        zeros = self.like("fill", Tensor("none", (1, chosen.ne[0], step, streams), F32))
        opened = self.set_rows(rows, zeros, self.reshape(chosen, chosen.ne[0], step, streams))
        return self.add(self.view("view", opened, mask.ne, mask.nb), mask)

    def store_and_read(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values, and return what is in the cache, for attention of an architecture's own."""
        for item in (q, k, v):
            self.expand(item)
        cached_k, cached_v = self._caches(layer, False, False, v)
        self._store(cached_k, k, False, False)
        self._store(cached_v, v, False, True)
        return cached_k[1], cached_v[1]

    def indexer_cache(self, layer: int, size: int, cells: int) -> tuple[Tensor, Tensor]:
        """The keys of an indexer: what is stored into, and what is read."""
        home = self.backend(layer) if self.batch.offload_kqv else self.place.cpu
        return self._cache("indexer", layer, self.batch.type_k, size, 1, cells, home)

    def _attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        sinks: bool,
        v_mla: Tensor | None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """build_attn_mha."""
        streams = k.ne[3]
        step = q.ne[2] // streams
        q = self.view("view", q, (q.ne[0], q.ne[1], step, streams), (q.nb[0], q.nb[1], q.nb[2], q.nb[2] * step))
        q = self.permute(q, 0, 2, 1, 3)
        tag_k, tag_v, turned = k.tag, v.tag or k.tag, v.nb[1] > v.nb[2]
        k, v = self.permute(k, 0, 2, 1, 3), self.permute(v, 0, 2, 1, 3)
        sink = self.w(layer, "attn_sinks.weight") if sinks else None
        if self.batch.flash and bias is None:
            if turned:
                v = self.transpose(v)
            if k.es == F32:
                k, v = (self.op("cpy", item.ne, item, es=F16) for item in (k, v))
            made = self.op("flash_attn", (v.ne[0], q.ne[2], q.ne[1], q.ne[3]), q, k, v, mask, sink)
            made.tag = "%d" % layer
            if self.place.cuda and self.backend(layer) in self.place.cuda:
                made.nbytes = self._cuda_flash_bytes(made.nbytes, k, v, tag_k, tag_v)
            if v_mla is not None:
                made = self.mm(v_mla, self.permute(made, 0, 2, 1, 3))
                made = self.cont(self.permute(made, 0, 2, 1, 3))
            cur = self.reshape(made, made.ne[0] * made.ne[1], made.ne[2] * made.ne[3])
        else:
            kq = self.mm(k, q)
            if self.hp.architecture in ("gemma2", "grok") or self.real("attn_logit_softcapping"):
                kq = self.scale(self.unary(self.scale(kq)))
            if bias is not None:
                kq = self.add(kq, bias)
            kq = self.like("soft_max", kq, mask, sink)
            if not turned:
                v = self.cont(self.transpose(v))
            made = self.mm(v, kq)
            if v_mla is not None:
                made = self.mm(v_mla, made)
            made = self.permute(made, 0, 2, 1, 3)
            cur = self.cont(made, made.ne[0] * made.ne[1], made.ne[2] * made.ne[3])
            if not self.batch.offload_kqv:
                cur.pin = self.place.cpu
        self.expand(cur)
        return cur

    @staticmethod
    def _cuda_flash_bytes(nbytes: int, k: Tensor, v: Tensor, type_k: str, type_v: str) -> int:
        """ggml_cuda_flash_attn_ext_get_alloc_size: f16 copies of what is not f16 (tile and mma kernels)."""
        end = nbytes
        same = v.view is k.view
        for tensor, kind, needed in ((k, type_k, True), (v, type_v, not same)):
            if kind not in ("f16", "F16") and needed:
                end = -(-end // 128) * 128 + 2 * tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
        return end
