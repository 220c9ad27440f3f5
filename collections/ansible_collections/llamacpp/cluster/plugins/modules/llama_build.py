#!/usr/bin/python
# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compile llama.cpp and pack the result as a release."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_build
short_description: Compile llama.cpp and pack the result as one release
version_added: 0.1.0
description:
  - Unpacks the source, configures, compiles, lays the binaries out as C(bin/) and C(lib/) with a relative
    run path, tries them, writes the manifest and packs everything as one archive.
  - The action of the same name shows how far the compiler is while it works.
  - An archive of the same id that is already there is not built again.
  - A build that fails keeps its log, says its last lines and the most likely cause, and leaves no archive.
options:
  id:
    description: Identity of the release, from the filter P(llamacpp.cluster.release_id#filter).
    type: str
    required: true
  inputs:
    description: Everything that decides what the build contains; goes into the manifest.
    type: dict
    required: true
  source:
    description: Archive of the source on the builder.
    type: path
    required: true
  build_number:
    description: Build number that the binaries shall report.
    type: int
    required: true
  commit:
    description: Commit that the binaries shall report.
    type: str
    required: true
  directory:
    description: Directory for sources, object files and archives.
    type: path
    default: /var/cache/llamacpp/build
  ccache_directory:
    description: Cache of the compiler.
    type: path
    default: /var/cache/llamacpp/ccache
  jobs:
    description: Compilers at a time. 0 means one a CPU, but no more than one for 1.5 GiB of memory.
    type: int
    default: 0
  environment:
    description: Environment of CMake and the compiler, for example CUDACXX.
    type: dict
    default: {}
  progress_file:
    description: Set by the action plugin. The file to write the progress to.
    type: path
extends_documentation_fragment:
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Compile llama.cpp
  llamacpp.cluster.llama_build:
    id: "{{ __llama_cpp_inputs | llamacpp.cluster.release_id }}"
    inputs: "{{ __llama_cpp_inputs }}"
    source: /var/cache/llamacpp/build/llama.cpp-b11434.tar.gz
    build_number: 11434
    commit: b11434
"""

RETURN = r"""
archive:
  description: The packed release on the builder.
  returned: always
  type: str
sha256:
  description: Its sha256. Empty in check mode before the build.
  returned: always
  type: str
duration:
  description: Seconds that the build took; 0 when nothing was built.
  returned: always
  type: int
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from typing import TextIO

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._command import run_streaming
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    MANIFEST,
    MANIFEST_SCHEMA,
    RPC_SERVER_NAMES,
    ReleaseError,
    choose_targets,
    describe_tree,
    file_sha256,
    probable_cause,
)

MEMORY_PER_JOB = 1536 << 20
TAIL_LINES = 25
# ninja: "[12/230] Building"; make: "[ 12%] Building"
STEP = re.compile(r"^\[\s*(\d+)(?:/(\d+)|%)\]")


class Build:
    """One build in one directory."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.progress = Progress(module.params["progress_file"])
        self.work = os.path.join(self.params["directory"], self.params["id"])
        self.archive = os.path.join(self.params["directory"], "%s.tar.gz" % self.params["id"])
        self.log_path = os.path.join(self.params["directory"], "%s.log" % self.params["id"])

    def environment(self) -> dict[str, str]:
        """Return the environment of CMake and the compilers."""
        added = {key: str(value) for key, value in self.params["environment"].items()}
        return dict(
            os.environ,
            LC_ALL="C.UTF-8",
            CCACHE_DIR=self.params["ccache_directory"],
            # Each release has its own directory: a file that did not change is found again all the same.
            CCACHE_BASEDIR=self.work,
            CCACHE_NOHASHDIR="true",
            **added,
        )

    def run(self) -> None:
        """Build unless the archive is there; hold a lock so that two runs do not share object files."""
        os.makedirs(self.params["directory"], mode=0o755, exist_ok=True)
        os.makedirs(self.params["ccache_directory"], mode=0o755, exist_ok=True)
        with open(self.work + ".lock", "w", encoding="ascii") as lock:
            self.progress.say("waiting for another build of %s" % self.params["id"], now=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(self.archive):
                return
            tree = self.unpack()
            build = os.path.join(self.work, "build")
            with open(self.log_path, "w", encoding="utf-8") as log:
                self.configure(tree, build, log)
                self.compile(build, log)
            stage = os.path.join(self.work, "stage")
            self.lay_out(build, stage)
            self.pack(stage)
            shutil.rmtree(self.work)

    def unpack(self) -> str:
        """Unpack the source afresh; return the directory with llama.cpp's CMakeLists.txt."""
        self.progress.say("unpacking the source", now=True)
        if os.path.isdir(self.work):
            shutil.rmtree(self.work)
        source = os.path.join(self.work, "source")
        os.makedirs(source)
        try:
            with tarfile.open(self.params["source"]) as tar:
                tar.extractall(source)
        except (tarfile.TarError, EOFError) as error:
            raise ReleaseError("%s is not a whole archive: %s" % (self.params["source"], error)) from error
        for directory, names, files in os.walk(source):
            if "CMakeLists.txt" in files and "ggml" in names:
                return directory
            if directory.count(os.sep) - source.count(os.sep) >= 2:
                names.clear()
        raise ReleaseError("%s holds no llama.cpp: no CMakeLists.txt beside ggml/" % self.params["source"])

    def configure(self, tree: str, build: str, log: TextIO) -> None:
        """Run CMake."""
        self.progress.say("configuring", now=True)
        arguments = ["cmake", "-S", tree, "-B", build, *self.params["inputs"]["cmake_args"]]
        arguments += [
            "-DLLAMA_BUILD_NUMBER=%d" % self.params["build_number"],
            "-DLLAMA_BUILD_COMMIT=%s" % self.params["commit"],
            "-DBUILD_NUMBER=%d" % self.params["build_number"],
            "-DBUILD_COMMIT=%s" % self.params["commit"],
        ]
        if shutil.which("ninja"):
            arguments += ["-G", "Ninja"]
        if shutil.which("ccache"):
            for language in ["C", "CXX"] + (["CUDA"] if self.params["inputs"]["backend"] == "cuda" else []):
                arguments.append("-DCMAKE_%s_COMPILER_LAUNCHER=ccache" % language)
        self.command(arguments, log)

    def compile(self, build: str, log: TextIO) -> None:
        """Compile what a node needs and nothing else."""
        listed = subprocess.run(
            ["cmake", "--build", build, "--target", "help"],
            env=self.environment(),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
        available = re.findall(r"^(?:\.\.\. )?([A-Za-z0-9_.-]+)(?::.*)?$", listed, re.MULTILINE)
        targets = choose_targets(available)
        self.command(["cmake", "--build", build, "--parallel", str(self.jobs()), "--target", *targets], log)
        self.targets = targets

    def jobs(self) -> int:
        """Return how many compilers to run at a time."""
        if self.params["jobs"]:
            return int(self.params["jobs"])
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(1, min(len(os.sched_getaffinity(0)), memory // MEMORY_PER_JOB))

    def command(self, argv: list[str], log: TextIO) -> None:
        """Run a command, keep its output in the log, and turn its steps into progress."""
        log.write("+ %s\n" % " ".join(argv))

        def read(line: str) -> None:
            log.write(line)
            step = STEP.match(line)
            if step:
                done, total = int(step.group(1)), int(step.group(2) or 100)
                self.progress.say("compiling llama.cpp: %d %% (%d of %d)" % (100 * done // total, done, total))

        rc = run_streaming(argv, self.environment(), read)
        log.flush()
        if rc:
            self.fail(argv)

    def fail(self, argv: list[str]) -> None:
        """Fail with the end of the log and the most likely cause."""
        with open(self.log_path, encoding="utf-8", errors="replace") as stream:
            tail = "".join(stream.readlines()[-TAIL_LINES:])
        cause = probable_cause(tail)
        raise ReleaseError(
            "%s failed%s\nThe whole log is in %s on the builder; its end:\n%s"
            % (" ".join(argv[:2]), ". Probable cause: %s" % cause if cause else ".", self.log_path, tail)
        )

    def lay_out(self, build: str, stage: str) -> None:
        """Copy binaries and libraries to their places and try the server."""
        self.progress.say("installing", now=True)
        for name in ("bin", "lib"):
            os.makedirs(os.path.join(stage, name))
        for name in self.targets:
            shutil.copy2(os.path.join(build, "bin", name), os.path.join(stage, "bin", name))
        for directory, _names, files in os.walk(build):
            for name in files:
                if re.search(r"\.so(\.\d+)*$", name):
                    shutil.copy2(os.path.join(directory, name), os.path.join(stage, "lib", name), follow_symlinks=False)
        server = subprocess.run(
            [os.path.join(stage, "bin", "llama-server"), "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
        )
        number = self.params["build_number"]
        if server.returncode or (number and str(number) not in server.stdout):
            raise ReleaseError("the new llama-server does not say build %d: %s" % (number, server.stdout.strip()))

    def pack(self, stage: str) -> None:
        """Write the manifest and the archive; the archive's name appears last."""
        self.progress.say("packing", now=True)
        compiler = subprocess.run(
            ["c++", "--version"], stdout=subprocess.PIPE, check=False, text=True
        ).stdout.splitlines()
        manifest = {
            "schema": MANIFEST_SCHEMA,
            "id": self.params["id"],
            "inputs": self.params["inputs"],
            "build_number": self.params["build_number"],
            "commit": self.params["commit"],
            "compiler": compiler[0] if compiler else "",
            "rpc_server": next(name for name in self.targets if name in RPC_SERVER_NAMES),
            "files": describe_tree(stage),
        }
        with open(os.path.join(stage, MANIFEST), "w", encoding="utf-8") as stream:
            json.dump(manifest, stream, indent=2, sort_keys=True)
            stream.write("\n")
        temporary = self.archive + ".new"
        with tarfile.open(temporary, "w:gz", compresslevel=6) as tar:
            tar.add(stage, arcname=".", filter=_as_root)
        os.rename(temporary, self.archive)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whoever builds, the files of a release belong to root."""
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "required": True},
            "inputs": {"type": "dict", "required": True},
            "source": {"type": "path", "required": True},
            "build_number": {"type": "int", "required": True},
            "commit": {"type": "str", "required": True},
            "directory": {"type": "path", "default": "/var/cache/llamacpp/build"},
            "ccache_directory": {"type": "path", "default": "/var/cache/llamacpp/ccache"},
            "jobs": {"type": "int", "default": 0},
            "environment": {"type": "dict", "default": {}},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    build = Build(module)
    changed = not os.path.exists(build.archive)
    started = time.monotonic()
    if changed and not module.check_mode:
        try:
            build.run()
        except (ReleaseError, OSError, subprocess.SubprocessError) as error:
            module.fail_json(msg="release %s: %s" % (module.params["id"], error))
        finally:
            build.progress.close()
    there = os.path.exists(build.archive)
    module.exit_json(
        changed=changed,
        archive=build.archive,
        sha256=file_sha256(build.archive) if there else "",
        duration=round(time.monotonic() - started) if changed and there else 0,
    )


if __name__ == "__main__":
    main()
