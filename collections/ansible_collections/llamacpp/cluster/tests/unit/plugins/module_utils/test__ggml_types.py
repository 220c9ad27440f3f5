# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Block sizes of tensor types."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import CACHE_TYPES, TENSOR_TYPES, by_name


def test_the_gguf_package_knows_the_same_sizes():
    constants = pytest.importorskip("gguf.constants")
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in constants.GGML_QUANT_SIZES.items()}
    ours = {kind: tuple(item) for kind, item in TENSOR_TYPES.items() if kind in theirs}
    assert ours == theirs


def test_types_newer_than_the_package_are_few():
    constants = pytest.importorskip("gguf.constants")
    # Q2_0 came to llama.cpp after gguf 0.19; when the package has it too, this list is empty.
    assert set(TENSOR_TYPES) - {int(kind) for kind in constants.GGML_QUANT_SIZES} <= {42}


@pytest.mark.parametrize(
    ("name", "elements", "size"), [("f16", 100, 200), ("Q8_0", 64, 68), ("q4_K", 512, 288), ("bf16", 3, 6)]
)
def test_row_bytes(name, elements, size):
    assert by_name(name).row_bytes(elements) == size


def test_a_row_must_divide_into_blocks():
    with pytest.raises(ValueError, match="33 numbers does not divide into the blocks of 32 of Q8_0"):
        by_name("q8_0").row_bytes(33)


def test_every_cache_type_has_a_size():
    assert [by_name(name).row_bytes(32) for name in CACHE_TYPES] == [128, 64, 64, 34, 18, 20, 18, 22, 24]
