# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A directory of safetensors becomes a model in the store, once for the same inputs.

It happens in ``incoming/<sha256 of the inputs>.part.convert`` of the store, so that the result gets its place by a
rename. Killed anywhere, a second run throws away what is half and goes on behind what is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ansible_collections.llamacpp.cluster.plugins.module_utils import _convert_run as runs
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_lock import MARK, stop_leftovers
from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_source import ConvertError, Source, survey
from ansible_collections.llamacpp.cluster.plugins.module_utils._convert_tools import tools_sha256, unpack_tools
from ansible_collections.llamacpp.cluster.plugins.module_utils._ggml_types import FILE_TYPES
from ansible_collections.llamacpp.cluster.plugins.module_utils._manifest import (
    File,
    Manifest,
    check_file,
    check_name,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._store import Store

# llama-quantize calls them so beside llama.cpp's own names of file types (QUANT_OPTIONS, tools/quantize/quantize.cpp).
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
QUANTS = tuple(sorted({*FILE_TYPES.values(), *ALIASES} - {"NVFP4"}))
# Of these no weights are quantised anew (llama_model_quantize_params.allow_requantize is off).
QUANTISED_OUTTYPES = ("q8_0",)
_BITS = re.compile(r"[A-Z]+(\d+)")
# K-quants and the like keep some tensors at more bits: so many more in the mean, at most.
MORE_BITS = 2.0


@dataclass(frozen=True)
class Wanted:
    """What shall be in the store. ``source``: a directory, or the name of a model in the store.

    ``file``: name of the result, ``name`` with hyphens unless given. ``release``: which llama.cpp the converter is of.
    ``script`` or ``tools`` (what pack_tools packed): the converter. ``threads``: 0 for one a CPU.
    """

    name: str
    source: str
    python: str
    outtype: str = "auto"
    quant: str | None = None
    file: str | None = None
    mmproj: bool = False
    imatrix: str | None = None
    release: str = ""
    script: str | None = None
    tools: str | None = None
    quantize: str | None = None
    trust_code: bool = False
    threads: int = 0

    @property
    def result(self) -> str:
        """Name of the result in the store."""
        return self.file or self.name.replace("/", "-") + ".gguf"

    def check(self) -> None:
        """Raise :class:`ConvertError` for what contradicts itself."""
        if self.quant and self.quant not in QUANTS:
            raise ConvertError("quant = %s: write one of %s" % (self.quant, ", ".join(QUANTS)))
        if self.quant and not self.quantize:
            raise ConvertError("quant = %s: give quantize, the path of the release's llama-quantize" % self.quant)
        if self.quant and self.outtype in QUANTISED_OUTTYPES:
            raise ConvertError(
                "outtype = %s with quant = %s: it would be quantised twice; write f16, bf16, f32 or auto"
                % (self.outtype, self.quant)
            )
        check_name(self.name)
        if not check_file(self.result).endswith(".gguf"):
            raise ConvertError("file = %s: the result is a GGUF file, its name ends so" % self.result)
        if self.source == self.name:
            raise ConvertError("name = %s: the result needs another name than what it is made of" % self.name)


class Done(NamedTuple):
    """What came of it. ``manifest``: None in check mode, where it would be made. ``evicted``: who had to go for it."""

    manifest: Manifest | None
    changed: bool
    evicted: list[str]
    seconds: int


class Conversion:
    """Brings one model into the store. Methods raise ConvertError, StoreError, ReleaseError and OSError."""

    def __init__(self, store: Store, wanted: Wanted, progress: Progress) -> None:
        self.store = store
        self.wanted = wanted
        self.progress = progress

    def run(self, quota: int, keep: Iterable[str], holder: str, patience: float, check_mode: bool) -> Done:
        """Bring the model.

        ``quota``, ``keep``: as of :meth:`Store.room`. ``holder``, ``patience`` (seconds): as of :meth:`Store.lock`.
        """
        self.wanted.check()
        directory, checksums = self._source()
        # In the store, other models may lie in a directory of the source's: owner/model has owner/model/Q8_0 in it.
        source = survey(directory, self.wanted.trust_code, checksums or None)
        inputs = self._inputs(source, checksums, write=not check_mode)
        made = self._made(source, inputs)
        found = self._found(inputs)
        if found:
            return self._kept(found, made, check_mode)
        keep = {*keep, self.wanted.name} | ({self.wanted.source} if checksums else set())
        if check_mode:
            return Done(None, True, self._room(source, quota, keep, check=True), 0)
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        with self.store.transfer_lock(digest, holder, patience, self.progress.say):
            # Whoever had the lock may have made it.
            found = self._found(inputs)
            if found:
                return self._kept(found, made, check_mode)
            started = time.monotonic()
            evicted = self._room(source, quota, keep)
            work = self.store.part(digest) + ".convert"
            stop_leftovers(work)
            try:
                manifest = Manifest(self.wanted.name, self._make(source, work), made)
                self.store.name(manifest)
            finally:
                # Not after a kill, so that a second run finds what was whole.
                shutil.rmtree(work, ignore_errors=True)
        return Done(manifest, True, evicted, round(time.monotonic() - started))

    def _source(self) -> tuple[str, Mapping[str, str]]:
        """Return the directory with the source, and the checksums that are known of its files."""
        if os.path.isabs(self.wanted.source):
            return self.wanted.source, {}
        manifest = self.store.manifest(self.wanted.source)
        if manifest is None or not self.store.present(manifest):
            raise ConvertError(
                "source = %s: no model of that name is in the store, or not all of it; write an absolute path for a "
                "directory" % self.wanted.source
            )
        directory = os.path.dirname(self.store.path_of(manifest.name, manifest.files[0].name))
        return directory, {file.name: file.sha256 for file in manifest.files}

    def _inputs(self, source: Source, checksums: Mapping[str, str], write: bool) -> dict[str, Any]:
        """Return all that decides the bytes of the result."""
        files = {}
        for number, (name, path) in enumerate(source.files.items(), 1):
            self.progress.say("sha256 of the source: file %d of %d, %s" % (number, len(source.files), name))
            files[name] = checksums.get(name) or self.store.hashes.sha256(path, write)
        return {
            "files": files,
            "outtype": self.wanted.outtype,
            "quant": ALIASES.get(self.wanted.quant or "", self.wanted.quant),
            "mmproj": self.wanted.mmproj,
            "imatrix": self.store.hashes.sha256(self.wanted.imatrix, write) if self.wanted.imatrix else None,
            "release": self.wanted.release,
            "converter": self._converter_sha256(),
            "packages": runs.packages(self.wanted.python),
        }

    def _converter_sha256(self) -> str:
        if self.wanted.tools:
            # Packed the same way every time, so the archive stands for what is in it.
            with open(self.wanted.tools, "rb") as stream:
                return hashlib.sha256(stream.read()).hexdigest()
        return tools_sha256(self.wanted.script or "")

    def _found(self, inputs: Mapping[str, Any]) -> Manifest | None:
        """Return the model when it is there and was made of the same."""
        manifest = self.store.manifest(self.wanted.name)
        if manifest is None or not self.store.present(manifest) or manifest.first.name != self.wanted.result:
            return None
        made = manifest.source.get("convert")
        return manifest if isinstance(made, dict) and made.get("inputs") == inputs else None

    def _kept(self, found: Manifest, made: Mapping[str, Any], check_mode: bool) -> Done:
        """Keep the model that is there. The same bytes may be in another place by now, or of another commit."""
        changed = found.source != made
        manifest = replace(found, source=made) if changed else found
        if changed and not check_mode:
            self.store.name(manifest)
        return Done(manifest, changed, [], 0)

    def _room(self, source: Source, quota: int, keep: set[str], check: bool = False) -> list[str]:
        """Make room: below the quota for what stays, and on the disk for what comes before it as well."""
        converted = source.result_bytes(self.wanted.outtype)
        result = min(converted, quantised_bytes(source, self.wanted.quant)) if self.wanted.quant else converted
        evicted = self.store.room(result, quota, keep, check)
        between = converted if self.wanted.quant else 0
        return evicted + self.store.room(result + between, 0, keep, check)

    def _make(self, source: Source, work: str) -> tuple[File, ...]:
        """Convert, quantise, and take the files into the store."""
        os.umask(0o022)
        script, given = self._prepare(source, work)
        threads = self.wanted.threads or len(os.sched_getaffinity(0))
        env = runs.environment(os.path.join(work, "scratch"), threads, {MARK: work})
        origin = "the conversion of %s" % self.wanted.source
        files = [
            self._take(self._model(source, script, given, work, env, threads), "model", self.wanted.result, origin)
        ]
        if self.wanted.mmproj:
            path = os.path.join(work, "mmproj.gguf")
            self._convert(source, script, given, path, env, "--mmproj")
            files.append(self._take(path, "mmproj", "mmproj-" + self.wanted.result, origin))
        return tuple(files)

    def _made(self, source: Source, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the manifest records; of a source that is in the store, also where that came from."""
        manifest = None if os.path.isabs(self.wanted.source) else self.store.manifest(self.wanted.source)
        made = {
            "from": self.wanted.source,
            "outtype": self.wanted.outtype,
            "quant": self.wanted.quant,
            "release": self.wanted.release,
            "withheld": list(source.withheld),
            "architectures": list(source.architectures),
            "inputs": inputs,
        }
        return {"convert": made, **({"of": dict(manifest.source)} if manifest else {})}

    def _prepare(self, source: Source, work: str) -> tuple[str, str]:
        """Make the directory for the work; return the converter's path and the directory that it gets to see."""
        # The converter takes the model's name from the directory's when nothing else says it.
        # In the store, that of a repository may end with a revision.
        manifest = None if os.path.isabs(self.wanted.source) else self.store.manifest(self.wanted.source)
        origin = str(manifest.source.get("repo") or manifest.name) if manifest else self.wanted.source
        label = os.path.basename(origin.rstrip("/")) or "model"
        for name in ("scratch", "tools", "source"):
            shutil.rmtree(os.path.join(work, name), ignore_errors=True)
            os.makedirs(os.path.join(work, name))
        given = os.path.join(work, "source", label)
        for name, path in source.files.items():
            link = os.path.join(given, name)
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(os.path.realpath(path), link)
        if self.wanted.tools:
            return unpack_tools(self.wanted.tools, os.path.join(work, "tools")), given
        return str(self.wanted.script), given

    def _model(self, source: Source, script: str, given: str, work: str, env: Mapping[str, str], threads: int) -> str:
        """Return the path of the model's file, converted and quantised."""
        converted = os.path.join(work, "converted.gguf")
        if not os.path.exists(converted):
            self._convert(source, script, given, converted, env)
        if not self.wanted.quant:
            return converted
        quantised = os.path.join(work, "quantised.gguf")
        matrix = ["--imatrix", self.wanted.imatrix] if self.wanted.imatrix else []
        argv = [str(self.wanted.quantize), *matrix, converted, quantised, self.wanted.quant, str(threads)]
        self.progress.say("quantizing", now=True)
        runs.quantize(argv, env, self.progress.say)
        return quantised

    def _convert(
        self, source: Source, script: str, given: str, result: str, env: Mapping[str, str], *options: str
    ) -> None:
        """Run the converter; what it wrote gets its name when it is whole."""
        half = result + ".half"
        argv = [self.wanted.python, "-s", script, "--outtype", self.wanted.outtype, "--outfile", half, *options, given]
        self.progress.say("starting the converter", now=True)
        try:
            runs.convert(argv, env, half, source.tensors, self.progress.say)
        except ConvertError as error:
            raise ConvertError("\n".join([str(error), *_hints(source, options)])) from error
        with open(half, "rb") as stream:
            os.fsync(stream.fileno())
        os.rename(half, result)

    def _take(self, path: str, role: str, name: str, origin: str) -> File:
        self.progress.say("sha256 of the result", now=True)
        return self.store.take(path, name, role, self.progress, origin)


def _hints(source: Source, options: Iterable[str]) -> Iterator[str]:
    """Go through what is odd about a source that could not be converted."""
    if "--mmproj" in options:
        yield "This was the projector; leave mmproj out for a model that neither sees nor hears."
    if not source.tokenizer:
        yield "No file of the source looks like a tokenizer (tokenizer.json, tokenizer.model, vocab.txt): fetch it too."
    if source.own_code and source.withheld:
        yield "It names Python code of its own, which was withheld: %s." % ", ".join(source.withheld[:5])


def quantised_bytes(source: Source, quant: str) -> int:
    """Return about how many bytes a quantisation takes; rather more than less."""
    name = ALIASES.get(quant, quant)
    bits = _BITS.search(name)
    return (
        int(source.weights * (float(bits.group(1)) + MORE_BITS) / 8) + source.result_bytes("f16") // 50 if bits else 0
    )
