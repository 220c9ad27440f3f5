# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which layers slide, recur and predict ahead: what llama.cpp b11434 makes of the keys of each architecture.

That all of it together is right is shown against llama.cpp's own figures in tests/fit.
"""

from __future__ import annotations

import gc
import weakref

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._architectures import KNOWN, WINDOWS
from ansible_collections.llamacpp.cluster.plugins.module_utils._hparams import hparams, per_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._model import TensorGroup
from ansible_collections.llamacpp.cluster.plugins.module_utils._settings import Refused
from ansible_collections.llamacpp.cluster.tests.unit.builders import model


def of(architecture, n_layers=12, **keys):
    return hparams(model(n_layers, architecture=architecture, **keys))


def marks(layers):
    """Write flags as a word, so that a pattern can be read."""
    return "".join("x" if flag else "." for flag in layers)


@pytest.mark.parametrize(
    ("architecture", "keys", "pattern", "window"),
    [
        ("llama", {"attention.sliding_window": 4096}, "............", 0),
        ("gemma2", {}, "x.x.x.x.x.x.", 4096),
        ("gemma2", {"attention.sliding_window": 1024}, "x.x.x.x.x.x.", 1024),
        ("gemma3", {"attention.sliding_window": 1024}, "xxxxx.xxxxx.", 1024),
        ("gemma3", {}, "............", 0),
        ("gemma3n", {"attention.sliding_window": 512}, "xxxx.xxxx.xx", 512),
        ("gpt-oss", {"attention.sliding_window": 128}, "x.x.x.x.x.x.", 128),
        ("cohere2", {"attention.sliding_window": 4096}, "xxx.xxx.xxx.", 4096),
        ("cohere2moe", {"attention.sliding_window": 4096}, ".xxx.xxx.xxx", 4096),
        ("olmo2", {"attention.sliding_window": 4096}, "xxx.xxx.xxx.", 4096),
        ("olmo2", {}, "............", 0),
        ("phi3", {"attention.sliding_window": 2047}, "............", 0),
        ("llama4", {}, "xxx.xxx.xxx.", 8192),
        ("llama4", {"attention.sliding_window": 0}, "............", 0),
        ("smallthinker", {"attention.sliding_window": 512}, ".xxx.xxx.xxx", 4096),
        ("exaone4", {"attention.sliding_window": 4096}, "............", 0),
        ("lfm2", {"attention.sliding_window": 64, "attention.head_count_kv": [0, 8] * 6}, ".x.x.x.x.x.x", 64),
        # A period, or a list of layers, that the file brings.
        ("cohere2", {"attention.sliding_window": 64, "attention.sliding_window_pattern": 6}, "xxxxx.xxxxx.", 64),
        (
            "gemma4",
            {"attention.sliding_window": 512, "attention.sliding_window_pattern": [True, True, False] * 4},
            "xx.xx.xx.xx.",
            512,
        ),
        (
            "mimo2",
            {"attention.sliding_window": 128, "attention.sliding_window_pattern": [0, 1] * 6},
            ".x.x.x.x.x.x",
            128,
        ),
    ],
)
def test_sliding_layers(architecture, keys, pattern, window):
    found = of(architecture, **keys)
    assert (marks(found.swa), found.n_swa) == (pattern, window)


def test_exaone_slides_with_64_layers_only():
    assert marks(of("exaone4", 64).swa) == "xxx." * 16


def test_layers_that_predict_ahead_do_not_slide():
    found = of("exaone-moe", 9, nextn_predict_layers=1)
    assert (marks(found.swa), found.n_layer, found.n_swa) == ("xxx.xxx..", 8, 128)


@pytest.mark.parametrize(
    ("architecture", "keys", "pattern"),
    [
        ("mamba2", {}, "xxxxxxxxxxxx"),
        ("falcon-h1", {}, "xxxxxxxxxxxx"),
        ("jamba", {"attention.head_count_kv": [0, 0, 8, 0] * 3}, "xx.xxx.xxx.x"),
        ("qwen3next", {}, "xxx.xxx.xxx."),
        ("qwen3next", {"full_attention_interval": 3}, "xx.xx.xx.xx."),
        ("qwen35", {"attention.recurrent_layers": [1, 0] * 6}, "x.x.x.x.x.x."),
        ("qwen35", {"nextn_predict_layers": 2}, "xxx.xxx.xx.."),
        ("minimax-01", {}, "xxxxxxx.xxxx"),
        (
            "nemotron_h",
            {"attention.head_count_kv": [0, 0, 8] * 4, "feed_forward_length": [0, 64, 0] * 4},
            "x..x..x..x..",
        ),
        ("llama", {"attention.head_count_kv": [0, 8] * 6}, "............"),
    ],
)
def test_recurrent_layers(architecture, keys, pattern):
    assert marks(of(architecture, **keys).recurrent) == pattern


def test_widths_come_from_the_first_layer_or_from_keys():
    plain = of("llama", **{"embedding_length": 4096, "attention.head_count": [32] * 12})
    # The builder brings lengths of 64.
    assert (plain.head_k, plain.k_gqa(0)) == (64, 512)
    bare = model(4)
    del bare.hyperparameters["attention.key_length"], bare.hyperparameters["attention.value_length"]
    assert hparams(bare).head_k == 1024 // 16


def test_sliding_layers_have_widths_of_their_own():
    found = of(
        "gemma4",
        2,
        **{
            "attention.sliding_window": 512,
            "attention.sliding_window_pattern": [True, False],
            "attention.key_length": 512,
            "attention.key_length_swa": 256,
        },
    )
    assert (found.k_gqa(0), found.k_gqa(1)) == (256 * 8, 512 * 8)


def test_the_router_of_adapters_is_one_more_layer():
    found = of("graniteswitch", 4)
    assert (found.n_layer_all, found.n_layer, found.router_layer, found.n_head_kv[4]) == (5, 4, 4, 1)


def test_loops_repeat_layers():
    found = of("nanbeige", 4, num_loops=3)
    assert (found.n_layer_all, len(found.swa), len(found.n_head_kv)) == (12, 12, 12)


def test_deepseek4_without_its_last_block_predicts_nothing():
    keys = {"nextn_predict_layers": 1, "attention.sliding_window": 128}
    assert of("deepseek4", 4, **keys).n_layer == 4
    whole = model(4, architecture="deepseek4", **keys)
    block = TensorGroup("blk.*.nextn.eh_proj.weight", (3,), (64, 32), "F16", 4096)
    with_block = model(4, architecture="deepseek4", tensor_groups=(*whole.tensor_groups, block), **keys)
    assert hparams(with_block).n_layer == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "clip"}, "give it as mmproj"),
        ({"metadata": {"general.type": "adapter"}}, "adapter"),
        ({"block_count": 0}, "0 layers"),
        ({"embedding_length": 0}, "no embedding_length"),
        ({"embedding_length": -1}, "no number"),
        ({"attention.head_count": "many"}, "no number"),
        ({"expert_count": 8, "expert_used_count": 9}, "9 of 8 experts"),
        ({"expert_count": 8}, "0 of 8 experts"),
        ({"expert_count": 4096, "expert_used_count": 8}, "8 of 4096 experts"),
        ({"architecture": "nanbeige", "num_loops": 1 << 31}, "repeated"),
        ({"architecture": "hrm_text", "hrm.layers_per_stack": 2, "hrm.h_cycles": 1 << 20}, "cycles"),
    ],
)
def test_what_cannot_be_served(changes, words):
    with pytest.raises(Refused, match=words) as caught:
        hparams(model(4, **changes))
    assert caught.value.setting == "model"


def test_an_unknown_architecture_is_a_plain_transformer():
    found = of("llama9000", **{"attention.sliding_window": 4096})
    assert (found.known, found.has_swa, found.k_gqa(0)) == (False, False, 512)


def test_every_window_is_of_a_known_architecture():
    assert set(WINDOWS) <= KNOWN


def test_answers_are_remembered_as_long_as_the_model_lives():
    asked = []

    @per_model
    def question(facts):
        asked.append(facts.name)
        return len(asked)

    one, other = model(2), model(2)
    assert [question(one), question(other), question(one)] == [1, 2, 1]
    gone = weakref.ref(one)
    del one
    gc.collect()
    asked.clear()
    assert gone() is None
    assert question(other) == 2
