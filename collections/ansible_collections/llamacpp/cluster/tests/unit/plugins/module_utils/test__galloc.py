# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""ggml's scheduler and allocator on small graphs whose peak can be worked out by hand."""

from __future__ import annotations

from ansible_collections.llamacpp.cluster.plugins.module_utils._galloc import ALIGNMENT, Graph, Tensor, record, replay

KIB = 1 << 10
# One row of 256 numbers in single precision.
ROW = (256, 1, 1, 1)


def leaf(columns: int = 1, home: int = -1, weight: bool = False) -> Tensor:
    made = Tensor("none", (256, columns, 1, 1), 4)
    made.home, made.weight = home, weight
    made.is_input = home < 0
    return made


def op(name: str, *sources: Tensor, columns: int = 1) -> Tensor:
    return Tensor(name, (256, columns, 1, 1), 4, sources)


def peaks(*results: Tensor, backends: int = 2, copies: int = 1, offload: int = -1) -> list[int]:
    graph = Graph()
    for result in results:
        graph.expand(result)
    return replay(record(graph, backends, copies, offload), backends)


def test_one_result_after_another_takes_turns():
    weight = leaf(256, 0, True)
    cur = leaf()
    for _index in range(5):
        cur = op("mul_mat", weight, cur)
    # The copy of the input and a result, or two results: never three.
    assert peaks(cur) == [2 * KIB, KIB]


def test_an_operation_in_place_needs_nothing():
    weight = leaf(256, 0, True)
    cur = op("mul_mat", weight, leaf())
    for name in ("scale", "unary", "rms_norm"):
        cur = op(name, cur)
    assert peaks(cur) == [2 * KIB, KIB]


def test_not_in_place_of_what_is_needed_again():
    weight = leaf(256, 0, True)
    first = op("mul_mat", weight, leaf())
    second = op("scale", first)
    assert peaks(op("add", second, first)) == [2 * KIB, KIB]
    first = op("mul_mat", weight, leaf())
    # A layer norm is never made in place.
    second = op("norm", first)
    third = op("concat", second, first, columns=2)
    assert peaks(third) == [4 * KIB, KIB]


def test_an_output_is_never_given_up():
    weight = leaf(256, 0, True)
    kept = op("mul_mat", weight, leaf())
    kept.is_output = True
    cur = op("scale", kept)
    cur = op("scale", cur)
    assert peaks(cur) == [2 * KIB, KIB]


def test_a_view_keeps_its_source():
    weight = leaf(256, 0, True)
    source = op("mul_mat", weight, leaf())
    part = Tensor("view", (128, 1, 1, 1), 4, (source,), view=source)
    other = op("mul_mat", weight, op("scale", source))
    last = Tensor("cont", (128, 1, 1, 1), 4, (part,))
    # source, its scaled copy and the product at once; then the part in what the copy leaves.
    assert peaks(other, last) == [3 * KIB, KIB]


def test_the_smallest_gap_that_fits_is_taken():
    weight = leaf(256, 0, True)
    copied = leaf()
    # 1 for the copy, then 8 + 1 + 2 + 1 in a row.
    big = op("mul_mat", weight, copied, columns=8)
    wall = op("mul_mat", weight, copied)
    small = op("mul_mat", weight, copied, columns=2)
    end = op("mul_mat", weight, copied)
    graph = Graph()
    for made in (big, wall, small, end):
        graph.expand(made)
    for gone in (big, small):
        made = Tensor("sum", (1, 1, 1, 1), 4, (gone,))
        made.is_output = True
        graph.expand(made)
    # The sums go where the copy was, two columns into the gap that "small" left, and seven into what
    # "big" left: the peak stays. Were the two put into the larger gap, the seven would not fit any more.
    two = op("mul_mat", weight, wall, columns=2)
    seven = op("mul_mat", weight, end, columns=7)
    two.is_output = seven.is_output = True
    graph.expand(two)
    graph.expand(seven)
    assert replay(record(graph, 2, 1, -1), 2)[0] == (1 + 8 + 1 + 2 + 1) * KIB


def test_sizes_are_aligned():
    weight = leaf(256, 0, True)
    cur = Tensor("mul_mat", (1, 1, 1, 1), 4, (weight, leaf()))
    assert peaks(cur)[0] == KIB + ALIGNMENT


def test_weights_decide_who_computes():
    first, second = leaf(256, 0, True), leaf(256, 1, True)
    cur = op("mul_mat", first, leaf())
    cur = op("scale", cur)
    cur = op("mul_mat", second, cur)
    cur = op("scale", cur)
    # On each: what comes in as a copy, and what is made of it.
    assert peaks(cur, backends=3) == [2 * KIB, 2 * KIB, KIB]


def test_pipeline_keeps_four_copies_of_all_that_comes_in():
    first, second = leaf(256, 0, True), leaf(256, 1, True)
    cur = op("mul_mat", second, op("mul_mat", first, leaf()))
    assert peaks(cur, backends=3, copies=4) == [5 * KIB, 5 * KIB, 4 * KIB]


def test_a_device_computes_with_the_hosts_weights_from_a_copy():
    weight = leaf(256, 1, True)
    cur = op("mul_mat", weight, leaf(64), columns=64)
    assert peaks(cur, offload=0) == [(256 + 64 + 64) * KIB, 64 * KIB]
    weight = leaf(256, 1, True)
    cur = op("mul_mat", weight, leaf(64), columns=64)
    assert peaks(cur) == [0, 128 * KIB]


def test_few_rows_stay_on_the_host():
    weight = leaf(256, 1, True)
    cur = op("mul_mat", weight, leaf(8), columns=8)
    assert peaks(cur, offload=0) == [0, 16 * KIB]


def test_copies_of_weights_make_room_for_the_next():
    first, second = leaf(256, 1, True), leaf(256, 1, True)
    cur = op("mul_mat", first, leaf(64), columns=64)
    cur = op("mul_mat", second, cur, columns=64)
    assert peaks(cur, offload=0)[0] == (256 + 64 + 64) * KIB
