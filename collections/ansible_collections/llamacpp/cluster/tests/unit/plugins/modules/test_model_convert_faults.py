# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Conversions that fail, are killed, or run twice at once: nothing half has a name, and a second run finishes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store
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


TROUBLE = {
    "killed": "most likely because memory ran out",
    "full": "the disk of the store is full",
    "cut": "no usable model",
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_nothing_half_stays_and_a_second_run_makes_it(convert, store, source, tmp_path, trouble):
    simulated.make_source(source, tmp_path / "diary", trouble=trouble)
    result = convert()
    assert result["failed"] and TROUBLE[trouble] in result["msg"]
    assert store.names() == [] and left(store) == []
    simulated.make_source(source, tmp_path / "diary")
    assert convert()["changed"] is True


def test_an_architecture_that_the_converter_does_not_know(convert, source, tmp_path):
    simulated.make_source(source, tmp_path / "diary", architectures=["NopeForCausalLM"])
    message = convert()["msg"]
    assert "does not know the architecture NopeForCausalLM" in message
    assert "ERROR:hf-to-gguf:Model NopeForCausalLM is not supported" in message


def test_a_missing_tokenizer_is_a_hint(convert, source, tmp_path):
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
        root = model_convert.__file__.partition("/ansible_collections/")[0]
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
    root = model_convert.__file__.partition("/ansible_collections/")[0]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount],
        env=dict(os.environ, PYTHONPATH=root),
        capture_output=True,
        text=True,
        check=False,
    )
    message = json.loads(done.stdout)["msg"]
    assert "MiB more" in message and "free on its disk" in message, "found out before anything was converted"
