# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking NVML through pynvml, keeping the answers, giving them again."""

from __future__ import annotations

import base64
import ctypes
import json
import sys
import zlib

import pytest
from nvml_answers import FakePynvml, kept

from ansible_collections.llamacpp.cluster.plugins.module_utils import _gpu, _gpu_nvml
from ansible_collections.llamacpp.cluster.plugins.module_utils._gpu_nvml import Handle, NvmlError


def ask_everything(nvml):
    """Ask a question of every kind; return the answers that are not handles."""
    gpu = nvml.ask("nvmlDeviceGetHandleByIndex", 0)
    assert isinstance(gpu, Handle)
    with pytest.raises(NvmlError, match="nvmlDeviceGetMigMode") as caught:
        nvml.ask("nvmlDeviceGetMigMode", gpu)
    assert caught.value.code == _gpu_nvml.NOT_SUPPORTED
    with pytest.raises(NvmlError) as caught:
        nvml.ask("nvmlDeviceGetWhatIsNewer", gpu)
    assert caught.value.code == _gpu_nvml.FUNCTION_NOT_FOUND
    return [
        nvml.ask(function, gpu)
        for function in (
            "nvmlDeviceGetPciInfo",
            "nvmlDeviceGetName",
            "nvmlDeviceGetMemoryInfo_v2",
            "nvmlDeviceGetGpuFabricInfoV",
            "nvmlDeviceGetComputeRunningProcesses_v3",
            "nvmlDeviceGetCudaComputeCapability",
        )
    ]


EXPECTED = [
    {"busId": "00000000:3B:00.0", "bus": 100, "free": None},  # -1 of 64 bits: not available
    "Fake 100",
    {"busId": "", "bus": 0x02000028, "free": 5},
    {"version": 0x02000024, "clusterUuid": [0, 0], "state": 0x24},
    [{"pid": 7, "usedGpuMemory": None}],
    [9, 0],
]


def test_answers_become_plain_data():
    library = FakePynvml()
    with _gpu_nvml.Live(library) as nvml:
        assert library.open == 1
        assert ask_everything(nvml) == EXPECTED
    assert library.open == 0


def test_what_was_recorded_is_replayed_after_json():
    with _gpu_nvml.Live(FakePynvml()) as nvml:
        recorder = _gpu_nvml.Recorder(nvml)
        assert ask_everything(recorder) == EXPECTED
    assert recorder.answers["nvmlDeviceGetHandleByIndex(0)"] == {"handle": "gpu0"}
    assert recorder.answers["nvmlDeviceGetMigMode(gpu0)"] == {"error": 3}
    assert ask_everything(_gpu_nvml.Replay(json.loads(json.dumps(recorder.answers)))) == EXPECTED


def test_an_old_pynvml_is_like_an_old_driver(monkeypatch):
    monkeypatch.delattr(FakePynvml, "nvmlMemory_v2")
    with _gpu_nvml.Live(FakePynvml()) as nvml, pytest.raises(NvmlError) as caught:
        nvml.ask("nvmlDeviceGetMemoryInfo_v2", Handle("gpu0", ctypes.c_void_p(1)))
    assert caught.value.code == _gpu_nvml.FUNCTION_NOT_FOUND


def test_a_driver_that_does_not_start():
    with pytest.raises(NvmlError, match="nvmlInit: NVML error 18") as caught, _gpu_nvml.Live(FakePynvml(18)):
        pass
    assert caught.value.code == _gpu_nvml.VERSION_MISMATCH


def test_the_real_pynvml_says_that_there_is_no_library():
    pynvml = pytest.importorskip("pynvml")
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        with pytest.raises(NvmlError) as caught, _gpu_nvml.Live(pynvml):
            pass
        assert caught.value.code == _gpu_nvml.LIBRARY_NOT_FOUND
    else:
        pytest.skip("this machine has an NVIDIA driver")


def test_the_real_pynvml_has_every_function_that_is_asked():
    pynvml = pytest.importorskip("pynvml")
    asked = set()
    for name, node in (("h100_nvswitch_x8", "dgx"), ("h100_mig", "mig"), ("mixed_3090_4090", "workstation")):
        recorder = _gpu_nvml.Recorder(_gpu_nvml.Replay(kept(name, node)))
        _gpu.describe(recorder, lambda _pci_id: None)
        asked |= {key.partition("(")[0] for key in recorder.answers}
    assert len(asked) > 20
    assert [name for name in sorted(asked) if not hasattr(pynvml, _gpu_nvml._NEEDS.get(name, name))] == []


def test_maybe_has_nothing_to_say_or_raises():
    nvml = _gpu_nvml.Replay({"lost()": {"error": _gpu_nvml.GPU_IS_LOST}, "no()": {"error": 3}, "yes()": 0})
    assert _gpu_nvml.maybe(nvml, "yes") == 0
    assert _gpu_nvml.maybe(nvml, "no") is None
    with pytest.raises(NvmlError):
        _gpu_nvml.maybe(nvml, "lost")


def test_nothing_is_imported_without_the_drivers_library(monkeypatch, tmp_path):
    (tmp_path / "pynvml.py").write_text("raise AssertionError('imported')")

    def no_library(_name):
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert _gpu_nvml.load_pynvml(str(tmp_path / "pynvml.py")) is None


def test_a_node_without_pynvml_takes_the_one_that_was_sent(monkeypatch, tmp_path):
    # The real one looks itself up in sys.modules while it is imported.
    source = b"import sys\nVALUE = 42\nassert sys.modules[__name__].VALUE == 42\n"
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: None)
    monkeypatch.setattr(_gpu_nvml.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    assert _gpu_nvml.load_pynvml(None) is None
    path = _gpu_nvml.unpack(base64.b64encode(zlib.compress(source)).decode(), str(tmp_path))
    try:
        assert _gpu_nvml.load_pynvml(path).VALUE == 42
    finally:
        sys.modules.pop("pynvml", None)


def test_nothing_sent_is_nothing_unpacked(tmp_path):
    assert _gpu_nvml.unpack(None, str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_anonymous_answers_keep_who_is_who():
    one, other = "GPU-0a1b2c3d-1111-2222-3333-44444444aaaa", "GPU-0a1b2c3d-1111-2222-3333-44444444bbbb"
    kept = _gpu_nvml.anonymous({"a": one, "b": [other, {"c": "is %s" % one, "clusterUuid": [1, 2]}], "n": 1})
    first, second = "GPU-00000000-0000-0000-0000-000000000000", "GPU-00000000-0000-0000-0000-000000000001"
    assert kept == {"a": first, "b": [second, {"c": "is %s" % first}], "n": 1}
