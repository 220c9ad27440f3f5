# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Environments of wheels: made whole, once, and replaced in one step. pip is the real one of this machine."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import subprocess
import zipfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _environment
from ansible_collections.llamacpp.cluster.plugins.module_utils._environment import (
    EnvironmentFailedError,
    check_pins,
    fingerprint,
    pip_wheel,
)
from ansible_collections.llamacpp.cluster.plugins.modules import python_environment


def write_wheel(directory, name, version, files, needs=()):
    """Write a small wheel (PEP 427)."""
    info = "%s-%s.dist-info" % (name, version)
    metadata = "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (name, version)
    metadata += "".join("Requires-Dist: %s\n" % need for need in needs)
    contents = {
        **files,
        info + "/METADATA": metadata.encode(),
        info + "/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, content in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append("%s,sha256=%s,%d" % (path, digest, len(content)))
    contents[info + "/RECORD"] = "\n".join([*lines, info + "/RECORD,,", ""]).encode()
    with zipfile.ZipFile(directory / ("%s-%s-py3-none-any.whl" % (name, version)), "w") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """This machine's pip as a wheel, one that needs another, and a newer one."""
    directory = tmp_path_factory.mktemp("wheels")
    pip = importlib.metadata.distribution("pip")
    files = {
        str(path): path.locate().read_bytes()
        for path in pip.files or ()
        if str(path).startswith("pip/") and not str(path).endswith(".pyc")
    }
    write_wheel(directory, "pip", pip.version, files)
    write_wheel(directory, "upper", "1.0", {"upper.py": b"import lower\nWORD = lower.WORD.upper()\n"}, ["lower>=1"])
    write_wheel(directory, "upper", "1.1", {"upper.py": b"WORD = 'newer'\n"})
    write_wheel(directory, "lower", "1.0", {"lower.py": b"WORD = 'word'\n"})
    return directory


@pytest.fixture
def make(run_module, wheels, tmp_path):
    def run(*requirements, check=False, **arguments):
        given = {"dest": str(tmp_path / "env"), "wheels": str(wheels), "requirements": list(requirements)}
        return run_module(python_environment, check=check, **{**given, **arguments})

    return run


def say_word(answer):
    program = "import upper; print(upper.WORD)"
    return subprocess.run([answer["python"], "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_made_once_and_replaced(make, tmp_path):
    assert make("upper==1.0", check=True)["changed"] is True
    assert os.listdir(tmp_path) == []
    first = make("upper==1.0")
    assert first["changed"] is True
    assert first["packages"] == {"upper": "1.0", "lower": "1.0"}
    assert say_word(first) == "WORD"
    assert make("upper==1.0")["changed"] is False
    assert make("upper==1.0", check=True)["changed"] is False
    second = make("upper==1.1")
    assert (second["changed"], second["packages"]) == (True, {"upper": "1.1"})
    assert say_word(second) == "newer"
    # The link, what it leads to, and the lock.
    assert len(os.listdir(tmp_path)) == 3


def test_a_run_that_was_killed_leaves_the_old_one(make, wheels, monkeypatch, tmp_path):
    first = make("upper==1.0")

    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_environment, "bring", killed)
        with pytest.raises(KeyboardInterrupt):
            _environment.Environment(str(tmp_path / "env"), ["upper==1.1"], str(wheels)).make(lambda line: None)
    assert say_word(first) == "WORD"
    # What it left lies where the next one will be made, and is not taken for whole.
    assert say_word(make("upper==1.1")) == "newer"
    assert len(os.listdir(tmp_path)) == 3


def test_an_environment_whose_python_has_gone_is_made_again(make):
    first = make("upper==1.0")
    os.unlink(first["python"])
    again = make("upper==1.0")
    assert again["changed"] is True
    assert say_word(again) == "WORD"


def test_surroundings_do_not_lead_pip_astray(make, monkeypatch, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lower.py").write_text("raise RuntimeError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "target"))
    assert make("upper==1.0")["packages"] == {"upper": "1.0", "lower": "1.0"}
    assert not (tmp_path / "target").exists()


def test_others_can_read_it(make):
    before = os.umask(0o077)
    try:
        answer = make("upper==1.0")
    finally:
        os.umask(before)
    top = os.path.realpath(os.path.dirname(os.path.dirname(answer["python"])))
    modes = [os.stat(directory).st_mode & 0o055 for directory, _names, _files in os.walk(top)]
    assert set(modes) == {0o055}


@pytest.mark.parametrize(
    ("requirements", "says"),
    [
        (["upper"], "write name==version"),
        (["upper>=1"], "write name==version"),
        (["--index-url=http://elsewhere"], "write name==version"),
        ([], "say what the environment is to have"),
        (["upper==9"], "No matching distribution found for upper==9"),
    ],
)
def test_requirements_that_cannot_be(make, tmp_path, requirements, says):
    answer = make(*requirements)
    assert answer["failed"] and says in answer["msg"]
    assert not (tmp_path / "env").exists()


def test_places_that_cannot_be(make, tmp_path):
    assert "no such file" in make("upper==1.0", wheels=str(tmp_path / "nothing"))["msg"]
    (tmp_path / "empty").mkdir()
    assert "pip itself is not among them" in make("upper==1.0", wheels=str(tmp_path / "empty"))["msg"]
    (tmp_path / "env").mkdir()
    assert "a directory that was not made here" in make("upper==1.0")["msg"]


def test_the_newest_pip():
    assert pip_wheel({"pip-9.0.1-py3-none-any.whl": 1, "pip-26.0-py3-none-any.whl": 1}) == "pip-26.0-py3-none-any.whl"
    with pytest.raises(EnvironmentFailedError):
        pip_wheel({"pipx-1.0-py3-none-any.whl": 1})


def test_what_tells_environments_apart():
    one = fingerprint(["a==1", "b==1"], {"a.whl": 1}, "3.11")
    assert one == fingerprint(["b==1", "a==1"], {"a.whl": 1}, "3.11")
    assert one != fingerprint(["b==1", "a==1"], {"a.whl": 2}, "3.11")
    assert one != fingerprint(["b==1", "a==1"], {"a.whl": 1}, "3.13")


@pytest.mark.parametrize("pin", ["a==1", "huggingface_hub==2.4.0", "torch==2.9.0+cpu", "x[y,z]==1!2.0rc1"])
def test_pins(pin):
    check_pins([pin])
