# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Commands of a build: environment, log and progress."""

from __future__ import annotations

import os

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _build_run
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError


@pytest.fixture
def said():
    """What was shown as progress."""
    return []


@pytest.fixture
def runner(tmp_path, said):
    """A runner with a log."""
    return _build_run.Runner(os.environ, str(tmp_path / "log"), said.append)


def test_steps_of_ninja_and_make_are_progress(runner, said, tmp_path):
    runner.run(["printf", "[3/12] Building x\\n[ 50%%] Building y\\nsomething else\\n"])
    assert said == ["compiling llama.cpp: 25 % (3 of 12)", "compiling llama.cpp: 50 % (50 of 100)"]
    assert "something else\n" in (tmp_path / "log").read_text()


def test_killed_command_is_out_of_memory(runner):
    with pytest.raises(ReleaseError, match="or got no memory") as failed:
        runner.run(["sh", "-c", "kill -9 $$"])
    assert "sh was killed by signal 9" in str(failed.value)


def test_output_of_a_command_that_fails(runner):
    with pytest.raises(ReleaseError, match="failed: not today"):
        runner.output(["sh", "-c", "echo not today >&2; exit 1"])
    with pytest.raises(ReleaseError, match="no command /nowhere/nvcc"):
        runner.output(["/nowhere/nvcc", "--version"])


def test_scripts_of_a_toolchain_in_order(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("echo talks a lot\nexport ONE=1 PATH=/toolset/bin:$PATH\nunset GONE\n")
    second.write_text('export TWO="$ONE\nand a half"\n')
    found = _build_run.enabled({"PATH": "/usr/bin:/bin", "GONE": "x", "KEPT": "y"}, [str(first), str(second)])
    assert found == {"PATH": "/toolset/bin:/usr/bin:/bin", "KEPT": "y", "ONE": "1", "TWO": "1\nand a half"}


def test_without_scripts_nothing_changes():
    assert _build_run.enabled({"A": "1"}, []) == {"A": "1"}
