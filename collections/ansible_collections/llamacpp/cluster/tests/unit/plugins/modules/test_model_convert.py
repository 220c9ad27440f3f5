# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Conversions into a real store, by the simulated converter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

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
def source(tmp_path):
    """A directory with safetensors."""
    return simulated.make_source(tmp_path / "model")


@pytest.fixture
def arguments(tmp_path, python, source):
    """What the module is asked for, unless a test asks for something else."""
    (tmp_path / "tree").mkdir()
    return {
        "name": NAME,
        "source": str(source),
        "store": str(tmp_path / "store"),
        "outtype": "f16",
        "convert_script": str(simulated.make_tree(tmp_path / "tree")),
        "quantize": str(simulated.make_quantize(tmp_path / "llama-quantize")),
        "release": "b11434",
        "python": python,
        "threads": 1,
    }


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

    def read():
        diary = tmp_path / "diary"
        return [json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else []

    return read


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


def test_an_alias_of_a_quantisation_is_the_same(convert):
    assert convert(quant="Q4_K_M")["changed"] is True
    assert convert(quant="Q4_K")["changed"] is False


def test_an_importance_matrix_counts(convert, tmp_path):
    refused = convert(quant="IQ2_XXS")
    assert "give imatrix" in refused["msg"]
    matrix = tmp_path / "imatrix.gguf"
    matrix.write_bytes(b"1")
    assert convert(quant="IQ2_XXS", imatrix=str(matrix))["changed"] is True
    matrix.write_bytes(b"22")
    assert convert(quant="IQ2_XXS", imatrix=str(matrix))["changed"] is True


def test_a_projector_beside_it(convert, source, tmp_path, runs):
    shutil.rmtree(source)
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


TROUBLE = {
    "killed": "most likely because memory ran out",
    "full": "the disk of the store is full",
    "cut": "no usable model",
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_nothing_half_stays_and_a_second_run_makes_it(convert, store, source, tmp_path, trouble):
    shutil.rmtree(source)
    simulated.make_source(source, tmp_path / "diary", trouble=trouble)
    result = convert()
    assert result["failed"] and TROUBLE[trouble] in result["msg"]
    assert store.names() == [] and left(store) == []
    shutil.rmtree(source)
    simulated.make_source(source, tmp_path / "diary")
    assert convert()["changed"] is True


def test_an_architecture_that_the_converter_does_not_know(convert, source, tmp_path):
    shutil.rmtree(source)
    simulated.make_source(source, tmp_path / "diary", architectures=["NopeForCausalLM"])
    message = convert()["msg"]
    assert "does not know the architecture NopeForCausalLM" in message
    assert "ERROR:hf-to-gguf:Model NopeForCausalLM is not supported" in message


def test_a_missing_tokenizer_is_a_hint(convert, source, tmp_path):
    shutil.rmtree(source)
    simulated.make_source(source, tmp_path / "diary", architectures=["NopeForCausalLM"])
    (source / "tokenizer.json").unlink()
    assert "No file of the source looks like a tokenizer" in convert()["msg"]


@pytest.fixture
def background(arguments, tmp_path):
    """A function that starts the module in a process of its own; what still runs at the end is stopped."""
    started = []

    def start(**others):
        given = {"ANSIBLE_MODULE_ARGS": {**arguments, **others}}
        path = tmp_path / ("arguments-%d.json" % len(started))
        path.write_text(json.dumps(given))
        root = model_convert.__file__.split("/ansible_collections/")[0]
        with open(tmp_path / ("said-%d" % len(started)), "w") as said:
            process = subprocess.Popen(
                [sys.executable, model_convert.__file__, str(path)],
                env=dict(os.environ, PYTHONPATH=root),
                stdout=said,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition):
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.05)


def alive(pid):
    """Whether a process is there and has not ended."""
    try:
        with open("/proc/%d/stat" % pid) as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_while_it_converts(background, convert, store, source, tmp_path, runs):
    shutil.rmtree(source)
    simulated.make_source(source, tmp_path / "diary", trouble="sleeps")
    process = background()
    wait_for(lambda: runs() and any(name.endswith(".half") for _d, _n, names in os.walk(store.root) for name in names))
    process.send_signal(signal.SIGKILL)
    process.wait()
    orphan = runs()[0]["pid"]
    assert alive(orphan), "the converter does not end with the module: that is what the second run has to deal with"
    assert store.names() == []
    # The same inputs: the script is what goes on.
    second = background()
    wait_for(lambda: len(runs()) == 2)
    assert not alive(orphan)
    second.kill()
    second.wait()
    os.kill(runs()[1]["pid"], signal.SIGKILL)


def test_killed_while_it_quantises_the_conversion_is_kept(background, convert, arguments, store, runs):
    sleeps = arguments["quantize"] + ".sleeps"
    with open(sleeps, "w"):
        pass
    process = background(quant="Q8_0")
    wait_for(lambda: os.path.exists(arguments["quantize"] + ".started"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.names() == [] and left(store) != []
    os.unlink(sleeps)
    assert convert(quant="Q8_0")["changed"] is True
    assert len(runs()) == 1, "it went on behind the conversion"
    assert left(store) == []


def test_two_at_once_convert_once(background, runs, store, tmp_path):
    both = [background(), background()]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    said = [json.loads((tmp_path / ("said-%d" % number)).read_text()) for number in range(2)]
    assert sorted(result["changed"] for result in said) == [False, True]
    assert len(runs()) == 1 and store.present(store.manifest(NAME))


def test_a_full_disk(arguments, tmp_path):
    """A real file system of 64 KiB."""
    store = tmp_path / "small"
    store.mkdir()
    path = tmp_path / "arguments.json"
    path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {**arguments, "store": str(store)}}))
    mount = "mount -t tmpfs -o size=64k tmpfs %s && exec %s %s %s" % (
        store,
        sys.executable,
        model_convert.__file__,
        path,
    )
    probe = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(store)], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("a mount in a name space of its own is not permitted here")
    root = model_convert.__file__.split("/ansible_collections/")[0]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount],
        env=dict(os.environ, PYTHONPATH=root),
        capture_output=True,
        text=True,
        check=False,
    )
    message = json.loads(done.stdout)["msg"]
    assert "MiB more" in message and "free on its disk" in message, "found out before anything was converted"


def test_progress_is_said(convert, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Progress, "say", lambda self, line, now=False: said.append(line))
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
