# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""llama.cpp's rule for layers, and how layers are spread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.llamacpp.cluster.plugins.module_utils._layers import HOST, assign_layers, distribute

numpy = pytest.importorskip("numpy")

LAYERS = st.integers(1, 200)
SHARES = st.lists(st.integers(0, 400).map(float) | st.floats(0.0, 1e4, width=32), min_size=1, max_size=16).filter(
    lambda shares: sum(shares) > 0.001
)


def llama_cpp(n_layers: int, gpu_layers: int, split: list[float]) -> list[int]:
    """llama_model_base::load_tensors of b11434, line by line, in numpy's single precision."""
    f32 = numpy.float32
    splits = [f32(share) for share in split]
    split_sum = f32(0)
    for index in range(len(splits)):
        split_sum = f32(split_sum + splits[index])
        splits[index] = split_sum
    splits = [f32(part / split_sum) for part in splits]
    start = max(n_layers + 1 - gpu_layers, 0)
    active = 0 if not split else min(gpu_layers, n_layers + 1)
    placed = []
    for layer in range(n_layers + 1):
        if layer < start or layer - start >= active:
            placed.append(HOST)
        else:
            key = f32(f32(layer - start) / f32(active))
            placed.append(next(index for index, part in enumerate(splits) if part > key))
    return placed


@given(LAYERS, st.integers(0, 999), SHARES)
def test_the_rule_is_llama_cpps(n_layers, gpu_layers, split):
    assert assign_layers(n_layers, gpu_layers, split) == llama_cpp(n_layers, gpu_layers, split)


# As b11434 placed them: a model of 24 layers, and the Llama 8B shape of 32, seen in the KV cache of each device.
@pytest.mark.parametrize(
    ("n_layers", "gpu_layers", "split", "counts"),
    [
        (24, 17, [8, 9], {HOST: 8, 0: 8, 1: 9}),
        (32, 999, [1, 1], {0: 17, 1: 16}),
        (32, 999, [3, 1], {0: 25, 1: 8}),
        (32, 999, [1, 1, 1], {0: 11, 1: 11, 2: 11}),
        (32, 0, [1, 1], {HOST: 33}),
        (32, 999, [], {HOST: 33}),
        (32, 33, [0, 1], {1: 33}),
    ],
)
def test_known_placements(n_layers, gpu_layers, split, counts):
    placed = assign_layers(n_layers, gpu_layers, split)
    assert {device: placed.count(device) for device in set(placed)} == counts


COSTS = st.lists(st.integers(1, 1 << 34), min_size=1, max_size=130)
CAPACITIES = st.lists(st.integers(1, 2000).map(float), min_size=1, max_size=16)


@given(COSTS, CAPACITIES)
def test_counts_as_shares_are_cut_exactly_there(costs, capacities):
    if len(costs) < max(len(capacities), 2):
        return
    counts = distribute(costs, capacities)
    placed = assign_layers(len(costs) - 1, len(costs), [float(count) for count in counts])
    assert [placed.count(device) for device in range(len(capacities))] == counts
    assert placed == sorted(placed)


@given(COSTS, CAPACITIES)
def test_every_layer_goes_somewhere_and_no_device_is_idle(costs, capacities):
    if len(costs) < len(capacities):
        with pytest.raises(ValueError, match="cannot be spread over"):
            distribute(costs, capacities)
        return
    counts = distribute(costs, capacities)
    assert sum(counts) == len(costs)
    assert min(counts) >= 1


@given(st.integers(1, 8), st.integers(1, 20), st.integers(1, 1 << 30))
def test_equal_devices_get_equal_layers(devices, each, cost):
    assert distribute([cost] * devices * each, [16.0] * devices) == [each] * devices


def test_capacity_decides():
    assert distribute([1] * 40, [10.0, 30.0]) == [10, 30]


def test_heavy_layers_count_for_what_they_weigh():
    # The output of a large vocabulary weighs as much as ten layers.
    assert distribute([1] * 10 + [10], [1.0, 1.0]) == [10, 1]


def test_a_small_device_still_gets_a_layer():
    assert distribute([100] * 10, [1.0, 1000.0, 1000.0])[0] == 1
    assert distribute([100] * 3, [1000.0, 1.0, 1.0]) == [1, 1, 1]
