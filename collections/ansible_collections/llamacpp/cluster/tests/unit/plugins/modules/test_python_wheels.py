# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Wheels are downloaded by a real pip, from a directory."""

from __future__ import annotations

import platform
import sys
import zipfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import python_wheels

pytest.importorskip("pip")
pytest.importorskip("tomllib")


def write_wheel(directory, name, version, needs=(), tag="py3-none-any"):
    """Write a wheel that pip takes."""
    info = "%s-%s.dist-info" % (name, version)
    metadata = "Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (name, version)
    metadata += "".join("Requires-Dist: %s\n" % need for need in needs)
    with zipfile.ZipFile(directory / ("%s-%s-%s.whl" % (name, version, tag)), "w") as wheel:
        wheel.writestr(info + "/METADATA", metadata)
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: %s\n" % tag)
        wheel.writestr(info + "/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A directory of wheels, all that pip knows."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    write_wheel(directory, "outer", "1.0", ["inner>=2"])
    write_wheel(directory, "inner", "2.1")
    return directory


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_wheels_come_with_all_that_they_need(run_module, index, tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[dependency-groups]\ncontrol = ["outer==1.0"]\n')
    done = run_module(python_wheels, pyproject=str(project), dest=str(tmp_path / "wheels"))
    assert done["changed"]
    assert done["wheels"] == names(tmp_path / "wheels") == ["inner-2.1-py3-none-any.whl", "outer-1.0-py3-none-any.whl"]
    assert not run_module(python_wheels, pyproject=str(project), dest=str(tmp_path / "wheels"))["changed"]


def test_wheels_that_nothing_needs_any_more_go(run_module, index, tmp_path):
    run_module(python_wheels, requirements=["outer"], dest=str(tmp_path / "wheels"))
    done = run_module(python_wheels, requirements=["inner"], dest=str(tmp_path / "wheels"))
    assert done["changed"]
    assert names(tmp_path / "wheels") == ["inner-2.1-py3-none-any.whl"]


def test_a_failure_keeps_the_wheels_and_says_what_pip_said(run_module, index, tmp_path):
    run_module(python_wheels, requirements=["outer"], dest=str(tmp_path / "wheels"))
    said = run_module(python_wheels, requirements=["nobody-has-this"], dest=str(tmp_path / "wheels"))
    assert said["failed"]
    assert "nobody-has-this" in said["msg"]
    assert len(names(tmp_path / "wheels")) == 2


def test_a_group_that_is_not_there_is_named(run_module, index, tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text("[dependency-groups]\ndemo = []\n")
    said = run_module(python_wheels, pyproject=str(project), dest=str(tmp_path / "wheels"))
    assert said["msg"] == "no dependency group control; there are demo"


@pytest.mark.parametrize("versions", [[], ["3.9"], ["3.9", "3.12"]])
def test_wheels_for_another_machine(run_module, index, tmp_path, versions):
    own = "cp%d%d" % sys.version_info[:2]
    pythons = ["cp" + version.replace(".", "") for version in versions] or [own]
    for machine in ("x86_64", "aarch64"):
        for python in sorted({"cp39", "cp312", own}):
            write_wheel(index, "engine", "1.0", ["inner"], "%s-%s-manylinux2014_%s" % (python, python, machine))
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    done = run_module(
        python_wheels, requirements=["engine"], python_versions=versions, machine=other, dest=str(tmp_path / "wheels")
    )
    engines = ["engine-1.0-%s-%s-manylinux2014_%s.whl" % (python, python, other) for python in pythons]
    assert done["wheels"] == sorted([*engines, "inner-2.1-py3-none-any.whl"])


def test_wheels_of_no_machine_that_there_are_any_for(run_module, index, tmp_path):
    write_wheel(index, "engine", "1.0", tag="cp39-cp39-manylinux2014_x86_64")
    arguments = {"requirements": ["engine"], "python_versions": ["3.9"], "dest": str(tmp_path / "wheels")}
    said = run_module(python_wheels, machine="riscv64", **arguments)
    assert said["failed"] and "manylinux2014_riscv64" in said["msg"]
