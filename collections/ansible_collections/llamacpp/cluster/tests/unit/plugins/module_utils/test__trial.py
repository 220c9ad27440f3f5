# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What refuses a release before it is tried, and what tools say read as it is meant. Trials: test_llama_release.py."""

from __future__ import annotations

import json
import os

import pytest

from ansible_collections.llamacpp.cluster.plugins.module_utils import _tiny_model, _trial, _trial_server
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError

MANIFEST = {"libc": "2.36", "cpu_flags": ["avx2", "avx512f", "avx512bw"], "inputs": {"platform": {"os": "debian-12"}}}
LDD = """\
\t/opt/release/bin/llama-server: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by it)
\tlinux-vdso.so.1 (0x00007ffc6a9e4000)
\tlibllama.so.0 => /opt/release/lib/libllama.so.0 (0x00007f3d2a000000)
\tlibcuda.so.1 => not found
\tlibgomp.so.1 => not found
\tlibgomp.so.1 => not found
"""


@pytest.mark.parametrize(
    ("needed", "found", "old"),
    [("2.36", "2.31", True), ("2.4", "2.31", False), ("2.36", "2.36", False), ("", "2.31", False), ("2.36", "", False)],
)
def test_libc(needed, found, old):
    assert _trial.too_old(needed, found) is old


def test_an_older_libc_is_refused_with_what_to_do():
    _trial.check_libc(MANIFEST, "2.36")
    with pytest.raises(ReleaseError, match=r"glibc 2\.36 or newer.*has 2\.31.*debian-12.*llamacpp_builders"):
        _trial.check_libc(MANIFEST, "2.31")


def test_a_cpu_that_lacks_an_instruction_is_refused_with_what_to_write():
    _trial.check_cpu(MANIFEST, "flags : avx2 avx512f avx512bw sse")
    _trial.check_cpu({}, "flags : sse")
    with pytest.raises(ReleaseError, match=r"avx512f, avx512bw.*\[-DGGML_AVX512=OFF\].*llamacpp_cpu_variants: true"):
        _trial.check_cpu(MANIFEST, "flags : avx2 sse")
    with pytest.raises(ReleaseError, match=r"sve.*llamacpp_cflags"):
        _trial.check_cpu({"cpu_flags": ["sve"]}, "Features : asimd")


NAMES = ["llama-server", "libggml-cuda.so", "libggml-vulkan.so", "libggml-cpu-haswell.so", "libggml-rpc.so"]


@pytest.mark.parametrize(
    ("devices", "left_out"),
    [
        ([], {"libggml-cuda.so", "libggml-vulkan.so"}),
        (["CUDA0"], {"libggml-vulkan.so"}),
        (["Vulkan1"], {"libggml-cuda.so"}),
    ],
)
def test_a_plugin_has_to_load_where_its_devices_are_planned(devices, left_out):
    assert set(_trial.wanted_files(NAMES, devices)) == set(NAMES) - left_out


def test_what_ldd_misses():
    assert _trial.unresolved(LDD) == ["libcuda.so.1", "libgomp.so.1", "GLIBC_2.38"]
    assert _trial.unresolved("\tnot a dynamic executable\n") == []


# From llama-server --list-devices of b11434; the lines above are those of a build with CUDA.
LISTED = """\
ggml_cuda_init: found 2 CUDA devices (Total VRAM: 64998 MiB):
  Device 0: Tesla V100S-PCIE-32GB, compute capability 7.0, VMM: yes, VRAM: 32499 MiB
Available devices:
  CUDA0: Tesla V100S-PCIE-32GB (32499 MiB, 32195 MiB free)
  CUDA1: Tesla V100S-PCIE-32GB (32499 MiB, 32195 MiB free)
"""


def test_listed_devices():
    assert _trial.listed_devices(LISTED) == ["CUDA0", "CUDA1"]
    assert _trial.listed_devices("Available devices:\n  (none)\n") == []


def test_several_devices_share_the_model_evenly():
    argv = " ".join(_trial_server.TrialServer("llama-server", "m", ["CUDA0", "CUDA1"], {}).argv)
    assert "--device CUDA0,CUDA1" in argv
    assert "--tensor-split 1,1" in argv
    assert "--device none" in " ".join(_trial_server.TrialServer("llama-server", "m", [], {}).argv)


def test_server_that_dies_says_why(tmp_path):
    script = tmp_path / "llama-server"
    script.write_text("#!/bin/sh\necho 'the last words' >&2\nexit 3\n")
    script.chmod(0o755)
    words = "exit code 3.*\n.*the last words"
    with _trial_server.TrialServer(str(script), "m", [], {}) as server, pytest.raises(ReleaseError, match=words):
        server.complete("a", 1)


def test_a_process_that_met_an_unknown_instruction():
    assert "an instruction that the CPU of this node does not have" in _trial_server.ended(-4)
    assert _trial_server.ended(-9) == "signal 9"
    assert _trial_server.ended(1) == "exit code 1"


def test_server_that_hangs_is_given_up_and_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(_trial_server, "START_SECONDS", 0.5)
    monkeypatch.setattr(_trial_server, "STOP_SECONDS", 0.5)
    script = tmp_path / "llama-server"
    script.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do :; done\n")
    script.chmod(0o755)
    with _trial_server.TrialServer(str(script), "m", [], {}) as server, pytest.raises(ReleaseError, match="not ready"):
        server.complete("a", 1)
    assert server.process.returncode == -9


def test_command_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(_trial, "COMMAND_SECONDS", 0.5)
    (tmp_path / "bin").mkdir()
    for name in ("llama-server", "rpc-server"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / "bin" / name).chmod(0o755)
    trial = _trial.Trial(str(tmp_path), {}, [], {}, lambda _line: None)
    with pytest.raises(ReleaseError, match="rpc-server --help did not end"):
        trial.run("", "")


REAL = pytest.mark.skipif("LLAMACPP_RELEASE" not in os.environ, reason="LLAMACPP_RELEASE names no release to try")


@pytest.fixture
def real_trial():
    """The trial of a real release (its directory is in LLAMACPP_RELEASE) on the devices of LLAMACPP_DEVICES."""
    root = os.environ["LLAMACPP_RELEASE"]
    with open(os.path.join(root, "manifest.json"), encoding="utf-8") as stream:
        manifest = json.load(stream)
    return _trial.Trial(root, manifest, os.environ.get("LLAMACPP_DEVICES", "").split(), {}, lambda _line: None)


@REAL
def test_a_real_server_recites(real_trial):
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        assert "build" in real_trial.run("", stream.read())
    assert real_trial.notes == []


@REAL
def test_a_real_server_that_computes_something_else_is_refused(real_trial, monkeypatch):
    monkeypatch.setattr(_tiny_model, "LAYER_SCALE", 0.4)
    with pytest.raises(ReleaseError, match="computes wrong numbers"):
        real_trial.recite()


@REAL
def test_a_real_server_without_the_planned_device_is_refused(real_trial):
    real_trial.devices = ["CUDA99"]
    with pytest.raises(ReleaseError, match="does not show CUDA99"):
        real_trial.see_devices()
