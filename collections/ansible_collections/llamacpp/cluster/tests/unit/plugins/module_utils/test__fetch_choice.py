# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is meant of a repository."""

from __future__ import annotations

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._fetch_choice import (
    ChoiceError,
    Remote,
    Selection,
    choose,
    choose_name,
)

REPO = "owner/m-GGUF"
SHA = "a" * 64
NAMES = (
    ".gitattributes",
    "README.md",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "m-Q4_K_M.gguf",
    "m-f16.gguf",
    "m.imatrix.gguf",
    "mmproj-m-bf16.gguf",
    "mmproj-m-f16.gguf",
    "mmproj-m-Q8_0.gguf",
    "UD-Q2_K_XL/m-UD-Q2_K_XL-00001-of-00002.gguf",
    "UD-Q2_K_XL/m-UD-Q2_K_XL-00002-of-00002.gguf",
    "Q6_K/m-Q6_K-00001-of-00003.gguf",
    "Q6_K/m-Q6_K-00003-of-00003.gguf",
    "m.Q8_0.gguf.part1of2",
    "m.Q8_0.gguf.part2of2",
    "m.Q5_K_M.gguf.part2of3",
    "several/a.gguf",
    "several/b.gguf",
)


def files(names=NAMES):
    return [Remote(name, 1 << 20, SHA if ".gguf" in name else None, "1" * 40) for name in names]


def chosen(names=NAMES, checksums=None, **selection):
    wanted = choose(REPO, files(names), Selection(**selection), checksums)
    return [item.name for item in wanted], wanted


@pytest.mark.parametrize(
    ("selection", "names", "name"),
    [
        ({"quant": "Q4_K_M"}, ["m-Q4_K_M.gguf"], "owner/m-GGUF/Q4_K_M"),
        ({"quant": "q4_k_m"}, ["m-Q4_K_M.gguf"], "owner/m-GGUF/Q4_K_M"),
        ({"quant": "fp16"}, ["m-f16.gguf"], "owner/m-GGUF/F16"),
        (
            {"quant": "UD-Q2_K_XL"},
            ["m-UD-Q2_K_XL-00001-of-00002.gguf", "m-UD-Q2_K_XL-00002-of-00002.gguf"],
            "owner/m-GGUF/UD-Q2_K_XL",
        ),
        (
            {"folder": "UD-Q2_K_XL/"},
            ["m-UD-Q2_K_XL-00001-of-00002.gguf", "m-UD-Q2_K_XL-00002-of-00002.gguf"],
            "owner/m-GGUF/UD-Q2_K_XL",
        ),
        ({"quant": "Q8_0"}, ["m.Q8_0.gguf"], "owner/m-GGUF/Q8_0"),
        ({"file": "*Q4_K_M*"}, ["m-Q4_K_M.gguf"], "owner/m-GGUF/m-Q4_K_M"),
        ({"file": "*Q8_0*"}, ["m.Q8_0.gguf"], "owner/m-GGUF/m.Q8_0"),
        ({"file": "m.Q8_0.gguf.part2of2"}, ["m.Q8_0.gguf"], "owner/m-GGUF/m.Q8_0"),
        ({"file": "several/b.gguf"}, ["b.gguf"], "owner/m-GGUF/b"),
        (
            {"file": "*-00001-of-00002.gguf"},
            ["m-UD-Q2_K_XL-00001-of-00002.gguf", "m-UD-Q2_K_XL-00002-of-00002.gguf"],
            "owner/m-GGUF/m-UD-Q2_K_XL",
        ),
    ],
)
def test_selections(selection, names, name):
    found, wanted = chosen(**selection)
    assert found == names
    assert choose_name(REPO, Selection(**selection), wanted) == name


def test_pieces_keep_their_order_and_have_no_checksum_together():
    _names, (wanted,) = chosen(quant="Q8_0")
    assert [part.name for part in wanted.parts] == ["m.Q8_0.gguf.part1of2", "m.Q8_0.gguf.part2of2"]
    assert wanted.size == 2 << 20
    assert wanted.sha256 is None


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ({"quant": "Q3_K_S"}, r"it has no quantisation Q3_K_S; it has .*Q4_K_M \(1 MiB\).*Q8_0 \(2 MiB\)"),
        ({"quant": "nonsense"}, "no quantisation nonsense; it has "),
        ({"quant": "Q6_K"}, "its Q6_K is not complete: file 2 of 3 of Q6_K/m-Q6_K is missing; it has "),
        ({"quant": "Q5_K_M"}, r"its Q5_K_M is not complete: piece 1, 3 of m\.Q5_K_M\.gguf; it has "),
        ({"folder": "Q6_K"}, "file 2 of 3 of Q6_K/m-Q6_K is missing"),
        ({"folder": "several"}, r"has several models: several/a\.gguf, several/b\.gguf; name one"),
        ({"folder": "UD-Q3"}, "it has no folder UD-Q3 with a GGUF model; it has Q6_K, UD-Q2_K_XL, several"),
        ({"file": "*.gguf"}, "means several models: "),
        ({"file": "x*"}, r"no file is x\*; it has .*m-Q4_K_M\.gguf"),
        ({"file": "../../etc/passwd"}, "no file is"),
        ({}, "say which one with quant, folder or file; it has "),
    ],
)
def test_refusals_say_what_there_is(selection, says):
    with pytest.raises(ChoiceError, match=says):
        chosen(**selection)


def test_a_repository_with_one_model_needs_no_word():
    found, wanted = chosen(["README.md", "only.gguf", "mmproj-only-f16.gguf"])
    assert found == ["only.gguf"]
    assert choose_name(REPO, Selection(), wanted) == "owner/m-GGUF/only"
    found, wanted = chosen(["README.md", "m-IQ4_XS.gguf"])
    assert choose_name(REPO, Selection(), wanted) == "owner/m-GGUF/IQ4_XS"


def test_what_belongs_beside():
    found, wanted = chosen(quant="Q4_K_M", beside=("mmproj", "tokenizer", "imatrix", "READ*"))
    assert found[:2] == ["m-Q4_K_M.gguf", "mmproj-m-f16.gguf"]
    roles = {item.name: item.role for item in wanted}
    assert sorted(name for name, role in roles.items() if role == "tokenizer") == [
        "chat_template.jinja",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert roles["m.imatrix.gguf"] == "imatrix"
    assert roles["README.md"] == "other"


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["mmproj-f16.gguf", "mmproj-bf16.gguf"], "mmproj-f16.gguf"),
        (["mmproj-q8_0.gguf", "mmproj-bf16.gguf"], "mmproj-bf16.gguf"),
        (["x.mmproj-Q6_K.gguf", "x.mmproj-Q8_0.gguf"], "x.mmproj-Q8_0.gguf"),
        (["else/mmproj-f16.gguf", "mmproj-Q8_0.gguf"], "mmproj-Q8_0.gguf"),
    ],
)
def test_the_best_projector(there, taken):
    found, _wanted = chosen(["m-Q4_K_M.gguf", *there], quant="Q4_K_M", beside=("mmproj",))
    assert found == ["m-Q4_K_M.gguf", taken]


def test_a_projector_that_is_named():
    found, wanted = chosen(quant="Q4_K_M", beside=("mmproj-m-Q8_0.gguf",))
    assert found == ["m-Q4_K_M.gguf", "mmproj-m-Q8_0.gguf"]
    assert wanted[1].role == "mmproj"


@pytest.mark.parametrize("beside", ["mmproj", "tokenizer", "imatrix", "draft*.gguf"])
def test_what_is_not_beside(beside):
    with pytest.raises(ChoiceError, match="beside = "):
        chosen(["m-Q4_K_M.gguf"], quant="Q4_K_M", beside=(beside,))


def test_two_files_of_one_name_cannot_be_one_model():
    with pytest.raises(ChoiceError, match=r"it has a\.gguf in several folders"):
        chosen(["x/a.gguf", "y/a.gguf"], file="x/a.gguf", beside=("y/a.gguf",))


def test_checksums_of_the_operator():
    assert chosen(quant="Q4_K_M", checksums=SHA.upper())[1][0].sha256 == SHA
    assert chosen(quant="Q8_0", checksums={"m.Q8_0.gguf": "b" * 64})[1][0].sha256 == "b" * 64
    with pytest.raises(ChoiceError, match=r"declared is b+, the hub says a+: correct it"):
        chosen(quant="Q4_K_M", checksums="b" * 64)
    with pytest.raises(ChoiceError, match=r"x\.gguf is no file of the model"):
        chosen(quant="Q4_K_M", checksums={"x.gguf": SHA})
    with pytest.raises(ChoiceError, match="has 2 files; write it as a dictionary"):
        chosen(quant="UD-Q2_K_XL", checksums=SHA)


SAFETENSORS = [
    "README.md",
    "config.json",
    "consolidated.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "onnx/model.safetensors",
    "tokenizer.json",
]


@pytest.mark.parametrize("selection", [{}, {"file": "model-*.safetensors"}])
def test_safetensors_come_with_all_that_makes_them_a_model(selection):
    found, wanted = chosen(SAFETENSORS, **selection)
    assert found[:2] == SAFETENSORS[3:5]
    assert sorted(found[2:]) == ["config.json", "model.safetensors.index.json", "tokenizer.json"]
    assert choose_name(REPO, Selection(**selection), wanted) == "owner/m-GGUF/safetensors"


def test_safetensors_that_are_not_whole_or_not_one_model():
    with pytest.raises(ChoiceError, match=r"file 1 of 2 of model is missing"):
        chosen(SAFETENSORS[:3] + SAFETENSORS[4:])
    with pytest.raises(ChoiceError, match=r"it has a\.safetensors, b\.safetensors"):
        chosen(["a.safetensors", "b.safetensors", "config.json"])
    assert chosen(["m-Q4_K_M.gguf", "model.safetensors", "config.json"])[0] == ["m-Q4_K_M.gguf"]
