# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ask NVML, the NVIDIA driver's own library, through ``pynvml`` (package nvidia-ml-py), so that answers can be kept.

Every question goes through :meth:`Nvml.ask` by the name of NVML's function. An answer is plain data (numbers, texts,
lists, dictionaries with the fields of NVML's structures) or a :class:`Handle`. That makes recordings possible:
:class:`Recorder` keeps the answers of a real machine as JSON, :class:`Replay` gives them again where there is no GPU.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

# Return codes (nvml.h, nvmlReturn_t) that decide something here.
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
VERSION_MISMATCH = 18
ARGUMENT_VERSION_MISMATCH = 25
DEPRECATED = 26
UNKNOWN = 999
# "This GPU or this driver has no such thing": no fault, there is just nothing to say.
NOTHING_TO_SAY = frozenset(
    (
        INVALID_ARGUMENT,
        NOT_SUPPORTED,
        NO_PERMISSION,
        NOT_FOUND,
        FUNCTION_NOT_FOUND,
        ARGUMENT_VERSION_MISMATCH,
        DEPRECATED,
    )
)
# unsigned long long -1: "not available" (NVML_VALUE_NOT_AVAILABLE), as for a process's memory under some drivers.
_NOT_AVAILABLE = (1 << 64) - 1


# Functions that pynvml wraps under another name, or with a structure to be made first -> what it has of them.
_NEEDS = {"nvmlDeviceGetMemoryInfo_v2": "nvmlMemory_v2", "nvmlDeviceGetGpuFabricInfoV": "nvmlGpuFabricInfo_v2"}


class NvmlError(Exception):
    """NVML's word that something did not work: its function and return code (nvmlReturn_t)."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__("%s: NVML error %d" % (function, code))
        self.function = function
        self.code = code


class Handle(NamedTuple):
    """A GPU (``gpu0``) or a MIG instance of it (``gpu0.mig1``). ``raw``: pynvml's own; None in a replay."""

    token: str
    raw: Any = None

    def __str__(self) -> str:
        return self.token


class Nvml(Protocol):
    """Who answers."""

    def ask(self, function: str, *arguments: Handle | int) -> Any:
        """Return what NVML's ``function`` says; raises :class:`NvmlError`."""


def _plain(value: Any) -> Any:
    """Return what pynvml says as plain data."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (ctypes.Structure, ctypes.Union)):
        return {field[0]: _plain(getattr(value, field[0])) for field in value._fields_}
    if isinstance(value, (list, tuple, ctypes.Array)):
        return [_plain(item) for item in value]
    if isinstance(value, int):
        return None if value == _NOT_AVAILABLE else int(value)
    if value is None or isinstance(value, (str, float)):
        return value
    return {name: _plain(item) for name, item in sorted(vars(value).items())}  # pynvml's "friendly objects"


class Live:
    """The driver of this machine. ``with Live(pynvml) as nvml`` starts NVML and ends it; raises :class:`NvmlError`."""

    def __init__(self, pynvml: Any) -> None:
        self._pynvml = pynvml

    def __enter__(self) -> Live:
        try:
            self._pynvml.nvmlInit()
        except self._pynvml.NVMLError as error:
            raise NvmlError("nvmlInit", int(error.value)) from error
        return self

    def __exit__(self, *_exception: object) -> None:
        self._pynvml.nvmlShutdown()

    def ask(self, function: str, *arguments: Handle | int) -> Any:
        """Return what NVML says; raises :class:`NvmlError`."""
        values = [item.raw if isinstance(item, Handle) else item for item in arguments]
        try:
            answer = self._call(function, values)
        except self._pynvml.NVMLError as error:
            raise NvmlError(function, int(error.value)) from error
        token = handle_token(function, arguments)
        return Handle(token, answer) if token else _plain(answer)

    def _call(self, function: str, values: list[Any]) -> Any:
        library = self._pynvml
        if not hasattr(library, _NEEDS.get(function, function)):
            raise NvmlError(function, FUNCTION_NOT_FOUND)  # An old pynvml.
        if function == "nvmlDeviceGetMemoryInfo_v2":
            return library.nvmlDeviceGetMemoryInfo(*values, version=library.nvmlMemory_v2)
        if function == "nvmlDeviceGetGpuFabricInfoV":
            answer = library.c_nvmlGpuFabricInfo_v2_t()
            answer.version = library.nvmlGpuFabricInfo_v2
            library.nvmlDeviceGetGpuFabricInfoV(*values, ctypes.byref(answer))
            return answer
        return getattr(library, function)(*values)


class Recorder:
    """Asks somebody else and keeps the answers: :attr:`answers`, ready for JSON and for :class:`Replay`."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self.answers: dict[str, Any] = {}

    def ask(self, function: str, *arguments: Handle | int) -> Any:
        """Return and keep what NVML says; raises :class:`NvmlError`."""
        key = question(function, arguments)
        try:
            answer = self._nvml.ask(function, *arguments)
        except NvmlError as error:
            self.answers[key] = {"error": error.code}
            raise
        if not isinstance(answer, Handle):
            self.answers[key] = answer
        else:
            self.answers[key] = {"handle": answer.token}
        return answer


class Replay:
    """Gives kept answers. A question that was not asked then is one that the driver does not know."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self._answers = answers

    def ask(self, function: str, *arguments: Handle | int) -> Any:
        """Return the kept answer; raises :class:`NvmlError`, kept or for want of an answer."""
        answer = self._answers.get(question(function, arguments), {"error": FUNCTION_NOT_FOUND})
        if isinstance(answer, Mapping) and "error" in answer:
            raise NvmlError(function, answer["error"])
        if isinstance(answer, Mapping) and "handle" in answer:
            return Handle(answer["handle"])
        return answer


def question(function: str, arguments: tuple[Handle | int, ...]) -> str:
    """Return the key of a kept answer, e.g. ``nvmlDeviceGetNvLinkState(gpu0, 3)``."""
    return "%s(%s)" % (function, ", ".join(str(item) for item in arguments))


def handle_token(function: str, arguments: tuple[Handle | int, ...]) -> str | None:
    """Return the token of the handle that a function makes; None when it makes none."""
    if function == "nvmlDeviceGetHandleByIndex":
        return "gpu%s" % str(arguments[0])
    if function == "nvmlDeviceGetMigDeviceHandleByIndex":
        gpu, number = arguments
        return "%s.mig%s" % (gpu, number)
    return None


def maybe(nvml: Nvml, function: str, *arguments: Handle | int) -> Any:
    """Return what NVML says; None when GPU or driver have nothing to say. Other :class:`NvmlError` go on."""
    try:
        return nvml.ask(function, *arguments)
    except NvmlError as error:
        if error.code in NOTHING_TO_SAY:
            return None
        raise


def unpack(packed: str | None, directory: str) -> str | None:
    """Write the pynvml that the control node sent (base64 of zlib) below ``directory``; return its path."""
    if not packed:
        return None
    path = os.path.join(directory, "pynvml.py")
    with open(path, "wb") as stream:
        stream.write(zlib.decompress(base64.b64decode(packed)))
    return path


def load_pynvml(path: str | None = None) -> Any | None:
    """Return the module ``pynvml``: this machine's own, else the file ``path``; None when there is neither.

    Nothing is imported where there is no NVML library, as the import is the dearest part.
    """
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if importlib.util.find_spec("pynvml") is not None:
        return importlib.import_module("pynvml")
    if path is None or not os.path.isfile(path):
        return None
    loader = importlib.machinery.SourceFileLoader("pynvml", path)
    module = types.ModuleType("pynvml")
    sys.modules["pynvml"] = module  # pynvml looks itself up while it is imported.
    loader.exec_module(module)
    return module


_UUID = re.compile(r"(GPU|MIG)-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def anonymous(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return answers with UUIDs counted through (in order of appearance) and without the identity of a fabric."""
    seen: dict[str, str] = {}

    def fake(match: re.Match[str]) -> str:
        known = seen.setdefault(match.group(), "%s-00000000-0000-0000-0000-%012d" % (match.group(1), len(seen)))
        return known

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return _UUID.sub(fake, value)
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items() if key != "clusterUuid"}
        return value

    return {key: clean(value) for key, value in answers.items()}
