# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What lies where when several devices compute every layer together."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._context import resolve
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import HOST, Settings
from ansible_collections.llamacpp.cluster.plugins.module_utils._tensor_split import spread
from ansible_collections.llamacpp.cluster.tests.unit.builders import model

LAYERS = (0, 1, 2, 3)
# 8 heads for keys and values of 64 numbers, 16 for queries.
GROUPS = {
    "embedding": TensorGroup("token_embd.weight", (), (1024, 1000), "F16", 2048000),
    "query": TensorGroup("blk.*.attn_q.weight", LAYERS, (1024, 1024), "F16", 2097152),
    "key": TensorGroup("blk.*.attn_k.weight", LAYERS, (1024, 512), "F16", 1048576),
    "norm": TensorGroup("blk.*.attn_norm.weight", LAYERS, (1024,), "F32", 4096),
    "up": TensorGroup("blk.*.ffn_up.weight", LAYERS, (1024, 4096), "F16", 8388608),
    "down": TensorGroup("blk.*.ffn_down.weight", LAYERS, (4096, 1024), "F16", 8388608),
    "experts": TensorGroup("blk.*.ffn_up_exps.weight", LAYERS, (1024, 512, 8), "F16", 8388608),
    "shared": TensorGroup("blk.*.ffn_up_shexp.weight", LAYERS, (1024, 512), "F16", 1048576),
    "output": TensorGroup("output.weight", (), (1024, 1000), "F16", 2048000),
}


def weights(*names, shares=(0.0, 0.0), placed=(0,) * 5, kept=0, **changes):
    facts = model(4, tensor_groups=tuple(GROUPS[name] for name in names), **changes)
    context = resolve(facts, Settings(ctx_size=256))
    return spread(facts, context, placed, shares, ["cuda"] * len(shares), kept).model


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["query"], (4 * 1048576,) * 2),
        (["key"], (4 * 524288,) * 2),
        (["up"], (4 * 4194304,) * 2),
        (["down"], (4 * 4194304,) * 2),
        (["experts"], (4 * 4194304,) * 2),
        # Not cut: on every device whole.
        (["norm"], (4 * 4096,) * 2),
        (["shared"], (4 * 1048576,) * 2),
        (["embedding", "output"], (1024000,) * 2),
        # A tied embedding is not cut either.
        (["embedding"], (2048000,) * 2),
    ],
)
def test_two_halves(names, wanted):
    assert weights(*names) == wanted


def test_nothing_is_lost_when_it_does_not_divide():
    found = weights("query", "up", shares=(1.0, 1.0, 1.0))
    assert sum(found) == 4 * (2097152 + 8388608)
    # 8 heads over 3 devices: 2, 3 and 3, and the short one is another in the next layer.
    assert max(found) - min(found) < 2 * 2097152


def test_shares():
    small, large = weights("up", shares=(1.0, 3.0))
    assert (small, large) == (4 * 2097152, 4 * 6291456)


def test_layers_and_experts_in_memory():
    assert weights("query", placed=(HOST, HOST, 0, 0, 0)) == (2 * 1048576,) * 2
    assert weights("experts", kept=3) == (4194304,) * 2
    assert weights("output", placed=(HOST,) * 5) == (0, 0)


def test_context_is_cut_by_heads():
    facts = model(4, tensor_groups=tuple(GROUPS.values()))
    context = resolve(facts, Settings(ctx_size=1024))
    found = spread(facts, context, (0,) * 5, (0.0, 0.0), ["cuda"] * 2, 0)
    assert found.context == (4 * 2 * 1024 * 4 * 64 * 2,) * 2
    memory = resolve(facts, Settings(ctx_size=1024, no_kv_offload=True))
    assert spread(facts, memory, (0,) * 5, (0.0, 0.0), ["cuda"] * 2, 0).context == (0, 0)


def test_one_key_for_all_heads_cannot_be_cut():
    facts = model(
        2,
        architecture="deepseek4",
        tensor_groups=(),
        tensor_count=1,
        **{"attention.sliding_window": 128, "attention.head_count_kv": 1},
    )
    context = resolve(facts, Settings(ctx_size=256))
    both = spread(facts, context, (0,) * 3, (0.0, 0.0), ["cuda"] * 2, 0).context
    assert both[0] == both[1] == 2 * 256 * 64 * 2
