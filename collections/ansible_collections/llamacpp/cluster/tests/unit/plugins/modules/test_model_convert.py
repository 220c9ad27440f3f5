# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Conversions into a real store, by the simulated converter."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_tools import pack_tools
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import Manifest
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
from ansible_collections.llamacpp.cluster.plugins.module_utils._tiny_model import tiny_model
from ansible_collections.llamacpp.cluster.plugins.modules import model_convert
from ansible_collections.llamacpp.cluster.tests.unit import simulated_converter as simulated

NAME = "owner/model/F16"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A virtual environment that says it has what the converter needs."""
    return str(simulated.make_python(tmp_path_factory.mktemp("python") / "venv"))


@pytest.fixture
def arguments(tmp_path, python):
    """What the module is asked for, unless a test asks for something else."""
    return simulated.make_arguments(tmp_path, python)


@pytest.fixture
def source(arguments):
    """The directory with safetensors."""
    return Path(arguments["source"])


@pytest.fixture
def convert(run_module, arguments):
    """A function that runs the module; arguments are replaced, those that are None left out."""

    def run(check=False, **others):
        given = {key: value for key, value in {**arguments, **others}.items() if value is not None}
        return run_module(model_convert, check=check, **given)

    return run


@pytest.fixture
def store(arguments):
    """The store."""
    return Store(arguments["store"])


@pytest.fixture
def runs(tmp_path):
    """A function that returns what the simulated converter wrote of its runs."""
    return partial(simulated.read_diary, tmp_path)


def left(store):
    """Return what is on its way into the store, without locks."""
    return [name for name in os.listdir(store.incoming) if not name.endswith(".lock")]


def test_a_model_is_made_and_named(convert, store, runs, source):
    result = convert()
    assert result["changed"] is True
    manifest = store.manifest(NAME)
    assert store.present(manifest) and manifest.as_dict() == result["manifest"]
    assert result["model"] == store.path_of(NAME, "owner-model-F16.gguf")
    with open(result["model"], "rb") as stream:
        assert stream.read() == tiny_model(1)
    assert left(store) == []
    assert runs()[0]["outtype"] == "f16"
    assert os.path.basename(runs()[0]["directory"]) == source.name


def test_the_manifest_records_what_it_was_made_of(convert, source):
    made = convert()["manifest"]["source"]["convert"]
    assert (made["from"], made["outtype"], made["quant"], made["release"]) == (str(source), "f16", None, "b11434")
    assert made["architectures"] == ["BertModel"]
    inputs = made["inputs"]
    assert sorted(inputs["files"]) == ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]
    assert inputs["files"]["tokenizer.json"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert inputs["packages"]["torch"] == "2.13.0+cpu"


def test_a_second_run_converts_nothing(convert, runs):
    first = convert()
    second = convert()
    assert (second["changed"], second["seconds"], len(runs())) == (False, 0, 1)
    assert second["manifest"] == first["manifest"]


@pytest.mark.parametrize("what", ["weights", "tokenizer", "outtype", "release", "converter", "packages", "file"])
def test_other_inputs_convert_again(convert, runs, source, tmp_path, what):
    convert()
    others = {}
    if what == "weights":
        (source / "model.safetensors").write_bytes(simulated.safetensors({"embeddings": (31, 8)}))
    elif what == "tokenizer":
        (source / "tokenizer.json").write_text('{"model": {}}')
    elif what == "outtype":
        others = {"outtype": "f32"}
    elif what == "release":
        others = {"release": "b11435"}
    elif what == "converter":
        (tmp_path / "tree" / "conversion" / "bert.py").write_text("# new\n")
    elif what == "packages":
        others = {"python": str(simulated.make_python(tmp_path / "v", {**simulated.PACKAGES, "torch": "2.14.0"}))}
    else:
        others = {"file": "other.gguf"}
    assert convert(**others)["changed"] is True
    assert len(runs()) == 2
    assert convert(**others)["changed"] is False


def test_a_result_that_is_gone_is_made_again(convert, store, runs):
    sha256 = convert()["manifest"]["files"][0]["sha256"]
    os.unlink(store.blob(sha256))
    assert convert()["changed"] is True
    assert store.present(store.manifest(NAME)) and len(runs()) == 2


def test_check_mode_says_so_and_does_nothing(convert, store, runs):
    result = convert(check=True)
    assert (result["changed"], result["manifest"], runs()) == (True, {}, [])
    assert store.names() == [] and not os.path.exists(store.root)
    convert()
    assert convert(check=True)["changed"] is False


def test_quantised(convert, store):
    result = convert(name="owner/model/Q4_K_M", quant="Q4_K_M")
    with open(result["model"], "rb") as stream:
        assert stream.read() == tiny_model(1).replace(b"tiny", b"4bit")
    assert result["manifest"]["source"]["convert"]["quant"] == "Q4_K_M"
    assert len(result["manifest"]["files"]) == 1 and left(store) == []
    assert len(os.listdir(store.blobs)) == 1, "what lies between is no part of the model"


def test_an_alias_of_a_quantisation_is_the_same(convert, runs):
    for quant in ("Q4_K_M", "Q4_K"):
        assert convert(quant=quant)["manifest"]["source"]["convert"]["quant"] == quant
        assert convert(quant=quant)["changed"] is False
    assert len(runs()) == 1


def test_a_source_that_moved_is_not_converted_again(convert, store, source, runs):
    first = convert()
    moved = source.rename(source.with_name("moved"))
    assert convert(check=True, source=str(moved))["changed"] is True
    assert store.manifest(NAME).source["convert"]["from"] == str(source)
    again = convert(source=str(moved))
    assert (again["changed"], again["manifest"]["source"]["convert"]["from"]) == (True, str(moved))
    assert again["manifest"]["files"] == first["manifest"]["files"]
    assert convert(source=str(moved))["changed"] is False
    assert len(runs()) == 1


def test_an_importance_matrix_counts(convert, tmp_path):
    refused = convert(quant="IQ2_XXS")
    assert "give imatrix" in refused["msg"]
    matrix = tmp_path / "imatrix.gguf"
    matrix.write_bytes(b"1")
    assert convert(quant="IQ2_XXS", imatrix=str(matrix))["changed"] is True
    matrix.write_bytes(b"22")
    assert convert(quant="IQ2_XXS", imatrix=str(matrix))["changed"] is True


def test_a_projector_beside_it(convert, source, tmp_path, runs):
    simulated.make_source(source, tmp_path / "diary", vision_config={"hidden_size": 8})
    files = convert(mmproj=True)["manifest"]["files"]
    assert [(file["name"], file["role"]) for file in files] == [
        ("owner-model-F16.gguf", "model"),
        ("mmproj-owner-model-F16.gguf", "mmproj"),
    ]
    assert [run["mmproj"] for run in runs()] == [False, True]


def test_no_projector_to_be_had(convert, store):
    message = convert(mmproj=True)["msg"]
    assert "leave mmproj out for a model that neither sees nor hears" in message
    assert store.names() == [] and left(store) == []


def test_a_model_of_the_store(convert, store, source, runs):
    progress = Progress(None)
    names = ("config.json", "tokenizer.json", "model.safetensors")
    files = tuple(store.adopt(str(source / name), name, "other", progress) for name in names)
    store.name(Manifest("owner/model", files, {"repo": "owner/model", "commit": "1234"}))
    made = convert(source="owner/model")["manifest"]["source"]
    assert made["of"] == {"repo": "owner/model", "commit": "1234"}
    assert made["convert"]["inputs"]["files"] == {file.name: file.sha256 for file in files}
    assert sorted(runs()[0]["seen"]) == sorted(names)
    assert convert(source="owner/model")["changed"] is False
    store.name(Manifest("owner/model", files, {"repo": "owner/model", "commit": "5678"}))
    assert convert(source="owner/model")["manifest"]["source"]["of"]["commit"] == "5678"
    assert (convert(source="owner/model")["changed"], len(runs())) == (False, 1)


def test_a_model_of_the_store_is_not_called_after_a_revision(convert, store, source, runs):
    """The converter writes the name of the directory into a model that has no other."""
    names = ("config.json", "tokenizer.json", "model.safetensors")
    files = tuple(store.adopt(str(source / name), name, "other", Progress(None)) for name in names)
    store.name(Manifest("owner/model/v1", files, {"repo": "owner/model", "commit": "1234"}))
    assert convert(source="owner/model/v1")["manifest"]["source"]["convert"]["from"] == "owner/model/v1"
    assert os.path.basename(runs()[0]["directory"]) == "model"


def test_the_converter_of_the_control_nodes_source(convert, tmp_path):
    """As the action plugin brings it."""
    archive, packed = tmp_path / "source.tar.gz", tmp_path / "packed.tar.gz"
    pack_tools(str(simulated.make_archive(archive)), str(packed))
    given = {"convert_script": None, "llama_source": str(archive), "converter": str(packed)}
    assert convert(**given)["changed"] is True
    assert convert(**given)["changed"] is False
    assert "converter" in convert(convert_script=None, llama_source=str(archive))["msg"]


def test_code_of_the_source_is_not_seen(convert, source, runs):
    (source / "modeling.py").write_text("")
    assert convert()["manifest"]["source"]["convert"]["withheld"] == ["modeling.py"]
    convert(trust_code=True)
    assert ["modeling.py" in run["seen"] for run in runs()] == [False, True]


def test_secrets_stay_here(convert, runs, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    convert()
    assert "hf_secret" not in runs()[0]["environment"].values()


REFUSED = {
    "name": ({"name": "../../etc/passwd"}, "name = '../../etc/passwd'"),
    "file": ({"file": "../x.gguf"}, "file name '../x.gguf'"),
    "not GGUF": ({"file": "model.bin"}, "file = model.bin"),
    "itself": ({"source": NAME}, "the result needs another name"),
    "unknown quantisation": ({"quant": "Q4_X"}, "quant = Q4_X: write one of "),
    "twice quantised": ({"quant": "Q4_0", "outtype": "q8_0"}, "it would be quantised twice"),
    "no llama-quantize": ({"quant": "Q4_0", "quantize": None}, "give quantize"),
    "not in the store": ({"source": "owner/other"}, "no model of that name is in the store"),
    "no script": ({"convert_script": "/nonexistent/convert_hf_to_gguf.py"}, "no such file on this node"),
    "no Python": ({"python": "/nonexistent/python"}, "let the role make the virtual environment"),
    "quota": ({"quota": 1 << 20}, "raise llamacpp_models_quota"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_anything_runs(convert, store, runs, what):
    given, words = REFUSED[what]
    result = convert(**given)
    assert result["failed"] and words in result["msg"]
    assert runs() == [] and store.names() == []


def test_progress_is_said(convert, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Progress, "say", lambda _self, line, **_how: said.append(line))
    convert(quant="Q8_0")
    assert [line.partition(":")[0] for line in said if "sha256" not in line] == [
        "starting the converter",
        "converting",
        "converting",
        "quantizing",
        "quantizing",
    ]


def test_a_model_that_nobody_uses_goes_for_it(convert, store, source, tmp_path):
    """Room is made as for any other model."""
    big = tmp_path / "big.bin"
    with open(big, "wb") as stream:
        stream.write(os.urandom(8 << 20))
    store.name(Manifest("old", (store.adopt(str(big), "big.bin", "other", Progress(None)),)))
    big.unlink()
    result = convert(quota=36 << 20)
    assert result["evicted"] == ["old"]
    assert store.names() == [NAME]
