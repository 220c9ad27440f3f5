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
  - Unpacks the source, applies patches, configures, compiles, lays the binaries out as C(bin/) and C(lib/) with a
    relative run path, tries them, writes the manifest and packs everything as one archive.
  - The program that module M(llamacpp.cluster.rpc_cache) hashes with is compiled beside them. It is no part of what
    decides the release's id, so an archive from before it existed, or with an older one, stays as it is.
  - CUDA's run-time libraries become part of the release, so that a node needs nothing of CUDA but the driver.
  - The action of the same name shows how far the compiler is while it works.
  - An archive of the same id that is already there is not built again.
  - One run at a time builds the same release; others wait and see for whom. Different releases may be built at once.
  - A build that fails keeps its log, says its last lines and the most likely cause, and leaves nothing else behind.
    What was compiled by then stays in the compiler's cache.
options:
  id:
    description: Identity of the release, from the plan.
    type: str
    required: true
  inputs:
    description:
      - Everything that decides what the build contains; goes into the manifest.
      - C(cmake_args), C(backend), C(build_type), C(cflags), C(cxxflags), C(patches) and C(web_ui) of it are used.
    type: dict
    required: true
  source:
    description: Archive of the source on the builder.
    type: path
    required: true
  patches:
    description: Patches on the builder, in the order in which they are applied. O(inputs) has their sha256.
    type: list
    elements: path
    default: []
  web_ui:
    description: Archive on the builder with the pages of the web UI, already built. Without it the server has none.
    type: path
  rpc_cache_source:
    description: Set by the action plugin. Source in C of C(llamacpp-rpc-cache). Without it the release has none.
    type: str
    default: ""
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
    description: Compilers at a time. 0 means one a CPU, but no more than one for 1.5 GiB of available memory.
    type: int
    default: 0
  environment:
    description: Environment of CMake and the compiler, for example CUDACXX. Wins over O(enable).
    type: dict
    default: {}
  enable:
    description: Scripts that bash sources for this build alone, for example V(/opt/rh/gcc-toolset-12/enable).
    type: list
    elements: path
    default: []
  lock_wait:
    description: Seconds to wait for another run that builds the same release.
    type: int
    default: 3600
  holder:
    description: Who runs this; shown to others who wait.
    type: str
    default: ""
extends_documentation_fragment:
  - llamacpp.cluster.watched
  - llamacpp.cluster.attributes.no_diff
author:
  - The llamacpp.cluster authors (@llamacpp-cluster)
"""

EXAMPLES = r"""
- name: Compile llama.cpp
  llamacpp.cluster.llama_build:
    id: "{{ __llama_cpp_release.id }}"
    inputs: "{{ __llama_cpp_release.inputs }}"
    source: /var/cache/llamacpp/build/llama.cpp-b11434.tar.gz
    build_number: 11434
    commit: b11434
    environment: "{{ __llama_cpp_release.toolchain.environment }}"
    enable: [/opt/rh/gcc-toolset-12/enable]
"""

RETURN = r"""
archive:
  description: The packed release on the builder.
  returned: success
  type: str
sha256:
  description: Its sha256. Empty in check mode before the build.
  returned: success
  type: str
duration:
  description: Seconds that the build took, without waiting for others; 0 when nothing was built.
  returned: success
  type: int
ccache:
  description: How many files came from the compiler's cache (C(hits)) and how many did not (C(misses)).
  returned: when something was built
  type: dict
sizes:
  description:
    - Bytes of what was compiled (C(compiled)), of the same without symbols (C(stripped)), of CUDA's libraries beside it
      (C(runtime)), and of the archive (C(archive)).
  returned: when something was built
  type: dict
manifest:
  description: The release's manifest without its files.
  returned: when something was built
  type: dict
"""

import errno
import os
import shutil
import socket
import subprocess
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.llamacpp.cluster.plugins.module_utils._build_cmake import (
    ccache_counts,
    configure_arguments,
    jobs,
    read_cache,
    targets,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_layout import Layout, lay_out, total_bytes
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_lock import MARK, build_lock, stop_leftovers
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_pack import pack, write_manifest
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_rpc_cache import (
    compile_rpc_cache,
    source_sha256,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_run import Runner, enabled
from ansible_collections.llamacpp.cluster.plugins.module_utils._build_source import (
    apply_patch,
    check_patches,
    place_ui,
    unpack_source,
)
from ansible_collections.llamacpp.cluster.plugins.module_utils._cpu_flags import needed_flags, probe_commands
from ansible_collections.llamacpp.cluster.plugins.module_utils._elf import ElfError
from ansible_collections.llamacpp.cluster.plugins.module_utils._progress import Progress
from ansible_collections.llamacpp.cluster.plugins.module_utils._release import (
    MANIFEST_SCHEMA,
    RPC_SERVER_NAMES,
    ReleaseError,
    choose_targets,
    describe_tree,
    file_sha256,
)

# Somebody who asks for these wants to look into the binaries with a debugger.
DEBUG_BUILD_TYPES = ("debug", "relwithdebinfo")
NO_DRIVER = "libcuda.so.1: cannot open shared object file"


class Build:
    """One build in one directory."""

    def __init__(self, module: AnsibleModule) -> None:
        self.params = module.params
        self.inputs: dict[str, Any] = module.params["inputs"]
        self.progress = Progress(module.params["progress_file"])
        place = os.path.join(self.params["directory"], self.params["id"])
        self.work = place
        self.tree = ""
        self.build = os.path.join(place, "build")
        self.stage = os.path.join(place, "stage")
        self.archive = place + ".tar.gz"
        self.log_path = place + ".log"
        self.lock_path = place + ".lock"

    def run(self) -> dict[str, Any]:
        """Build unless the archive is there; return what to report."""
        for name in ("directory", "ccache_directory"):
            os.makedirs(self.params[name], mode=0o755, exist_ok=True)
        params = self.params
        with build_lock(self.lock_path, params["id"], params["holder"], params["lock_wait"], self.progress.say):
            if os.path.exists(self.archive):
                return {"changed": False}
            stop_leftovers(self.work)
            self.wipe()
            try:
                return self.build_release()
            finally:
                self.wipe()

    def wipe(self) -> None:
        """Remove sources and object files, as of a build that was killed."""
        if os.path.lexists(self.work):
            shutil.rmtree(self.work)

    def build_release(self) -> dict[str, Any]:
        """Go through all steps."""
        started = time.time()
        os.makedirs(os.path.join(self.work, "tmp"))
        with open(self.log_path, "w", encoding="utf-8"):
            # The log of an earlier build ends here.
            pass
        runner = Runner(self.environment(), self.log_path, self.progress.say)
        before = self.ccache(runner)
        self.prepare(runner)
        self.configure(runner)
        chosen = self.compile(runner)
        self.progress.say("laying the binaries out", now=True)
        cache = self.cache()
        ours = compile_rpc_cache(runner, cache, self.params["rpc_cache_source"], self.work, self.build)
        layout = lay_out(self.build, self.stage, [*chosen, *ours], cache)
        sizes = {"compiled": total_bytes(self.stage, layout.own), "runtime": total_bytes(self.stage, layout.runtime)}
        self.strip(runner, cache, layout)
        sizes["stripped"] = total_bytes(self.stage, layout.own)
        self.try_server()
        manifest = self.manifest(runner, cache, chosen, layout, started)
        self.progress.say("packing", now=True)
        write_manifest(self.stage, dict(manifest, files=describe_tree(self.stage)))
        pack(self.stage, self.archive)
        sizes["archive"] = os.stat(self.archive).st_size
        counts = {name: count - before[name] for name, count in self.ccache(runner).items()}
        return {
            "changed": True,
            "duration": manifest["duration"],
            "ccache": counts,
            "sizes": sizes,
            "manifest": manifest,
        }

    def environment(self) -> dict[str, str]:
        """Return the environment of CMake and the compilers."""
        base = dict(
            os.environ,
            LC_ALL="C.UTF-8",
            # The compilers' own files are as large as the objects: on the same disk, and wiped with them.
            TMPDIR=os.path.join(self.work, "tmp"),
            CCACHE_DIR=self.params["ccache_directory"],
            # Each release has its own directory: a file that did not change is found again all the same.
            CCACHE_BASEDIR=self.work,
            CCACHE_NOHASHDIR="true",
        )
        found = enabled(base, self.params["enable"])
        found.update({key: str(value) for key, value in self.params["environment"].items()})
        found[MARK] = self.work
        return found

    def prepare(self, runner: Runner) -> None:
        """Unpack the source, apply patches, put the web UI in."""
        self.progress.say("unpacking the source", now=True)
        wanted = self.inputs.get("patches") or []
        check_patches(self.params["patches"], wanted)
        self.tree = unpack_source(self.params["source"], os.path.join(self.work, "source"))
        for path, entry in zip(self.params["patches"], wanted):
            runner.note("+ patch %s\n%s" % (entry["name"], apply_patch(self.tree, path, entry["name"])))
        if self.inputs.get("web_ui") and not self.params["web_ui"]:
            raise ReleaseError("the release has a web UI, and its pages were not given")
        if self.params["web_ui"]:
            place_ui(self.params["web_ui"], self.tree)

    def configure(self, runner: Runner) -> None:
        """Run CMake."""
        self.progress.say("configuring", now=True)
        path = runner.environment.get("PATH")
        arguments = configure_arguments(
            self.inputs,
            self.params["build_number"],
            self.params["commit"],
            ninja=shutil.which("ninja", path=path) is not None,
            ccache=shutil.which("ccache", path=path) is not None,
        )
        runner.run(["cmake", "-S", self.tree, "-B", self.build, *arguments])

    def cache(self) -> dict[str, str]:
        """Return what CMake remembers of its configuration."""
        with open(os.path.join(self.build, "CMakeCache.txt"), encoding="utf-8", errors="replace") as stream:
            return read_cache(stream.read())

    def compile(self, runner: Runner) -> list[str]:
        """Compile what a node needs and nothing else; return the names of the executables."""
        chosen = choose_targets(targets(runner.output(["cmake", "--build", self.build, "--target", "help"])))
        runner.run(["cmake", "--build", self.build, "--parallel", str(self.jobs()), "--target", *chosen])
        return chosen

    def jobs(self) -> int:
        """Return how many compilers to run at a time."""
        if self.params["jobs"]:
            return int(self.params["jobs"])
        with open("/proc/meminfo", encoding="ascii") as stream:
            available = next(int(line.split()[1]) for line in stream if line.startswith("MemAvailable:"))
        return jobs(len(os.sched_getaffinity(0)), available << 10)

    def strip(self, runner: Runner, cache: dict[str, str], layout: Layout) -> None:
        """Remove the symbols that only a debugger needs, unless the build is for one."""
        if cache.get("CMAKE_BUILD_TYPE", "").lower() not in DEBUG_BUILD_TYPES:
            paths = [os.path.join(self.stage, name) for name in layout.own]
            runner.output([cache.get("CMAKE_STRIP") or "strip", "--strip-unneeded", *paths])

    def try_server(self) -> None:
        """Let the new server say its version. Without a GPU's driver it may not even start; the nodes try it again."""
        server = subprocess.run(
            [os.path.join(self.stage, "bin", "llama-server"), "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            errors="replace",
        )
        number = self.params["build_number"]
        if server.returncode and NO_DRIVER in server.stdout:
            return
        if server.returncode or (number and str(number) not in server.stdout):
            raise ReleaseError("the new llama-server does not say build %d: %s" % (number, server.stdout.strip()))

    def manifest(
        self, runner: Runner, cache: dict[str, str], chosen: list[str], layout: Layout, started: float
    ) -> dict[str, Any]:
        """Return the manifest without its files."""
        with open(os.path.join(self.build, "compile_commands.json"), encoding="utf-8") as stream:
            printed = [runner.output(command) for command in probe_commands(stream.read())]
        compiler = runner.output([cache.get("CMAKE_CXX_COMPILER") or "c++", "--version"]).splitlines()
        nvcc = cache.get("CMAKE_CUDA_COMPILER")
        cuda = runner.output([nvcc, "--version"]).splitlines() if nvcc else []
        return {
            "schema": MANIFEST_SCHEMA,
            "kind": "build",
            "id": self.params["id"],
            "inputs": self.inputs,
            "build_number": self.params["build_number"],
            "commit": self.params["commit"],
            "compiler": compiler[0] if compiler else "",
            "cuda_compiler": next((line for line in cuda if "release" in line), ""),
            "builder": socket.gethostname(),
            "built_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "duration": round(time.time() - started),
            "rpc_server": next(name for name in chosen if name in RPC_SERVER_NAMES),
            "plugins": bool(layout.plugins),
            "rpc_cache": source_sha256(self.params["rpc_cache_source"]),
            "cpu_flags": needed_flags(printed),
            "libc": layout.libc,
        }

    def ccache(self, runner: Runner) -> dict[str, int]:
        """Return what the compiler's cache has counted so far; zeros where there is none."""
        if shutil.which("ccache", path=runner.environment.get("PATH")) is None:
            return ccache_counts("")
        return ccache_counts(runner.output(["ccache", "--print-stats"]))


def words(error: Exception, directory: str) -> str:
    """Return the message of an error; of a full disk with how full it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(directory).free >> 20
        return (
            "%s: the disk of %s is full (%d MiB free, now that the build is removed): free some space, or set "
            "llamacpp_build_dir to another disk" % (error, directory, free)
        )
    return str(error)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "id": {"type": "str", "required": True},
            "inputs": {"type": "dict", "required": True},
            "source": {"type": "path", "required": True},
            "patches": {"type": "list", "elements": "path", "default": []},
            "web_ui": {"type": "path"},
            "rpc_cache_source": {"type": "str", "default": ""},
            "build_number": {"type": "int", "required": True},
            "commit": {"type": "str", "required": True},
            "directory": {"type": "path", "default": "/var/cache/llamacpp/build"},
            "ccache_directory": {"type": "path", "default": "/var/cache/llamacpp/ccache"},
            "jobs": {"type": "int", "default": 0},
            "environment": {"type": "dict", "default": {}},
            "enable": {"type": "list", "elements": "path", "default": []},
            "lock_wait": {"type": "int", "default": 3600},
            "holder": {"type": "str", "default": ""},
            "progress_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    build = Build(module)
    result: dict[str, Any] = {"changed": not os.path.exists(build.archive), "duration": 0}
    if result["changed"] and not module.check_mode:
        try:
            result.update(build.run())
        except (ReleaseError, ElfError, OSError) as error:
            module.fail_json(msg="release %s: %s" % (module.params["id"], words(error, module.params["directory"])))
        finally:
            build.progress.close()
    there = os.path.exists(build.archive)
    module.exit_json(archive=build.archive, sha256=file_sha256(build.archive) if there else "", **result)


if __name__ == "__main__":
    main()
