# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Try a release on the node that shall run it, before it may become current.

From what costs nothing to what costs seconds: the C library is new enough, the CPU has the instructions,
shared libraries resolve, ``--version``, ``--list-devices`` shows the planned devices, and a server recites
:mod:`_tiny_model` from those devices. Whatever fails raises :class:`ReleaseError` with what to write instead.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible_collections.llamacpp.cluster.plugins.module_utils._cpu_flags import (
    cmake_arguments_without,
    cpuinfo_flags,
    missing_flags,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import ReleaseError, rpc_server_name
from ansible_collections.llamacpp.cluster.plugins.module_utils._tiny_model import answer, question, tiny_model
from ansible_collections.llamacpp.cluster.plugins.module_utils._trial_server import TrialServer, ended

# A driver that hangs must not hold up a run forever; a healthy one answers within seconds.
COMMAND_SECONDS = 120.0
TOKENS = 12
# Name of a plugin (libggml-NAME.so) -> how llama.cpp begins the names of its devices (b11434, GGML_*_NAME of
# ggml/include/ggml-cuda.h, ggml-vulkan.h and so on). It is needed where such a device is planned, and elsewhere
# it may lack the driver's library; llama.cpp then goes on without it.
PLUGIN_DEVICES = {
    "cuda": "CUDA",
    "hip": "ROCm",
    "musa": "MUSA",
    "vulkan": "Vulkan",
    "sycl": "SYCL",
    "opencl": "GPUOpenCL",
    "cann": "CANN",
}
_PLUGIN = re.compile(r"^libggml-([a-z]+)[^/]*\.so$")
_DEVICE = re.compile(r"^ {2}([A-Za-z]\S*): ", re.MULTILINE)
_ABSENT = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)
_VERSION_ABSENT = re.compile(r"version `([^']+)' not found")
_FULL = re.compile(r"out of memory|cudaMalloc failed|ErrorOutOfDeviceMemory|failed to allocate", re.IGNORECASE)


def planned(devices: Sequence[str]) -> list[str]:
    """Return the devices that llama.cpp lists; host memory (``CPU``) is none of them."""
    return [device for device in devices if device != "CPU"]


def too_old(needed: str, found: str) -> bool:
    """Whether a C library ``found`` (``2.31``) is older than the one ``needed``; unknown ones are not."""
    return bool(needed and found) and _numbers(found) < _numbers(needed)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def check_libc(manifest: Mapping[str, Any], found: str) -> None:
    """Refuse a release that needs a newer C library. ``found``: ``2.31``, or empty when it is not glibc."""
    needed = str(manifest.get("libc") or "")
    if too_old(needed, found):
        raise ReleaseError(
            "it needs glibc %s or newer, and this node has %s: a release runs on the system that built it (%s) "
            "and on newer ones; put the oldest node into llamacpp_builders" % (needed, found, _built_on(manifest))
        )


def check_cpu(manifest: Mapping[str, Any], cpuinfo: str) -> None:
    """Refuse a release with instructions that the CPU lacks. ``cpuinfo``: text of ``/proc/cpuinfo``."""
    missing = missing_flags(manifest.get("cpu_flags") or [], cpuinfo_flags(cpuinfo))
    if not missing:
        return
    arguments = cmake_arguments_without(missing)
    write = "llamacpp_cmake_args: [%s]" % ", ".join(arguments) if arguments else "llamacpp_cflags without them"
    raise ReleaseError(
        "it uses %s, which the CPU of this node does not have: write %s for the nodes that share this release, "
        "or llamacpp_cpu_variants: true, which builds for every CPU at once" % (", ".join(missing), write)
    )


def wanted_files(names: Sequence[str], devices: Sequence[str]) -> list[str]:
    """Choose among the files of ``bin`` those whose libraries have to be there, for the planned devices."""
    wanted = []
    for name in sorted(names):
        plugin = _PLUGIN.match(name)
        prefix = PLUGIN_DEVICES.get(plugin.group(1)) if plugin else None
        if prefix is None or any(device.startswith(prefix) for device in devices):
            wanted.append(name)
    return wanted


def unresolved(ldd: str) -> list[str]:
    """Return the libraries, and versions of symbols, that ldd's output says are missing."""
    return list(dict.fromkeys(_ABSENT.findall(ldd) + _VERSION_ABSENT.findall(ldd)))


def listed_devices(output: str) -> list[str]:
    """Return the names of the devices in the output of ``llama-server --list-devices``."""
    return _DEVICE.findall(output.partition("Available devices:")[2])


def _built_on(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("inputs", {}).get("platform", {}).get("os", "an unknown system"))


class Trial:
    """One release on this node. ``say`` is told what comes next."""

    def __init__(
        self,
        root: str,
        manifest: Mapping[str, Any],
        devices: Sequence[str],
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self.binaries = os.path.join(root, "bin")
        self.manifest = manifest
        self.devices = planned(devices)
        self.say = say
        # As systemd would start it: nothing of the shell that runs this may help or hinder.
        self.environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        if any(device.startswith("CUDA") for device in self.devices):
            self.environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        self.environment.update(environment)
        self.notes: list[str] = []

    def run(self, libc: str, cpuinfo: str) -> str:
        """Try everything; return the server's version line. ``notes`` then says what could not be tried, and why.

        ``libc``: version of this node's glibc, empty for another one. ``cpuinfo``: text of ``/proc/cpuinfo``.
        """
        check_libc(self.manifest, libc)
        check_cpu(self.manifest, cpuinfo)
        self.say("checking shared libraries")
        self.libraries()
        version = self.version()
        self.see_devices()
        self.recite()
        return version

    def libraries(self) -> None:
        """See that shared libraries resolve."""
        for name in wanted_files(os.listdir(self.binaries), self.devices):
            path = os.path.join(self.binaries, name)
            if not _is_elf(path):
                continue
            _rc, output = self._command(["ldd", path])
            missing = unresolved(output)
            if missing:
                raise ReleaseError(
                    "bin/%s needs %s, which this node does not have: install it, or build for this node's system "
                    "(this release was built on %s)" % (name, ", ".join(missing), _built_on(self.manifest))
                )

    def version(self) -> str:
        """Start server and worker for a moment; return the server's first line."""
        worker = rpc_server_name(os.listdir(self.binaries))
        lines: list[str] = []
        for name, argument in ((worker, "--help"), ("llama-server", "--version")):
            rc, output = self._command([os.path.join(self.binaries, name), argument])
            if rc != 0:
                raise ReleaseError(
                    "%s from a release built on %s does not run here (%s): %s; a release runs on the system that built "
                    "it and on newer ones, so put the oldest node into llamacpp_builders"
                    % (name, _built_on(self.manifest), ended(rc), output.strip()[-500:])
                )
            lines = [line for line in output.splitlines() if line.startswith("version")] or output.splitlines()
        return lines[0] if lines else ""

    def see_devices(self) -> None:
        """See that the server finds the planned devices."""
        if not self.devices:
            return
        self.say("looking for %s" % ", ".join(self.devices))
        rc, output = self._command([os.path.join(self.binaries, "llama-server"), "--list-devices"])
        found = listed_devices(output)
        missing = [device for device in self.devices if device not in found]
        if rc != 0 or missing:
            raise ReleaseError(
                "llama-server --list-devices does not show %s, only %s (%s): see that the driver works and that the "
                "release was built for these devices (backend %s, architectures %s). It said:\n%s"
                % (
                    ", ".join(missing or self.devices),
                    ", ".join(found) or "none",
                    ended(rc),
                    self.manifest.get("inputs", {}).get("backend", "unknown"),
                    ", ".join(self.manifest.get("inputs", {}).get("architectures") or []) or "none",
                    output.strip()[-1000:],
                )
            )

    def recite(self) -> None:
        """Let the tiny model answer from the planned devices.

        Devices that running instances have filled cannot be tried; the CPU then answers, and a note says so.
        """
        try:
            self._recite(self.devices)
        except ReleaseError as error:
            if not self.devices or not _FULL.search(str(error)):
                raise
            self.notes.append("%s: no memory left to try them; tried on the CPU alone" % ", ".join(self.devices))
            self._recite([])

    def _recite(self, devices: Sequence[str]) -> None:
        where = ", ".join(devices) or "the CPU"
        self.say("a completion on %s" % where)
        with tempfile.TemporaryDirectory(prefix="llamacpp-trial-") as work:
            model = os.path.join(work, "tiny.gguf")
            with open(model, "wb") as stream:
                stream.write(tiny_model(max(2, len(devices))))
            with TrialServer(os.path.join(self.binaries, "llama-server"), model, devices, self.environment) as server:
                said = server.complete(question(), TOKENS)
                empty = [device for device in devices if server.buffers().get(device, 0.0) <= 0.0]
        if empty:
            raise ReleaseError("a server on %s put nothing of a model on %s" % (where, ", ".join(empty)))
        if said != answer(TOKENS):
            raise ReleaseError(
                "it computes wrong numbers on %s: a model that recites the alphabet says %r instead of %r; check the "
                "architectures and flags of the build, and the device" % (where, said, answer(TOKENS))
            )

    def _command(self, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command; return exit code and all that it said. Raises :class:`ReleaseError` when it does not end."""
        try:
            done = subprocess.run(
                argv,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ReleaseError("%s did not end within %d s" % (" ".join(argv), COMMAND_SECONDS)) from error
        except OSError as error:
            raise ReleaseError("%s cannot be run: %s" % (argv[0], error.strerror)) from error
        return done.returncode, done.stdout.decode(errors="replace")


def _is_elf(path: str) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4) == b"\x7fELF"
