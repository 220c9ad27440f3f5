# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tiny model, as the collection's own reader and a computation by hand see it. In the lab a server recites it."""

from __future__ import annotations

import math
import struct

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _tiny_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._gguf import read_header


@pytest.fixture
def header(tmp_path):
    """The header of the model as it is by default."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(_tiny_model.tiny_model())
    return read_header(str(path))


def weights(header, name):
    """Return a tensor of the file as rows."""
    raw = _tiny_model.tiny_model()
    info = next(tensor for tensor in header.tensors if tensor.name == name)
    flat = struct.unpack_from("<%df" % math.prod(info.shape), raw, header.data_offset + info.offset)
    return [flat[row : row + info.shape[0]] for row in range(0, len(flat), info.shape[0])]


def test_small_and_always_the_same():
    assert len(_tiny_model.tiny_model()) < 200_000
    assert _tiny_model.tiny_model() == _tiny_model.tiny_model()
    assert _tiny_model.tiny_model(1) != _tiny_model.tiny_model(2)


def test_a_layer_for_each_device(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(_tiny_model.tiny_model(8))
    names = {tensor.name for tensor in read_header(str(path)).tensors}
    assert "blk.7.ffn_down.weight" in names
    assert "blk.8.ffn_down.weight" not in names


def test_what_a_reader_of_gguf_sees(header):
    assert header.values["general.architecture"] == "llama"
    assert header.values["llama.block_count"] == 2
    shapes = {tensor.name: tuple(tensor.shape) for tensor in header.tensors}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (32, 259)
    assert shapes["blk.1.ffn_down.weight"] == (64, 32)


def test_every_byte_leads_to_the_next_one_by_far(header):
    embedding, output = weights(header, "token_embd.weight"), weights(header, "output.weight")
    first, last = (ord(character) + len(_tiny_model.SPECIAL) for character in "Az")
    for token in range(first, last):
        logits = [sum(a * b for a, b in zip(embedding[token], row)) for row in output]
        ranked = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
        assert ranked[0] == token + 1
        # The layers would have to add a quarter of the embedding's length, all of it in the worst direction.
        assert logits[ranked[0]] - logits[ranked[1]] >= 8.0


def test_the_answer_follows_the_question():
    assert _tiny_model.question().endswith("gh")
    assert _tiny_model.answer(3) == "ijk"
    assert _tiny_model.answer(18).endswith("z")
