# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""pynvml travels with the modules that need it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_nvml import unpack
from ansible_collections.llamacpp.cluster.plugins.plugin_utils import nvml


@pytest.fixture(autouse=True)
def forget():
    """What was packed is kept; a test may have changed what is there to pack."""
    nvml.packed_pynvml.cache_clear()
    yield
    nvml.packed_pynvml.cache_clear()


def find(monkeypatch, origin):
    spec = importlib.machinery.ModuleSpec("pynvml", None, origin=origin) if origin else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)


def test_it_arrives_as_it_left(tmp_path):
    source = importlib.util.find_spec("pynvml").origin
    packed = nvml.packed_pynvml()
    arrived = unpack(packed, str(tmp_path))
    assert Path(arrived).read_bytes() == Path(source).read_bytes()
    # It travels to every node in every run.
    assert len(packed) < 100_000


def test_a_control_node_without_pynvml_sends_none(monkeypatch):
    find(monkeypatch, None)
    assert nvml.packed_pynvml() is None


def test_a_package_of_the_same_name_is_not_sent(monkeypatch, tmp_path):
    find(monkeypatch, str(tmp_path / "pynvml" / "__init__.py"))
    assert nvml.packed_pynvml() is None


@pytest.mark.parametrize("seconds", [0, 60])
def test_the_module_gets_it_with_its_other_arguments(monkeypatch, seconds):
    calls = []

    def execute(**call):
        calls.append(call)
        return {"gpus": []}

    action = nvml.NvmlAction.__new__(nvml.NvmlAction)
    action._task = SimpleNamespace(args={"vulkan": False}, async_val=seconds)
    monkeypatch.setattr(nvml.ActionBase, "run", lambda *_arguments: {"changed": False})
    monkeypatch.setattr(action, "_execute_module", execute)
    assert action.run(task_vars={"x": 1}) == {"changed": False, "gpus": []}
    assert calls == [
        {
            "module_args": {"vulkan": False, "pynvml": nvml.packed_pynvml()},
            "task_vars": {"x": 1},
            "wrap_async": bool(seconds),
        }
    ]
